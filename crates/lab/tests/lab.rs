//! The lab itself: what kernel tests build on must hold.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use edgemesh_lab::{
    ClusterService, Family, Flavour, KubeProxy, Lab, Node, Place, Pod, PodNetwork, RuleList, Serve,
    Table, await_until, test, test_each_flavour, test_within,
};

const WEB_V4: &str = "10.96.10.1:80";
const WEB_V6: &str = "[fd00:96::1]:80";

/// A node with a server and a client.
fn small_cluster(lab: &Lab, pods: PodNetwork) -> Result<(Node, Pod, Pod)> {
    let node = lab.node("edge-1").with_pods_wired(pods).create()?;
    let server = node.pod("server").create()?;
    let client = node.pod("client").create()?;
    Ok((node, server, client))
}

fn web(server: &Pod) -> ClusterService {
    ClusterService::new("default/web")
        .cluster_ip("10.96.10.1")
        .cluster_ip("fd00:96::1")
        .tcp("http", 80, 8080)
        .udp("dns", 53, 5353)
        .endpoint(server)
}

#[test]
fn a_pod_reaches_another_pod_and_its_node_reaches_both_in_both_families() -> Result<()> {
    test(|lab| {
        for pods in [PodNetwork::Bridge, PodNetwork::Calico] {
            let (name, node) = match pods {
                PodNetwork::Bridge => ("b", lab.node("bridged")),
                PodNetwork::Calico => ("c", lab.node("like-calico")),
            };
            let node = node.with_pods_wired(pods).create()?;
            let server = node.pod(&format!("{name}-server")).create()?;
            let client = node.pod(&format!("{name}-client")).create()?;
            let _web = server.serve(8080, Serve::Identity)?;
            for address in server.addresses() {
                let to = SocketAddr::new(address, 8080);
                let from_pod = client.ask(to, "hello")?;
                assert_eq!(from_pod.server, server.name());
                assert_eq!(from_pod.echo, "hello");
                assert!(client.addresses().contains(&from_pod.client.ip()));
                assert_eq!(node.ask(to, "hello")?.server, server.name());
            }
        }
        Ok(())
    })
}

#[test]
fn a_calico_pod_interface_has_no_ipv4_address() -> Result<()> {
    test(|lab| {
        let (node, _server, _client) = small_cluster(lab, PodNetwork::Calico)?;
        let shown = node
            .program("ip")
            .args(["-4", "-oneline", "address", "show"])
            .run()?;
        assert!(!shown.contains("cali"), "{shown}");
        Ok(())
    })
}

/// Otherwise pods that know the node by its old address lose it, in IPv6 for many seconds.
#[test]
fn a_nodes_bridge_keeps_its_hardware_address_whatever_pods_come() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let bridge = || {
            let shown = node
                .program("ip")
                .args(["-o", "link", "show", "cni0"])
                .run()?;
            let words: Vec<&str> = shown.split_whitespace().collect();
            let place = words.iter().position(|word| *word == "link/ether");
            Ok::<_, anyhow::Error>(place.map(|place| words[place + 1].to_owned()))
        };
        let before = bridge()?;
        assert!(before.is_some());
        for number in 0..4 {
            node.pod(&format!("pod-{number}")).create()?;
            assert_eq!(bridge()?, before);
        }
        Ok(())
    })
}

#[test]
fn pods_of_two_nodes_reach_each_other() -> Result<()> {
    test(|lab| {
        let (here, there) = (lab.node("one").create()?, lab.node("two").create()?);
        let (client, server) = (here.pod("client").create()?, there.pod("server").create()?);
        let _web = server.serve(8080, Serve::Identity)?;
        for address in server.addresses() {
            let answer = client.ask(SocketAddr::new(address, 8080), "hello")?;
            assert!(client.addresses().contains(&answer.client.ip()));
        }
        Ok(())
    })
}

#[test]
fn the_stand_in_serves_cluster_ips_to_pod_and_host_in_both_families() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let (node, server, client) = small_cluster(lab, PodNetwork::Bridge)?;
        let _web = server.serve(8080, Serve::Identity)?;
        let _dns = server.serve(5353, Serve::UdpIdentity)?;
        let _kube_proxy = KubeProxy::start(&node, flavour, &[web(&server)])?;
        for to in [WEB_V4, WEB_V6] {
            assert_eq!(client.ask(to, "pod")?.server, "server");
            assert_eq!(node.ask(to, "host")?.server, "server");
        }
        for to in ["10.96.10.1:53", "[fd00:96::1]:53"] {
            assert_eq!(client.ask_udp(to, "pod")?.echo, "pod");
            assert_eq!(node.ask_udp(to, "host")?.echo, "host");
        }
        // A pod that is its own endpoint sees itself masqueraded, as with kube-proxy.
        assert_eq!(server.ask(WEB_V4, "hairpin")?.echo, "hairpin");
        Ok(())
    })
}

#[test]
fn the_stand_in_refuses_a_service_without_endpoints() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let (node, server, client) = small_cluster(lab, PodNetwork::Bridge)?;
        let _kube_proxy = KubeProxy::start(&node, flavour, &[web(&server).without_endpoints()])?;
        for to in [WEB_V4, WEB_V6] {
            assert_eq!(
                client.connect(to).unwrap_err().kind(),
                ErrorKind::ConnectionRefused
            );
            assert_eq!(
                node.connect(to).unwrap_err().kind(),
                ErrorKind::ConnectionRefused
            );
        }
        Ok(())
    })
}

#[test]
fn a_restarted_stand_in_puts_missing_jumps_first_and_leaves_others_in_their_place() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let (node, server, client) = small_cluster(lab, PodNetwork::Bridge)?;
        let _web = server.serve(8080, Serve::Identity)?;
        let kube_proxy = KubeProxy::start(&node, flavour, &[web(&server)])?;
        let iptables =
            |arguments: &str| flavour.command(&node, Family::V4, arguments.split_whitespace());
        let nat = || RuleList::read(&node, flavour, Family::V4, Table::Nat);

        iptables("-t nat -N OTHER")?;
        iptables("-t nat -I PREROUTING -j OTHER")?;
        kube_proxy.restart()?;
        assert_eq!(nat()?.jumps("PREROUTING", "KUBE-SERVICES"), [1]);

        iptables("-t nat -D PREROUTING 2")?;
        kube_proxy.restart()?;
        assert_eq!(nat()?.jumps("PREROUTING", "KUBE-SERVICES"), [0]);

        iptables("-t nat -F")?;
        kube_proxy.restart()?;
        assert_eq!(client.ask(WEB_V4, "again")?.echo, "again");
        Ok(())
    })
}

#[test]
fn counters_tell_which_rule_a_connection_took() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let (node, server, client) = small_cluster(lab, PodNetwork::Bridge)?;
        let _web = server.serve(8080, Serve::Identity)?;
        let _kube_proxy = KubeProxy::start(&node, flavour, &[web(&server)])?;
        for _ in 0..3 {
            client.ask(WEB_V4, "hello")?;
        }
        let nat = RuleList::read(&node, flavour, Family::V4, Table::Nat)?;
        let rule = nat
            .commented("KUBE-SERVICES", "default/web:http cluster IP")
            .next();
        assert_eq!(rule.map(|rule| rule.packets), Some(3));
        Ok(())
    })
}

#[test]
fn a_node_without_ipv6_has_no_ipv6_address_at_all() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").without_ipv6().create()?;
        let pod = node.pod("pod").create()?;
        assert!(pod.addresses().iter().all(IpAddr::is_ipv4));
        let shown = node.program("ip").args(["-6", "address"]).run()?;
        assert_eq!(shown.trim(), "");
        assert!(node.connect("[::1]:80").is_err());
        Ok(())
    })
}

#[test]
fn a_node_without_default_route_cannot_even_begin_to_reach_elsewhere() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").without_default_route().create()?;
        let way = |to: &str| node.program("ip").args(["route", "get", to]).run();
        assert_eq!(
            node.connect(WEB_V4).unwrap_err().kind(),
            ErrorKind::NetworkUnreachable
        );
        assert!(way("10.96.10.1").is_err() && way("fd00:96::1").is_err());
        node.add_default_routes()?;
        assert!(way("10.96.10.1")?.contains("via") && way("fd00:96::1")?.contains("via"));
        node.remove_default_routes()?;
        assert!(way("10.96.10.1").is_err() && way("fd00:96::1").is_err());
        Ok(())
    })
}

#[test]
fn servers_do_what_they_say() -> Result<()> {
    test(|lab| {
        let (_node, server, client) = small_cluster(lab, PodNetwork::Bridge)?;
        let at = |port| SocketAddr::new(server.ipv4().into(), port);
        let _count = server.serve(1, Serve::CountBytes)?;
        let _send = server.serve(2, Serve::Send(100_000))?;
        let _reset = server.serve(3, Serve::Reset)?;
        let _udp = server.serve(4, Serve::UdpEcho)?;

        let mut counted = String::new();
        let mut stream = client.connect(at(1))?;
        stream.write_all(&[0; 70_000])?;
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_string(&mut counted)?;
        assert_eq!(counted, "70000 bytes\n");

        let mut sent = Vec::new();
        client.connect(at(2))?.read_to_end(&mut sent)?;
        assert_eq!(sent.len(), 100_000);

        let mut stream = client.connect(at(3))?;
        stream.write_all(b"x")?;
        let reset = stream.read(&mut [0]).unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);

        for size in [0, 1, 65_507] {
            let datagram = vec![7; size];
            assert_eq!(client.udp_exchange(at(4), &datagram)?, datagram);
        }
        Ok(())
    })
}

#[test]
fn a_server_that_is_gone_refuses_while_its_connections_go_on() -> Result<()> {
    test(|lab| {
        let (_node, server, client) = small_cluster(lab, PodNetwork::Bridge)?;
        let to = SocketAddr::new(server.ipv4().into(), 8080);
        let echo = server.serve(8080, Serve::Echo)?;
        let mut open = client.connect(to)?;
        await_until(Duration::from_secs(10), "the server accepted", || {
            echo.requests() == 1
        })?;
        drop(echo);
        assert_eq!(
            client.connect(to).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        let mut back = [0; 4];
        open.write_all(b"ping")?;
        open.read_exact(&mut back)?;
        assert_eq!(&back, b"ping");
        Ok(())
    })
}

#[test]
fn connections_that_a_server_cuts_end_for_their_clients() -> Result<()> {
    test(|lab| {
        let (_node, server, client) = small_cluster(lab, PodNetwork::Bridge)?;
        let echo = server.serve(8080, Serve::Echo)?;
        let mut open = client.connect(SocketAddr::new(server.ipv4().into(), 8080))?;
        open.write_all(b"ping")?;
        open.read_exact(&mut [0; 4])?;
        echo.cut_connections();
        assert_eq!(open.read(&mut [0])?, 0);
        Ok(())
    })
}

#[test]
fn hidden_programs_cannot_be_found_and_others_can() -> Result<()> {
    test(|lab| {
        let (node, server, client) = small_cluster(lab, PodNetwork::Bridge)?;
        let _web = server.serve(8080, Serve::Identity)?;
        let _kube_proxy = KubeProxy::start(&node, Flavour::Nft, &[web(&server)])?;
        lab.hide_programs("ip6tables")?;
        let listed = |tool: &str| node.program(tool).args(["-t", "nat", "-S"]).run();
        assert!(listed("iptables-nft").is_ok());
        assert!(listed("ip6tables-nft").is_err());
        assert_eq!(client.ask(WEB_V6, "rules stay")?.echo, "rules stay");
        Ok(())
    })
}

#[test]
fn a_background_program_can_be_awaited_by_its_log_and_ends_on_sigterm() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let script = "trap 'echo ending; exit 3' TERM; echo started; while :; do sleep 0.01; done";
        let mut program = node
            .program("sh")
            .args(["-c", script])
            .start(lab.folder().join("sh.log"))?;
        program.await_log(Duration::from_secs(10), "started")?;
        let status = program.stop(Duration::from_secs(10))?;
        assert_eq!(status.code(), Some(3));
        assert_eq!(program.log_tail(1), "ending");
        Ok(())
    })
}

#[test]
fn a_program_that_ends_before_its_log_says_so_is_reported_with_its_last_words() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let mut program = node
            .program("sh")
            .args(["-c", "echo no such file; exit 1"])
            .start(lab.folder().join("sh.log"))?;
        let error = program
            .await_log(Duration::from_secs(10), "ready")
            .unwrap_err();
        assert!(format!("{error:#}").contains("no such file"), "{error:#}");
        Ok(())
    })
}

#[test]
fn a_failing_body_fails_the_test_with_what_it_wrote() {
    let outcome = test(|lab| {
        let node = lab.node("edge-1").create()?;
        node.program("sh")
            .args(["-c", "echo it broke >&2; exit 7"])
            .run()?;
        Ok(())
    });
    let error = format!("{:#}", outcome.unwrap_err());
    assert!(
        error.contains("exit status: 7") && error.contains("it broke"),
        "{error}"
    );
}

#[test]
fn a_body_that_hangs_is_ended_and_its_processes_with_it() -> Result<()> {
    let outcome = test_within(Duration::from_secs(2), |lab| {
        let node = lab.node("edge-1").create()?;
        node.program("sleep").arg("1234567").run().map(|_| ())
    });
    let error = format!("{:#}", outcome.unwrap_err());
    assert!(error.contains("still running"), "{error}");
    await_until(Duration::from_secs(10), "its processes are gone", || {
        !command_lines().iter().any(|line| line.contains("1234567"))
    })?;
    Ok(())
}

#[test]
fn a_lab_leaves_nothing_in_the_namespaces_around_it() -> Result<()> {
    // What stands before and after `test` runs outside; the label keeps the inner run,
    // which gets here too, from looking at its own surroundings.
    let surroundings = || -> Result<(Vec<String>, String)> {
        Ok((
            names_in("/run/netns")?,
            std::fs::read_to_string("/proc/net/dev")?,
        ))
    };
    let interfaces = |state: &(Vec<String>, String)| -> Vec<String> {
        let lines = state.1.lines().filter_map(|line| line.split_once(':'));
        lines.map(|(name, _)| name.trim().to_owned()).collect()
    };
    let before = surroundings()?;
    test(|lab| {
        let node = lab.node("left-behind").create()?;
        node.pod("left-behind-pod").create()?;
        node.program("sleep")
            .arg("7654321")
            .start(lab.folder().join("log"))
            .map(std::mem::forget)
    })?;
    let after = surroundings()?;
    assert_eq!(before.0, after.0);
    assert_eq!(interfaces(&before), interfaces(&after));
    await_until(Duration::from_secs(10), "its processes are gone", || {
        !command_lines().iter().any(|line| line.contains("7654321"))
    })?;
    Ok(())
}

fn names_in(folder: &str) -> Result<Vec<String>> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(Vec::new());
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// Of all processes that can be seen.
fn command_lines() -> Vec<String> {
    let processes = names_in("/proc").unwrap_or_default();
    let lines = processes
        .iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter_map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .collect()
}
