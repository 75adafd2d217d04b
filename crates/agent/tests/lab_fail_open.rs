//! An agent that dies without notice, or hangs, hurts nobody: new connections are
//! kube-proxy's, and refused where there is none. (`--nocapture` prints how soon.)

use std::fmt::Display;
use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use edgemesh_lab::{
    ClusterService, Family, Flavour, Handler, Lab, Place, Serve, SideBySide, Signal, await_ok,
    await_turn, leave_kubelets_signs, test, test_each_flavour,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const WEB: [&str; 2] = ["10.96.10.1:80", "[fd00:96::1]:80"];
const DNS: [&str; 2] = ["10.96.10.1:53", "[fd00:96::1]:53"];
/// Promised are 3 s after a death and 5 s after a halt; the rest is for a busy machine.
const LENIENT: Duration = Duration::from_secs(15);
/// What is refused is refused at once; a time-out would be one of 2 s or more.
const AT_ONCE: Duration = Duration::from_secs(1);

fn stage(lab: &Lab, flavour: Flavour, kube_proxy: bool) -> Result<SideBySide> {
    stage_by(lab, "iptables", flavour, kube_proxy)
}

fn stage_by(lab: &Lab, backend: &str, flavour: Flavour, kube_proxy: bool) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
    leave_kubelets_signs(&stage.node, flavour)?;
    stage.serve(8080, Serve::Identity)?;
    stage.serve(5353, Serve::UdpIdentity)?;
    stage.publish(&[ClusterService::new("default/both")
        .cluster_ip("10.96.10.1")
        .cluster_ip("fd00:96::1")
        .tcp("http", 80, 8080)
        .udp("dns", 53, 5353)])?;
    stage.agent.configure(&format!(
        "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\nkind: EdgeMeshAgent\n\
         modules:\n  edgeProxy:\n    enable: true\n    backend: {backend}\n"
    ))?;
    if kube_proxy {
        stage.start_kube_proxy()?;
    }
    stage.agent.start()?;
    await_ok(LENIENT, "the agent serves", || {
        check_handled(&stage, Handler::Agent)
    })?;
    Ok(stage)
}

fn check_handled(stage: &SideBySide, by: Handler) -> Result<()> {
    for to in WEB {
        ensure!(stage.handler(&stage.client, to)? == by, "{to}, pod");
        ensure!(stage.handler(&stage.node, to)? == by, "{to}, host");
    }
    for to in DNS {
        ensure!(stage.udp_handler(&stage.client, to)? == by, "{to}, pod");
        ensure!(stage.udp_handler(&stage.node, to)? == by, "{to}, host");
    }
    Ok(())
}

fn check_refused(stage: &SideBySide) -> Result<()> {
    refused_at_once(&stage.client)?;
    refused_at_once(&stage.node)
}

fn refused_at_once(place: &impl Place) -> Result<()> {
    for to in WEB {
        let began = Instant::now();
        match place.connect(to) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            other => bail!("{to}: {other:?}"),
        }
        ensure!(began.elapsed() < AT_ONCE, "{to}: refused late");
    }
    for to in DNS {
        let began = Instant::now();
        match place.udp_exchange(to, b"?") {
            // What a filter rejects on its way out, the host's own send is told of so.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied
                ) => {}
            other => bail!("{to}: {other:?}"),
        }
        ensure!(began.elapsed() < AT_ONCE, "{to}: refused late");
    }
    Ok(())
}

/// A halted agent's kernel still accepts connections: one that nobody greets is given up.
fn answered_soon(place: &impl Place, to: &str) -> Result<()> {
    let mut stream = place.connect(to)?;
    stream.set_read_timeout(Some(AT_ONCE / 5))?;
    stream.read_exact(&mut [0])?;
    Ok(())
}

fn by(flavour: Flavour) -> String {
    format!("iptables-{flavour}")
}

/// Until all requests fare as `check` says, and how long that took.
#[expect(clippy::print_stdout, reason = "for whoever runs it with --nocapture")]
fn report(what: &str, way: impl Display, check: impl FnMut() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    await_ok(LENIENT, what, check)?;
    println!("{way}: {what} after {:?}", began.elapsed());
    Ok(())
}

fn halt(stage: &mut SideBySide) -> Result<()> {
    let process = stage.agent.process().context("no agent")?;
    process.signal(Signal::SIGSTOP)
}

fn go_on(stage: &mut SideBySide) -> Result<()> {
    let process = stage.agent.process().context("no agent")?;
    process.signal(Signal::SIGCONT)
}

#[test]
fn after_kill_9_kube_proxy_serves_and_the_next_agent_takes_over_without_a_failed_request()
-> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour, true)?;
        stage.agent.kill()?;
        report("kube-proxy serves after kill -9", by(flavour), || {
            check_handled(&stage, Handler::KubeProxy)
        })?;

        let over = AtomicBool::new(false);
        let (node, client) = (stage.node.namespace().clone(), &stage.client);
        let agent = &mut stage.agent;
        let asked = thread::scope(|scope| -> Result<usize> {
            let asking = scope.spawn(|| -> Result<usize> {
                let mut asked = 0;
                while !over.load(Ordering::Relaxed) {
                    for to in WEB {
                        client.ask(to, "hello")?;
                        let stream = edgemesh_lab::connect_from(&node, to.parse()?)?;
                        edgemesh_lab::request(stream, "hello")?;
                        asked += 2;
                        await_turn();
                    }
                }
                Ok(asked)
            });
            let started = agent.start();
            over.store(true, Ordering::Relaxed);
            started?;
            asking
                .join()
                .unwrap_or_else(|_| bail!("the asking thread panicked"))
        })?;
        println!("iptables-{flavour}: {asked} requests while the next agent took over");
        await_ok(LENIENT, "the next agent serves", || {
            check_handled(&stage, Handler::Agent)
        })
    })
}

#[test]
fn a_halted_agent_leaves_new_connections_to_kube_proxy_until_it_goes_on() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour, true)?;
        halt(&mut stage)?;
        report("kube-proxy answers after SIGSTOP", by(flavour), || {
            // Until then nobody answers, or the kernel still goes the agent's way.
            WEB.iter()
                .try_for_each(|to| answered_soon(&stage.client, to))?;
            check_handled(&stage, Handler::KubeProxy)
        })?;
        go_on(&mut stage)?;
        report("the agent serves after SIGCONT", by(flavour), || {
            check_handled(&stage, Handler::Agent)
        })
    })
}

#[test]
fn with_nftables_too_a_killed_or_halted_agent_leaves_new_connections_to_kube_proxy() -> Result<()> {
    test(|lab| {
        let mut stage = stage_by(lab, "nftables", Flavour::Nft, true)?;
        halt(&mut stage)?;
        report("kube-proxy answers after SIGSTOP", "nftables", || {
            // Until then nobody answers, or the kernel still goes the agent's way.
            WEB.iter()
                .try_for_each(|to| answered_soon(&stage.client, to))?;
            check_handled(&stage, Handler::KubeProxy)
        })?;
        go_on(&mut stage)?;
        report("the agent serves after SIGCONT", "nftables", || {
            check_handled(&stage, Handler::Agent)
        })?;
        stage.agent.kill()?;
        report("kube-proxy serves after kill -9", "nftables", || {
            check_handled(&stage, Handler::KubeProxy)
        })?;
        stage.agent.start()?;
        check_handled(&stage, Handler::Agent)
    })
}

#[test]
fn without_kube_proxy_a_killed_agents_services_are_refused_at_once() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour, false)?;
        stage.agent.kill()?;
        report("all is refused after kill -9", by(flavour), || {
            check_refused(&stage)
        })?;
        stage.agent.start()?;
        check_handled(&stage, Handler::Agent)
    })
}

#[test]
fn without_kube_proxy_a_halted_agents_services_are_refused_and_not_left_hanging() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour, false)?;
        halt(&mut stage)?;
        report("all is refused after SIGSTOP", by(flavour), || {
            check_refused(&stage)
        })?;
        go_on(&mut stage)?;
        report("the agent serves after SIGCONT", by(flavour), || {
            check_handled(&stage, Handler::Agent)
        })
    })
}

#[test]
fn with_nftables_too_and_without_kube_proxy_all_is_refused_at_once_until_somebody_serves_again()
-> Result<()> {
    test(|lab| {
        let mut stage = stage_by(lab, "nftables", Flavour::Nft, false)?;
        halt(&mut stage)?;
        report("all is refused after SIGSTOP", "nftables", || {
            check_refused(&stage)
        })?;
        go_on(&mut stage)?;
        report("the agent serves after SIGCONT", "nftables", || {
            check_handled(&stage, Handler::Agent)
        })?;
        stage.agent.kill()?;
        report("all is refused after kill -9", "nftables", || {
            check_refused(&stage)
        })?;
        ensure!(
            explained(&stage, "default/both")?.contains("refused at once: nobody serves it"),
            "explain does not tell that it is refused"
        );
        without_default_route(&stage, || refused_at_once(&stage.node))?;
        stage.start_kube_proxy()?;
        report("kube-proxy serves when it comes", "nftables", || {
            check_handled(&stage, Handler::KubeProxy)
        })?;
        stage.agent.start()?;
        report("the next agent serves", "nftables", || {
            check_handled(&stage, Handler::Agent)
        })?;
        ensure!(
            !tables(&stage)?.contains("edgemesh-refuse"),
            "kube-proxy's Services are refused when the agent dies"
        );
        stage.agent.kill()?;
        report("kube-proxy serves after kill -9", "nftables", || {
            check_handled(&stage, Handler::KubeProxy)
        })
    })
}

#[test]
fn with_nftables_a_service_that_is_left_alone_is_not_refused_and_an_end_in_order_leaves_nothing()
-> Result<()> {
    test(|lab| {
        let mut stage = stage_by(lab, "nftables", Flavour::Nft, false)?;
        for family in ["ip", "ip6"] {
            let set = refused_set(&stage, family)?;
            ensure!(set.matches("default/both").count() == 2, "{set}");
        }
        stage.publish(&[ClusterService::new("default/both")
            .cluster_ip("10.96.10.1")
            .cluster_ip("fd00:96::1")
            .tcp("http", 80, 8080)
            .label("service.edgemesh.kubeedge.io/service-proxy-name", "")])?;
        await_ok(LENIENT, "the Service is left alone", || {
            for family in ["ip", "ip6"] {
                let set = refused_set(&stage, family)?;
                ensure!(!set.contains("default/both"), "{set}");
            }
            Ok(())
        })?;
        assert_eq!(stage.agent.stop()?.code(), Some(0));
        stage.check_nothing_left()?;

        stage.agent.start()?;
        stage.agent.kill()?;
        await_ok(LENIENT, "the owned tables are gone", || {
            let left = tables(&stage)?;
            let own = left.lines().filter(|line| line.contains("edgemesh"));
            ensure!(own.count() == 2, "{left}");
            Ok(())
        })?;
        stage.agent.command("cleanup").run()?;
        stage.check_nothing_left()
    })
}

/// As where the uplink is down.
fn without_default_route(stage: &SideBySide, check: impl FnOnce() -> Result<()>) -> Result<()> {
    let ip = |family, words: &[&str]| stage.node.program("ip").arg(family).args(words).run();
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let default = ip(family, &["route", "show", "default"])?;
        ip(family, &["route", "delete", "default"])?;
        routes.push((family, default));
    }
    check()?;
    for (family, default) in routes {
        let words: Vec<&str> = default.split_whitespace().collect();
        ip(family, &[&["route", "add"], &words[..]].concat())?;
    }
    Ok(())
}

fn tables(stage: &SideBySide) -> Result<String> {
    let nft = stage.node.program("nft");
    nft.args(["list", "tables"]).run()
}

fn refused_set(stage: &SideBySide, family: &str) -> Result<String> {
    let words = ["list", "set", family, "edgemesh-refuse", "portals"];
    stage.node.program("nft").args(words).run()
}

fn explained(stage: &SideBySide, service: &str) -> Result<String> {
    stage.agent.command("explain").args([service]).run()
}

#[test]
fn the_gate_follows_when_kube_proxy_comes() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = stage(lab, flavour, false)?;
        stage.start_kube_proxy()?;
        await_ok(LENIENT, "the agent is before kube-proxy", || {
            for family in Family::ALL {
                let nat = stage.nat(family)?;
                let comment = "edgemesh: kube-proxy's while no agent lives";
                let left = nat.commented("EDGEMESH-PORTALS-HOST", comment).count();
                ensure!(left == 1, "{left} rules leave connections to kube-proxy");
            }
            check_handled(&stage, Handler::Agent)
        })?;
        stage.agent.kill()?;
        report("kube-proxy serves after kill -9", by(flavour), || {
            check_handled(&stage, Handler::KubeProxy)
        })
    })
}

#[test]
fn where_there_can_be_no_gate_the_agent_serves_without_and_says_so() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
        leave_kubelets_signs(&stage.node, flavour)?;
        // Sets of our names that are of another kind stand for a kernel that has none.
        for set in ["EDGEMESH-ALIVE", "EDGEMESH-ALIVE-6"] {
            let words = ["create", set, "bitmap:port", "range", "0-10"];
            stage.node.program("ipset").args(words).run()?;
        }
        stage.serve(8080, Serve::Identity)?;
        stage.publish(&[ClusterService::new("default/web")
            .cluster_ip("10.96.10.1")
            .cluster_ip("fd00:96::1")
            .tcp("http", 80, 8080)])?;
        stage.start_kube_proxy()?;
        stage.agent.start()?;
        for to in WEB {
            assert_eq!(stage.handler(&stage.client, to)?, Handler::Agent);
        }
        let log = stage.agent.log()?;
        ensure!(log.matches("can't make the IP sets").count() == 2, "{log}");
        assert_eq!(stage.agent.stop()?.code(), Some(0));
        Ok(())
    })
}
