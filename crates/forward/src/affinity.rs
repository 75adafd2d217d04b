//! Which endpoint a client was sent to last: `sessionAffinity: ClientIP`. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// What one portal remembers of its clients.
#[derive(Debug)]
pub(crate) struct Affinity {
    timeout: Duration,
    most: usize,
    clients: BTreeMap<IpAddr, Remembered>,
    /// Clients by last use: the first is both the oldest and the next to expire.
    by_use: BTreeMap<u64, IpAddr>,
    uses: u64,
}

#[derive(Debug)]
struct Remembered {
    endpoint: SocketAddr,
    used: Instant,
    /// Key in `by_use`.
    use_number: u64,
}

impl Affinity {
    /// Clients remembered per portal, at about 150 bytes each; more put the oldest out.
    pub(crate) const MOST_CLIENTS: usize = 16_384;

    pub(crate) fn new(timeout: Duration, most: usize) -> Self {
        Self {
            timeout,
            most: most.max(1),
            clients: BTreeMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
        }
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Applies to those already remembered as well.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The endpoint that `client` used last, unless that was too long ago.
    pub(crate) fn endpoint_of(&self, client: IpAddr, now: Instant) -> Option<SocketAddr> {
        self.clients
            .get(&client)
            .filter(|known| self.is_fresh(known, now))
            .map(|known| known.endpoint)
    }

    /// Notes that `client` is sent to `endpoint` now, which starts its timeout anew.
    pub(crate) fn remember(&mut self, client: IpAddr, endpoint: SocketAddr, now: Instant) {
        self.uses += 1;
        let remembered = Remembered {
            endpoint,
            used: now,
            use_number: self.uses,
        };
        if let Some(old) = self.clients.insert(client, remembered) {
            self.by_use.remove(&old.use_number);
        }
        self.by_use.insert(self.uses, client);
        self.put_out(now);
    }

    fn put_out(&mut self, now: Instant) {
        while let Some(oldest) = self.by_use.first_entry() {
            let full = self.clients.len() > self.most;
            let expired = self
                .clients
                .get(oldest.get())
                .is_none_or(|known| now.saturating_duration_since(known.used) >= self.timeout);
            if !(full || expired) {
                break;
            }
            self.clients.remove(&oldest.remove());
        }
    }

    fn is_fresh(&self, known: &Remembered, now: Instant) -> bool {
        now.saturating_duration_since(known.used) < self.timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn client(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn endpoint(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, n], 80))
    }

    #[test]
    fn a_client_is_remembered_until_its_timeout_and_renewed_by_use() {
        let start = Instant::now();
        let mut affinity = Affinity::new(HOUR, 10);
        affinity.remember(client(1), endpoint(1), start);
        let later = start + HOUR - Duration::from_secs(1);
        assert_eq!(affinity.endpoint_of(client(1), later), Some(endpoint(1)));
        assert_eq!(affinity.endpoint_of(client(1), start + HOUR), None);

        affinity.remember(client(1), endpoint(1), later);
        assert_eq!(
            affinity.endpoint_of(client(1), start + HOUR),
            Some(endpoint(1))
        );
        assert_eq!(affinity.endpoint_of(client(1), later + HOUR), None);
    }

    #[test]
    fn one_client_too_many_puts_the_least_recently_used_out() {
        let now = Instant::now();
        let mut affinity = Affinity::new(HOUR, 2);
        affinity.remember(client(1), endpoint(1), now);
        affinity.remember(client(2), endpoint(2), now);
        affinity.remember(client(1), endpoint(1), now);
        affinity.remember(client(3), endpoint(3), now);
        assert_eq!(affinity.endpoint_of(client(2), now), None);
        assert_eq!(affinity.endpoint_of(client(1), now), Some(endpoint(1)));
        assert_eq!(affinity.endpoint_of(client(3), now), Some(endpoint(3)));
    }

    #[test]
    fn expired_clients_take_no_memory() {
        let start = Instant::now();
        let mut affinity = Affinity::new(HOUR, 1000);
        for n in 0..100 {
            affinity.remember(client(n), endpoint(1), start);
        }
        affinity.remember(client(200), endpoint(1), start + HOUR);
        assert_eq!(affinity.clients.len(), 1);
        assert_eq!(affinity.by_use.len(), 1);
    }

    #[test]
    fn a_changed_timeout_holds_for_those_already_remembered() {
        let start = Instant::now();
        let mut affinity = Affinity::new(HOUR, 10);
        affinity.remember(client(1), endpoint(1), start);
        affinity.set_timeout(Duration::from_secs(10));
        assert_eq!(
            affinity.endpoint_of(client(1), start + Duration::from_secs(11)),
            None
        );
    }
}
