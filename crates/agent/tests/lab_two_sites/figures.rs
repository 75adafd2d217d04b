//! What agents tell of themselves, and tables of what was measured.

use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_lab::Agent;
use serde_json::Value;

use crate::places::On;

/// `edgemesh-agent status` of one agent.
#[derive(Debug)]
pub(crate) struct Status(Value);

impl Status {
    pub(crate) fn ask(agent: &Agent) -> Result<Self> {
        let text = agent
            .command("status")
            .args(["--output", "json"])
            .run()
            .context("no status")?;
        let value = serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
        Ok(Self(value))
    }

    /// How packets go to a node: `direct`, `relayed`, …; `unknown` when it had nothing to do
    /// with it.
    pub(crate) fn way(&self, to: On) -> String {
        let peer = self.peer(to);
        let way = peer.and_then(|peer| peer["way"].as_str());
        way.unwrap_or("unknown").to_owned()
    }

    /// The address or relay by which packets go to a node.
    pub(crate) fn by(&self, to: On) -> String {
        let peer = self.peer(to);
        let by = peer.and_then(|peer| peer["by"].as_str());
        by.unwrap_or_default().to_owned()
    }

    /// Why the MeshNode that has this name is not believed; none when it is, or there is none.
    pub(crate) fn refusal_of(&self, name: &str) -> Option<String> {
        let refused = self.0["tunnel"]["refused"].as_array()?;
        let mut of_name = refused.iter().filter(|refused| refused["node"] == name);
        Some(of_name.next()?["reason"].as_str()?.to_owned())
    }

    /// All peers with the ways to them, a line each.
    pub(crate) fn peers(&self) -> String {
        let line = |on: On| format!("{}: {} {}\n", on.name(), self.way(on), self.by(on));
        On::ALL.into_iter().map(line).collect()
    }

    fn peer(&self, to: On) -> Option<&Value> {
        let peers = self.0["tunnel"]["peers"].as_array()?;
        peers.iter().find(|peer| peer["node"] == to.name())
    }
}

/// The page that Prometheus reads.
#[derive(Debug)]
pub(crate) struct Metrics(String);

impl Metrics {
    pub(crate) fn ask(agent: &Agent) -> Result<Self> {
        Ok(Self(agent.get("/metrics")?))
    }

    /// The sum of all samples whose name, or name with labels, begins like this.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let samples = self.0.lines().filter(|line| line.starts_with(name));
        let values = samples.filter_map(|line| line.rsplit_once(' '));
        values
            .filter_map(|(_, value)| value.parse::<f64>().ok())
            .sum()
    }

    /// Datagrams that were dropped and counted, by forwarder and tunnel.
    pub(crate) fn datagrams_dropped(&self) -> f64 {
        self.sum("edgemesh_forward_udp_dropped") + self.sum("edgemesh_tunnel_datagrams_dropped")
    }

    /// Connections, flows and streams that go on.
    pub(crate) fn going_on(&self) -> f64 {
        self.sum("edgemesh_forward_connections_active ") + self.sum("edgemesh_tunnel_streams{")
    }
}

/// Prints a table as BENCHMARKS.md has them.
pub(crate) fn print_table(title: &str, head: &[String], rows: &[Vec<String>]) {
    println!("\n{title}\n");
    println!("| {} |", head.join(" | "));
    println!("|{}", "---|".repeat(head.len()));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
}

/// A duration in milliseconds, for tables.
pub(crate) fn ms(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1e3)
}

/// Bits per second in millions, for tables.
pub(crate) fn mbit(bits_per_second: u64) -> String {
    format!("{:.1}", bits_per_second as f64 / 1e6)
}
