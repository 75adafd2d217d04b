//! Traffic tools: what is whole is called whole, and what is not is not.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use edgemesh_lab::traffic::Burst;
use edgemesh_lab::{
    Cut, Direction, Lab, LinkConditions, Place, Pod, Protocol, Serve, Sites, Traffic, await_until,
    test,
};

const LONG: Duration = Duration::from_secs(30);
const OFTEN: Duration = Duration::from_millis(20);

/// A server and a client on one node.
fn pair(lab: &Lab) -> Result<(Pod, Pod)> {
    let node = lab.node("node").create()?;
    Ok((node.pod("server").create()?, node.pod("client").create()?))
}

fn at(server: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(server.ipv4().into(), port)
}

#[test]
fn a_hundred_mebibytes_come_whole_after_a_half_close_and_go_whole() -> Result<()> {
    test(|lab| {
        let (server, client) = pair(lab)?;
        let _pattern = server.serve(1, Serve::Pattern)?;
        let _echo = server.serve(2, Serve::Echo)?;
        let bytes = 100 << 20;
        assert_eq!(client.download(at(&server, 1), 1, bytes)?.bytes, bytes);
        client.upload(at(&server, 1), 2, bytes / 10)?;
        client.exchange(at(&server, 2), 3, bytes / 10)?;
        Ok(())
    })
}

#[test]
fn a_transfer_that_is_cut_or_something_else_is_an_error() -> Result<()> {
    test(|lab| {
        let (server, client) = pair(lab)?;
        let _other = server.serve(1, Serve::Identity)?;
        let _reset = server.serve(2, Serve::Reset)?;
        let _count = server.serve(3, Serve::CountBytes)?;
        let error = |outcome: Result<_>| format!("{:#}", outcome.err().unwrap());
        let wrong = error(client.download(at(&server, 1), 1, 1000).map(|_| ()));
        assert!(wrong.contains("byte 0 of 1000 is wrong"), "{wrong}");
        assert!(client.download(at(&server, 2), 1, 1000).is_err());
        let verdict = error(client.upload(at(&server, 3), 1, 1000).map(|_| ()));
        assert!(verdict.contains("the server says: "), "{verdict}");
        Ok(())
    })
}

#[test]
fn a_thousand_connections_are_open_at_once_and_each_keeps_its_bytes() -> Result<()> {
    test(|lab| {
        let (server, client) = pair(lab)?;
        let echo = server.serve(1, Serve::Echo)?;
        let report = client.connect_at_once(at(&server, 1), 1000, 20_000)?;
        report.check_all_intact()?;
        assert_eq!((report.intact, report.connected.count()), (1000, 1000));
        let report = client.connect_in_turn(at(&server, 1), 500, 8, 100)?;
        report.check_all_intact()?;
        assert_eq!(echo.requests(), 1500);
        Ok(())
    })
}

#[test]
fn connections_that_fail_are_told_apart_from_others() -> Result<()> {
    test(|lab| {
        let (server, client) = pair(lab)?;
        let _reset = server.serve(1, Serve::Reset)?;
        let report = client.connect_at_once(at(&server, 1), 10, 100)?;
        assert_eq!((report.intact, report.failures.len()), (0, 10));
        assert!(report.check_all_intact().is_err());
        Ok(())
    })
}

#[test]
fn datagrams_of_every_size_come_back_as_they_were() -> Result<()> {
    test(|lab| {
        let (server, client) = pair(lab)?;
        let _echo = server.serve(1, Serve::UdpEcho)?;
        let sizes = (0..40).chain([1414, 1472, 1473, 4096, 4097, 65_506, 65_507]);
        let report = client.datagrams_of(at(&server, 1), sizes)?;
        report.check_all_answered()?;
        assert_eq!(report.answered, 47);
        let other = server.serve(2, Serve::UdpIdentity)?;
        let report = client.datagrams_of(at(&server, 2), [100, 200])?;
        assert_eq!((report.altered, other.requests()), (2, 2));
        assert!(report.check_nothing_wrong().is_err());
        Ok(())
    })
}

#[test]
fn a_burst_of_several_clients_is_accounted_for() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder()
            .edges_over(LinkConditions::default(), 3)
            .create(lab)?;
        let echo = sites.cloud1.serve(1, Serve::UdpEcho)?;
        let to = SocketAddr::new(sites.cloud1.ipv4().into(), 1);
        let some = Burst {
            count: 1000,
            size: 1000,
            clients: 3,
            window: 20,
        };
        let report = sites.edge1.burst(to, some)?;
        report.check_all_answered()?;
        assert_eq!((report.answered, echo.requests()), (3000, 3000));

        let uplink = sites.edge1_site().uplink();
        let before = uplink.statistics(Direction::Up)?;
        uplink.set_conditions(Direction::Up, LinkConditions::default().loss(0.05))?;
        let few = Burst {
            clients: 1,
            window: 1000,
            ..some
        };
        let report = sites.edge1.burst(to, few)?;
        report.check_nothing_wrong()?;
        let lost = uplink.statistics(Direction::Up)?.lost - before.lost;
        assert!(
            lost > 0 && report.lost >= usize::try_from(lost)?,
            "{lost}, {report}"
        );
        assert_eq!(report.sent, report.answered + report.lost);
        Ok(())
    })
}

#[test]
fn a_request_loop_knows_how_long_nobody_answered() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let _tcp = sites.cloud1.serve(1, Serve::Identity)?;
        let _udp = sites.cloud1.serve(1, Serve::UdpIdentity)?;
        let to = SocketAddr::new(sites.cloud1.ipv4().into(), 1);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let requests = sites.edge1.keep_asking(protocol, to, OFTEN, 5 * OFTEN)?;
            await_until(LONG, "requests are answered", || {
                requests.log().answered() > 3
            })?;
            sites.edge1_site().uplink().cut(Cut::Silent)?;
            await_until(LONG, "requests fail", || requests.log().failed() > 3)?;
            sites.edge1_site().uplink().restore()?;
            let back = requests.now();
            await_until(LONG, "they are answered again", || {
                requests.log().since(back).answered() > 3
            })?;
            let log = requests.stop()?;
            let mut failed = log
                .requests
                .iter()
                .filter(|request| request.failure.is_some());
            let (first, last) = (failed.next().unwrap(), failed.next_back().unwrap());
            assert!(log.longest_gap() >= last.ended() - first.begun, "{log}");
            assert!(log.latencies().count() == log.answered(), "{log}");
        }
        Ok(())
    })
}

#[test]
fn a_held_connection_outlives_a_cut_and_tells_of_its_stall() -> Result<()> {
    test(|lab| {
        let sites = Sites::builder().create(lab)?;
        let echo = sites.cloud1.serve(1, Serve::Echo)?;
        let to = SocketAddr::new(sites.cloud1.ipv4().into(), 1);
        let held = sites.edge1.hold(to, OFTEN)?;
        held.await_echo(LONG)?;
        held.forget_stalls();
        sites.edge1_site().uplink().cut(Cut::Silent)?;
        let stalled = Duration::from_millis(300);
        await_until(LONG, "it stalls", || held.report().longest_stall > stalled)?;
        sites.edge1_site().uplink().restore()?;
        let report = held.await_echo(LONG)?;
        assert!(report.longest_stall > stalled, "{report}");
        echo.cut_connections();
        await_until(LONG, "it is broken", || held.report().broken.is_some())?;
        assert!(held.await_echo(LONG).is_err());
        assert!(held.close().check_whole().is_err());
        Ok(())
    })
}

#[test]
fn a_pod_that_drops_packets_to_a_port_answers_on_others() -> Result<()> {
    test(|lab| {
        let (server, client) = pair(lab)?;
        let _one = server.serve(1, Serve::Identity)?;
        let _two = server.serve(2, Serve::Identity)?;
        server.drop_tcp_to(1)?;
        let requests = client.keep_asking(Protocol::Tcp, at(&server, 1), OFTEN, OFTEN)?;
        await_until(LONG, "two requests are over", || {
            requests.log().requests.len() >= 2
        })?;
        assert_eq!(requests.stop()?.answered(), 0);
        assert_eq!(client.ask(at(&server, 2), "hello")?.server, "server");
        Ok(())
    })
}
