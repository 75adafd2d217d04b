//! Pods whose interface on the node has no address, as Calico's: the kernel drops what is
//! redirected to "the address of the interface" there.

use anyhow::Result;
use edgemesh_lab::{ClusterService, Handler, PodNetwork, Serve, SideBySide, test_each_flavour};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");

#[test]
fn pods_on_interfaces_without_addresses_are_served_over_tcp_and_udp_in_both_families() -> Result<()>
{
    test_each_flavour(|lab, flavour| {
        let node = lab
            .node("edge-1")
            .with_pods_wired(PodNetwork::Calico)
            .create()?;
        let mut stage = SideBySide::on(lab, node, flavour, AGENT)?;
        stage.serve(8080, Serve::Identity)?;
        stage.serve(5353, Serve::UdpIdentity)?;
        stage.publish(&[ClusterService::new("default/web")
            .cluster_ip("10.96.10.1")
            .cluster_ip("fd00:96::1")
            .tcp("http", 80, 8080)
            .udp("dns", 53, 5353)])?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        for address in ["10.96.10.1", "[fd00:96::1]"] {
            stage.check_handled_by(Handler::Agent, &format!("{address}:80"))?;
            stage.check_udp_handled_by(Handler::Agent, &format!("{address}:53"))?;
        }
        Ok(())
    })
}
