//! Ports that were given up a short time ago. Pure: time is an argument.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Keeps a port from being given to another portal while the kernel may still send it the
/// datagrams of the former one's clients.
#[derive(Debug, Default)]
pub(crate) struct RecentPorts {
    /// Oldest first.
    given_up: VecDeque<(Instant, IpAddr, u16)>,
}

impl RecentPorts {
    /// Above `net.netfilter.nf_conntrack_udp_timeout_stream` (120 s), after which the
    /// translation of a quiet flow is forgotten.
    const QUARANTINE: Duration = Duration::from_secs(180);

    pub(crate) fn give_up(&mut self, ip: IpAddr, port: u16, now: Instant) {
        self.forget(now);
        self.given_up.push_back((now, ip, port));
    }

    pub(crate) fn has(&mut self, ip: IpAddr, port: u16, now: Instant) -> bool {
        self.forget(now);
        self.given_up.iter().any(|(_, i, p)| (*i, *p) == (ip, port))
    }

    fn forget(&mut self, now: Instant) {
        while self
            .given_up
            .front()
            .is_some_and(|(since, _, _)| now.saturating_duration_since(*since) >= Self::QUARANTINE)
        {
            self.given_up.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_kept_back_until_old_flows_are_forgotten() {
        let start = Instant::now();
        let ip = IpAddr::from([169, 254, 96, 16]);
        let mut recent = RecentPorts::default();
        recent.give_up(ip, 4000, start);
        assert!(recent.has(ip, 4000, start + Duration::from_secs(179)));
        assert!(!recent.has(ip, 4001, start));
        assert!(!recent.has("::1".parse().unwrap(), 4000, start));
        assert!(!recent.has(ip, 4000, start + Duration::from_secs(180)));
    }
}
