//! What an agent says that cannot start here: which right, tool or key it misses, and how
//! to get it. And that it has touched nothing then.
//!
//! kubeedge/edgemesh#155, #288, #361, #371: a nil pointer at start instead.

use anyhow::Result;
use edgemesh_lab::{ClusterService, Flavour, Lab, Program, SideBySide, test};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
/// For a configuration that can't be used (sysexits.h `EX_CONFIG`).
const BAD_CONFIGURATION: i32 = 78;

fn stage(lab: &Lab) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, Flavour::Nft, AGENT)?;
    let web = ClusterService::new("default/web").cluster_ip("10.96.10.1");
    stage.publish(&[web.tcp("http", 80, 8080)])?;
    stage.start_kube_proxy()?;
    Ok(stage)
}

/// Runs a program that must fail; returns its exit code and all it said. One that starts
/// to serve instead is ended, and is a failure of the test.
fn failure(program: &Program) -> Result<(Option<i32>, String)> {
    let bounded = Program::new("timeout").args(["--kill-after=5", "20"]);
    let finished = program.run_by(bounded).output()?;
    let said = format!("{}{}", finished.stdout, finished.stderr);
    assert!(!finished.status.success(), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    Ok((finished.status.code(), said))
}

#[test]
fn without_the_right_to_administer_the_network_it_names_the_capability() -> Result<()> {
    test(|lab| {
        let stage = stage(lab)?;
        let setpriv = Program::new("setpriv").args(["--bounding-set=-all", "--inh-caps=-all"]);
        let powerless = stage.agent.run_command().run_by(setpriv);
        let (_, said) = failure(&powerless)?;
        assert!(said.contains("CAP_NET_ADMIN"), "{said}");
        stage.check_nothing_left()
    })
}

#[test]
fn without_the_iptables_it_is_told_to_use_it_names_the_tools_and_the_package() -> Result<()> {
    test(|lab| {
        let stage = stage(lab)?;
        stage.agent.configure(
            "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
             kind: EdgeMeshAgent\n\
             modules:\n  edgeProxy:\n    enable: true\n    backend: iptables\n",
        )?;
        for tool in ["iptables", "ip6tables", "xtables"] {
            lab.hide_programs(tool)?;
        }
        let (_, said) = failure(&stage.agent.run_command())?;
        assert!(said.contains("iptables-nft-restore"), "{said}");
        assert!(said.contains("install the package iptables"), "{said}");
        Ok(())
    })
}

#[test]
fn every_mistake_of_the_configuration_is_named_with_key_and_line_at_once() -> Result<()> {
    test(|lab| {
        let stage = stage(lab)?;
        stage.agent.configure(
            "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
             kind: EdgeMeshAgent\n\
             modules:\n  edgeProxy:\n    enable: perhaps\n    serviceFilterMod: x\n",
        )?;
        let (code, said) = failure(&stage.agent.run_command())?;
        assert_eq!(code, Some(BAD_CONFIGURATION), "{said}");
        assert!(said.contains("config.yaml:5"), "{said}");
        assert!(said.contains("modules.edgeProxy.enable"), "{said}");
        assert!(said.contains("config.yaml:6"), "{said}");
        assert!(said.contains("serviceFilterMode"), "{said}");
        stage.check_nothing_left()
    })
}

#[test]
fn a_configuration_file_that_is_not_there_is_named() -> Result<()> {
    test(|lab| {
        let stage = stage(lab)?;
        let missing = stage
            .agent
            .command("run")
            .args(["--config", "/no/such.yaml"]);
        let (_, said) = failure(&missing)?;
        assert!(said.contains("/no/such.yaml"), "{said}");
        stage.check_nothing_left()
    })
}
