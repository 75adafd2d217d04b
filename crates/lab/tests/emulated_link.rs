//! The emulated link in the kernel: what it is told to do with packets, it does.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Result;
use edgemesh_lab::{Cut, Direction, LinkConditions, Place, Serve, Sites, await_until, test};

const LONG: Duration = Duration::from_secs(20);
const DELAY: Duration = Duration::from_millis(30);

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// A socket on `edge1`, connected to a server on `cloud1` that sends back what it gets.
fn to_echo(sites: &Sites) -> Result<UdpSocket> {
    let socket = sites.edge1.udp_socket(at(sites.cloud1.ipv4(), 4000))?;
    socket.set_read_timeout(Some(LONG))?;
    Ok(socket)
}

fn over(conditions: LinkConditions) -> edgemesh_lab::SitesBuilder {
    Sites::builder().edges_over(conditions, 5)
}

#[test]
fn no_packet_is_earlier_than_the_delay_of_both_ways() -> Result<()> {
    test(|lab| {
        let sites = over(LinkConditions::delay(DELAY)).create(lab)?;
        let _echo = sites.cloud1.serve(4000, Serve::UdpEcho)?;
        let socket = to_echo(&sites)?;
        for size in [0, 1, 1400, 4000, 65_507] {
            let (begin, sent) = (Instant::now(), vec![7; size]);
            socket.send(&sent)?;
            let mut heard = vec![0; 65_536];
            let length = socket.recv(&mut heard)?;
            assert!(begin.elapsed() >= 2 * DELAY, "{:?}", begin.elapsed());
            assert_eq!(heard[..length], sent);
        }
        let statistics = sites.edge1_site().uplink().statistics(Direction::Up)?;
        assert!(
            statistics.delivered >= 5 && statistics.lost == 0,
            "{statistics:?}"
        );
        Ok(())
    })
}

#[test]
fn packets_get_lost_in_the_direction_and_share_that_was_told() -> Result<()> {
    test(|lab| {
        let sites = over(LinkConditions::default()).create(lab)?;
        let echo = sites.cloud1.serve(4000, Serve::UdpEcho)?;
        let socket = to_echo(&sites)?;
        let uplink = sites.edge1_site().uplink();
        let before = uplink.statistics(Direction::Up)?;
        uplink.set_conditions(Direction::Up, LinkConditions::default().loss(0.1))?;
        for sent in (50..=2000).step_by(50) {
            for _ in 0..50 {
                socket.send(&[1; 100])?;
            }
            // No faster than packets are taken off the link: queues are not at issue here.
            await_until(LONG, "the packets met their fates", || {
                uplink.statistics(Direction::Up).is_ok_and(|now| {
                    now.delivered + now.lost - before.delivered - before.lost >= sent
                })
            })?;
        }
        let (up, down) = (
            uplink.statistics(Direction::Up)?,
            uplink.statistics(Direction::Down)?,
        );
        assert!((140..260).contains(&up.lost), "{up:?}");
        assert_eq!((down.lost, up.dropped), (0, 0));
        await_until(LONG, "the others arrived", || {
            u64::try_from(echo.requests()).is_ok_and(|count| count == 2000 - up.lost)
        })?;
        Ok(())
    })
}

#[test]
fn a_full_queue_before_a_slow_link_drops_and_counts() -> Result<()> {
    test(|lab| {
        // One packet a millisecond, and room for ten.
        let slow = LinkConditions::default().rate(8_000_000, 10_000);
        let sites = over(LinkConditions::default()).create(lab)?;
        let echo = sites.cloud1.serve(4000, Serve::UdpEcho)?;
        let socket = to_echo(&sites)?;
        let uplink = sites.edge1_site().uplink();
        uplink.set_conditions(Direction::Up, slow)?;
        for _ in 0..1000 {
            socket.send(&[1; 972])?;
        }
        await_until(LONG, "all packets met their fates", || {
            uplink
                .statistics(Direction::Up)
                .is_ok_and(|now| now.delivered + now.dropped >= 1000)
        })?;
        let up = uplink.statistics(Direction::Up)?;
        assert!(up.dropped > 0, "{up:?}");
        await_until(LONG, "the others arrived", || {
            u64::try_from(echo.requests()).is_ok_and(|count| count + up.dropped >= 1000)
        })?;
        Ok(())
    })
}

#[test]
fn some_packets_overtake_others() -> Result<()> {
    test(|lab| {
        let sites = over(LinkConditions::delay(DELAY)).create(lab)?;
        let _echo = sites.cloud1.serve(4000, Serve::UdpEcho)?;
        let socket = to_echo(&sites)?;
        let uplink = sites.edge1_site().uplink();
        uplink.set_conditions(Direction::Up, LinkConditions::delay(DELAY).reordering(0.2))?;
        let sent: Vec<u8> = (0..100).collect();
        for number in &sent {
            socket.send(&[*number])?;
        }
        let mut heard = Vec::new();
        for _ in &sent {
            let mut number = [0];
            socket.recv(&mut number)?;
            heard.push(number[0]);
        }
        assert_ne!(heard, sent);
        heard.sort_unstable();
        assert_eq!(heard, sent);
        assert!(uplink.statistics(Direction::Up)?.overtook > 0);
        Ok(())
    })
}

/// What large segments of the kernel's own and unfinished checksums would break.
#[test]
fn a_long_transfer_over_delay_loss_and_reordering_arrives_whole() -> Result<()> {
    test(|lab| {
        let rough = LinkConditions::delay(Duration::from_millis(5))
            .jitter(Duration::from_millis(2))
            .loss(0.002)
            .reordering(0.01);
        let sites = over(rough).create(lab)?;
        let _send = sites.cloud1.serve(4001, Serve::Send(4 << 20))?;
        let mut stream = sites.edge1.connect(at(sites.cloud1.ipv4(), 4001))?;
        let received = std::io::copy(&mut stream, &mut std::io::sink())?;
        assert_eq!(received, 4 << 20);
        let down = sites.edge1_site().uplink().statistics(Direction::Down)?;
        assert!(down.lost > 0 && down.overtook > 0, "{down:?}");
        Ok(())
    })
}

#[test]
fn an_emulated_uplink_can_be_cut_and_its_address_changed_like_a_cable() -> Result<()> {
    test(|lab| {
        let sites = over(LinkConditions::delay(Duration::from_millis(1))).create(lab)?;
        let _server = sites.cloud1.serve(8080, Serve::Identity)?;
        let _echo = sites.cloud1.serve(4000, Serve::UdpEcho)?;
        let uplink = sites.edge1_site().uplink();
        let socket = to_echo(&sites)?;
        for cut in [Cut::Silent, Cut::Unplugged] {
            uplink.cut(cut)?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            socket.send(b"lost")?;
            assert!(socket.recv(&mut [0; 9]).is_err());
            uplink.restore()?;
            socket.set_read_timeout(Some(LONG))?;
            socket.send(b"found")?;
            assert_eq!(socket.recv(&mut [0; 9])?, 5);
        }
        uplink.set_public_address(sites.internet.free_address()?)?;
        let answer = sites
            .edge1
            .ask(at(sites.cloud1.ipv4(), 8080), "where am I?")?;
        assert_eq!(answer.client.ip(), uplink.public_address());
        Ok(())
    })
}
