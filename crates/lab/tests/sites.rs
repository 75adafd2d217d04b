//! Sites, their routers and what becomes of them: what tests of tunnels build on must hold.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_lab::{
    ClusterService, Cut, Flavour, Host, KubeProxy, LinkConditions, Nat, Node, Place, Program,
    Protocol, Serve, Sites, StrayKind, Traffic, await_ok, await_until, connect_from, test,
};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// The ports that servers on `hosts` saw one socket of `node`'s come from, its own first.
fn seen_ports(node: &Node, hosts: &[Host]) -> Result<Vec<u16>> {
    let socket = node
        .namespace()
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    socket.set_read_timeout(Some(LONG))?;
    let mut ports = vec![socket.local_addr()?.port()];
    for host in hosts {
        socket.send_to(b"who am I?", at(host.uplink().public_address(), 4000))?;
        let mut answer = [0; 100];
        let length = socket.recv(&mut answer)?;
        let text = String::from_utf8_lossy(&answer[..length]);
        let line = text.lines().next().unwrap_or_default();
        let (_, client) = line.split_once(" saw ").context("no greeting")?;
        ports.push(client.parse::<SocketAddr>()?.port());
    }
    Ok(ports)
}

fn hosts(sites: &Sites, number: usize) -> Result<Vec<Host>> {
    (0..number)
        .map(|number| sites.internet.host(&format!("host{number}")))
        .collect()
}

#[test]
fn everybody_reaches_the_cloud_and_nobody_a_node_behind_a_nat() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let server = sites.cloud1.pod("server").create()?;
        let native = sites.cloud2.pod("native").create()?;
        let _pod = server.serve(8080, Serve::Identity)?;
        // Servers of pods listen on the pods' addresses; the node has one of its own.
        let _node = sites.cloud1.serve(20006, Serve::Identity)?;
        let cloud1 = at(sites.cloud1.ipv4(), 20006);
        let site = |number: usize| {
            sites
                .all()
                .nth(number)
                .map(|site| site.uplink().public_address())
        };
        for (edge, public) in [(&sites.edge1, site(1)), (&sites.edge2, site(2))] {
            let answer = edge.ask(cloud1, "hello")?;
            assert_eq!(Some(answer.client.ip()), public.map(IpAddr::V4));
        }
        assert_eq!(
            native.ask(at(server.ipv4(), 8080), "natively")?.server,
            "server"
        );
        assert_eq!(sites.edge1.ipv4(), sites.edge2.ipv4());
        let public = sites.edge1_site().uplink().public_address();
        let _edge = sites.edge1.serve(20006, Serve::Identity)?;
        let outcome = sites.cloud1.udp_exchange(at(public, 20006), b"anybody?");
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::WouldBlock);
        Ok(())
    })
}

#[test]
fn a_port_preserving_nat_shows_one_socket_at_one_port() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let hosts = hosts(&sites, 3)?;
        let _servers = serve_identity(&hosts)?;
        let ports = seen_ports(&sites.edge1, &hosts)?;
        assert_eq!(BTreeSet::from_iter(&ports).len(), 1, "{ports:?}");
        Ok(())
    })
}

#[test]
fn a_symmetric_nat_shows_one_socket_at_another_port_to_each_peer() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().edges_behind(Nat::Symmetric).create(lab)?;
        let hosts = hosts(&sites, 3)?;
        let _servers = serve_identity(&hosts)?;
        let ports = seen_ports(&sites.edge1, &hosts)?;
        assert_eq!(BTreeSet::from_iter(&ports).len(), 4, "{ports:?}");
        Ok(())
    })
}

#[test]
fn holes_can_be_punched_through_port_preserving_nats() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let open = |node: &Node| -> Result<UdpSocket> {
            let socket = node
                .namespace()
                .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 20006)))??;
            socket.set_read_timeout(Some(LONG))?;
            Ok(socket)
        };
        let (one, two) = (open(&sites.edge1)?, open(&sites.edge2)?);
        let public = |site: &edgemesh_lab::Site| at(site.uplink().public_address(), 20006);
        // The first one finds the other's NAT closed, and opens its own by it.
        one.send_to(b"knock", public(sites.edge2_site()))?;
        two.send_to(b"hello", public(sites.edge1_site()))?;
        let mut heard = [0; 5];
        let (_, from) = one.recv_from(&mut heard)?;
        assert_eq!((&heard, from), (b"hello", public(sites.edge2_site())));
        one.send_to(b"hi you", from)?;
        assert_eq!(two.recv(&mut [0; 10])?, 6);
        Ok(())
    })
}

#[test]
fn a_nat_can_be_changed_while_it_works() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let host = &hosts(&sites, 1)?[0];
        let (_web, _relay) = (
            host.serve(80, Serve::Identity)?,
            host.serve(443, Serve::Identity)?,
        );
        let _udp = host.serve(443, Serve::UdpIdentity)?;
        let to = |port| at(host.uplink().public_address(), port);
        // Short, since what a firewall drops is only known by waiting.
        let tcp = |port| {
            let stream = sites
                .edge1
                .namespace()
                .run(|| std::net::TcpStream::connect_timeout(&to(port), SHORT));
            stream.is_ok_and(|stream| stream.is_ok())
        };
        let udp = || {
            let socket = sites.edge1.udp_socket(to(443))?;
            socket.set_read_timeout(Some(SHORT))?;
            socket.send(b"hello")?;
            socket.recv(&mut [0; 100])
        };
        let site = sites.edge1_site();
        assert!(tcp(80) && tcp(443) && udp().is_ok());
        site.set_nat(Nat::NoUdp)?;
        assert!(tcp(80) && tcp(443) && udp().is_err());
        site.set_nat(Nat::OnlyTcpPort(443))?;
        assert!(!tcp(80) && tcp(443) && udp().is_err());
        site.set_nat(Nat::Symmetric)?;
        assert!(tcp(80) && tcp(443) && udp().is_ok());
        assert!(site.set_nat(Nat::None).is_err());
        assert_eq!(site.nat(), Nat::Symmetric);
        Ok(())
    })
}

#[test]
fn a_nats_public_address_can_change() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let _server = sites.cloud1.serve(8080, Serve::Identity)?;
        let cloud1 = at(sites.cloud1.ipv4(), 8080);
        let uplink = sites.edge1_site().uplink();
        let seen = || anyhow::Ok(sites.edge1.ask(cloud1, "where am I?")?.client.ip());
        let mut held = sites.edge1.connect(cloud1)?;
        assert_eq!(seen()?, uplink.public_address());
        let other = sites.internet.free_address()?;
        uplink.set_public_address(other)?;
        assert_eq!(uplink.public_address(), other);
        assert_eq!(seen()?, other);
        let taken = sites.edge2_site().uplink().public_address();
        assert!(uplink.set_public_address(taken).is_err());
        assert_eq!(seen()?, other);
        // What was open has lost its mapping.
        held.set_read_timeout(Some(SHORT))?;
        held.write_all(b"x")?;
        let mut heard = Vec::new();
        assert!(held.read_to_end(&mut heard).is_err());
        Ok(())
    })
}

#[test]
fn a_cut_uplink_carries_nothing_and_what_was_held_goes_on_after_it() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let _server = sites.cloud1.serve(7, Serve::Echo)?;
        let site = sites.edge1_site();
        for cut in [Cut::Silent, Cut::Unplugged] {
            let mut held = sites.edge1.connect(at(sites.cloud1.ipv4(), 7))?;
            held.write_all(b"one")?;
            held.read_exact(&mut [0; 3])?;
            site.uplink().cut(cut)?;
            held.write_all(b"two")?;
            held.set_read_timeout(Some(SHORT))?;
            assert!(held.read(&mut [0; 3]).is_err(), "{cut:?}");
            assert_eq!(has_carrier(site, "wan")?, cut == Cut::Silent);
            site.uplink().restore()?;
            held.set_read_timeout(Some(LONG))?;
            held.read_exact(&mut [0; 3])?;
            assert!(has_carrier(site, "wan")?);
        }
        Ok(())
    })
}

#[test]
fn a_node_can_be_cut_off_its_segment_and_plugged_in_again() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let _server = sites.cloud1.serve(7, Serve::Echo)?;
        for cut in [Cut::Silent, Cut::Unplugged] {
            let mut held = sites.edge1.connect(at(sites.cloud1.ipv4(), 7))?;
            sites.edge1.cut_off(cut)?;
            held.write_all(b"two")?;
            held.set_read_timeout(Some(SHORT))?;
            assert!(held.read(&mut [0; 3]).is_err(), "{cut:?}");
            assert_eq!(has_carrier(&sites.edge1, "eth0")?, cut == Cut::Silent);
            sites.edge1.plug_in()?;
            held.set_read_timeout(Some(LONG))?;
            held.read_exact(&mut [0; 3])?;
        }
        Ok(())
    })
}

fn has_carrier(place: &impl Place, device: &str) -> Result<bool> {
    let shown = place.program("ip").args(["link", "show", device]).run()?;
    Ok(shown.contains("LOWER_UP"))
}

#[test]
fn a_node_with_another_address_is_reached_there_and_its_pods_as_before() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let server = sites.cloud1.pod("server").create()?;
        let client = sites.cloud2.pod("client").create()?;
        let _server = server.serve(8080, Serve::Identity)?;
        let _node = sites.cloud2.serve(20006, Serve::Identity)?;
        sites.cloud1.change_address(77)?;
        assert_eq!(sites.cloud1.ipv4(), Ipv4Addr::new(198, 51, 100, 77));
        let answer = sites.cloud1.ask(at(sites.cloud2.ipv4(), 20006), "hello")?;
        assert_eq!(answer.client.ip(), sites.cloud1.ipv4());
        assert_eq!(client.ask(at(server.ipv4(), 8080), "pod")?.server, "server");
        assert_eq!(
            sites.cloud2.ask(at(server.ipv4(), 8080), "host")?.server,
            "server"
        );

        sites.edge1.change_address(99)?;
        let answer = sites.edge1.ask(at(sites.cloud2.ipv4(), 20006), "hello")?;
        let public = sites.edge1_site().uplink().public_address();
        assert_eq!(answer.client.ip(), public);
        Ok(())
    })
}

#[test]
fn a_node_can_move_to_another_site_with_its_pods() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let pod = sites.edge1.pod("pod").create()?;
        let _node = sites.cloud2.serve(20006, Serve::Identity)?;
        let mobile = sites
            .internet
            .site("mobile")
            .behind(Nat::Symmetric)
            .create()?;
        let to = at(sites.cloud2.ipv4(), 20006);
        let seen = || -> Result<[IpAddr; 2]> {
            let (node, pod) = (sites.edge1.ask(to, "node")?, pod.ask(to, "pod")?);
            Ok([node.client.ip(), pod.client.ip()])
        };
        let home = sites.edge1_site().uplink().public_address();
        assert_eq!(seen()?, [IpAddr::V4(home); 2]);
        sites.edge1.move_to(mobile.network())?;
        let away = mobile.uplink().public_address();
        assert_eq!(seen()?, [IpAddr::V4(away); 2]);
        sites.edge1.move_to(sites.edge1_site().network())?;
        assert_eq!(seen()?, [IpAddr::V4(home); 2]);
        Ok(())
    })
}

#[test]
fn kube_proxys_stand_in_serves_the_cloud_natively_but_not_the_edge() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let server = sites.cloud1.pod("server").create()?;
        let client = sites.cloud2.pod("client").create()?;
        let remote = sites.edge1.pod("remote").create()?;
        let _web = server.serve(8080, Serve::Identity)?;
        let web = ClusterService::new("default/web")
            .cluster_ip("10.96.10.1")
            .tcp("http", 80, 8080)
            .endpoint(&server);
        let mut proxies = Vec::new();
        for node in sites.nodes() {
            let services = std::slice::from_ref(&web);
            proxies.push(KubeProxy::start(node, Flavour::Nft, services)?);
        }
        assert_eq!(client.ask("10.96.10.1:80", "hello")?.server, "server");
        let requests = remote.keep_asking(Protocol::Tcp, "10.96.10.1:80", SHORT, SHORT)?;
        await_until(LONG, "a request fails", || requests.log().failed() > 0)?;
        assert_eq!(requests.stop()?.answered(), 0);
        // What went out to a pod address that its own site does not have.
        let strays = sites.edge1_site().strays()?;
        assert!(
            strays
                .iter()
                .all(|stray| stray.kind() == StrayKind::Private)
        );
        assert!(
            strays
                .iter()
                .any(|stray| stray.to == IpAddr::V4(server.ipv4()))
        );
        Ok(())
    })
}

#[test]
fn two_edge_nodes_in_one_lan_reach_each_other_but_not_each_others_pods() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().edges_in_one_lan().create(lab)?;
        let pod = sites.edge1.pod("server").create()?;
        let _pod = pod.serve(8080, Serve::Identity)?;
        let _node = sites.edge1.serve(20006, Serve::Identity)?;
        let answer = sites.edge2.ask(at(sites.edge1.ipv4(), 20006), "hello")?;
        assert_eq!(answer.client.ip(), sites.edge2.ipv4());
        assert_eq!(sites.edge1_site().name(), sites.edge2_site().name());
        let there = at(pod.ipv4(), 8080);
        let requests = sites
            .edge2
            .keep_asking(Protocol::Tcp, there, SHORT, SHORT)?;
        await_until(LONG, "a request fails", || requests.log().failed() > 0)?;
        assert_eq!(requests.stop()?.answered(), 0);
        Ok(())
    })
}

#[test]
fn packets_to_anybody_outside_are_counted_by_what_they_are_after() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().edges_behind(Nat::NoUdp).create(lab)?;
        let pod = sites.edge1.pod("pod").create()?;
        let _server = sites.cloud1.serve(8080, Serve::Identity)?;
        sites
            .edge1
            .ask(at(sites.cloud1.ipv4(), 8080), "this is no stray")?;
        sites.check_no_strays(&[])?;

        let send = |place: &dyn Fn() -> Result<UdpSocket>, to: &str| -> Result<()> {
            place()?.send_to(b"x", to)?;
            Ok(())
        };
        let from_node = || {
            Ok(sites
                .edge1
                .namespace()
                .run(|| UdpSocket::bind("0.0.0.0:0"))??)
        };
        let from_pod = || Ok(pod.namespace().run(|| UdpSocket::bind("0.0.0.0:0"))??);
        let from_node_v6 = || {
            Ok(sites
                .edge1
                .namespace()
                .run(|| UdpSocket::bind("[::]:0"))??)
        };
        send(&from_node, "192.168.1.1:53")?;
        send(&from_node, "192.168.1.1:5351")?;
        send(&from_node, "239.255.255.250:1900")?;
        send(&from_node, "224.0.0.251:5353")?;
        send(&from_node, "224.0.0.99:4000")?;
        send(&from_node, "9.9.9.9:443")?;
        send(&from_pod, "9.9.9.9:443")?;
        send(&from_node, "10.96.0.1:443")?;
        send(&from_node_v6, "[2606:4700::1]:443")?;
        let telling = || -> Result<Vec<(StrayKind, String, u16, u64)>> {
            let strays = sites.strays()?.into_iter();
            let mut told: Vec<_> = strays
                // The kernel itself joins multicast groups (IGMP).
                .filter(|stray| stray.protocol == 17)
                .map(|stray| {
                    (
                        stray.kind(),
                        stray.to.to_string(),
                        stray.port,
                        stray.packets,
                    )
                })
                .collect();
            told.sort();
            Ok(told)
        };
        await_until(LONG, "all are counted", || {
            telling().is_ok_and(|told| told.len() >= 8)
        })?;
        let expected = [
            (StrayKind::Dns, "192.168.1.1", 53, 1),
            (StrayKind::PortMapping, "192.168.1.1", 5351, 1),
            (StrayKind::Ssdp, "239.255.255.250", 1900, 1),
            (StrayKind::Mdns, "224.0.0.251", 5353, 1),
            (StrayKind::Multicast, "224.0.0.99", 4000, 1),
            (StrayKind::Private, "10.96.0.1", 443, 1),
            (StrayKind::Foreign, "2606:4700::1", 443, 1),
            (StrayKind::Foreign, "9.9.9.9", 443, 2),
        ]
        .map(|(kind, to, port, packets)| (kind, to.to_owned(), port, packets));
        assert_eq!(telling()?, expected);
        let error = sites.check_no_strays(&[StrayKind::Dns]).unwrap_err();
        assert!(error.to_string().contains("9.9.9.9"), "{error}");
        assert!(!error.to_string().contains("(Dns)"), "{error}");
        Ok(())
    })
}

#[test]
fn a_host_of_nobodys_reaches_the_cloud_like_anybody() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let intruder = sites.internet.host("intruder")?;
        let _server = sites.cloud1.serve(8080, Serve::Identity)?;
        let stream = await_ok(LONG, "the intruder is connected", || {
            Ok(connect_from(
                intruder.namespace(),
                at(sites.cloud1.ipv4(), 8080),
            )?)
        })?;
        assert_eq!(
            stream.local_addr()?.ip(),
            intruder.uplink().public_address()
        );
        Ok(())
    })
}

/// Names, addresses and devices are a lab's own: another one has the same at the same time.
#[test]
fn two_labs_have_the_same_sites_at_once() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder()
            .edges_over(LinkConditions::default(), 1)
            .create(lab)?;
        Program::new(std::env::current_exe()?)
            .args([
                "--exact",
                "holes_can_be_punched_through_port_preserving_nats",
            ])
            .run()?;
        assert_eq!(
            sites.nodes().map(Node::name),
            ["cloud1", "cloud2", "edge1", "edge2"]
        );
        Ok(())
    })
}

fn serve_identity(hosts: &[Host]) -> Result<Vec<edgemesh_lab::Server>> {
    hosts
        .iter()
        .map(|host| host.serve(4000, Serve::UdpIdentity))
        .collect()
}
