//! Requests to a Service by its ClusterIP, each with the way it took and its time.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use edgemesh_lab::traffic::Latencies;
use edgemesh_lab::{Answer, Family, Flavour, Place, Protocol};

use super::cluster::{Member, ports};
use super::way::{Count, Way};

/// Where requests come from on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Pod,
    Host,
}

/// A request from one node to the Service of another, or to its own.
#[derive(Clone, Copy)]
pub(super) struct Request<'cluster> {
    pub(super) from: From,
    pub(super) of: &'cluster Member,
    pub(super) to: &'cluster Member,
    pub(super) protocol: Protocol,
    pub(super) family: Family,
}

impl<'cluster> Request<'cluster> {
    /// From a pod, to an IPv4 address.
    pub(super) fn new(of: &'cluster Member, to: &'cluster Member, protocol: Protocol) -> Self {
        Self {
            from: From::Pod,
            of,
            to,
            protocol,
            family: Family::V4,
        }
    }

    /// ClusterIP and port.
    pub(super) fn address(&self) -> Result<String> {
        let port = match self.protocol {
            Protocol::Tcp => ports::HTTP,
            Protocol::Udp => ports::STATS,
        };
        Ok(format!("{}:{port}", self.to.cluster_ip(self.family)?))
    }

    /// Makes the request once, and checks that the right pod answered the expected way.
    ///
    /// # Errors
    ///
    /// When nobody answers, or somebody else, or it took another way.
    pub(super) fn make(&self, flavour: Flavour, expected: Way) -> Result<Duration> {
        let count = || -> Result<Count> {
            let nat = self.of.nat_table(flavour, self.family)?;
            Ok(Count::of(&self.port_name(), &nat))
        };
        let before = count()?;
        let took = self.ask()?;
        match count()?.way_since(before) {
            Some(way) if way == expected => Ok(took),
            Some(way) => bail!("{self} was answered {way}, not {expected}"),
            None => bail!("{self} was answered, but the counters don't tell by whose rule"),
        }
    }

    /// Makes the request `times` times.
    ///
    /// # Errors
    ///
    /// When nobody answers, or somebody else.
    pub(super) fn repeat(&self, times: usize) -> Result<Latencies> {
        (0..times).map(|_| self.ask()).collect()
    }

    /// Asks, waits for the whole answer, and tells how long that took.
    pub(super) fn ask(&self) -> Result<Duration> {
        let address = self.address()?;
        let begin = Instant::now();
        let Answer { server, echo, .. } = match (self.from, self.protocol) {
            (From::Pod, Protocol::Tcp) => self.of.client.ask(&address, "hello"),
            (From::Host, Protocol::Tcp) => self.of.node.ask(&address, "hello"),
            // A datagram may be lost, here as anywhere: asked again once, as clients do. The
            // time that it took tells.
            (From::Pod, Protocol::Udp) => {
                let ask = || self.of.client.ask_udp(&address, "hello");
                ask().or_else(|_| ask())
            }
            (From::Host, Protocol::Udp) => {
                let ask = || self.of.node.ask_udp(&address, "hello");
                ask().or_else(|_| ask())
            }
        }?;
        let took = begin.elapsed();
        ensure!(
            server == self.to.service.name && echo == "hello",
            "{self}: {server} answered {echo:?}"
        );
        Ok(took)
    }

    /// `namespace/name:port`.
    fn port_name(&self) -> String {
        let port = match self.protocol {
            Protocol::Tcp => "http",
            Protocol::Udp => "stats",
        };
        format!("{}:{port}", self.to.service_name())
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address().map_err(|_| fmt::Error)?;
        let protocol = self.protocol.lower();
        write!(formatter, "{} {protocol} {address}", self.from)
    }
}

impl fmt::Display for From {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Pod => "pod ",
            Self::Host => "host",
        })
    }
}
