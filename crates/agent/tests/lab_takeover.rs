//! What the agent leaves, finds and takes over: stops, crashes, a second agent, cleanup.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_lab::{
    ClusterService, Family, Flavour, Handler, Lab, Place, Serve, SideBySide, Signal, await_ok,
    test, test_each_flavour,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const WEB: [&str; 2] = ["10.96.10.1:80", "[fd00:96::1]:80"];
const LONG: Duration = Duration::from_secs(15);

fn web() -> ClusterService {
    ClusterService::new("default/web")
        .cluster_ip("10.96.10.1")
        .cluster_ip("fd00:96::1")
        .tcp("http", 80, 8080)
}

/// With kube-proxy and a few rules of others; the agent does not run yet.
fn stage(lab: &Lab, flavour: Flavour) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
    stage.serve(8080, Serve::Identity)?;
    stage.publish(&[web()])?;
    stage.start_kube_proxy()?;
    for family in Family::ALL {
        for command in [
            "-t nat -N cali-PREROUTING",
            "-t nat -A cali-PREROUTING -m comment --comment edgemesh -j RETURN",
            "-t nat -I PREROUTING -j cali-PREROUTING",
            "-t nat -A OUTPUT -m mark --mark 0x2000/0x2000 -j RETURN",
            "-t filter -A INPUT -p tcp --dport 20007 -j ACCEPT",
        ] {
            stage.iptables(family, command)?;
        }
    }
    Ok(stage)
}

fn check_handled_by(stage: &SideBySide, handler: Handler) -> Result<()> {
    for to in WEB {
        stage.check_handled_by(handler, to)?;
    }
    Ok(())
}

#[test]
fn an_orderly_stop_hands_over_to_kube_proxy_and_leaves_nothing() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        let foreign = stage.foreign_rules()?;
        stage.agent.start()?;
        check_handled_by(&stage, Handler::Agent)?;
        assert_eq!(stage.foreign_rules()?, foreign);
        assert_eq!(stage.agent.stop()?.code(), Some(0));
        check_handled_by(&stage, Handler::KubeProxy)?;
        stage.check_nothing_left()?;
        assert_eq!(stage.foreign_rules()?, foreign);
        Ok(())
    })
}

#[test]
fn after_kill_9_the_next_agent_takes_over_and_doubles_nothing() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        let foreign = stage.foreign_rules()?;
        stage.agent.start()?;
        let rules_before = agents_rules(&stage)?;
        stage.agent.kill()?;
        stage.agent.start()?;
        check_handled_by(&stage, Handler::Agent)?;
        stage.check_precedence(&["default/web:http"])?;
        assert_eq!(agents_rules(&stage)?, rules_before);
        assert_eq!(stage.foreign_rules()?, foreign);
        Ok(())
    })
}

#[test]
fn after_kill_9_what_has_changed_meanwhile_is_put_right() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        let gone = ClusterService::new("default/gone").cluster_ip("10.96.10.9");
        stage.publish(&[web(), gone.tcp("http", 80, 8080)])?;
        stage.agent.start()?;
        stage.agent.kill()?;
        stage.publish(&[web()])?;
        stage.agent.start()?;
        check_handled_by(&stage, Handler::Agent)?;
        let rules = agents_rules(&stage)?;
        assert!(
            !rules.iter().any(|rule| rule.contains("default/gone")),
            "{rules:#?}"
        );
        Ok(())
    })
}

/// The texts of all rules in the agent's chains, sorted: portals come in any order.
fn agents_rules(stage: &SideBySide) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for family in Family::ALL {
        let nat = stage.nat(family)?;
        for chain in ["EDGEMESH-PORTALS-CONTAINER", "EDGEMESH-PORTALS-HOST"] {
            let rules = nat.rules(chain).iter();
            texts.extend(rules.map(|rule| format!("{family:?} {chain} {}", rule.text)));
        }
    }
    texts.sort_unstable();
    // The port of a UDP portal and of the refusal are the kernel's choice at each start.
    Ok(texts
        .into_iter()
        .map(|text| match text.split_once("--to-destination") {
            Some((before, _)) => before.to_owned(),
            None => text,
        })
        .collect())
}

#[test]
fn a_second_agent_on_the_node_refuses_to_start_and_says_who_holds_it() -> Result<()> {
    test(|lab| {
        let mut stage = stage(lab, Flavour::Nft)?;
        stage.agent.start()?;
        let holder = stage
            .agent
            .process()
            .map(|process| process.pid().to_string());
        let second = stage.agent.run_command().output()?;
        let said = format!("{}{}", second.stdout, second.stderr);
        assert!(!second.status.success(), "{said}");
        assert!(said.contains(&holder.unwrap_or_default()), "{said}");
        check_handled_by(&stage, Handler::Agent)
    })
}

#[test]
fn cleanup_after_kill_9_leaves_nothing_of_ours_and_all_of_others() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        let foreign = stage.foreign_rules()?;
        stage.agent.start()?;
        stage.agent.kill()?;
        stage.agent.command("cleanup").run()?;
        stage.check_nothing_left()?;
        assert_eq!(stage.foreign_rules()?, foreign);
        check_handled_by(&stage, Handler::KubeProxy)?;
        // There is nothing left to remove, which is no error.
        stage.agent.command("cleanup").run()?;
        Ok(())
    })
}

#[test]
fn a_host_without_ipv6_is_no_error() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node = lab.node("edge-1").without_ipv6().create()?;
        let mut stage = SideBySide::on(lab, node, flavour, AGENT)?;
        stage.serve(8080, Serve::Identity)?;
        stage.publish(&[web()])?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        stage.check_handled_by(Handler::Agent, WEB[0])?;
        stage.check_precedence(&["default/web:http"])?;
        assert_eq!(stage.agent.stop()?.code(), Some(0));
        stage.check_nothing_left()
    })
}

#[test]
fn a_host_without_ip6tables_is_no_error() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        lab.hide_programs("ip6tables")?;
        stage.agent.start()?;
        stage.check_handled_by(Handler::Agent, WEB[0])?;
        // IPv6 goes into the kernel by nftables.
        stage.check_handled_by(Handler::Agent, WEB[1])?;
        Ok(())
    })
}

#[test]
fn connections_may_end_in_peace_after_sigterm_while_kube_proxy_has_taken_over() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.agent.start()?;
        let mut open = stage.client.connect(WEB[0])?;
        open.write_all(b"one")?;
        read_until(&mut open, b"one")?;
        let process = stage.agent.process().context("the agent does not run")?;
        process.signal(Signal::SIGTERM)?;
        await_ok(LONG, "kube-proxy serves", || {
            check_handled_by(&stage, Handler::KubeProxy)
        })?;
        open.write_all(b"two")?;
        read_until(&mut open, b"two")?;
        drop(open);
        let process = stage.agent.process().context("the agent does not run")?;
        assert_eq!(process.wait(LONG)?.code(), Some(0));
        stage.check_nothing_left()
    })
}

/// Reads until what came ends in `text`.
fn read_until(stream: &mut TcpStream, text: &[u8]) -> Result<()> {
    let mut heard = Vec::new();
    while !heard.ends_with(text) {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        heard.extend(byte);
    }
    Ok(())
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() -> Result<()> {
    test(|lab| {
        let stage = stage(lab, Flavour::Nft)?;
        let foreign = stage.foreign_rules()?;
        let _taken = stage
            .node
            .namespace()
            .run(|| TcpListener::bind("127.0.0.1:20008"))??;
        let failed = stage.agent.run_command().output()?;
        let said = format!("{}{}", failed.stdout, failed.stderr);
        assert!(!failed.status.success(), "{said}");
        assert!(said.contains("127.0.0.1:20008"), "{said}");
        stage.check_nothing_left()?;
        assert_eq!(stage.foreign_rules()?, foreign);
        Ok(())
    })
}
