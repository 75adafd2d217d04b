//! What `edgemesh-agent status` shows of a real agent, and who may ask.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    ClusterService, Family, Flavour, KubeProxy, KubeProxyMode, Lab, Place, Program, Serve,
    SideBySide, await_ok, has_users, test, test_among_users, test_each_flavour,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
/// The agent promises 2 s; the rest is for a machine that is busy with other tests.
const REPAIRED: Duration = Duration::from_secs(15);

fn running(lab: &Lab, flavour: Flavour) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
    stage.serve(8080, Serve::Identity)?;
    stage.publish(&[
        ClusterService::new("default/web")
            .cluster_ip("10.96.10.1")
            .tcp("http", 80, 8080),
        ClusterService::new("default/theirs")
            .cluster_ip("10.96.10.2")
            .tcp("http", 80, 8080)
            .label("service.edgemesh.kubeedge.io/service-proxy-name", ""),
        ClusterService::new("default/headless").tcp("http", 80, 8080),
    ])?;
    stage.start_kube_proxy()?;
    stage.agent.start()?;
    Ok(stage)
}

fn status(stage: &SideBySide) -> Result<serde_json::Value> {
    let text = stage
        .agent
        .command("status")
        .args(["--output", "json"])
        .run()?;
    serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
}

#[test]
fn a_running_agent_tells_what_it_does_with_which_services_and_through_what() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running(lab, flavour)?;
        stage.client.ask("10.96.10.1:80", "hello")?;
        let status = status(&stage)?;
        assert_eq!(status["node"], "edge-1");
        assert_eq!(status["ready"], true);
        assert_eq!(status["source"]["origin"], "the manifests directory");
        assert_eq!(status["source"]["services"], 3);
        assert_eq!(status["families"][0]["family"], "IPv4");
        assert_eq!(
            status["families"][0]["backend"],
            format!("iptables-{flavour}")
        );
        assert_eq!(status["families"][0]["precedence"]["repairs"], 0);
        assert_eq!(status["services"]["ports"], 3);
        assert_eq!(status["services"]["forwarded"], 1);
        assert_eq!(
            status["services"]["left_alone"]
                .as_object()
                .map(serde_json::Map::len),
            Some(2)
        );
        assert_eq!(status["services"]["by_kernel"], 1);
        assert_eq!(status["tcp"]["accepted"], 0, "the kernel took it: {status}");
        assert!(status["process"]["memory_bytes"].as_u64() > Some(0));

        let screen = stage.agent.command("status").run()?;
        assert!(screen.starts_with("READY "), "{screen}");
        assert!(
            screen.lines().all(|line| line.chars().count() <= 80),
            "{screen}"
        );
        Ok(())
    })
}

#[test]
fn a_flush_that_was_repaired_is_told_with_what_and_when() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running(lab, flavour)?;
        stage.iptables(Family::V4, "-t nat -F")?;
        await_ok(REPAIRED, "status tells of the repair", || {
            let status = status(&stage)?;
            let precedence = &status["families"][0]["precedence"];
            ensure!(precedence["repairs"].as_u64() > Some(0), "{precedence}");
            let what = &precedence["latest"][0]["what"];
            ensure!(
                what.as_str().is_some_and(|w| w.contains("EDGEMESH")),
                "{what}"
            );
            ensure!(
                precedence["latest"][0]["at"]["at"].is_string(),
                "{precedence}"
            );
            ensure!(precedence["held_since"].is_object(), "{precedence}");
            Ok(())
        })?;
        let screen = stage.agent.command("status").run()?;
        assert!(screen.contains("last repair"), "{screen}");
        Ok(())
    })
}

#[test]
fn without_an_agent_it_says_so_and_fails() -> Result<()> {
    test(|lab| {
        let mut stage = running(lab, Flavour::Nft)?;
        stage.agent.stop()?;
        let finished = stage.agent.command("status").output()?;
        assert_eq!(finished.status.code(), Some(1));
        assert!(
            finished.stderr.contains("no agent answers"),
            "{}",
            finished.stderr
        );
        assert_eq!(finished.stdout, "");
        Ok(())
    })
}

#[test]
fn only_root_is_told() -> Result<()> {
    test_among_users(|lab| {
        let stage = running(lab, Flavour::Nft)?;
        if !has_users()? {
            println!("not looked at: there is nobody but root here; run it as root");
            return Ok(());
        }
        // The asker belongs to a user who may not read where this program is built.
        let everybodys = Path::new("/run/everybodys");
        std::fs::copy(AGENT, everybodys)?;
        let setpriv = Program::new("setpriv").args(["--reuid=65534", "--clear-groups"]);
        let asker = stage.node.program(everybodys).arg("status").run_by(setpriv);
        let finished = asker.output()?;
        assert_eq!(finished.status.code(), Some(1));
        let said = &finished.stderr;
        assert!(said.contains("only root may ask"), "{said}");
        assert!(said.contains("you are uid 65534"), "{said}");
        Ok(())
    })
}

#[test]
fn iptables_by_the_operators_will_beside_kube_proxys_nftables_mode_is_told() -> Result<()> {
    test(|lab| {
        let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, Flavour::Nft, AGENT)?;
        stage.agent.configure(
            "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\nkind: EdgeMeshAgent\n\
             modules:\n  edgeProxy:\n    enable: true\n    backend: iptables\n",
        )?;
        stage.agent.start()?;
        // In the reasons of how many families it is told.
        let told = || -> Result<usize> {
            let status = status(&stage)?;
            let families = status["families"].as_array().context("no families")?;
            let reasons = families.iter().map(|family| family["reason"].to_string());
            let doubt = "kube-proxy runs in nftables mode";
            Ok(reasons.filter(|reason| reason.contains(doubt)).count())
        };
        ensure!(told()? == 0);
        // kube-proxy comes in that mode while the agent runs, and goes.
        KubeProxy::start(&stage.node, KubeProxyMode::Nftables, &[])?;
        await_ok(REPAIRED, "status tells of it", || {
            ensure!(told()? == 2);
            Ok(())
        })?;
        for family in ["ip", "ip6"] {
            let words = ["delete", "table", family, "kube-proxy"];
            stage.node.program("nft").args(words).run()?;
        }
        await_ok(REPAIRED, "status tells of it no more", || {
            ensure!(told()? == 0);
            Ok(())
        })?;
        let log = stage.agent.log()?;
        let warned = log
            .matches("depends on whose chains were made last")
            .count();
        // Once for each family.
        ensure!(warned == 2, "{log}");
        Ok(())
    })
}
