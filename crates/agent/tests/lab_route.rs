//! An edge site that lost its uplink, and with it the default route, still reaches its
//! ClusterIPs from the host, where the kernel would refuse before any rule is asked.

use std::io::ErrorKind;

use anyhow::Result;
use edgemesh_lab::{
    ClusterService, Flavour, Handler, Lab, Place, Serve, SideBySide, test, test_each_flavour,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const NFTABLES: &str = "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
                        kind: EdgeMeshAgent\n\
                        modules:\n  edgeProxy:\n    enable: true\n    backend: nftables\n";
const ADDRESSES: [&str; 2] = ["10.96.10.1", "fd00:96::1"];
const WEB: [&str; 2] = ["10.96.10.1:80", "[fd00:96::1]:80"];
const DNS: [&str; 2] = ["10.96.10.1:53", "[fd00:96::1]:53"];

fn stage(lab: &Lab, flavour: Flavour) -> Result<SideBySide> {
    let node = lab.node("edge-1").without_default_route().create()?;
    let mut stage = SideBySide::on(lab, node, flavour, AGENT)?;
    stage.serve(8080, Serve::Identity)?;
    stage.serve(5353, Serve::UdpIdentity)?;
    stage.publish(&[ClusterService::new("default/web")
        .cluster_ip("10.96.10.1")
        .cluster_ip("fd00:96::1")
        .tcp("http", 80, 8080)
        .udp("dns", 53, 5353)])?;
    stage.start_kube_proxy()?;
    Ok(stage)
}

#[test]
fn without_a_default_route_the_host_reaches_cluster_ips_while_the_agent_runs() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        let unreachable = |stage: &SideBySide, to: &str| {
            stage
                .node
                .connect(to)
                .map(|_| ())
                .map_err(|error| error.kind())
        };
        for to in WEB {
            assert_eq!(unreachable(&stage, to), Err(ErrorKind::NetworkUnreachable));
        }
        stage.agent.start()?;
        for (web, dns) in WEB.into_iter().zip(DNS) {
            stage.check_handled_by(Handler::Agent, web)?;
            stage.check_udp_handled_by(Handler::Agent, dns)?;
        }
        assert_eq!(stage.agent.stop()?.code(), Some(0));
        for to in WEB {
            assert_eq!(unreachable(&stage, to), Err(ErrorKind::NetworkUnreachable));
        }
        stage.check_nothing_left()
    })
}

#[test]
fn the_last_resort_sleeps_while_there_is_another_route_and_wakes_without_delay() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.node.add_default_routes()?;
        stage.agent.start()?;
        for address in ADDRESSES {
            let way = stage.ip(&format!("route get {address}"))?;
            assert!(way.contains("dev eth0"), "{way}");
        }
        stage.node.remove_default_routes()?;
        for to in WEB {
            stage.check_handled_by(Handler::Agent, to)?;
        }
        Ok(())
    })
}

#[test]
fn ports_that_are_no_portals_are_refused_at_once() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.agent.start()?;
        refuses_other_ports(&stage)
    })
}

#[test]
fn ports_that_are_no_portals_are_refused_at_once_with_nftables() -> Result<()> {
    test(|lab| {
        let mut stage = stage(lab, Flavour::Nft)?;
        stage.agent.configure(NFTABLES)?;
        stage.agent.start()?;
        refuses_other_ports(&stage)
    })
}

fn refuses_other_ports(stage: &SideBySide) -> Result<()> {
    let other = ["10.96.10.1:81", "[fd00:96::1]:81"];
    let refused = Err(ErrorKind::ConnectionRefused);
    for (other, web) in other.into_iter().zip(WEB) {
        let tcp = stage.node.connect(other).map(|_| ());
        assert_eq!(tcp.map_err(|error| error.kind()), refused, "{other}");
        let udp = stage.node.udp_exchange(other, b"anybody?").map(|_| ());
        assert_eq!(udp.map_err(|error| error.kind()), refused, "{other}");
        stage.check_handled_by(Handler::Agent, web)?;
    }
    // By any other route they go where they went without an agent.
    stage.node.add_default_routes()?;
    for other in other {
        let udp = stage.node.udp_exchange(other, b"anybody?").map(|_| ());
        assert_ne!(udp.map_err(|error| error.kind()), refused, "{other}");
    }
    Ok(())
}

#[test]
fn addresses_that_are_no_portals_stay_unreachable() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour)?;
        stage.agent.start()?;
        for to in ["10.96.99.99:80", "203.0.113.1:80", "[fd00:96::99]:80"] {
            let error = stage.node.connect(to).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{to}");
        }
        Ok(())
    })
}
