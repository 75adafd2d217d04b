//! Every kind of Service is answered, from pod and from host, in both families and through
//! both flavours of iptables.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    ClusterService, Flavour, Handler, Lab, Place, Serve, SideBySide, await_ok, test_each_flavour,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const LONG: Duration = Duration::from_secs(15);

/// Ports of the Service `default/all`: all that the servers below can do.
const IDENTITY: u16 = 80;
const COUNT: u16 = 81;
const SEND: u16 = 82;
const RESET: u16 = 83;
const UDP_IDENTITY: u16 = 53;
const UDP_ECHO: u16 = 7;
const SENT_AT_ONCE: usize = 3_000_000;

fn all() -> ClusterService {
    ClusterService::new("default/all")
        .cluster_ip("10.96.10.1")
        .cluster_ip("fd00:96::1")
        .tcp("identity", IDENTITY, 8080)
        .tcp("count", COUNT, 8081)
        .tcp("send", SEND, 8082)
        .tcp("reset", RESET, 8083)
        .udp("dns", UDP_IDENTITY, 5353)
        .udp("echo", UDP_ECHO, 7007)
}

fn running_stage(lab: &Lab, flavour: Flavour, services: &[ClusterService]) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
    stage.serve(8080, Serve::Identity)?;
    stage.serve(8081, Serve::CountBytes)?;
    stage.serve(8082, Serve::Send(SENT_AT_ONCE))?;
    stage.serve(8083, Serve::Reset)?;
    stage.serve(5353, Serve::UdpIdentity)?;
    stage.serve(7007, Serve::UdpEcho)?;
    stage.publish(services)?;
    stage.start_kube_proxy()?;
    stage.agent.start()?;
    Ok(stage)
}

/// A port of the dual-stack Service by both of its addresses.
fn both(port: u16) -> [String; 2] {
    [format!("10.96.10.1:{port}"), format!("[fd00:96::1]:{port}")]
}

/// Carries `check` out from the client pod and from the host, by both addresses.
fn from_pod_and_host(
    stage: &SideBySide,
    port: u16,
    check: impl Fn(&dyn Fn() -> Result<std::net::TcpStream>) -> Result<()>,
) -> Result<()> {
    for to in both(port) {
        check(&|| Ok(stage.client.connect(&to)?)).with_context(|| format!("from pod to {to}"))?;
        check(&|| Ok(stage.node.connect(&to)?)).with_context(|| format!("from host to {to}"))?;
    }
    Ok(())
}

#[test]
fn tcp_and_udp_are_answered_from_pod_and_host_in_both_families() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running_stage(lab, flavour, &[all()])?;
        for to in both(IDENTITY) {
            stage.check_handled_by(Handler::Agent, &to)?;
        }
        for to in both(UDP_IDENTITY) {
            stage.check_udp_handled_by(Handler::Agent, &to)?;
        }
        Ok(())
    })
}

/// The client's socket is connected: an answer from any address but the ClusterIP's would
/// not reach it.
#[test]
fn datagrams_of_all_sizes_come_back_whole_from_the_cluster_ip() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running_stage(lab, flavour, &[all()])?;
        for size in [0, 1, 512, 1472, 1473, 9000, 65_507] {
            let datagram: Vec<u8> = (0..size).map(|place| (place % 251) as u8).collect();
            for to in both(UDP_ECHO) {
                let from_pod = stage.client.udp_exchange(&to, &datagram);
                check_echo(&stage, "pod", &to, &datagram, from_pod)?;
                let from_host = stage.node.udp_exchange(&to, &datagram);
                check_echo(&stage, "host", &to, &datagram, from_host)?;
            }
        }
        Ok(())
    })
}

/// A lost datagram is explained by what the agent counted.
fn check_echo(
    stage: &SideBySide,
    from: &str,
    to: &str,
    sent: &[u8],
    received: std::io::Result<Vec<u8>>,
) -> Result<()> {
    let what = || format!("{} bytes from {from} to {to}", sent.len());
    let received = received.with_context(|| {
        let counters = stage.agent.get("/metrics").unwrap_or_default();
        let lines = counters.lines().filter(|line| line.contains("_udp_"));
        format!("{}\n{}", what(), lines.collect::<Vec<_>>().join("\n"))
    })?;
    ensure!(received == sent, "{}: {} came back", what(), received.len());
    Ok(())
}

#[test]
fn datagrams_of_one_client_keep_their_boundaries_and_their_server() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running_stage(lab, flavour, &[all()])?;
        for to in both(UDP_IDENTITY) {
            let socket = stage.client.udp_socket(&to)?;
            let mut greetings = Vec::new();
            for text in ["one", "two", "three"] {
                socket.send(text.as_bytes())?;
                let mut answer = [0; 200];
                let length = socket.recv(&mut answer)?;
                let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
                let (greeting, echo) = answer.split_once('\n').context("no greeting")?;
                assert_eq!(echo, text);
                greetings.push(greeting.to_owned());
            }
            greetings.dedup();
            assert_eq!(greetings.len(), 1, "one flow is one client to its server");
        }
        Ok(())
    })
}

#[test]
fn a_client_that_ends_its_half_still_gets_the_answer() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running_stage(lab, flavour, &[all()])?;
        from_pod_and_host(&stage, COUNT, |connect| {
            let mut stream = connect()?;
            stream.write_all(&vec![1; 1_000_000])?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            assert_eq!(answer, "1000000 bytes\n");
            Ok(())
        })
    })
}

#[test]
fn a_server_that_speaks_first_and_ends_is_heard_to_its_last_byte() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running_stage(lab, flavour, &[all()])?;
        from_pod_and_host(&stage, SEND, |connect| {
            let mut received = Vec::new();
            connect()?.read_to_end(&mut received)?;
            assert_eq!(received.len(), SENT_AT_ONCE);
            Ok(())
        })
    })
}

#[test]
fn a_servers_reset_reaches_the_client_as_a_reset() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running_stage(lab, flavour, &[all()])?;
        from_pod_and_host(&stage, RESET, |connect| {
            let mut stream = connect()?;
            stream.write_all(b"x")?;
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            Ok(())
        })
    })
}

#[test]
fn ports_of_one_service_lead_to_their_own_target_ports() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let two_port = ClusterService::new("default/two-port")
            .cluster_ip("10.96.10.3")
            .tcp("http", 80, 8080)
            .udp("also-80", 80, 5353)
            .tcp("count", 5201, 8081);
        let stage = running_stage(lab, flavour, &[two_port])?;
        stage.check_handled_by(Handler::Agent, "10.96.10.3:80")?;
        stage.check_udp_handled_by(Handler::Agent, "10.96.10.3:80")?;
        let stream = stage.client.connect("10.96.10.3:5201")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        (&stream).read_to_string(&mut answer)?;
        assert_eq!(answer, "0 bytes\n");
        Ok(())
    })
}

#[test]
fn a_target_port_given_by_name_is_the_endpoints_number() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let named = ClusterService::new("default/named")
            .cluster_ip("10.96.10.4")
            .tcp("http", 80, 8080)
            .by_target_name("web");
        let stage = running_stage(lab, flavour, &[named])?;
        stage.check_handled_by(Handler::Agent, "10.96.10.4:80")?;
        Ok(())
    })
}

#[test]
fn single_stack_services_of_either_family_are_answered() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let v4 = ClusterService::new("default/four").cluster_ip("10.96.10.5");
        let v6 = ClusterService::new("default/six").cluster_ip("fd00:96::6");
        let services = [v4.tcp("", 80, 8080), v6.tcp("", 80, 8080)];
        let stage = running_stage(lab, flavour, &services)?;
        for to in ["10.96.10.5:80", "[fd00:96::6]:80"] {
            stage.check_handled_by(Handler::Agent, to)?;
        }
        Ok(())
    })
}

#[test]
fn a_service_without_endpoints_is_refused_at_once_until_it_has_one() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running_stage(lab, flavour, &[])?;
        stage.agent.publish(&[all()])?;
        await_ok(LONG, "the portal is there", || {
            stage.check_precedence(&["default/all:identity"])
        })?;
        for to in both(IDENTITY) {
            let from_pod = stage.client.connect(&to).unwrap_err();
            assert_eq!(from_pod.kind(), ErrorKind::ConnectionRefused, "pod, {to}");
            let from_host = stage.node.connect(&to).unwrap_err();
            assert_eq!(from_host.kind(), ErrorKind::ConnectionRefused, "host, {to}");
        }
        for to in both(UDP_ECHO) {
            let from_pod = stage.client.udp_exchange(&to, b"?").unwrap_err();
            assert_eq!(from_pod.kind(), ErrorKind::ConnectionRefused, "pod, {to}");
            let from_host = stage.node.udp_exchange(&to, b"?").unwrap_err();
            assert_eq!(from_host.kind(), ErrorKind::ConnectionRefused, "host, {to}");
        }
        stage.agent.publish(&[all().endpoint(&stage.agents_pod)])?;
        await_ok(LONG, "the new endpoint answers", || {
            stage.check_handled_by(Handler::Agent, &both(IDENTITY)[0])
        })
    })
}

#[test]
fn the_listener_is_no_open_proxy_to_those_who_address_it_themselves() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running_stage(lab, flavour, &[all()])?;
        for to in ["169.254.96.16:20007", "[fd00:ed6e:6d65:7368::1]:20007"] {
            assert!(stage.client.connect(to).is_err(), "from pod to {to}");
            assert!(stage.node.connect(to).is_err(), "from host to {to}");
        }
        Ok(())
    })
}

/// kubeedge/edgemesh#114: what is no portal's goes where it went before.
#[test]
fn traffic_to_no_portal_is_none_of_the_agents_business() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let stage = running_stage(lab, flavour, &[all()])?;
        let to = format!("{}:8080", stage.kube_proxys_pod.ipv4());
        let answer = stage.client.ask(&to, "direct")?;
        assert_eq!(answer.server, stage.kube_proxys_pod.name());
        assert_eq!(
            answer.client.ip(),
            std::net::IpAddr::V4(stage.client.ipv4())
        );
        Ok(())
    })
}
