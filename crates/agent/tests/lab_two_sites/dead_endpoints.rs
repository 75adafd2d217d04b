//! Endpoints and nodes that are dead cost nobody more than it takes to find out.

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use edgemesh_lab::traffic::{Connections, RequestLog};
use edgemesh_lab::{ClusterService, Cut, Place, Protocol, Sites, Traffic, await_ok, await_until};

use crate::cluster::{Cluster, ECHO, IDENTITY};
use crate::figures::{ms, print_table};
use crate::places::{At, Of, On};
use crate::scenario::{LONG, in_lab, in_lab_within, play};

/// Nobody listens there by itself; pods for servers have their echo server at it.
const ECHO_TARGET: u16 = 8007;
const IDENTITY_TARGET: u16 = 8080;
const SHARED: &str = "10.96.80.1";
/// How long all attempts of one connection may take together (`dialDeadline`'s default).
const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// A Service with endpoints in the pods of these nodes.
fn shared_by(cluster: &Cluster, nodes: &[On]) -> ClusterService {
    let mut service = ClusterService::new("default/shared")
        .cluster_ip(SHARED)
        .tcp("echo", ECHO, ECHO_TARGET)
        .tcp("identity", IDENTITY, IDENTITY_TARGET);
    for on in nodes {
        service.endpoints.push(cluster.endpoint(At(*on, Of::Pod)));
    }
    service
}

fn await_published(cluster: &Cluster, from: On) -> Result<()> {
    await_ok(LONG, "the shared Service is a portal", || {
        cluster
            .pod(from)
            .ask(&format!("{SHARED}:{IDENTITY}"), "?")?;
        Ok(())
    })
}

#[test]
fn an_endpoint_that_drops_syns_delays_no_other_connection() -> Result<()> {
    in_lab_within(Duration::from_secs(300), |lab| {
        play(lab, Sites::builder(), |cluster| {
            cluster.publish_also(shared_by(cluster, &[On::Edge1, On::Edge2]))?;
            await_published(cluster, On::Cloud1)?;
            let to = format!("{SHARED}:{ECHO}");
            let client = cluster.pod(On::Cloud1);
            let other = At(On::Edge2, Of::Pod).cluster_ip(IDENTITY);
            let asked = || client.keep_asking(Protocol::Tcp, other, PAUSE, DIAL_DEADLINE);

            let others = asked()?;
            let alive = client.connect_in_turn(&to, 1000, AT_ONCE, 100)?;
            let others_alive = others.stop()?;
            cluster.member(On::Edge1).server.drop_tcp_to(ECHO_TARGET)?;
            let others = asked()?;
            let one_deaf = client.connect_in_turn(&to, 1000, AT_ONCE, 100)?;
            let others_one_deaf = others.stop()?;
            cluster.await_nothing_goes_on(On::Edge1)?;
            let met = cluster.metrics(On::Edge1)?.sum(GIVEN_UP);
            println!("{met} of 1000 connections asked the one that drops SYNs");

            let row = |what: &str, shared: &Connections, others: &RequestLog| {
                let (took, others) = (&shared.took, others.latencies());
                [took.percentile(0.5), took.percentile(0.99), took.longest()]
                    .into_iter()
                    .chain([others.percentile(0.5), others.percentile(0.99)])
                    .fold(vec![what.to_owned()], |mut row, time| {
                        row.push(ms(time));
                        row
                    })
            };
            let head = ["ms", "p50", "p99", "longest", "others p50", "others p99"];
            let rows = [
                row("both alive", &alive, &others_alive),
                row("one drops SYNs", &one_deaf, &others_one_deaf),
            ];
            print_table(
                "1000 connections to two endpoints, and to another Service meanwhile",
                &head.map(str::to_owned),
                &rows,
            );
            alive.check_all_intact()?;
            one_deaf.check_all_intact()?;
            ensure!(others_one_deaf.failed() == 0, "{others_one_deaf}");
            // A dial of its own to the deaf one would take two seconds.
            ensure!(others_one_deaf.latencies().percentile(0.99) < Duration::from_secs(1));
            ensure!(one_deaf.took.percentile(0.9) < Duration::from_secs(1));
            // Half of all had it in turn. Each client may meet it once before anybody knows; then
            // it is tried after pauses that double, and by nobody who waits for it.
            ensure!(met >= 1.0, "nobody met it");
            ensure!(met <= (AT_ONCE + MOST_TRIALS) as f64, "{met} met it");
            Ok(())
        })
    })
}

const PAUSE: Duration = Duration::from_millis(20);
/// Clients of the Service with an endpoint that drops SYNs.
const AT_ONCE: usize = 8;
/// Within the five minutes that the scenario may take: after 1 s, 2 s and so on up to 60 s, and
/// two seconds for each.
const MOST_TRIALS: usize = 9;
/// What the exit counts of it.
const GIVEN_UP: &str = "edgemesh_tunnel_requests_total{answer=\"timed_out\"}";

#[test]
fn a_client_is_told_within_the_deadline_that_no_endpoint_answers() -> Result<()> {
    in_lab(|lab| {
        play(lab, Sites::builder(), |cluster| {
            cluster.publish_also(shared_by(cluster, &[On::Edge1, On::Edge2]))?;
            await_published(cluster, On::Cloud1)?;
            for on in [On::Edge1, On::Edge2] {
                cluster.member(on).server.drop_tcp_to(ECHO_TARGET)?;
            }
            for from in [On::Cloud1, On::Edge1] {
                let began = Instant::now();
                let place = cluster.pod(from);
                let heard = place
                    .connect(&format!("{SHARED}:{ECHO}"))
                    .and_then(|mut stream| {
                        stream.set_read_timeout(Some(LONG))?;
                        stream.read(&mut [0])
                    });
                let took = began.elapsed();
                println!("from {}: {heard:?} after {} ms", from.name(), ms(took));
                ensure!(heard.is_err(), "somebody answered: {heard:?}");
                ensure!(took < 2 * DIAL_DEADLINE, "only after {took:?}");
            }
            Ok(())
        })
    })
}

#[test]
fn a_node_that_dies_is_noticed_and_the_endpoint_on_another_serves() -> Result<()> {
    in_lab(|lab| {
        play(lab, Sites::builder(), |cluster| {
            cluster.publish_also(shared_by(cluster, &[On::Edge1, On::Edge2]))?;
            await_published(cluster, On::Cloud1)?;
            let to = format!("{SHARED}:{IDENTITY}");
            let client = cluster.pod(On::Cloud1);
            await_ok(LONG, "both endpoints have answered", || {
                let answers = [client.ask(&to, "?")?.server, client.ask(&to, "?")?.server];
                ensure!(answers[0] != answers[1], "only {}", answers[0]);
                Ok(())
            })?;
            let asked = client.keep_asking(Protocol::Tcp, &to, PAUSE, DIAL_DEADLINE)?;
            await_until(LONG, "some were answered", || asked.log().answered() > 10)?;

            cluster.node(On::Edge1).cut_off(Cut::Silent)?;
            cluster.agent_mut(On::Edge1).kill()?;
            let died = asked.now();
            let noticed = await_until(LONG, "the node is known to be down", || {
                cluster
                    .status(On::Cloud1)
                    .is_ok_and(|status| status.way(On::Edge1) == "down")
            })?;
            let known = asked.now();
            await_until(LONG, "some were answered since", || {
                asked.log().since(known).answered() > 50
            })?;
            let log = asked.stop()?;
            // One that was with the node when it died is lost with it.
            let begun_since = |moment| RequestLog {
                requests: log
                    .requests
                    .iter()
                    .filter(|one| one.begun >= moment)
                    .cloned()
                    .collect(),
            };
            println!("known to be down after {} ms", ms(noticed));
            println!("begun since its death: {}", begun_since(died));
            println!("begun since it is known: {}", begun_since(known));
            ensure!(begun_since(died).failed() == 0, "{log}");
            Ok(())
        })
    })
}

#[test]
fn an_agent_that_is_killed_and_comes_back_is_reached_again() -> Result<()> {
    in_lab(|lab| {
        play(lab, Sites::builder(), |cluster| {
            let server = At(On::Edge1, Of::Pod).cluster_ip(IDENTITY);
            let client = cluster.pod(On::Cloud1);
            client.ask(server, "before")?;
            cluster.agent_mut(On::Edge1).kill()?;
            cluster.agent_mut(On::Edge1).start()?;
            let asked = client.keep_asking(Protocol::Tcp, server, PAUSE, DIAL_DEADLINE)?;
            await_until(LONG, "it is reached again", || asked.log().answered() > 10)?;
            let log = asked.stop()?;
            println!(
                "first answer {} ms after it was ready again; {log}",
                ms(log.first_answer().unwrap_or_default())
            );
            Ok(())
        })
    })
}
