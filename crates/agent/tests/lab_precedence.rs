//! Whoever comes first, whatever happens to the rules: the agent's chains stand before
//! kube-proxy's, and foreign rules stay as they are.

use std::time::Duration;

use anyhow::{Result, ensure};
use edgemesh_lab::{
    ClusterService, Family, Flavour, Handler, Lab, Serve, SideBySide, Table, await_ok,
    leave_kubelets_signs, test_each_flavour,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const WEB: [&str; 2] = ["10.96.10.1:80", "[fd00:96::1]:80"];
/// The agent promises 2 s; the rest is for a machine that is busy with other tests.
const REPAIRED: Duration = Duration::from_secs(15);

fn stage(lab: &Lab, flavour: Flavour) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
    stage.serve(8080, Serve::Identity)?;
    stage.publish(&[ClusterService::new("default/web")
        .cluster_ip("10.96.10.1")
        .cluster_ip("fd00:96::1")
        .tcp("http", 80, 8080)])?;
    Ok(stage)
}

fn await_agent_first(stage: &SideBySide, after: &str) -> Result<()> {
    await_ok(
        REPAIRED,
        &format!("the agent is first again after {after}"),
        || agent_is_first(stage),
    )
}

fn agent_is_first(stage: &SideBySide) -> Result<()> {
    stage.check_precedence(&["default/web:http"])?;
    for to in WEB {
        stage.check_handled_by(Handler::Agent, to)?;
    }
    Ok(())
}

#[test]
fn started_after_kube_proxy_the_agent_stands_before_it() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.start_kube_proxy()?;
        for to in WEB {
            stage.check_handled_by(Handler::KubeProxy, to)?;
        }
        let foreign = stage.foreign_rules()?;
        stage.agent.start()?;
        agent_is_first(&stage)?;
        assert_eq!(stage.foreign_rules()?, foreign);
        Ok(())
    })
}

/// kubeedge/edgemesh#286: after a restart of the node the agent's chain stood behind
/// KUBE-SERVICES until somebody redeployed it.
#[test]
fn after_a_node_restart_the_agent_is_first_although_kube_proxy_came_later() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        leave_kubelets_signs(&stage.node, flavour)?;
        stage.agent.start()?;
        agent_is_first(&stage)?;
        stage.start_kube_proxy()?;
        let foreign = stage.foreign_rules()?;
        await_agent_first(&stage, "kube-proxy started")?;
        assert_eq!(stage.foreign_rules()?, foreign);
        Ok(())
    })
}

/// Nothing tells the flavour when the agent starts; kube-proxy then comes with its own.
#[test]
fn an_agent_that_came_before_every_sign_follows_kube_proxy_to_its_flavour() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.agent.start()?;
        for to in WEB {
            stage.check_handled_by(Handler::Agent, to)?;
        }
        stage.start_kube_proxy()?;
        await_agent_first(&stage, "kube-proxy started")?;
        // They are brought there first, and only then taken out of the other one.
        await_ok(REPAIRED, "nothing is left in the other flavour", || {
            check_no_trace_in_other_flavour(&stage, flavour)
        })
    })
}

#[test]
fn a_kube_proxy_that_puts_its_jumps_first_again_is_overtaken_again() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        for family in Family::ALL {
            for chain in ["PREROUTING", "OUTPUT"] {
                let place = stage.nat(family)?.jumps(chain, "KUBE-SERVICES")[0] + 1;
                stage.iptables(family, &format!("-t nat -D {chain} {place}"))?;
            }
        }
        stage.restart_kube_proxy()?;
        await_agent_first(&stage, "kube-proxy restarted")
    })
}

#[test]
fn a_flushed_nat_table_is_repaired_before_and_after_kube_proxy_comes_back() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        for family in Family::ALL {
            stage.iptables(family, "-t nat -F")?;
        }
        await_agent_first(&stage, "a flush")?;
        stage.restart_kube_proxy()?;
        let foreign = stage.foreign_rules()?;
        await_agent_first(&stage, "kube-proxy repaired its own after a flush")?;
        assert_eq!(stage.foreign_rules()?, foreign);
        Ok(())
    })
}

#[test]
fn a_deleted_jump_is_put_back() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        for family in Family::ALL {
            for (chain, ours) in [
                ("PREROUTING", "EDGEMESH-PORTALS-CONTAINER"),
                ("OUTPUT", "EDGEMESH-PORTALS-HOST"),
            ] {
                let place = stage.nat(family)?.jumps(chain, ours)[0] + 1;
                stage.iptables(family, &format!("-t nat -D {chain} {place}"))?;
                await_agent_first(&stage, &format!("the jump from {chain} was deleted"))?;
            }
        }
        Ok(())
    })
}

#[test]
fn each_rule_that_is_deleted_is_put_back_and_nothing_else_changes() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        let foreign = stage.foreign_rules()?;
        for chain in ["EDGEMESH-PORTALS-CONTAINER", "EDGEMESH-PORTALS-HOST"] {
            let whole = sorted_rules(&stage, chain)?;
            for place in 1..=whole.len() {
                stage.iptables(Family::V4, &format!("-t nat -D {chain} {place}"))?;
                await_ok(
                    REPAIRED,
                    &format!("rule {place} of {chain} is back"),
                    || {
                        let now = sorted_rules(&stage, chain)?;
                        ensure!(now == whole, "there are {now:#?}");
                        Ok(())
                    },
                )?;
            }
        }
        agent_is_first(&stage)?;
        assert_eq!(stage.foreign_rules()?, foreign);
        Ok(())
    })
}

#[test]
fn a_strangers_rule_in_a_chain_of_ours_is_removed() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        stage.iptables(Family::V4, "-t nat -I EDGEMESH-PORTALS-CONTAINER -j ACCEPT")?;
        await_agent_first(&stage, "a stranger wrote into our chain")?;
        let rules = sorted_rules(&stage, "EDGEMESH-PORTALS-CONTAINER")?;
        assert!(!rules.iter().any(|rule| rule == "-j ACCEPT"), "{rules:#?}");
        Ok(())
    })
}

/// kubeedge/edgemesh#30, #155: no chain to be seen, since the rules had gone to the other
/// flavour of iptables.
#[test]
fn rules_go_to_the_flavour_that_kube_proxy_uses_and_to_no_other() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        stage.check_precedence(&["default/web:http"])?;
        check_no_trace_in_other_flavour(&stage, flavour)
    })
}

fn check_no_trace_in_other_flavour(stage: &SideBySide, flavour: Flavour) -> Result<()> {
    for other in Flavour::ALL.into_iter().filter(|other| *other != flavour) {
        for family in Family::ALL {
            let saved = other.save(&stage.node, family, Table::Nat)?;
            ensure!(!saved.contains("EDGEMESH"), "iptables-{other}: {saved}");
        }
    }
    Ok(())
}

/// The texts of a chain's rules; order among portals is free.
fn sorted_rules(stage: &SideBySide, chain: &str) -> Result<Vec<String>> {
    let nat = stage.nat(Family::V4)?;
    let mut texts: Vec<String> = nat
        .rules(chain)
        .iter()
        .map(|rule| rule.text.clone())
        .collect();
    texts.sort_unstable();
    Ok(texts)
}
