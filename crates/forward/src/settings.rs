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
    /// TCP connections served at a time, as far as UDP flows leave them the descriptors; see
    /// [`Limits::within`]. Default 4096.
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
    /// UDP flows that have descriptors of their own; two of the others take a connection's
    /// place. Default 4096.
    pub udp_flows_apart: usize,
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
            udp_flows_apart: 4096,
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
    /// For [`Settings::udp_flows_apart`].
    pub udp_flows_apart: usize,
    /// For [`Settings::max_pipes`].
    pub max_pipes: usize,
}

/// What an administrator wants instead of what the descriptors would allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// TCP connections.
    pub connections: Option<usize>,
    /// UDP flows.
    pub udp_flows: Option<usize>,
}

impl Limits {
    /// Descriptors left to the rest of the agent: API connections, the tunnel, logs; those of
    /// clients that wait for a place; a few attempts beside others.
    const RESERVED: u64 = 448;
    const MOST_CONNECTIONS: u64 = 262_144;
    const MOST_FLOWS: u64 = 65_536;
    /// UDP is served though connections have everything.
    const LEAST_FLOWS_APART: u64 = 64;
    /// At the usual size of 1 MiB this is half of what an unprivileged user may have in all
    /// (`fs.pipe-user-pages-soft`), which other processes of the same user share.
    const MOST_PIPES: u64 = 32;

    /// Shares out `descriptors` (the soft `RLIMIT_NOFILE`).
    ///
    /// A connection takes two, a flow one, a pipe two. Connections and flows come out of one
    /// stock: while there are few of the one there may be more of the other.
    #[must_use]
    pub fn within(descriptors: u64, wanted: Wanted) -> Self {
        // A tiny limit must not be reserved away altogether.
        let shared = descriptors - Self::RESERVED.min(descriptors / 2);
        let pipes = (shared / 64).clamp(1, Self::MOST_PIPES);
        let stock = shared.saturating_sub(2 * pipes);
        let least_apart = (shared / 8).clamp(1, Self::LEAST_FLOWS_APART);
        let connections = match wanted.connections {
            Some(connections) => connections,
            None => count((stock.saturating_sub(least_apart) / 2).min(Self::MOST_CONNECTIONS)),
        };
        let max_udp_flows = match wanted.udp_flows {
            Some(flows) => flows,
            None => count((shared / 4).min(Self::MOST_FLOWS)),
        };
        let apart = count(stock).saturating_sub(connections.saturating_mul(2));
        Self {
            max_connections: connections,
            max_udp_flows,
            udp_flows_apart: apart.max(count(least_apart)).min(max_udp_flows),
            max_pipes: count(pipes),
        }
    }
}

fn count(n: u64) -> usize {
    usize::try_from(n.max(1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fit_into_the_descriptors_there_are() {
        for descriptors in [0, 1, 64, 1024, 20_000, 1_048_576, u64::MAX] {
            let limits = Limits::within(descriptors, Wanted::default());
            assert!(limits.max_connections >= 1 && limits.udp_flows_apart >= 1);
            let taken = 2 * limits.max_connections + limits.udp_flows_apart + 2 * limits.max_pipes;
            assert!(
                descriptors < 32 || taken as u64 <= descriptors - descriptors.min(896) / 2,
                "{limits:?} of {descriptors}"
            );
        }
    }

    #[test]
    fn a_usual_limit_leaves_room_for_the_rest_of_the_agent() {
        assert_eq!(
            Limits::within(1024, Wanted::default()),
            Limits {
                max_connections: 247,
                max_udp_flows: 144,
                udp_flows_apart: 64,
                max_pipes: 9,
            }
        );
    }

    #[test]
    fn nearly_all_of_twenty_thousand_descriptors_are_for_connections() {
        let limits = Limits::within(20_000, Wanted::default());
        assert!(limits.max_connections >= 9_700, "{limits:?}");
    }

    #[test]
    fn what_connections_are_not_to_have_flows_have_apart() {
        let wanted = Wanted {
            connections: Some(100),
            udp_flows: Some(10_000),
        };
        let limits = Limits::within(20_000, wanted);
        assert_eq!(limits.max_connections, 100);
        assert_eq!(limits.udp_flows_apart, 10_000);
        let wanted = Wanted {
            connections: Some(1_000_000),
            udp_flows: Some(10),
        };
        assert_eq!(Limits::within(20_000, wanted).udp_flows_apart, 10);
    }
}
