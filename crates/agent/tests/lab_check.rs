//! `edgemesh-agent check` on hosts of a lab: what it recognises, and that it only looks.

use anyhow::{Context, Result};
use edgemesh_lab::{
    ClusterService, Flavour, Lab, Place, Program, Serve, SideBySide, test, test_each_flavour,
};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");

fn stage(lab: &Lab, flavour: Flavour) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
    stage.serve(8080, Serve::Identity)?;
    let web = ClusterService::new("default/web").cluster_ip("10.96.10.1");
    stage.publish(&[web.tcp("http", 80, 8080)])?;
    Ok(stage)
}

/// Exit code and the findings of a check.
fn check(stage: &SideBySide) -> Result<(Option<i32>, Vec<Value>)> {
    let finished = stage
        .agent
        .command("check")
        .args(["--output", "json", "--manifests"])
        .arg(stage.agent.manifests_folder())
        .output()?;
    let report: Value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("no JSON: {}{}", finished.stdout, finished.stderr))?;
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    Ok((finished.status.code(), findings))
}

/// What the findings say of a topic.
fn said(findings: &[Value], topic: &str) -> Vec<String> {
    findings
        .iter()
        .filter(|finding| finding["topic"] == topic)
        .map(|finding| format!("{} {}", finding["grade"], finding["says"]))
        .collect()
}

#[test]
fn kube_proxys_flavour_is_recognised_and_followed() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        let (_, before) = check(&stage)?;
        assert!(
            said(&before, "kube-proxy")[0].contains("no trace"),
            "{before:#?}"
        );
        stage.start_kube_proxy()?;
        let (code, findings) = check(&stage)?;
        assert_eq!(code, Some(0), "{findings:#?}");
        let kube_proxy = said(&findings, "kube-proxy");
        assert_eq!(kube_proxy.len(), 1, "{kube_proxy:?}");
        assert!(kube_proxy[0].contains("iptables mode"), "{kube_proxy:?}");
        let chain = format!("KUBE-SERVICES in iptables-{flavour}");
        assert!(kube_proxy[0].contains(&chain), "{kube_proxy:?}");
        let rules = said(&findings, "rules IPv4");
        assert!(
            rules[0].contains(&format!("iptables-{flavour}")),
            "{rules:?}"
        );
        Ok(())
    })
}

#[test]
fn a_running_agent_is_seen_and_its_ports_and_address_are_its_own() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        let (code, findings) = check(&stage)?;
        assert_eq!(code, Some(0), "{findings:#?}");
        assert!(
            said(&findings, "agent")[0].contains("is ready"),
            "{findings:#?}"
        );
        assert_eq!(said(&findings, "port"), [""; 0]);
        assert!(
            said(&findings, "address")[0].contains("ok"),
            "{findings:#?}"
        );
        Ok(())
    })
}

#[test]
fn a_port_or_address_that_somebody_has_and_edgemeshs_own_agent_fail() -> Result<()> {
    test(|lab| {
        let stage = stage(lab, Flavour::Nft)?;
        stage.ip("link add edgemesh0 type bridge")?;
        stage.ip("address add 169.254.96.16/32 dev edgemesh0")?;
        let place = stage.node.namespace();
        let _listener = place.run(|| std::net::TcpListener::bind("0.0.0.0:20008"))??;
        let (code, findings) = check(&stage)?;
        assert_eq!(code, Some(1), "{findings:#?}");
        assert!(
            said(&findings, "EdgeMesh")[0].contains("fails"),
            "{findings:#?}"
        );
        assert!(
            said(&findings, "address")[0].contains("edgemesh0"),
            "{findings:#?}"
        );
        assert!(
            said(&findings, "port")[0].contains("20008"),
            "{findings:#?}"
        );
        Ok(())
    })
}

#[test]
fn a_missing_ip6tables_and_rights_are_named() -> Result<()> {
    test(|lab| {
        let stage = stage(lab, Flavour::Nft)?;
        let setpriv = Program::new("setpriv").args(["--bounding-set=-all", "--inh-caps=-all"]);
        let powerless = stage.agent.command("check").run_by(setpriv).output()?;
        assert_eq!(powerless.status.code(), Some(1));
        assert!(
            powerless.stdout.contains("NET_ADMIN is lacking"),
            "{}",
            powerless.stdout
        );

        let (_, before) = check(&stage)?;
        assert!(
            said(&before, "programs")[0].contains("ip6tables-nft"),
            "{before:#?}"
        );
        lab.hide_programs("ip6tables")?;
        let (_, after) = check(&stage)?;
        assert!(
            !said(&after, "programs")[0].contains("ip6tables"),
            "{after:#?}"
        );
        Ok(())
    })
}

#[test]
fn an_api_server_that_does_not_answer_is_named() -> Result<()> {
    test(|lab| {
        let stage = stage(lab, Flavour::Nft)?;
        let finished = stage.agent.command("check").output()?;
        assert_eq!(finished.status.code(), Some(1));
        assert!(
            finished.stdout.contains("FAILS    API server"),
            "{}",
            finished.stdout
        );
        assert!(
            finished.stdout.contains("127.0.0.1:10550"),
            "{}",
            finished.stdout
        );
        Ok(())
    })
}

/// iptables-legacy makes a table by looking at it; a check must not.
#[test]
fn checking_changes_nothing() -> Result<()> {
    test(|lab| {
        let stage = stage(lab, Flavour::Nft)?;
        let tables = || -> Result<[String; 2]> {
            let nft = stage.node.program("nft").args(["list", "ruleset"]).run()?;
            let names = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
            let legacy = stage.node.program("cat").args(names).output()?.stdout;
            Ok([nft, legacy])
        };
        let before = tables()?;
        check(&stage)?;
        assert_eq!(tables()?, before);
        Ok(())
    })
}
