//! `edgemesh-agent explain` names the handler that really answers.

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    ClusterService, Flavour, Handler, Lab, Place, RuleList, Serve, SideBySide, Table,
    test_each_flavour,
};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const LABEL: &str = "service.edgemesh.kubeedge.io/service-proxy-name";

const NFTABLES: &str = "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
                        kind: EdgeMeshAgent\n\
                        modules:\n  edgeProxy:\n    enable: true\n    backend: nftables\n";

fn service(name: &str, ip: &str) -> ClusterService {
    ClusterService::new(name)
        .cluster_ip(ip)
        .tcp("http", 80, 8080)
}

fn stage(lab: &Lab, flavour: Flavour) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
    stage.serve(8080, Serve::Identity)?;
    stage.publish(&[
        service("default/web", "10.96.10.1").cluster_ip("fd00:96::1"),
        service("default/theirs", "10.96.10.2").label(LABEL, ""),
        ClusterService::new("default/headless").tcp("http", 80, 8080),
    ])?;
    stage.start_kube_proxy()?;
    stage.agent.start()?;
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

#[test]
fn the_handler_that_is_named_is_the_one_that_answers() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        let agree = |stage: &SideBySide| -> Result<()> {
            for to in ["10.96.10.1:80", "[fd00:96::1]:80", "10.96.10.2:80"] {
                let (said, is) = (handlers(stage, to)?, really(stage, to)?);
                ensure!(said == is, "{to}: said {said:?}, is {is:?}");
            }
            Ok(())
        };
        assert_eq!(handlers(&stage, "default/web")?, ["edgemesh", "edgemesh"]);
        assert_eq!(
            handlers(&stage, "theirs:http")?,
            ["kube-proxy", "kube-proxy"]
        );
        agree(&stage)?;
        stage.agent.stop()?;
        assert_eq!(
            handlers(&stage, "default/web")?,
            ["kube-proxy", "kube-proxy"]
        );
        agree(&stage)
    })
}

#[test]
fn with_the_nftables_backend_too_the_handler_that_is_named_answers() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.agent.stop()?;
        stage.agent.configure(NFTABLES)?;
        stage.agent.start()?;
        for to in ["10.96.10.1:80", "[fd00:96::1]:80", "10.96.10.2:80"] {
            assert_eq!(handlers(&stage, to)?, really(&stage, to)?, "{to}");
        }
        Ok(())
    })
}

#[test]
fn a_port_without_endpoints_is_refused_and_a_headless_service_is_nobodys() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = stage(lab, flavour)?;
        let empty = service("default/empty", "10.96.10.3");
        stage.agent.publish(&[empty])?;
        edgemesh_lab::await_ok(
            std::time::Duration::from_secs(15),
            "it is explained",
            || {
                let report = explain(&stage, "default/empty")?;
                let portal = &report["services"][0]["ports"][0]["portals"][0];
                ensure!(portal["decision"] == "refuse", "{report:#}");
                ensure!(
                    portal["handlers"][0]["outcome"] == "refused at once",
                    "{report:#}"
                );
                Ok(())
            },
        )?;
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
