//! An agent hands its node over to the next: a DaemonSet's upgrade with maxSurge, where the
//! new pod starts beside the old one, and without, where one ends before the other starts.
//! (`--nocapture` prints how many requests that took, and the longest silence;
//! `SERVICES=10000` adds so many Services.)

#![expect(clippy::print_stdout, reason = "figures for whoever asks for them")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use edgemesh_lab::{
    Background, ClusterService, Family, Flavour, Handler, Lab, Namespace, Place, Serve, SideBySide,
    Signal, await_ok, await_turn, connect_from, leave_kubelets_signs, request, test,
    test_each_flavour,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const WEB: [&str; 2] = ["10.96.10.1:80", "[fd00:96::1]:80"];
const DNS: [&str; 2] = ["10.96.10.1:53", "[fd00:96::1]:53"];
const ECHO: &str = "10.96.10.1:7";
const LONG: Duration = Duration::from_secs(30);
/// Promised is 1 s; the rest is for a busy machine.
const SILENCE: Duration = Duration::from_secs(3);
const HAND_OVERS: usize = 6;

/// An agent is not started yet, and there is no kube-proxy: nobody else covers a gap.
/// For what is about connections that an agent carries.
const USER_MODE: &str = "modules: {edgeProxy: {enable: true, datapath: user}}\n";

fn stage(lab: &Lab, flavour: Flavour, backend: &str) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
    leave_kubelets_signs(&stage.node, flavour)?;
    stage.serve(8080, Serve::Identity)?;
    stage.serve(7777, Serve::Echo)?;
    stage.serve(5353, Serve::UdpIdentity)?;
    stage.publish(&[
        ClusterService::new("default/all")
            .cluster_ip("10.96.10.1")
            .cluster_ip("fd00:96::1")
            .tcp("http", 80, 8080)
            .tcp("echo", 7, 7777)
            .udp("dns", 53, 5353),
        ClusterService::new("default/other")
            .cluster_ip("10.96.10.2")
            .tcp("http", 80, 8080),
    ])?;
    let more = std::env::var("SERVICES").map_or(Ok(0), |text| text.parse())?;
    let manifests = (0..more).map(service).collect::<String>();
    std::fs::write(stage.agent.manifests_folder().join("many.yaml"), manifests)?;
    stage.agent.configure(&configuration(backend))?;
    Ok(stage)
}

/// One of many; it has no endpoints, but rules of its own like any other.
fn service(number: u32) -> String {
    let [_, high, middle, low] = number.to_be_bytes();
    let ip = format!("10.{}.{middle}.{low}", 100 + high);
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: service-{number}, namespace: many}}\n\
         spec: {{clusterIP: {ip}, clusterIPs: [{ip}], \
         ports: [{{name: http, port: 80, protocol: TCP}}]}}\n---\n",
    )
}

fn configuration(backend: &str) -> String {
    format!(
        "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\nkind: EdgeMeshAgent\n\
         modules:\n  edgeProxy:\n    enable: true\n    backend: {backend}\n"
    )
}

/// Starts the agent's next process, as a DaemonSet would.
fn start(lab: &Lab, stage: &SideBySide, number: usize) -> Result<Background> {
    let log = log_of(lab, number);
    stage.agent.run_command().arg("--take-over").start(log)
}

fn log_of(lab: &Lab, number: usize) -> PathBuf {
    lab.folder().join(format!("process-{number}.log"))
}

fn start_first(lab: &Lab, stage: &SideBySide) -> Result<Background> {
    let first = start(lab, stage, 0)?;
    await_ready(stage)?;
    Ok(first)
}

fn await_ready(stage: &SideBySide) -> Result<()> {
    await_ok(LONG, "the agent is ready", || {
        stage.agent.get("/readyz").map(|_| ())
    })
}

/// Starts the next process and waits until it holds the node.
fn start_next(lab: &Lab, stage: &SideBySide, number: usize) -> Result<Background> {
    let mut next = start(lab, stage, number)?;
    next.await_log(LONG, "this agent holds the node now")?;
    await_ready(stage).with_context(|| next.log_tail(30))?;
    Ok(next)
}

/// Requests over new connections until told to end; returns how many, or the first that fails.
fn keep_asking(place: &Namespace, over: &AtomicBool) -> Result<usize> {
    let mut asked = 0;
    while !over.load(Ordering::Relaxed) {
        for to in WEB {
            let outcome = connect_from(place, to.parse()?)
                .map_err(anyhow::Error::from)
                .and_then(|stream| request(stream, "hello"));
            let answer = outcome.with_context(|| format!("{to}, after {asked} requests"))?;
            ensure!(answer.echo == "hello", "{answer:?}");
            asked += 1;
            await_turn();
        }
    }
    Ok(asked)
}

/// Datagrams from one port until told to end; returns the longest time without an answer.
fn keep_sending(socket: &UdpSocket, over: &AtomicBool) -> Result<Duration> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (mut longest, mut heard) = (Duration::ZERO, Instant::now());
    let mut number = 0_u32;
    while !over.load(Ordering::Relaxed) {
        number += 1;
        // Whoever is refused, or not answered, tries again.
        let _ = socket.send(number.to_string().as_bytes());
        let mut answer = [0; 200];
        if let Ok(length) = socket.recv(&mut answer) {
            ensure!(length > 0, "an empty answer");
            longest = longest.max(heard.elapsed());
            heard = Instant::now();
            await_turn();
        }
    }
    Ok(longest.max(heard.elapsed()))
}

/// Does `work` while pod and host ask all the time, none of whom may notice. If one does, it
/// is told what all agents said.
fn unnoticed(lab: &Lab, stage: &SideBySide, work: impl FnOnce() -> Result<()>) -> Result<()> {
    asked_meanwhile(stage, work).with_context(|| {
        let logs = (0..).map_while(|number| std::fs::read_to_string(log_of(lab, number)).ok());
        logs.collect::<Vec<_>>().join("--\n")
    })
}

fn asked_meanwhile(stage: &SideBySide, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let over = AtomicBool::new(false);
    let places = [stage.client.namespace(), stage.node.namespace()];
    let mut sockets = Vec::new();
    for to in DNS {
        sockets.extend([stage.client.udp_socket(to)?, stage.node.udp_socket(to)?]);
    }
    thread::scope(|scope| {
        let asking = places.map(|place| scope.spawn(|| keep_asking(place, &over)));
        let sending: Vec<_> = sockets
            .iter()
            .map(|socket| scope.spawn(|| keep_sending(socket, &over)))
            .collect();
        let done = work();
        over.store(true, Ordering::Relaxed);
        for asking in asking {
            let asked = asking.join().unwrap_or_else(|_| bail!("a panic"))?;
            ensure!(asked > 0, "nothing was asked");
            println!("{asked} requests, none failed");
        }
        for sending in sending {
            let silence = sending.join().unwrap_or_else(|_| bail!("a panic"))?;
            println!("a UDP client that keeps its port heard nothing for {silence:?} at the most");
            ensure!(silence < SILENCE, "no answer for {silence:?}");
        }
        done
    })
}

/// As often as a node may see it in a year: each agent takes over from the one before, which
/// then gets SIGTERM.
fn hand_over_again_and_again(lab: &Lab, flavour: Flavour, backend: &str) -> Result<()> {
    let mut stage = stage(lab, flavour, backend)?;
    let mut holder = start_first(lab, &stage)?;
    unnoticed(lab, &stage, || {
        for number in 1..=HAND_OVERS {
            let next = start_next(lab, &stage, number)?;
            ensure!(
                holder.stop(LONG)?.code() == Some(0),
                "{}",
                holder.log_tail(30)
            );
            holder = next;
        }
        Ok(())
    })?;
    ensure!(
        holder.stop(LONG)?.code() == Some(0),
        "{}",
        holder.log_tail(30)
    );
    stage.publish(&[])?;
    stage.check_nothing_left()
}

#[test]
fn no_request_fails_over_many_hand_overs_with_iptables() -> Result<()> {
    test_each_flavour(|lab, flavour| hand_over_again_and_again(lab, flavour, "iptables"))
}

#[test]
fn no_request_fails_over_many_hand_overs_with_nftables() -> Result<()> {
    test(|lab| hand_over_again_and_again(lab, Flavour::Nft, "nftables"))
}

#[test]
fn no_request_fails_when_the_next_agent_has_another_backend() -> Result<()> {
    test(|lab| {
        let stage = stage(lab, Flavour::Nft, "iptables")?;
        let mut holder = start_first(lab, &stage)?;
        unnoticed(lab, &stage, || {
            for (number, backend) in ["nftables", "iptables", "nftables"].iter().enumerate() {
                stage.agent.configure(&configuration(backend))?;
                let next = start_next(lab, &stage, number + 1)?;
                ensure!(
                    holder.stop(LONG)?.code() == Some(0),
                    "{}",
                    holder.log_tail(30)
                );
                holder = next;
            }
            Ok(())
        })
    })
}

/// As a DaemonSet without maxSurge does it: kube-proxy serves in between.
fn restart_beside_kube_proxy(lab: &Lab, flavour: Flavour, backend: &str) -> Result<()> {
    let mut stage = stage(lab, flavour, backend)?;
    stage.start_kube_proxy()?;
    let mut holder = start_first(lab, &stage)?;
    unnoticed(lab, &stage, || {
        for number in 1..=HAND_OVERS {
            ensure!(
                holder.stop(LONG)?.code() == Some(0),
                "{}",
                holder.log_tail(30)
            );
            holder = start(lab, &stage, number)?;
            await_ready(&stage).with_context(|| holder.log_tail(30))?;
        }
        Ok(())
    })
}

#[test]
fn no_request_fails_over_many_restarts_beside_kube_proxy_with_iptables() -> Result<()> {
    test_each_flavour(|lab, flavour| restart_beside_kube_proxy(lab, flavour, "iptables"))
}

#[test]
fn no_request_fails_over_many_restarts_beside_kube_proxy_with_nftables() -> Result<()> {
    test(|lab| restart_beside_kube_proxy(lab, Flavour::Nft, "nftables"))
}

/// Says 64 KiB that are unlike any other round's, and hears them back.
fn exchange(stream: &mut TcpStream, round: u8) -> Result<()> {
    let mut state = u32::from(round) + 1;
    let said: Vec<u8> = std::iter::repeat_with(|| {
        // xorshift32 (Marsaglia 2003): cheap, and never the same twice.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_be_bytes()[0]
    })
    .take(64 * 1024)
    .collect();
    stream.write_all(&said)?;
    let mut heard = vec![0; said.len()];
    stream.read_exact(&mut heard)?;
    ensure!(said == heard, "round {round} came back otherwise");
    Ok(())
}

#[test]
fn a_long_connection_is_carried_to_its_end_by_the_agent_that_it_began_with() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour, "iptables")?;
        stage.start_kube_proxy()?;
        stage.agent.configure(USER_MODE)?;
        let mut first = start_first(lab, &stage)?;
        let mut open = [stage.client.connect(ECHO)?, stage.node.connect(ECHO)?];
        for stream in &mut open {
            exchange(stream, 1)?;
        }
        let _second = start_next(lab, &stage, 1)?;
        for stream in &mut open {
            exchange(stream, 2)?;
        }
        first.signal(Signal::SIGTERM)?;
        first.await_log(LONG, "ending; a second signal ends at once")?;
        for stream in &mut open {
            exchange(stream, 3)?;
        }
        ensure!(first.ended()?.is_none(), "{}", first.log_tail(30));
        drop(open);
        ensure!(
            first.wait(LONG)?.code() == Some(0),
            "{}",
            first.log_tail(30)
        );
        // It has left everything to the one that holds the node now.
        stage.check_handled_by(Handler::Agent, WEB[0])?;
        stage.check_precedence(&["default/all:http"])?;
        let routes = stage.ip("route show table default")?;
        ensure!(routes.contains("10.96.10.1"), "{routes}");
        Ok(())
    })
}

#[test]
fn an_agent_that_drains_lets_the_next_one_in_without_waiting_for_its_connections() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour, "auto")?;
        stage.start_kube_proxy()?;
        stage.agent.configure(USER_MODE)?;
        let mut first = start_first(lab, &stage)?;
        let mut open = stage.client.connect(ECHO)?;
        exchange(&mut open, 1)?;
        first.signal(Signal::SIGTERM)?;
        await_ok(LONG, "kube-proxy serves", || {
            stage.check_handled_by(Handler::KubeProxy, WEB[0])
        })?;
        let _second = start_next(lab, &stage, 1)?;
        stage.check_handled_by(Handler::Agent, WEB[0])?;
        exchange(&mut open, 2)?;
        ensure!(first.ended()?.is_none(), "{}", first.log_tail(30));
        drop(open);
        ensure!(
            first.wait(LONG)?.code() == Some(0),
            "{}",
            first.log_tail(30)
        );
        // The address that both used is not taken away.
        for to in WEB {
            stage.check_handled_by(Handler::Agent, to)?;
        }
        stage.check_precedence(&["default/all:http"])
    })
}

#[test]
fn without_the_flag_a_second_agent_refuses_and_says_what_would_let_it_in() -> Result<()> {
    test(|lab| {
        let stage = stage(lab, Flavour::Nft, "auto")?;
        let _first = start_first(lab, &stage)?;
        let second = stage.agent.run_command().output()?;
        let said = format!("{}{}", second.stdout, second.stderr);
        ensure!(!second.status.success(), "{said}");
        ensure!(said.contains("--take-over"), "{said}");
        stage.check_handled_by(Handler::Agent, WEB[0])
    })
}

/// Somebody who says what an agent would that takes over, up to some point.
struct Impostor(BufReader<UnixStream>);

impl Impostor {
    fn on(stage: &SideBySide) -> Result<Self> {
        let stream = stage.node.namespace().run(|| {
            UnixStream::connect_addr(&SocketAddr::from_abstract_name("edgemesh-agent")?)
        })??;
        stream.set_read_timeout(Some(LONG))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn say(&mut self, line: &str, expected: &str) -> Result<()> {
        writeln!(self.0.get_mut(), "{line}")?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        ensure!(answer.trim_end() == expected, "{answer:?}");
        Ok(())
    }
}

#[test]
fn an_agent_that_dies_while_it_takes_over_leaves_the_node_to_the_one_before() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour, "iptables")?;
        stage.start_kube_proxy()?;
        let first = start_first(lab, &stage)?;
        let mut dying = Impostor::on(&stage)?;
        dying.say("take over a test", "wait")?;
        let refused = stage.agent.get("/readyz").expect_err("is not ready");
        ensure!(
            format!("{refused:#}").contains("handing over to a test"),
            "{refused:#}"
        );
        dying.say("ready", "go on")?;
        // What it does to the rules is its own affair until it is gone.
        for family in Family::ALL {
            stage.iptables(family, "-t nat -F EDGEMESH-PORTALS-CONTAINER")?;
        }
        stage.check_handled_by(Handler::Agent, ECHO).ok();
        ensure!(
            !first.log().contains("rules were repaired"),
            "{}",
            first.log()
        );
        drop(dying);
        await_ready(&stage)?;
        await_ok(LONG, "the first agent serves as before", || {
            stage.check_precedence(&["default/all:http"])?;
            WEB.iter()
                .try_for_each(|to| stage.check_handled_by(Handler::Agent, to))
        })?;
        // And hands over to the next that asks.
        let _second = start_next(lab, &stage, 1)?;
        stage.check_handled_by(Handler::Agent, WEB[0])
    })
}

#[test]
fn when_the_agent_that_took_over_is_killed_the_next_one_takes_its_place() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour, "iptables")?;
        stage.start_kube_proxy()?;
        let mut first = start_first(lab, &stage)?;
        let mut second = start_next(lab, &stage, 1)?;
        second.kill()?;
        await_ok(LONG, "kube-proxy serves", || {
            stage.check_handled_by(Handler::KubeProxy, WEB[0])
        })?;
        let _third = start(lab, &stage, 2)?;
        await_ok(LONG, "the third agent serves", || {
            stage.check_handled_by(Handler::Agent, WEB[0])
        })?;
        // The first one knows that it is not its turn any more.
        ensure!(
            first.stop(LONG)?.code() == Some(0),
            "{}",
            first.log_tail(30)
        );
        stage.check_handled_by(Handler::Agent, WEB[0])?;
        stage.check_precedence(&["default/all:http"])
    })
}

#[test]
fn an_agent_that_is_told_to_end_while_the_next_one_still_waits_lets_kube_proxy_serve() -> Result<()>
{
    test(|lab| {
        let mut stage = stage(lab, Flavour::Nft, "auto")?;
        stage.start_kube_proxy()?;
        let mut first = start_first(lab, &stage)?;
        // A catalog that never becomes complete: nobody is at that address.
        let unreachable = lab.folder().join("unreachable.yaml");
        std::fs::write(
            &unreachable,
            configuration("auto") + "kubeAPIConfig:\n  master: http://127.0.0.1:1\n",
        )?;
        let mut second = stage
            .agent
            .command("run")
            .args(["--node-name", "edge-1", "--take-over", "--config"])
            .arg(&unreachable)
            .arg("--state-dir")
            .arg(lab.folder().join("second"))
            .start(lab.folder().join("second.log"))?;
        first.await_log(LONG, "another agent waits to take over")?;
        stage.check_handled_by(Handler::Agent, WEB[0])?;
        ensure!(
            first.stop(LONG)?.code() == Some(0),
            "{}",
            first.log_tail(30)
        );
        stage.check_handled_by(Handler::KubeProxy, WEB[0])?;
        second.await_log(LONG, "the agent that held this node is gone")?;
        ensure!(
            second.stop(LONG)?.code() == Some(0),
            "{}",
            second.log_tail(30)
        );
        stage.check_nothing_left()
    })
}
