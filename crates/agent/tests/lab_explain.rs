//! `edgemesh-agent explain` names the handler that really answers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    ClusterService, Flavour, Handler, KubeProxyMode, Lab, Place, RuleList, Serve, SideBySide,
    Signal, Table, await_ok, test, test_each_flavour,
};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const LABEL: &str = "service.edgemesh.kubeedge.io/service-proxy-name";

/// The agent promises a few seconds; the rest is for a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(15);
/// Two that are ours, and one that is kube-proxy's.
const PORTALS: [&str; 3] = ["10.96.10.1:80", "[fd00:96::1]:80", "10.96.10.2:80"];

const NFTABLES: &str = "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
                        kind: EdgeMeshAgent\n\
                        modules:\n  edgeProxy:\n    enable: true\n    backend: nftables\n";

fn service(name: &str, ip: &str) -> ClusterService {
    ClusterService::new(name)
        .cluster_ip(ip)
        .tcp("http", 80, 8080)
}

fn stage(lab: &Lab, flavour: Flavour) -> Result<SideBySide> {
    let mut stage = prepared(lab, flavour)?;
    stage.start_kube_proxy()?;
    stage.agent.start()?;
    Ok(stage)
}

/// The agent goes by nftables, whatever kube-proxy does.
fn stage_by_nftables(lab: &Lab, kube_proxy: KubeProxyMode) -> Result<SideBySide> {
    let mut stage = prepared(lab, Flavour::Nft)?;
    stage.agent.configure(NFTABLES)?;
    stage.start_kube_proxy_in(kube_proxy)?;
    stage.agent.start()?;
    Ok(stage)
}

/// Neither runs.
fn prepared(lab: &Lab, flavour: Flavour) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
    stage.serve(8080, Serve::Identity)?;
    stage.publish(&[
        service("default/web", "10.96.10.1").cluster_ip("fd00:96::1"),
        service("default/theirs", "10.96.10.2").label(LABEL, ""),
        ClusterService::new("default/headless").tcp("http", 80, 8080),
    ])?;
    Ok(stage)
}

fn explain(stage: &SideBySide, what: &str) -> Result<Value> {
    let finished = stage
        .agent
        .command("explain")
        .args([what, "--output", "json"])
        .output()?;
    serde_json::from_str(&finished.stdout)
        .with_context(|| format!("no JSON: {}{}", finished.stdout, finished.stderr))
}

/// Who handles the first portal of what is asked about: for pods, and for the host.
fn handlers(stage: &SideBySide, what: &str) -> Result<[String; 2]> {
    let report = explain(stage, what)?;
    let handlers = &report["services"][0]["ports"][0]["portals"][0]["handlers"];
    let name = |at: usize| handlers[at]["handler"].as_str().map(str::to_owned);
    let both = || Some([name(0)?, name(1)?]);
    both().with_context(|| format!("no handlers in {report:#}"))
}

fn really(stage: &SideBySide, to: &str) -> Result<[String; 2]> {
    let name = |handler| match handler {
        Handler::Agent => "edgemesh".to_owned(),
        Handler::KubeProxy => "kube-proxy".to_owned(),
    };
    Ok([
        name(stage.handler(&stage.client, to)?),
        name(stage.handler(&stage.node, to)?),
    ])
}

fn check_agreement(stage: &SideBySide) -> Result<()> {
    for to in PORTALS {
        let (said, is) = (handlers(stage, to)?, really(stage, to)?);
        ensure!(said == is, "{to}: said {said:?}, is {is:?}");
    }
    Ok(())
}

#[test]
fn the_handler_that_is_named_is_the_one_that_answers() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        assert_eq!(handlers(&stage, "default/web")?, ["edgemesh", "edgemesh"]);
        assert_eq!(
            handlers(&stage, "theirs:http")?,
            ["kube-proxy", "kube-proxy"]
        );
        check_agreement(&stage)?;
        stage.agent.stop()?;
        assert_eq!(
            handlers(&stage, "default/web")?,
            ["kube-proxy", "kube-proxy"]
        );
        check_agreement(&stage)
    })
}

#[test]
fn with_the_nftables_backend_too_the_handler_that_is_named_answers() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.agent.stop()?;
        stage.agent.configure(NFTABLES)?;
        stage.agent.start()?;
        check_agreement(&stage)
    })
}

#[test]
fn beside_kube_proxys_nftables_mode_too_the_handler_that_is_named_answers() -> Result<()> {
    test(|lab| {
        let mut stage = stage_by_nftables(lab, KubeProxyMode::Nftables)?;
        let theirs = handlers(&stage, "theirs:http")?;
        assert_eq!(theirs, ["kube-proxy", "kube-proxy"]);
        check_agreement(&stage)?;
        // Without an agent it is kube-proxy's own table that tells what Services there are.
        stage.agent.stop()?;
        for name in ["default/web", "theirs"] {
            assert_eq!(handlers(&stage, name)?, ["kube-proxy", "kube-proxy"]);
        }
        check_agreement(&stage)
    })
}

#[test]
fn an_agent_that_hangs_or_is_killed_is_told_from_one_that_lives() -> Result<()> {
    test(|lab| {
        let mut stage = stage_by_nftables(lab, KubeProxyMode::Iptables(Flavour::Nft))?;
        let to = PORTALS[0];
        stage.check_handled_by(Handler::Agent, to)?;
        let process = stage.agent.process().context("it runs")?;
        process.signal(Signal::SIGSTOP)?;
        // The gate of the table closes by itself.
        await_ok(PATIENCE, "kube-proxy handles it", || {
            stage.check_handled_by(Handler::KubeProxy, to)
        })?;
        let report = explain(&stage, to)?;
        let from_pods = &report["services"][0]["ports"][0]["portals"][0]["handlers"][0];
        assert_eq!(from_pods["handler"], "kube-proxy", "{report:#}");
        let note = from_pods["notes"][0].as_str().unwrap_or_default();
        assert!(note.contains("for want of a sign of life"), "{report:#}");
        let process = stage.agent.process().context("it runs")?;
        process.signal(Signal::SIGCONT)?;
        await_ok(PATIENCE, "the agent handles it again", || {
            stage.check_handled_by(Handler::Agent, to)
        })?;
        assert_eq!(handlers(&stage, to)?, really(&stage, to)?);
        stage.agent.kill()?;
        check_agreement(&stage)
    })
}

#[test]
fn the_element_that_handles_a_portal_is_shown_with_its_place_and_counter() -> Result<()> {
    test(|lab| {
        let stage = stage_by_nftables(lab, KubeProxyMode::Iptables(Flavour::Nft))?;
        let rule = || -> Result<Value> {
            let report = explain(&stage, "10.96.10.1:80")?;
            Ok(report["services"][0]["ports"][0]["portals"][0]["handlers"][0].clone())
        };
        stage.client.ask(PORTALS[0], "hello")?;
        let before = rule()?["rule"]["packets"].as_u64().context("no counter")?;
        stage.client.ask(PORTALS[0], "hello")?;
        stage.node.ask(PORTALS[0], "hello")?;
        let shown = rule()?;
        assert_eq!(shown["rule"]["packets"], before + 2, "{shown:#}");
        assert_eq!(
            shown["place"],
            "nft table ip edgemesh, chain portals-container: hook prerouting at priority -110, \
             before KUBE-SERVICES (iptables-nft PREROUTING rule 1) at -100"
        );
        // What the command lists is the same.
        let command = shown["rule"]["command"].as_str().context("no command")?;
        let listed = stage.node.program("sh").args(["-c", command]).run()?;
        assert!(listed.contains("comment \"default/web:http\""), "{listed}");
        let text = shown["rule"]["text"].as_str().context("no text")?;
        assert!(text.contains("comment \"default/web:http\""), "{text}");
        let screen = stage.agent.command("explain").arg("web").output()?.stdout;
        assert!(
            screen.contains("portals-container rule 6 by the map ip edgemesh portals"),
            "{screen}"
        );
        Ok(())
    })
}

#[test]
fn a_port_without_endpoints_is_refused_and_a_headless_service_is_nobodys() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = stage(lab, flavour)?;
        let empty = service("default/empty", "10.96.10.3");
        stage.agent.publish(&[empty])?;
        await_ok(PATIENCE, "it is explained", || {
            let report = explain(&stage, "default/empty")?;
            let portal = &report["services"][0]["ports"][0]["portals"][0];
            ensure!(portal["decision"] == "refuse", "{report:#}");
            ensure!(
                portal["handlers"][0]["outcome"] == "refused at once",
                "{report:#}"
            );
            Ok(())
        })?;
        let refused = stage.client.connect("10.96.10.3:80").map_err(|e| e.kind());
        assert_eq!(refused.err(), Some(std::io::ErrorKind::ConnectionRefused));
        Ok(())
    })
}

#[test]
fn reasons_and_near_names_are_told() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = stage(lab, flavour)?;
        let text = |what: &str| stage.agent.command("explain").arg(what).output();
        let headless = text("headless")?.stdout;
        assert!(
            headless.contains("headless (clusterIP: None)"),
            "{headless}"
        );
        let theirs = text("theirs")?.stdout;
        assert!(theirs.contains("carries the filter label"), "{theirs}");
        let wrong = text("default/wep")?;
        assert_eq!(wrong.status.code(), Some(1));
        assert!(
            wrong.stdout.contains("Did you mean default/web?"),
            "{}",
            wrong.stdout
        );
        let nonsense = text("a/b/c")?;
        assert!(
            nonsense.stderr.contains("default/web:http"),
            "{}",
            nonsense.stderr
        );
        Ok(())
    })
}

#[test]
fn connections_are_counted_at_the_rule_that_is_shown() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = stage(lab, flavour)?;
        for _ in 0..3 {
            stage.client.ask("10.96.10.1:80", "hello")?;
        }
        let report = explain(&stage, "10.96.10.1:80")?;
        let from_pods = &report["services"][0]["ports"][0]["portals"][0]["handlers"][0];
        assert_eq!(from_pods["rule"]["packets"], 3, "{report:#}");
        let text = from_pods["rule"]["text"].as_str().unwrap_or_default();
        let nat = RuleList::read(&stage.node, flavour, edgemesh_lab::Family::V4, Table::Nat)?;
        let rules = nat.rules("EDGEMESH-PORTALS-CONTAINER");
        assert!(rules.iter().any(|rule| rule.text == text), "{text}");
        Ok(())
    })
}

/// On a production node one only wants to look.
#[test]
fn explaining_changes_nothing() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.agent.stop()?;
        let tables = |stage: &SideBySide| -> Result<Vec<String>> {
            let nft = stage.node.program("nft").args(["list", "tables"]).run()?;
            let legacy = stage
                .node
                .program("cat")
                .args(["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"])
                .output()?
                .stdout;
            Ok(vec![nft, legacy, stage.foreign_rules()?])
        };
        let before = tables(&stage)?;
        explain(&stage, "default/web")?;
        explain(&stage, "10.96.10.9")?;
        assert_eq!(tables(&stage)?, before);
        Ok(())
    })
}
