//! What an agent's process has open, and its memory.

use std::fs;

use anyhow::{Context, Result};
use edgemesh_lab::Place;

use crate::cluster::Cluster;
use crate::places::On;
use crate::scenario::TUNNEL_PORT;

/// What an agent's process has.
#[derive(Debug)]
pub(crate) struct Held {
    /// Open files, but for the connections with relays, which are made anew whenever one does
    /// not answer in time: as on a machine that is busy with other labs.
    pub(crate) files: usize,
    /// Memory that is not the program's file, in KiB.
    pub(crate) kib: u64,
}

impl Held {
    pub(crate) fn by(cluster: &mut Cluster, on: On) -> Result<Self> {
        let process = cluster.agent_mut(on).process();
        let pid = process.context("the agent does not run")?.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        let with_relays = with_relays(cluster, on, pid)?;
        let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Self {
            files: files.saturating_sub(with_relays),
            kib: kib.context("the kernel does not tell the memory in use")?,
        })
    }
}

/// How many of the process's sockets are connections with relays. An agent dials them through
/// itself (127.0.0.1), and nothing else.
fn with_relays(cluster: &Cluster, on: On, pid: u32) -> Result<usize> {
    let port = TUNNEL_PORT;
    let which = format!("sport = :{port} or dport = :{port} or src 127.0.0.0/8");
    let ss = cluster.node(on).program("ss").args([
        "--no-header",
        "--tcp",
        "--numeric",
        "--processes",
        &which,
    ]);
    let whose = format!("pid={pid},");
    Ok(ss.run()?.lines().filter(|it| it.contains(&whose)).count())
}
