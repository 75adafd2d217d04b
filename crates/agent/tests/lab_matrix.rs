//! Every mode of kube-proxy beside every backend of the agent, whoever comes first: who
//! answers pods and the host, over TCP and UDP, IPv4 and IPv6.

use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_lab::{
    ClusterService, Flavour, Handler, KubeProxyMode, Lab, Serve, SideBySide, await_ok, test,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const TCP: [&str; 2] = ["10.96.10.1:80", "[fd00:96::1]:80"];
const UDP: [&str; 2] = ["10.96.10.1:53", "[fd00:96::1]:53"];
/// The agent promises a few seconds; the rest is for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(15);

const IPTABLES_NFT: KubeProxyMode = KubeProxyMode::Iptables(Flavour::Nft);
const IPTABLES_LEGACY: KubeProxyMode = KubeProxyMode::Iptables(Flavour::Legacy);
const NFTABLES: KubeProxyMode = KubeProxyMode::Nftables;

/// One test per pair, so that they run beside each other and each names what failed.
macro_rules! matrix {
    ($($name:ident: $kube_proxy:ident beside $backend:literal ends_by $way:literal;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn the_agent_answers_when_it_comes_first() -> Result<()> {
                test(|lab| agent_first(lab, $kube_proxy, $backend, $way))
            }

            #[test]
            fn the_agent_answers_when_kube_proxy_comes_first_and_again() -> Result<()> {
                test(|lab| kube_proxy_first_and_again(lab, $kube_proxy, $backend, $way))
            }
        }
    )*};
}

matrix! {
    iptables_nft_beside_iptables: IPTABLES_NFT beside "iptables" ends_by "iptables-nft";
    iptables_nft_beside_nftables: IPTABLES_NFT beside "nftables" ends_by "nftables";
    iptables_nft_beside_auto: IPTABLES_NFT beside "auto" ends_by "iptables-nft";
    iptables_legacy_beside_iptables: IPTABLES_LEGACY beside "iptables" ends_by "iptables-legacy";
    iptables_legacy_beside_nftables: IPTABLES_LEGACY beside "nftables" ends_by "nftables";
    iptables_legacy_beside_auto: IPTABLES_LEGACY beside "auto" ends_by "iptables-legacy";
    nftables_beside_nftables: NFTABLES beside "nftables" ends_by "nftables";
    nftables_beside_auto: NFTABLES beside "auto" ends_by "nftables";
}

fn agent_first(lab: &Lab, kube_proxy: KubeProxyMode, backend: &str, way: &str) -> Result<()> {
    let mut stage = stage(lab, backend)?;
    stage.agent.start()?;
    check_answered_by(&stage, Handler::Agent)?;
    stage.start_kube_proxy_in(kube_proxy)?;
    await_answered_by_agent(&stage, way)
}

fn kube_proxy_first_and_again(
    lab: &Lab,
    kube_proxy: KubeProxyMode,
    backend: &str,
    way: &str,
) -> Result<()> {
    let mut stage = stage(lab, backend)?;
    stage.start_kube_proxy_in(kube_proxy)?;
    check_answered_by(&stage, Handler::KubeProxy)?;
    stage.agent.start()?;
    await_answered_by_agent(&stage, way)?;
    stage.restart_kube_proxy()?;
    await_answered_by_agent(&stage, way)?;
    stage.agent.stop()?;
    check_answered_by(&stage, Handler::KubeProxy)
}

#[test]
fn without_kube_proxy_the_agent_answers_whatever_the_backend() -> Result<()> {
    test(|lab| {
        let mut stage = stage(lab, "auto")?;
        for (backend, way) in [
            ("iptables", "iptables-nft"),
            ("nftables", "nftables"),
            ("auto", "iptables-nft"),
        ] {
            stage.agent.configure(&configuration(backend))?;
            stage.agent.start()?;
            await_answered_by_agent(&stage, way)?;
            stage.agent.stop()?;
            stage.check_nothing_left()?;
        }
        Ok(())
    })
}

/// Both decide at priority -100, and of two chains there the kernel asks the younger one
/// first: the one pair whose order is not ours to keep, and the agent warns of it.
#[test]
fn iptables_beside_nftables_mode_is_a_matter_of_order_and_warned_of() -> Result<()> {
    test(|lab| {
        let mut stage = stage(lab, "iptables")?;
        stage.start_kube_proxy_in(KubeProxyMode::Nftables)?;
        stage.agent.start()?;
        check_answered_by(&stage, Handler::Agent)?;
        stage.restart_kube_proxy()?;
        check_answered_by(&stage, Handler::Agent)?;
        let log = stage.agent.log()?;
        let advice = "set modules.edgeProxy.backend to auto";
        assert!(log.contains(advice), "{log}");
        Ok(())
    })
}

#[test]
fn iptables_before_nftables_mode_leaves_the_service_to_kube_proxy() -> Result<()> {
    test(|lab| {
        let mut stage = stage(lab, "iptables")?;
        stage.agent.start()?;
        check_answered_by(&stage, Handler::Agent)?;
        stage.start_kube_proxy_in(KubeProxyMode::Nftables)?;
        check_answered_by(&stage, Handler::KubeProxy)
    })
}

fn stage(lab: &Lab, backend: &str) -> Result<SideBySide> {
    let node = lab.node("edge-1").create()?;
    let mut stage = SideBySide::on(lab, node, Flavour::Nft, AGENT)?;
    stage.agent.configure(&configuration(backend))?;
    stage.serve(8080, Serve::Identity)?;
    stage.serve(5353, Serve::UdpIdentity)?;
    stage.publish(&[ClusterService::new("default/web")
        .cluster_ip("10.96.10.1")
        .cluster_ip("fd00:96::1")
        .tcp("http", 80, 8080)
        .udp("dns", 53, 5353)])?;
    Ok(stage)
}

fn configuration(backend: &str) -> String {
    format!(
        "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
         kind: EdgeMeshAgent\n\
         modules:\n  edgeProxy:\n    enable: true\n    backend: {backend}\n"
    )
}

fn check_answered_by(stage: &SideBySide, expected: Handler) -> Result<()> {
    for to in TCP {
        stage.check_handled_by(expected, to)?;
    }
    for to in UDP {
        stage.check_udp_handled_by(expected, to)?;
    }
    Ok(())
}

/// Waits for it, and for the agent to say that it goes that way.
fn await_answered_by_agent(stage: &SideBySide, way: &str) -> Result<()> {
    await_ok(PATIENCE, "the agent answers", || {
        check_answered_by(stage, Handler::Agent)?;
        let metrics = stage.agent.get("/metrics")?;
        for family in ["IPv4", "IPv6"] {
            let line =
                format!("edgemesh_backend_info{{family=\"{family}\",backend=\"{way}\"}} 1.0");
            metrics
                .lines()
                .find(|found| *found == line)
                .with_context(|| format!("no {line} in {metrics}"))?;
        }
        Ok(())
    })
}
