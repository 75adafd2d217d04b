//! Connections survive every change that is not about them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    ClusterService, Family, Flavour, Handler, Lab, Place, Serve, SideBySide, Signal, await_ok,
    test_each_flavour,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const ECHO: [&str; 2] = ["10.96.10.1:7", "[fd00:96::1]:7"];
const LONG: Duration = Duration::from_secs(15);

fn echo() -> ClusterService {
    ClusterService::new("default/echo")
        .cluster_ip("10.96.10.1")
        .cluster_ip("fd00:96::1")
        .tcp("echo", 7, 7007)
        .tcp("http", 80, 8080)
}

fn other(number: usize) -> ClusterService {
    ClusterService::new(&format!("default/other-{number}"))
        .cluster_ip(&format!("10.96.20.{number}"))
        .tcp("http", 80, 8080)
}

fn running_stage(lab: &Lab, flavour: Flavour, datapath: &str) -> Result<SideBySide> {
    let mut stage = SideBySide::on(lab, lab.node("edge-1").create()?, flavour, AGENT)?;
    stage.agent.configure(&format!(
        "modules: {{edgeProxy: {{enable: true, datapath: {datapath}}}}}\n"
    ))?;
    stage.serve(7007, Serve::Echo)?;
    stage.serve(8080, Serve::Identity)?;
    stage.publish(&[echo(), other(1)])?;
    stage.start_kube_proxy()?;
    stage.agent.start()?;
    Ok(stage)
}

/// From pod and host, by both addresses.
fn open_connections(stage: &SideBySide) -> Result<Vec<TcpStream>> {
    let mut open = Vec::new();
    for to in ECHO {
        open.push(stage.client.connect(to)?);
        open.push(stage.node.connect(to)?);
    }
    check_all_go_on(&mut open, "they were opened")?;
    Ok(open)
}

fn check_all_go_on(open: &mut [TcpStream], after: &str) -> Result<()> {
    for stream in open {
        let to = stream.peer_addr()?;
        say_and_hear(stream).with_context(|| format!("connection to {to} after {after}"))?;
    }
    Ok(())
}

fn say_and_hear(stream: &mut TcpStream) -> Result<()> {
    let mut heard = [0; 4];
    stream.write_all(b"ping")?;
    stream.read_exact(&mut heard)?;
    ensure!(&heard == b"ping", "heard {heard:?}");
    Ok(())
}

fn await_agent_serves(stage: &SideBySide, to: &str) -> Result<()> {
    await_ok(LONG, &format!("the agent serves {to}"), || {
        stage.check_handled_by(Handler::Agent, to)
    })
}

#[test]
fn connections_survive_changes_of_other_services_flushes_and_repairs() -> Result<()> {
    test_each_flavour(|lab, flavour| survive_changes(lab, flavour, "user"))
}

#[test]
fn connections_that_the_kernel_took_survive_as_much() -> Result<()> {
    test_each_flavour(|lab, flavour| survive_changes(lab, flavour, "hybrid"))
}

fn survive_changes(lab: &Lab, flavour: Flavour, datapath: &str) -> Result<()> {
    let mut stage = running_stage(lab, flavour, datapath)?;
    let mut open = open_connections(&stage)?;

    stage.publish(&[echo(), other(1), other(2)])?;
    await_agent_serves(&stage, "10.96.20.2:80")?;
    check_all_go_on(&mut open, "another Service was added")?;

    stage.publish(&[echo()])?;
    check_all_go_on(&mut open, "other Services were deleted")?;

    for family in Family::ALL {
        stage.iptables(family, "-t nat -F")?;
    }
    check_all_go_on(&mut open, "the nat table was flushed")?;
    stage.restart_kube_proxy()?;
    await_ok(LONG, "the rules are repaired", || {
        stage.check_precedence(&["default/echo:echo"])
    })?;
    check_all_go_on(&mut open, "the rules were repaired")?;

    let process = stage.agent.process().context("the agent does not run")?;
    process.signal(Signal::SIGHUP)?;
    check_all_go_on(&mut open, "the configuration was read again")
}

#[test]
fn connections_to_an_endpoint_that_disappears_are_left_to_end_by_themselves() -> Result<()> {
    test_each_flavour(|lab, flavour| left_to_end(lab, flavour, "user"))
}

#[test]
fn so_are_those_that_the_kernel_took() -> Result<()> {
    test_each_flavour(|lab, flavour| left_to_end(lab, flavour, "hybrid"))
}

fn left_to_end(lab: &Lab, flavour: Flavour, datapath: &str) -> Result<()> {
    let stage = running_stage(lab, flavour, datapath)?;
    let mut open = open_connections(&stage)?;
    let new = stage.node.pod("new-endpoint").create()?;
    let _server = new.serve(8080, Serve::Identity)?;
    stage.agent.publish(&[echo().endpoint(&new)])?;
    await_ok(LONG, "the new endpoint answers", || {
        let answer = stage.client.ask("10.96.10.1:80", "?")?;
        ensure!(answer.server == "new-endpoint", "{} does", answer.server);
        Ok(())
    })?;
    check_all_go_on(&mut open, "their endpoint was taken off the list")
}

#[test]
fn a_second_signal_ends_the_wait_for_open_connections() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        let mut stage = running_stage(lab, flavour, "user")?;
        let mut open = open_connections(&stage)?;
        let process = stage.agent.process().context("the agent does not run")?;
        process.signal(Signal::SIGTERM)?;
        await_ok(LONG, "kube-proxy serves", || {
            stage.check_handled_by(Handler::KubeProxy, "10.96.10.1:80")
        })?;
        check_all_go_on(&mut open, "SIGTERM")?;
        let process = stage.agent.process().context("the agent does not run")?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait(LONG)?;
        assert_ne!(status.code(), Some(0));
        for stream in &mut open {
            assert!(say_and_hear(stream).is_err());
        }
        Ok(())
    })
}
