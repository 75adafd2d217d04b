//! What the forwarder is told at its start.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::thread::available_parallelism;
use std::time::Duration;

use edgemesh_tunnel::Tunnel;

use crate::dial_reports::DialReports;

/// How an endpoint is chosen where no session affinity decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// Any, with equal chances.
    Random,
}

/// Everything the forwarder needs to know besides the plan.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's IPv4 intercept address; none when IPv4 is not intercepted. Default none.
    pub intercept_v4: Option<Ipv4Addr>,
    /// This node's IPv6 intercept address; none when IPv6 is not intercepted. Default none.
    pub intercept_v6: Option<Ipv6Addr>,
    /// TCP port of the listeners; 0 lets the kernel choose, and so does a port that somebody
    /// else holds (with a warning). Default 20007.
    pub listen_port: u16,
    /// Somebody else is known to hold that port, as the agent that this one takes over from:
    /// no warning. Default false.
    pub listen_port_expected_taken: bool,
    /// Firewall mark (`SO_MARK`) of every socket opened towards an endpoint; needs
    /// `CAP_NET_ADMIN`. Default none.
    pub mark: Option<u32>,
    /// The way to endpoints that the plan wants reached through the tunnel. Default none.
    pub tunnel: Option<Tunnel>,
    /// Where endpoints are told that are dialled natively and not reached. Default nowhere.
    pub dial_reports: DialReports,
    /// Endpoint choice without affinity. Default [`Strategy::RoundRobin`].
    pub strategy: Strategy,
    /// Threads that accept and serve TCP connections; 0 is one for each core that this process
    /// may use, at most 16. Default 0.
    pub workers: usize,
    /// TCP connections served at a time; see [`Limits::within`]. Default 4096.
    pub max_connections: usize,
    /// How long a connection beyond [`Self::max_connections`] waits for a place before it is
    /// refused. Default 5 s.
    pub admission_wait: Duration,
    /// Pipes for zero-copy bulk transfers, one per direction that has bytes on their way; with
    /// none left, bytes are copied. See [`Limits::within`]. Default 32.
    pub max_pipes: usize,
    /// UDP flows kept at a time, over all portals; one more puts the least recently used one
    /// out. See [`Limits::within`]. Default 4096.
    pub max_udp_flows: usize,
    /// A UDP flow without a datagram in either direction for this long is forgotten.
    /// Default 60 s.
    pub udp_idle_timeout: Duration,
    /// How long one endpoint may take to accept a connection. Default 2 s.
    pub dial_timeout: Duration,
    /// How long all attempts for one connection may take together. Default 5 s.
    pub dial_deadline: Duration,
    /// Start of the pseudo-random sequence that the choice of endpoints draws from. Nodes that
    /// share it choose alike, so the agent passes a fresh one. Default 0.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            intercept_v4: None,
            intercept_v6: None,
            listen_port: 20007,
            listen_port_expected_taken: false,
            mark: None,
            tunnel: None,
            dial_reports: DialReports::default(),
            strategy: Strategy::default(),
            workers: 0,
            max_connections: 4096,
            admission_wait: Duration::from_secs(5),
            max_pipes: 32,
            max_udp_flows: 4096,
            udp_idle_timeout: Duration::from_secs(60),
            dial_timeout: Duration::from_secs(2),
            dial_deadline: Duration::from_secs(5),
            seed: 0,
        }
    }
}

impl Settings {
    /// More would serve no faster than the network brings it, and each takes memory.
    const MOST_WORKERS: usize = 16;

    /// How many threads serve TCP connections: at least one.
    pub(crate) fn workers(&self) -> usize {
        match self.workers {
            0 => available_parallelism().map_or(1, |cores| cores.get().min(Self::MOST_WORKERS)),
            many => many,
        }
    }
}

/// Connections and flows that a process may hold within its file descriptor limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For [`Settings::max_connections`].
    pub max_connections: usize,
    /// For [`Settings::max_udp_flows`].
    pub max_udp_flows: usize,
    /// For [`Settings::max_pipes`].
    pub max_pipes: usize,
}

impl Limits {
    /// Descriptors left to the rest of the agent: API connections, logs, UDP portals.
    const RESERVED: u64 = 512;
    const MOST_CONNECTIONS: u64 = 262_144;
    const MOST_FLOWS: u64 = 65_536;
    /// At the usual size of 1 MiB this is half of what an unprivileged user may have in all
    /// (`fs.pipe-user-pages-soft`), which other processes of the same user share.
    const MOST_PIPES: u64 = 32;

    /// Shares out `descriptors` (the soft `RLIMIT_NOFILE`).
    ///
    /// A connection takes two, and up to four more for the moments while several endpoints
    /// are tried at once: half of what is not reserved goes to connections at two each, a
    /// quarter to flows at one each, and a quarter stays for such moments, for those who wait
    /// at the limit, and for pipes.
    #[must_use]
    pub fn within(descriptors: u64) -> Self {
        // A tiny limit must not be reserved away altogether.
        let shared = descriptors - Self::RESERVED.min(descriptors / 2);
        let count = |n: u64| usize::try_from(n.max(1)).unwrap_or(usize::MAX);
        Self {
            max_connections: count((shared / 4).min(Self::MOST_CONNECTIONS)),
            max_udp_flows: count((shared / 4).min(Self::MOST_FLOWS)),
            max_pipes: count((shared / 64).min(Self::MOST_PIPES)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fit_into_the_descriptors_there_are() {
        for descriptors in [0, 1, 64, 1024, 20_000, 1_048_576, u64::MAX] {
            let limits = Limits::within(descriptors);
            assert!(limits.max_connections >= 1 && limits.max_udp_flows >= 1);
            let pipes = 2 * limits.max_pipes as u64;
            let needed = 2 * limits.max_connections as u64 + limits.max_udp_flows as u64;
            assert!(
                descriptors < 32 || needed + pipes <= descriptors / 5 * 4,
                "{limits:?} of {descriptors}"
            );
        }
    }

    #[test]
    fn a_usual_limit_leaves_room_for_the_rest_of_the_agent() {
        assert_eq!(
            Limits::within(1024),
            Limits {
                max_connections: 128,
                max_udp_flows: 128,
                max_pipes: 8,
            }
        );
    }
}
