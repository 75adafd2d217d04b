//! What an idle TCP connection through the agent costs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use edgemesh_lab::{Agent, ClusterService, Flavour, Lab, Place, Pod, leave_kubelets_signs};

use crate::cluster::Cluster;
use crate::pauses::pause;
use crate::process_figures::{Memory, cpu, memory, open_files};
use crate::report::say;
use crate::run::Stage;

/// Where the server listens whose connections are kept.
const TARGET: u16 = 9090;
const TO: &str = "10.96.0.200:80";
/// How long nothing happens, to see what that costs.
const IDLE: Duration = Duration::from_secs(5);
/// A message that goes both ways through each connection before it is idle.
const MESSAGE: [u8; 1000] = [b'x'; 1000];

/// Opens `count` connections through an agent, moves something over each, and prints what
/// they cost while idle.
pub(crate) fn measure(lab: &Lab, cluster: &Cluster, flavour: Flavour, count: usize) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let Stage { node, client } = Stage::named(lab, "idle")?;
    leave_kubelets_signs(&node, flavour)?;
    let server = node.pod("idle-server").create()?;
    let listener = server
        .namespace()
        .run(|| TcpListener::bind(SocketAddr::new(server.ipv4().into(), TARGET)))??;
    let mut agent = Agent::prepare(lab, &node, &cluster.agent)?;
    agent.publish(&[ClusterService::new("default/idle")
        .cluster_ip("10.96.0.200")
        .tcp("http", 80, TARGET)
        .endpoint(&server)])?;
    agent.start()?;
    let pid = agent.process().context("the agent has ended")?.pid();
    let (memory_before, files_before) = (memory(pid)?, open_files(pid)?);
    let began = Instant::now();
    let connections = open(&client, &listener, count)?;
    let took = began.elapsed();
    let cpu_before = cpu(pid)?;
    pause(IDLE);
    let idle = cpu(pid)? - cpu_before;
    let (memory_after, files_after) = (memory(pid)?, open_files(pid)?);
    say(&format!(
        "\n### {count} idle TCP connections, each after {} bytes both ways\n",
        MESSAGE.len()
    ));
    say(
        "| before, MiB | with them, MiB | KiB per connection | of it own (RssAnon) | files per connection | idle CPU, ms/s | opened in, s |",
    );
    say("|---|---|---|---|---|---|---|");
    say(&format!(
        "| {:.1} | {:.1} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} |",
        mib(memory_before.resident),
        mib(memory_after.resident),
        per(&memory_before, &memory_after, count, |memory| memory
            .resident),
        per(&memory_before, &memory_after, count, |memory| memory.own),
        (files_after as f64 - files_before as f64) / count as f64,
        idle.as_secs_f64() * 1000.0 / IDLE.as_secs_f64(),
        took.as_secs_f64(),
    ));
    drop(connections);
    Ok(())
}

/// Both ends of each connection.
fn open(client: &Pod, listener: &TcpListener, count: usize) -> Result<Vec<(TcpStream, TcpStream)>> {
    client.namespace().run(|| {
        (0..count)
            .map(|number| {
                one(listener).with_context(|| format!("connection {number} through the agent"))
            })
            .collect()
    })?
}

fn one(listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let mut near = TcpStream::connect(TO)?;
    let (mut far, _) = listener.accept()?;
    let mut received = MESSAGE;
    near.write_all(&MESSAGE)?;
    far.read_exact(&mut received)?;
    far.write_all(&received)?;
    near.read_exact(&mut received)?;
    Ok((near, far))
}

fn per(before: &Memory, after: &Memory, count: usize, part: impl Fn(&Memory) -> u64) -> f64 {
    (part(after) as f64 - part(before) as f64) / count as f64
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
