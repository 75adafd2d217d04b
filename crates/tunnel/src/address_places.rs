//! Places for strangers: how many connections may be open before anybody has proved who
//! they are, in all and from one address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A number of places, of which no address gets more than its share.
#[derive(Clone, Debug)]
pub(crate) struct AddressPlaces(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    in_all: usize,
    per_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: AddressPlaces,
    address: IpAddr,
}

impl AddressPlaces {
    pub(crate) fn new(in_all: usize, per_address: usize) -> Self {
        Self(Arc::new(Shared {
            in_all,
            per_address,
            taken: Mutex::default(),
        }))
    }

    /// A place for somebody at `address`; none when they or everybody have all that is theirs.
    pub(crate) fn take(&self, address: IpAddr) -> Option<Place> {
        let address = one_owner(address);
        let mut taken = self.taken();
        let by_address = taken.by_address.get(&address).copied().unwrap_or_default();
        if taken.in_all >= self.0.in_all || by_address >= self.0.per_address {
            return None;
        }
        taken.in_all += 1;
        taken.by_address.insert(address, by_address + 1);
        drop(taken);
        let of = self.clone();
        Some(Place { of, address })
    }

    /// How many places are taken.
    pub(crate) fn in_use(&self) -> usize {
        self.taken().in_all
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        taken.in_all -= 1;
        if let Some(by_address) = taken.by_address.get_mut(&self.address) {
            *by_address -= 1;
            if *by_address == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

/// The addresses that one party has as a rule: a single one of IPv4, 2^64 of IPv6.
fn one_owner(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_does_not_take_the_places_of_others() {
        let places = AddressPlaces::new(3, 2);
        let greedy = [(); 3].map(|()| places.take(at("192.0.2.1")));
        assert!(greedy[1].is_some() && greedy[2].is_none());
        let mapped = places.take(at("::ffff:192.0.2.1"));
        assert!(mapped.is_none());
        let other = places.take(at("192.0.2.2"));
        assert!(other.is_some());
        assert!(places.take(at("192.0.2.3")).is_none());
        drop(greedy);
        assert!(places.take(at("192.0.2.1")).is_some());
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_their_places() {
        let places = AddressPlaces::new(9, 1);
        let _held = places.take(at("2001:db8::1")).unwrap();
        assert!(places.take(at("2001:db8::ffff:1")).is_none());
        assert!(places.take(at("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn nothing_is_left_of_those_who_went() {
        let places = AddressPlaces::new(9, 9);
        drop([(); 5].map(|()| places.take(at("192.0.2.1"))));
        assert_eq!(places.in_use(), 0);
        assert!(places.taken().by_address.is_empty());
    }
}
