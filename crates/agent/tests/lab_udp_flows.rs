//! A UDP client that keeps its socket is not left on what is gone: conntrack knows it by the
//! first datagram's rule, however the rules have changed since.
//!
//! kubernetes (many issues): conntrack keeps UDP clients on dead endpoints.

#![expect(clippy::print_stdout, reason = "figures for whoever asks for them")]

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use edgemesh_lab::{
    ClusterService, Flavour, Handler, Lab, Place, Serve, SideBySide, await_ok, test_each_flavour,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const LABEL: &str = "service.edgemesh.kubeedge.io/service-proxy-name";
const DNS: [&str; 2] = ["10.96.10.1:53", "[fd00:96::1]:53"];
const LONG: Duration = Duration::from_secs(15);

const USER_MODE: &str = "modules: {edgeProxy: {enable: true, datapath: user}}\n";

/// Waits until no flow goes by the kernel alone.
fn await_user_mode(stage: &SideBySide) -> Result<()> {
    await_ok(LONG, "everything is in user mode", || {
        let metrics = stage.agent.get("/metrics")?;
        let line = "edgemesh_portals{handling=\"user_mode\"} 2.0";
        ensure!(metrics.contains(line), "no {line} in {metrics}");
        Ok(())
    })
}

fn dns() -> ClusterService {
    ClusterService::new("default/dns")
        .cluster_ip("10.96.10.1")
        .cluster_ip("fd00:96::1")
        .udp("dns", 53, 5353)
}

fn running_stage(lab: &Lab, flavour: Flavour) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
    stage.serve(5353, Serve::UdpIdentity)?;
    stage.publish(&[dns()])?;
    stage.start_kube_proxy()?;
    stage.agent.start()?;
    Ok(stage)
}

/// Sockets of the client pod and of the host, by both addresses, all served by the agent.
fn sockets_served_by_agent(stage: &SideBySide) -> Result<Vec<UdpSocket>> {
    let mut sockets = Vec::new();
    for to in DNS {
        for place in [stage.client.udp_socket(to)?, stage.node.udp_socket(to)?] {
            place.set_read_timeout(Some(Duration::from_millis(500)))?;
            await_served(stage, &place, Handler::Agent)?;
            sockets.push(place);
        }
    }
    Ok(sockets)
}

fn await_served(stage: &SideBySide, socket: &UdpSocket, handler: Handler) -> Result<()> {
    let expected = match handler {
        Handler::Agent => stage.agents_pod.name(),
        Handler::KubeProxy => stage.kube_proxys_pod.name(),
    };
    await_answer_from(socket, expected)
}

fn await_answer_from(socket: &UdpSocket, pod: &str) -> Result<()> {
    let to = socket.peer_addr()?;
    let began = Instant::now();
    await_ok(
        LONG,
        &format!("{pod} answers the old socket to {to}"),
        || {
            socket.send(b"?")?;
            let mut answer = [0; 200];
            let length = socket.recv(&mut answer)?;
            let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
            let (server, _) = answer.split_once(" saw ").context("no greeting")?;
            ensure!(server == pod, "{server} answered");
            Ok(())
        },
    )?;
    println!(
        "{pod} answers the old socket to {to} after {:?}",
        began.elapsed()
    );
    Ok(())
}

#[test]
fn a_udp_client_follows_when_its_endpoint_disappears() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running_stage(lab, flavour)?;
        let sockets = sockets_served_by_agent(&stage)?;
        let other = stage.node.pod("other").create()?;
        let _server = other.serve(5353, Serve::UdpIdentity)?;
        stage.agent.publish(&[dns().endpoint(&other)])?;
        for socket in &sockets {
            await_answer_from(socket, "other")?;
        }
        Ok(())
    })
}

#[test]
fn a_udp_client_is_handed_over_to_kube_proxy_when_the_service_is_labelled() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = running_stage(lab, flavour)?;
        let sockets = sockets_served_by_agent(&stage)?;
        stage.publish(&[dns().label(LABEL, "")])?;
        for socket in &sockets {
            await_served(&stage, socket, Handler::KubeProxy)?;
        }
        Ok(())
    })
}

#[test]
fn a_udp_client_is_handed_over_to_kube_proxy_when_the_agent_stops() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = running_stage(lab, flavour)?;
        // Flows that the kernel took to an endpoint go on there.
        stage.agent.configure(USER_MODE)?;
        await_user_mode(&stage)?;
        let sockets = sockets_served_by_agent(&stage)?;
        assert_eq!(stage.agent.stop()?.code(), Some(0));
        for socket in &sockets {
            await_served(&stage, socket, Handler::KubeProxy)?;
        }
        Ok(())
    })
}

#[test]
fn a_udp_client_is_served_again_by_the_agent_that_takes_over_after_kill_9() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = running_stage(lab, flavour)?;
        let sockets = sockets_served_by_agent(&stage)?;
        stage.agent.kill()?;
        stage.agent.start()?;
        for socket in &sockets {
            await_served(&stage, socket, Handler::Agent)?;
        }
        Ok(())
    })
}

#[test]
fn a_udp_client_is_served_again_when_the_agent_is_restarted() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = running_stage(lab, flavour)?;
        let sockets = sockets_served_by_agent(&stage)?;
        assert_eq!(stage.agent.stop()?.code(), Some(0));
        stage.agent.start()?;
        for socket in &sockets {
            await_served(&stage, socket, Handler::Agent)?;
        }
        Ok(())
    })
}

#[test]
fn a_udp_client_is_served_when_its_service_gets_endpoints_again() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running_stage(lab, flavour)?;
        let sockets = sockets_served_by_agent(&stage)?;
        stage.agent.publish(&[dns()])?;
        for socket in &sockets {
            await_ok(LONG, "datagrams are refused", || {
                socket.send(b"?").ok();
                match socket.recv(&mut [0; 200]) {
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                    other => bail!("{other:?}"),
                }
            })?;
        }
        stage.agent.publish(&[dns().endpoint(&stage.agents_pod)])?;
        for socket in &sockets {
            await_served(&stage, socket, Handler::Agent)?;
        }
        Ok(())
    })
}

#[test]
fn flows_of_others_stay_in_connection_tracking() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = running_stage(lab, flavour)?;
        let direct = format!("{}:5353", stage.agents_pod.addresses()[0]);
        let socket = stage.client.udp_socket(direct.as_str())?;
        await_answer_from(&socket, stage.agents_pod.name())?;
        let of_others = || -> Result<usize> {
            let words = ["-L", "-p", "udp", "-o", "id"];
            let listed = stage.node.program("conntrack").args(words).run()?;
            let ours = format!("sport={}", socket.local_addr()?.port());
            Ok(listed.lines().filter(|line| line.contains(&ours)).count())
        };
        let before = of_others()?;
        stage.agent.publish(&[dns().label(LABEL, "")])?;
        await_ok(LONG, "the Service is kube-proxy's", || {
            ensure!(stage.udp_handler(&stage.client, DNS[0])? == Handler::KubeProxy);
            Ok(())
        })?;
        ensure!(of_others()? == before && before > 0);
        assert_eq!(stage.agent.stop()?.code(), Some(0));
        Ok(())
    })
}
