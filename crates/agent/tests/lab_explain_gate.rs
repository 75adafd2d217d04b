//! After a kill -9 the rules stay and the gate before them closes: `edgemesh-agent explain`
//! names who answers then.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{ClusterService, Handler, Serve, SideBySide, await_ok, test_each_flavour};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const WEB: &str = "10.96.10.1:80";
/// The gate closes after 2 s; the rest is for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(15);

fn handlers(stage: &SideBySide) -> Result<Vec<String>> {
    let text = stage
        .agent
        .command("explain")
        .args([WEB, "--output", "json"])
        .run()?;
    let report: Value = serde_json::from_str(&text).context("no JSON")?;
    ensure!(
        report["without_agent"].is_string(),
        "an agent answers: {report:#}"
    );
    let handlers = &report["services"][0]["ports"][0]["portals"][0]["handlers"];
    let names = handlers.as_array().context("no handlers")?.iter();
    Ok(names
        .filter_map(|handler| handler["handler"].as_str().map(str::to_owned))
        .collect())
}

#[test]
fn after_an_agent_was_killed_the_one_that_answers_then_is_named() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
        stage.serve(8080, Serve::Identity)?;
        let web = ClusterService::new("default/web").cluster_ip("10.96.10.1");
        stage.publish(&[web.tcp("http", 80, 8080)])?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        stage.agent.kill()?;
        await_ok(PATIENCE, "kube-proxy has taken over", || {
            let from_pod = stage.handler(&stage.client, WEB)?;
            let from_host = stage.handler(&stage.node, WEB)?;
            ensure!(from_pod == Handler::KubeProxy, "{from_pod:?} for the pod");
            ensure!(
                from_host == Handler::KubeProxy,
                "{from_host:?} for the host"
            );
            Ok(())
        })?;
        assert_eq!(handlers(&stage)?, ["kube-proxy", "kube-proxy"]);
        Ok(())
    })
}
