//! TCP from one site to another is as if there were nobody between client and endpoint.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use edgemesh_lab::{Nat, Place, Sites, Traffic, await_ok};

use crate::cluster::{Cluster, ECHO, PATTERN, RESET};
use crate::figures::mbit;
use crate::held::Held;
use crate::places::{At, Of, On};
use crate::scenario::{LONG, in_lab, in_lab_within, play};

const MIB: u64 = 1 << 20;
/// A port of the pods for servers that a scenario may serve itself; the Services' one has the
/// same number as its endpoint's.
const OWN_PORT: u16 = 9999;

/// Straight ways between cloud and edge, a relay between edges.
fn with_a_relay() -> edgemesh_lab::SitesBuilder {
    Sites::builder().edges_behind(Nat::Symmetric)
}

/// From where to where, in both senses and both ways.
const ACROSS: [(On, On); 3] = [
    (On::Edge1, On::Cloud1),
    (On::Cloud1, On::Edge1),
    (On::Edge1, On::Edge2),
];

#[test]
fn a_half_closed_request_gets_its_answer_of_100_mib_whole() -> Result<()> {
    in_lab_within(Duration::from_secs(300), |lab| {
        play(lab, with_a_relay(), |cluster| {
            for (from, to) in ACROSS {
                let server = At(to, Of::Pod).cluster_ip(PATTERN);
                let client = cluster.pod(from);
                let down = client.download(server, 1, 100 * MIB)?;
                let up = client.upload(server, 2, 20 * MIB)?;
                let both = client.exchange(At(to, Of::Pod).cluster_ip(ECHO), 3, 20 * MIB)?;
                println!(
                    "{} to {} ({}), Mbit/s: {} down, {} up, {} both ways",
                    from.name(),
                    to.name(),
                    cluster.status(from)?.way(to),
                    mbit(down.rate()),
                    mbit(up.rate()),
                    mbit(2 * both.rate()),
                );
            }
            Ok(())
        })
    })
}

#[test]
fn a_reset_passes_to_the_other_site_both_ways() -> Result<()> {
    in_lab(|lab| {
        play(lab, with_a_relay(), |cluster| {
            publish_own_ports(cluster)?;
            for (from, to) in ACROSS {
                let what = || format!("from {} to {}", from.name(), to.name());
                resets_of_servers_arrive(cluster, from, to).with_context(what)?;
                resets_of_clients_arrive(cluster, from, to).with_context(what)?;
            }
            Ok(())
        })
    })
}

/// A Service `default/own-NODE` at the port [`OWN_PORT`] for each node.
fn publish_own_ports(cluster: &mut Cluster) -> Result<()> {
    for on in On::ALL {
        let mut service = edgemesh_lab::ClusterService::new(&format!("default/own-{}", on.name()))
            .cluster_ip(&own_address(on))
            .tcp("own", OWN_PORT, OWN_PORT);
        service.endpoints.push(cluster.endpoint(At(on, Of::Pod)));
        cluster.publish_also(service)?;
    }
    Ok(())
}

fn own_address(on: On) -> String {
    format!("10.96.90.{}", on.index() + 1)
}

fn resets_of_servers_arrive(cluster: &Cluster, from: On, to: On) -> Result<()> {
    let mut stream = cluster
        .pod(from)
        .connect(At(to, Of::Pod).cluster_ip(RESET))?;
    stream.write_all(b"x")?;
    let heard = stream.read(&mut [0]);
    let kind = heard.as_ref().map_err(std::io::Error::kind);
    ensure!(
        kind.err() == Some(ErrorKind::ConnectionReset),
        "the client saw {heard:?}"
    );
    Ok(())
}

/// A socket that is closed before all was read is reset (RFC 2525 section 2.17).
fn resets_of_clients_arrive(cluster: &Cluster, from: On, to: On) -> Result<()> {
    let server = &cluster.member(to).server;
    let at = (server.ipv4(), OWN_PORT);
    let listener = server.namespace().run(|| TcpListener::bind(at))??;
    let served = thread::scope(|scope| -> Result<std::io::Result<usize>> {
        let serving =
            thread::Builder::new().spawn_scoped(scope, || -> std::io::Result<usize> {
                let (mut stream, _) = listener.accept()?;
                stream.set_read_timeout(Some(LONG))?;
                stream.write_all(&[7; 1000])?;
                // The client's word comes before its reset, which would overtake it otherwise.
                stream.read_exact(&mut [0])?;
                stream.write_all(&[8; 1000])?;
                stream.read(&mut [0])
            })?;
        let to = format!("{}:{OWN_PORT}", own_address(to));
        let place = cluster.pod(from);
        let mut stream: TcpStream =
            await_ok(LONG, "the own port is a portal", || Ok(place.connect(&to)?))?;
        stream.read_exact(&mut [0; 1000])?;
        stream.write_all(b"x")?;
        await_ok(LONG, "there is something unread", || {
            ensure!(stream.peek(&mut [0])? > 0, "nothing yet");
            Ok(())
        })?;
        drop(stream);
        serving.join().map_err(|_| anyhow!("the server panicked"))
    })?;
    let kind = served.as_ref().map_err(std::io::Error::kind);
    ensure!(
        kind.err() == Some(ErrorKind::ConnectionReset),
        "the server saw {served:?}"
    );
    Ok(())
}

#[test]
fn a_thousand_connections_at_once_keep_their_bytes_apart() -> Result<()> {
    in_lab_within(Duration::from_secs(300), |lab| {
        play(lab, with_a_relay(), |cluster| {
            for (from, to) in ACROSS {
                let server = At(to, Of::Pod).cluster_ip(ECHO);
                let all = cluster.pod(from).connect_at_once(server, 1000, 20_000)?;
                println!("{} to {}: {all}", from.name(), to.name());
                all.check_all_intact()?;
            }
            for on in On::ALL {
                cluster.await_nothing_goes_on(on)?;
            }
            Ok(())
        })
    })
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() -> Result<()> {
    in_lab_within(Duration::from_secs(300), |lab| {
        play(lab, Sites::builder(), |cluster| {
            let server = At(On::Cloud1, Of::Pod).cluster_ip(ECHO);
            let client = cluster.pod(On::Edge1);
            let ends = [On::Edge1, On::Cloud1];
            // What is kept for reuse, as pipes, is as many as were ever in use at once.
            client
                .connect_in_turn(server, 1000, 64, 1000)?
                .check_all_intact()?;
            let before = ends.map(|on| Held::by(cluster, on));
            let all = client.connect_in_turn(server, 10_000, 16, 1000)?;
            println!("10,000 connections: {all}; whole: {}", all.took);
            all.check_all_intact()?;
            for (on, before) in ends.into_iter().zip(before) {
                let before = before?;
                cluster.await_nothing_goes_on(on)?;
                let what = format!("{} has the files that it had", on.name());
                await_ok(LONG, &what, || {
                    let files = Held::by(cluster, on)?.files;
                    ensure!(files <= before.files, "{files}, not {}", before.files);
                    Ok(())
                })?;
                let after = Held::by(cluster, on)?;
                println!("{}: before {before:?}, after {after:?}", on.name());
                // 10,000 leaked streams of a kilobyte each would be ten.
                ensure!(
                    after.kib < before.kib + 8 * 1024,
                    "memory grew: {after:?} after {before:?}"
                );
            }
            Ok(())
        })
    })
}
