//! Ports that were given up a short time ago. Pure: time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Keeps a port from being given to another portal while the kernel may still send it the
/// datagrams of the former one's clients.
#[derive(Debug, Default)]
pub(crate) struct RecentPorts {
    since: BTreeMap<(IpAddr, u16), Instant>,
    /// Oldest first; a port that was given up again stands here twice.
    by_age: VecDeque<(Instant, (IpAddr, u16))>,
}

impl RecentPorts {
    /// Above `net.netfilter.nf_conntrack_udp_timeout_stream` (120 s), after which the
    /// translation of a quiet flow is forgotten.
    const QUARANTINE: Duration = Duration::from_secs(180);

    pub(crate) fn give_up(&mut self, ip: IpAddr, port: u16, now: Instant) {
        self.since.insert((ip, port), now);
        self.by_age.push_back((now, (ip, port)));
        self.forget(now);
    }

    pub(crate) fn has(&self, ip: IpAddr, port: u16, now: Instant) -> bool {
        let since = self.since.get(&(ip, port));
        since.is_some_and(|since| is_recent(*since, now))
    }

    fn forget(&mut self, now: Instant) {
        while let Some((age, key)) = self.by_age.front().filter(|(age, _)| !is_recent(*age, now)) {
            if self.since.get(key) == Some(age) {
                self.since.remove(key);
            }
            self.by_age.pop_front();
        }
    }
}

fn is_recent(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < RecentPorts::QUARANTINE
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
        let later = start + Duration::from_secs(180);
        assert!(!recent.has(ip, 4000, later));
        recent.give_up(ip, 4001, later);
        assert_eq!((recent.since.len(), recent.by_age.len()), (1, 1));
    }
}
