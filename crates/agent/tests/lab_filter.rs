//! Which Services are the agent's, and how that changes while it runs.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Result, ensure};
use edgemesh_lab::{
    ClusterService, Family, Flavour, Handler, Lab, Place, Serve, SideBySide, Signal, await_ok,
    test_each_flavour,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const LABEL: &str = "service.edgemesh.kubeedge.io/service-proxy-name";
const WEB: &str = "10.96.10.1:80";
const ECHO: &str = "10.96.10.1:81";
const INVERTED: &str = "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
                        kind: EdgeMeshAgent\n\
                        modules:\n  edgeProxy:\n    enable: true\n    \
                        serviceFilterMode: FilterIfLabelDoesNotExists\n";
/// The agent promises 1 s; the rest is for a machine that is busy with other tests.
const APPLIED: Duration = Duration::from_secs(15);

fn web() -> ClusterService {
    ClusterService::new("default/web")
        .cluster_ip("10.96.10.1")
        .tcp("http", 80, 8080)
        .tcp("echo", 81, 8081)
}

fn running_stage(lab: &Lab, flavour: Flavour, services: &[ClusterService]) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
    stage.serve(8080, Serve::Identity)?;
    stage.serve(8081, Serve::Echo)?;
    stage.publish(services)?;
    stage.start_kube_proxy()?;
    stage.agent.start()?;
    Ok(stage)
}

fn await_handled_by(stage: &SideBySide, handler: Handler) -> Result<()> {
    await_ok(APPLIED, &format!("{handler:?} handles {WEB}"), || {
        stage.check_handled_by(handler, WEB)
    })
}

/// The comments of all rules in the agent's chains, of both families.
fn agents_comments(stage: &SideBySide) -> Result<Vec<String>> {
    let mut comments = Vec::new();
    for family in Family::ALL {
        let nat = stage.nat(family)?;
        for chain in ["EDGEMESH-PORTALS-CONTAINER", "EDGEMESH-PORTALS-HOST"] {
            let rules = nat.rules(chain).iter();
            comments.extend(rules.filter_map(|rule| rule.comment().map(str::to_owned)));
        }
    }
    Ok(comments)
}

fn is_mentioned(stage: &SideBySide, service: &str) -> Result<bool> {
    let comments = agents_comments(stage)?;
    Ok(comments.iter().any(|comment| comment.contains(service)))
}

#[test]
fn a_label_added_and_removed_takes_effect_on_a_live_service_without_breaking_connections()
-> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = running_stage(lab, flavour, &[web()])?;
        await_handled_by(&stage, Handler::Agent)?;
        let mut through_agent = stage.client.connect(ECHO)?;
        say_and_hear(&mut through_agent, b"before")?;

        stage.publish(&[web().label(LABEL, "someone-else")])?;
        await_handled_by(&stage, Handler::KubeProxy)?;
        assert!(!is_mentioned(&stage, "default/web")?);
        say_and_hear(&mut through_agent, b"labelled")?;
        let mut through_kube_proxy = stage.client.connect(ECHO)?;
        say_and_hear(&mut through_kube_proxy, b"labelled")?;

        stage.publish(&[web()])?;
        await_handled_by(&stage, Handler::Agent)?;
        say_and_hear(&mut through_agent, b"as before")?;
        say_and_hear(&mut through_kube_proxy, b"as before")?;
        Ok(())
    })
}

fn say_and_hear(stream: &mut std::net::TcpStream, text: &[u8]) -> Result<()> {
    let mut heard = vec![0; text.len()];
    stream.write_all(text)?;
    stream.read_exact(&mut heard)?;
    ensure!(heard == text, "heard {heard:?}");
    Ok(())
}

#[test]
fn the_labels_presence_counts_not_its_value_and_kube_proxys_own_label_does_not() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let named = |name: &str, ip: &str| {
            let service = ClusterService::new(name).cluster_ip(ip);
            service.tcp("http", 80, 8080)
        };
        let stage = running_stage(
            lab,
            flavour,
            &[
                named("default/empty-value", "10.96.10.2").label(LABEL, ""),
                named("default/some-value", "10.96.10.3").label(LABEL, "edgemesh"),
                named("default/kube-proxys", "10.96.10.4")
                    .label("service.kubernetes.io/service-proxy-name", "other"),
            ],
        )?;
        stage.check_handled_by(Handler::KubeProxy, "10.96.10.2:80")?;
        stage.check_handled_by(Handler::KubeProxy, "10.96.10.3:80")?;
        stage.check_handled_by(Handler::Agent, "10.96.10.4:80")?;
        assert!(!is_mentioned(&stage, "-value")?);
        Ok(())
    })
}

/// The contract's own example: headless and labelled, `node-exporter` leaves no rule.
#[test]
fn a_headless_service_leaves_no_rule_labelled_or_not() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let node_exporter =
            ClusterService::new("monitoring/node-exporter").tcp("metrics", 9100, 9100);
        let stage = running_stage(
            lab,
            flavour,
            &[
                web(),
                node_exporter.clone().label(LABEL, ""),
                ClusterService {
                    name: "headless".to_owned(),
                    ..node_exporter
                },
            ],
        )?;
        assert!(is_mentioned(&stage, "default/web")?);
        assert!(!is_mentioned(&stage, "monitoring/")?);
        Ok(())
    })
}

/// kubeedge/edgemesh#389, #529: twenty Services labelled to exempt them, when only two
/// needed the mesh.
#[test]
fn with_the_inverted_mode_only_labelled_services_are_intercepted() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
        stage.agent.configure(INVERTED)?;
        stage.serve(8080, Serve::Identity)?;
        stage.publish(&[web()])?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        stage.check_handled_by(Handler::KubeProxy, WEB)?;

        stage.publish(&[web().label(LABEL, "")])?;
        await_handled_by(&stage, Handler::Agent)?;
        stage.publish(&[web()])?;
        await_handled_by(&stage, Handler::KubeProxy)
    })
}

#[test]
fn a_changed_filter_mode_takes_effect_when_the_configuration_is_read_again() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = running_stage(lab, flavour, &[web()])?;
        await_handled_by(&stage, Handler::Agent)?;
        stage.agent.configure(INVERTED)?;
        if let Some(process) = stage.agent.process() {
            process.signal(Signal::SIGHUP)?;
        }
        await_handled_by(&stage, Handler::KubeProxy)
    })
}

#[test]
fn a_service_added_and_deleted_while_the_agent_runs_comes_and_goes() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = running_stage(lab, flavour, &[])?;
        assert!(stage.client.connect(WEB).is_err());
        stage.publish(&[web()])?;
        await_handled_by(&stage, Handler::Agent)?;
        stage.publish(&[])?;
        await_ok(APPLIED, "the deleted Service has no rule", || {
            ensure!(!is_mentioned(&stage, "default/web")?, "it has");
            Ok(())
        })
    })
}
