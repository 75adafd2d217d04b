//! Another component that insists on the first place in a chain gets it: the agent wants to
//! be before kube-proxy, not before everybody. (`--nocapture` prints what that costs.)

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Background, ClusterService, Family, Flavour, Handler, Lab, Place, Serve, SideBySide, await_ok,
    await_until, test_each_flavour,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const WEB: &str = "10.96.10.1:80";
const LONG: Duration = Duration::from_secs(30);
/// So many times the insistent one must have found itself in the first place, in a row, for
/// the chain to count as settled. It looks about 20 times a second: more than two of the
/// agent's own looks fit in.
const SETTLED: usize = 60;
/// As often a jump is prepended while the agent's processor time is taken.
const PREPENDED: usize = 100;

/// Puts a jump of its own first in PREROUTING and OUTPUT whenever it is not, and logs each
/// look: `first` or `moved`.
fn insist(lab: &Lab, stage: &SideBySide, flavour: Flavour) -> Result<Background> {
    let iptables = flavour.tool(Family::V4, "");
    let script = format!(
        "{iptables} -w 5 -t nat -N cali-INSISTENT\n\
         while :; do\n  for chain in PREROUTING OUTPUT; do\n    \
         if {iptables} -w 5 -t nat -S $chain 1 | grep -q cali-INSISTENT; then echo first; else\n      \
         {iptables} -w 5 -t nat -D $chain -j cali-INSISTENT 2>/dev/null\n      \
         {iptables} -w 5 -t nat -I $chain 1 -j cali-INSISTENT && echo moved\n    fi\n  done\n  \
         sleep 0.05\ndone\n"
    );
    stage
        .node
        .program("sh")
        .args(["-c", &script])
        .start(lab.folder().join("insistent.log"))
}

/// Puts a jump of its own first every 50 ms, whether it is or not.
fn keep_prepending(lab: &Lab, stage: &SideBySide, flavour: Flavour) -> Result<Background> {
    let restore = flavour.tool(Family::V4, "restore");
    let script = format!(
        "first='*nat\n:cali-INSISTENT - [0:0]\n-I PREROUTING -j cali-INSISTENT\n-I OUTPUT -j \
         cali-INSISTENT\nCOMMIT'\nagain='*nat\n-D PREROUTING -j cali-INSISTENT\n-I PREROUTING -j \
         cali-INSISTENT\n-D OUTPUT -j cali-INSISTENT\n-I OUTPUT -j cali-INSISTENT\nCOMMIT'\n\
         echo \"$first\" | {restore} -w 5 --noflush\n\
         while :; do\n  echo \"$again\" | {restore} -w 5 --noflush && echo prepended\n  \
         sleep 0.05\ndone\n"
    );
    stage
        .node
        .program("sh")
        .args(["-c", &script])
        .start(lab.folder().join("prepending.log"))
}

#[test]
fn a_component_that_prepends_its_jump_all_the_time_costs_next_to_nothing() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
        stage.serve(8080, Serve::Identity)?;
        let web = ClusterService::new("default/web").cluster_ip("10.96.10.1");
        stage.publish(&[web.tcp("http", 80, 8080)])?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        let prepending = keep_prepending(lab, &stage, flavour)?;
        let prepended = || prepending.log().matches("prepended").count();
        await_until(LONG, "it has begun", || prepended() > 0)?;
        let used = stage
            .agent
            .process()
            .context("no agent")?
            .processor_time()?;
        let (began, before) = (Instant::now(), prepended());
        await_until(LONG, "it did so many times", || {
            prepended() >= before + PREPENDED
        })?;
        let now = stage
            .agent
            .process()
            .context("no agent")?
            .processor_time()?;
        println!(
            "iptables-{flavour}: beside one who prepended its jump {:.0} times a second, the \
             agent used {:.1} % of a processor",
            (prepended() - before) as f64 / began.elapsed().as_secs_f64(),
            (now - used).as_secs_f64() * 100.0 / began.elapsed().as_secs_f64()
        );
        check_order(&stage)?;
        let log = stage.agent.log()?;
        ensure!(!log.contains("rules were repaired"), "{log}");
        Ok(())
    })
}

fn await_settled(insistent: &Background) -> Result<()> {
    await_until(LONG, "the insistent one keeps the first place", || {
        let log = insistent.log();
        let looks: Vec<&str> = log.lines().collect();
        let last = &looks[looks.len().saturating_sub(SETTLED)..];
        last.len() == SETTLED && last.iter().all(|look| *look == "first")
    })
    .map(|_| ())
}

fn moves(insistent: &Background) -> usize {
    insistent
        .log()
        .lines()
        .filter(|look| *look == "moved")
        .count()
}

/// kubernetes#66590, weave#3230, azure-container-networking#854: two components fighting
/// for the first place in a chain.
#[test]
fn a_component_that_insists_on_the_first_place_is_not_fought() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
        stage.serve(8080, Serve::Identity)?;
        let web = ClusterService::new("default/web").cluster_ip("10.96.10.1");
        stage.publish(&[web.tcp("http", 80, 8080)])?;
        stage.start_kube_proxy()?;
        let insistent = insist(lab, &stage, flavour)?;
        await_settled(&insistent)?;
        let before = moves(&insistent);

        // kube-proxy's jumps are there: ours go directly before them, and nobody has to move.
        stage.agent.start()?;
        await_settled(&insistent)?;
        ensure!(
            moves(&insistent) == before,
            "the agent took the first place"
        );
        check_order(&stage)?;

        // A kube-proxy that puts its own first again moves both; it ends in one order.
        for chain in ["PREROUTING", "OUTPUT"] {
            let place = stage.nat(Family::V4)?.jumps(chain, "KUBE-SERVICES")[0] + 1;
            stage.iptables(Family::V4, &format!("-t nat -D {chain} {place}"))?;
        }
        stage.restart_kube_proxy()?;
        await_ok(LONG, "the agent is before kube-proxy again", || {
            check_order(&stage)
        })?;
        await_settled(&insistent)?;
        check_order(&stage)
    })
}

fn check_order(stage: &SideBySide) -> Result<()> {
    let nat = stage.nat(Family::V4)?;
    for (chain, ours) in [
        ("PREROUTING", "EDGEMESH-PORTALS-CONTAINER"),
        ("OUTPUT", "EDGEMESH-PORTALS-HOST"),
    ] {
        ensure!(
            nat.jumps_before(chain, "cali-INSISTENT", ours),
            "{ours} stands first"
        );
        ensure!(
            nat.jumps_before(chain, ours, "KUBE-SERVICES"),
            "{ours} stands behind"
        );
    }
    stage.check_handled_by(Handler::Agent, WEB)
}
