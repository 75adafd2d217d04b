use std::collections::BTreeMap;

use edgemesh_catalog::NodeName;
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as Generator;

use super::*;
use crate::chance::Chance;

#[path = "balance_unanswered_tests.rs"]
mod unanswered;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 1));
const SECOND: Duration = Duration::from_secs(1);

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 80))
}

fn endpoints(numbers: impl IntoIterator<Item = u8>) -> Arc<[PortalEndpoint]> {
    let mut list: Vec<PortalEndpoint> = numbers
        .into_iter()
        .map(|n| PortalEndpoint {
            address: address(n),
            node: Some(NodeName::new("edge-1")),
            way: Way::Native,
        })
        .collect();
    list.sort();
    list.into()
}

fn in_turn(numbers: impl IntoIterator<Item = u8>) -> Balancer {
    Balancer::new(Strategy::RoundRobin, endpoints(numbers), None, 0)
}

fn pick(balancer: &mut Balancer, now: Instant) -> Pick {
    balancer.pick(CLIENT, &[], now, 0).unwrap()
}

fn next(balancer: &mut Balancer, now: Instant) -> SocketAddr {
    pick(balancer, now).endpoint.address
}

/// Makes the endpoint fail as a connection that reached it would.
fn fail(balancer: &mut Balancer, n: u8, now: Instant) {
    let others: Vec<SocketAddr> = balancer
        .endpoints()
        .iter()
        .map(|e| e.address)
        .filter(|a| *a != address(n))
        .collect();
    let pick = balancer.pick(CLIENT, &others, now, 0).unwrap();
    assert_eq!(pick.endpoint.address, address(n));
    balancer.failed(pick.endpoint.address, pick.trial, now);
}

/// Endpoints 1 and 2 are native, and the kernel's as well; 3 and 4 take the tunnel.
fn sharing_with_the_kernel(strategy: Strategy) -> Balancer {
    let list: Vec<PortalEndpoint> = endpoints([1, 2, 3, 4])
        .iter()
        .zip([Way::Native, Way::Native, Way::Tunnel, Way::Tunnel])
        .map(|(endpoint, way)| PortalEndpoint {
            way,
            ..endpoint.clone()
        })
        .collect();
    let mut balancer = Balancer::new(strategy, list.into(), None, 0);
    balancer.set_native_have_share(true);
    balancer
}

#[test]
fn beside_the_kernel_only_endpoints_without_a_share_there_have_turns() {
    let now = Instant::now();
    for strategy in [Strategy::RoundRobin, Strategy::Random] {
        let mut balancer = sharing_with_the_kernel(strategy);
        let chance = Chance::new(7);
        let mut turns = BTreeMap::<SocketAddr, u32>::new();
        for _ in 0..200 {
            let pick = balancer.pick(CLIENT, &[], now, chance.draw()).unwrap();
            *turns.entry(pick.endpoint.address).or_default() += 1;
        }
        let picked: Vec<SocketAddr> = turns.keys().copied().collect();
        assert_eq!(picked, [address(3), address(4)], "{strategy:?}");
    }
}

#[test]
fn beside_the_kernel_its_endpoints_are_tried_before_those_that_failed() {
    let now = Instant::now();
    let mut balancer = sharing_with_the_kernel(Strategy::RoundRobin);
    balancer.way_failed(address(3), now);
    let tried = balancer.pick(CLIENT, &[address(4)], now, 0).unwrap();
    assert!([address(1), address(2)].contains(&tried.endpoint.address));
    let natives = [address(1), address(2), address(4)];
    let last = balancer.pick(CLIENT, &natives, now, 0).unwrap();
    assert_eq!(last.endpoint.address, address(3));
    balancer.set_native_have_share(false);
    let all: Vec<SocketAddr> = (0..4).map(|_| next(&mut balancer, now)).collect();
    assert!(all.contains(&address(1)) && all.contains(&address(2)));
}

#[test]
fn round_robin_gives_each_endpoint_its_turn() {
    let now = Instant::now();
    let mut balancer = in_turn([1, 2, 3]);
    let round: Vec<SocketAddr> = (0..3).map(|_| next(&mut balancer, now)).collect();
    let mut sorted = round.clone();
    sorted.sort();
    assert_eq!(sorted, [address(1), address(2), address(3)]);
    for _ in 0..5 {
        let again: Vec<SocketAddr> = (0..3).map(|_| next(&mut balancer, now)).collect();
        assert_eq!(again, round);
    }
}

#[test]
fn a_new_endpoint_waits_for_its_turn_and_nobody_loses_theirs() {
    let now = Instant::now();
    let mut balancer = in_turn([1, 2, 3]);
    let first = next(&mut balancer, now);
    balancer.set_endpoints(endpoints([1, 2, 3, 4]), 0);
    let round: Vec<SocketAddr> = (0..4).map(|_| next(&mut balancer, now)).collect();
    assert_eq!(round[2], first, "who was just used comes after the others");
    assert_eq!(round[3], address(4), "the new one comes last");
}

#[test]
fn nodes_with_different_seeds_begin_with_different_endpoints() {
    let now = Instant::now();
    let chance = Chance::new(1);
    let mut first = BTreeMap::new();
    for _ in 0..300 {
        let mut balancer = Balancer::new(
            Strategy::RoundRobin,
            endpoints([1, 2, 3]),
            None,
            chance.draw(),
        );
        *first.entry(next(&mut balancer, now)).or_insert(0) += 1;
    }
    assert!(
        first.len() == 3 && first.values().all(|n| *n > 60),
        "{first:?}"
    );
}

#[test]
fn random_gives_each_endpoint_the_same_chance_even_beside_a_dead_one() {
    let now = Instant::now();
    let chance = Chance::new(7);
    let mut balancer = Balancer::new(Strategy::Random, endpoints([1, 2, 3, 4]), None, 0);
    fail(&mut balancer, 2, now);
    let mut seen = BTreeMap::new();
    for _ in 0..3000 {
        let pick = balancer.pick(CLIENT, &[], now, chance.draw()).unwrap();
        *seen.entry(pick.endpoint.address).or_insert(0) += 1;
    }
    assert!(!seen.contains_key(&address(2)));
    assert!(
        seen.len() == 3 && seen.values().all(|n| (900..1100).contains(n)),
        "{seen:?}"
    );
}

#[test]
fn a_dead_endpoint_is_left_out_longer_each_time_up_to_a_minute() {
    let mut now = Instant::now();
    let mut balancer = in_turn([1, 2]);
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        fail(&mut balancer, 1, now);
        let just_before = now + SECOND * seconds - Duration::from_millis(1);
        for _ in 0..4 {
            assert_eq!(next(&mut balancer, just_before), address(2));
        }
        now += SECOND * seconds;
    }
    let back: Vec<SocketAddr> = (0..2).map(|_| next(&mut balancer, now)).collect();
    assert!(back.contains(&address(1)));
}

#[test]
fn one_connection_tries_whether_a_dead_endpoint_is_back() {
    let start = Instant::now();
    let mut balancer = in_turn([1, 2]);
    fail(&mut balancer, 1, start);
    let due = start + SECOND;
    let trial = (0..2)
        .map(|_| pick(&mut balancer, due))
        .find(|pick| pick.trial)
        .unwrap();
    assert_eq!(trial.endpoint.address, address(1));
    for _ in 0..4 {
        assert_eq!(next(&mut balancer, due), address(2));
    }
    balancer.succeeded(address(1));
    let round: Vec<SocketAddr> = (0..2).map(|_| next(&mut balancer, due)).collect();
    assert!(round.contains(&address(1)));
}

#[test]
fn a_trial_without_an_outcome_is_repeated_by_the_next_connection() {
    let start = Instant::now();
    let mut balancer = in_turn([1]);
    fail(&mut balancer, 1, start);
    let due = start + SECOND;
    let trial = pick(&mut balancer, due);
    assert!(trial.trial);
    balancer.abandoned(&trial, due);
    assert!(pick(&mut balancer, due).trial);
}

#[test]
fn what_many_connections_find_out_at_once_counts_once() {
    let start = Instant::now();
    let mut balancer = in_turn([1, 2]);
    let picks: Vec<Pick> = (0..100).map(|_| pick(&mut balancer, start)).collect();
    for pick in picks.iter().filter(|p| p.endpoint.address == address(1)) {
        balancer.failed(pick.endpoint.address, pick.trial, start);
    }
    let after_one_second: Vec<SocketAddr> = (0..2)
        .map(|_| next(&mut balancer, start + SECOND))
        .collect();
    assert!(after_one_second.contains(&address(1)));
}

#[test]
fn a_broken_way_puts_an_endpoint_last_for_one_second_however_often_it_breaks() {
    let start = Instant::now();
    let mut balancer = in_turn([1, 2]);
    for round in 0..10 {
        let now = start + round * SECOND;
        balancer.way_failed(address(1), now);
        for _ in 0..4 {
            assert_eq!(next(&mut balancer, now), address(2));
        }
    }
    let round: Vec<SocketAddr> = (0..2)
        .map(|_| next(&mut balancer, start + 10 * SECOND))
        .collect();
    assert!(round.contains(&address(1)));
}

#[test]
fn a_broken_way_does_not_shorten_what_the_endpoint_itself_has_earned() {
    let start = Instant::now();
    let mut balancer = in_turn([1, 2]);
    for seconds in [0, 1, 3] {
        fail(&mut balancer, 1, start + seconds * SECOND);
    }
    balancer.way_failed(address(1), start + 3 * SECOND);
    let (_, failures, remaining) = balancer.unwell(start + 3 * SECOND).next().unwrap();
    assert_eq!((failures, remaining), (3, 4 * SECOND));
}

#[test]
fn by_another_way_an_endpoint_is_another_one() {
    let now = Instant::now();
    let mut balancer = in_turn([1, 2]);
    fail(&mut balancer, 1, now);
    let mut list = endpoints([1, 2]).to_vec();
    list[0].way = Way::Tunnel;
    balancer.set_endpoints(list.into(), 0);
    assert!(balancer.unwell.is_empty());
    assert!(balancer.has_by(address(1), Way::Tunnel) && !balancer.has_by(address(1), Way::Native));
}

#[test]
fn with_all_endpoints_dead_each_is_still_tried() {
    let now = Instant::now();
    let mut balancer = in_turn([1, 2, 3]);
    for n in [1, 2, 3] {
        fail(&mut balancer, n, now);
    }
    let mut tried = Vec::new();
    while let Some(pick) = balancer.pick(CLIENT, &tried, now, 0) {
        tried.push(pick.endpoint.address);
    }
    tried.sort();
    assert_eq!(tried, [address(1), address(2), address(3)]);
}

#[test]
fn the_state_of_an_endpoint_survives_a_plan_that_keeps_it() {
    let now = Instant::now();
    let mut balancer = in_turn([1, 2]);
    fail(&mut balancer, 1, now);
    balancer.set_endpoints(endpoints([1, 2, 3]), 0);
    for _ in 0..6 {
        assert_ne!(next(&mut balancer, now), address(1));
    }
    // Gone and come again it is another endpoint.
    balancer.set_endpoints(endpoints([2]), 0);
    balancer.set_endpoints(endpoints([1, 2]), 0);
    let round: Vec<SocketAddr> = (0..2).map(|_| next(&mut balancer, now)).collect();
    assert!(round.contains(&address(1)));
}

#[test]
fn a_failure_of_an_endpoint_that_is_gone_is_forgotten() {
    let now = Instant::now();
    let mut balancer = in_turn([1]);
    let late = pick(&mut balancer, now);
    balancer.set_endpoints(endpoints([2]), 0);
    balancer.failed(late.endpoint.address, false, now);
    assert!(balancer.unwell.is_empty());
}

#[test]
fn affinity_keeps_a_client_on_its_endpoint_until_the_timeout() {
    let start = Instant::now();
    let timeout = 10 * SECOND;
    let mut balancer = Balancer::new(Strategy::RoundRobin, endpoints([1, 2, 3]), Some(timeout), 0);
    let first = pick(&mut balancer, start);
    assert!(!first.remembered);
    for seconds in [1, 9, 18] {
        let again = pick(&mut balancer, start + seconds * SECOND);
        assert_eq!(again.endpoint, first.endpoint);
        assert!(again.remembered);
    }
    let other_client = IpAddr::from([10, 9, 0, 2]);
    let other = balancer.pick(other_client, &[], start, 0).unwrap();
    assert_ne!(other.endpoint, first.endpoint);
    assert!(!pick(&mut balancer, start + 28 * SECOND).remembered);
}

#[test]
fn affinity_moves_with_the_connection_that_stands() {
    let now = Instant::now();
    let mut balancer = Balancer::new(
        Strategy::RoundRobin,
        endpoints([1, 2]),
        Some(SECOND * 60),
        0,
    );
    let dead = pick(&mut balancer, now);
    balancer.failed(dead.endpoint.address, false, now);
    let alive = balancer
        .pick(CLIENT, &[dead.endpoint.address], now, 0)
        .unwrap();
    balancer.settled(CLIENT, alive.endpoint.address, now);
    let again = pick(&mut balancer, now + 2 * SECOND);
    assert_eq!(
        again.endpoint, alive.endpoint,
        "the dead one is due for a trial, yet not ours"
    );
}

#[test]
fn a_client_whose_endpoint_is_gone_gets_another() {
    let now = Instant::now();
    let mut balancer = Balancer::new(
        Strategy::RoundRobin,
        endpoints([1, 2]),
        Some(SECOND * 60),
        0,
    );
    let first = next(&mut balancer, now);
    balancer.set_endpoints(
        endpoints([1, 2].into_iter().filter(|n| address(*n) != first)),
        0,
    );
    assert_ne!(next(&mut balancer, now), first);
}

#[test]
fn no_endpoints_no_pick() {
    let now = Instant::now();
    for strategy in [Strategy::RoundRobin, Strategy::Random] {
        let mut balancer = Balancer::new(strategy, endpoints([]), None, 0);
        assert_eq!(balancer.pick(CLIENT, &[], now, 0), None);
    }
}

/// What may happen to a balancer.
#[derive(Debug, Clone)]
enum Event {
    Connect { outcome: Option<bool> },
    Unanswered(u8),
    Endpoints(Vec<u8>),
    Later(u16),
}

fn event() -> impl Generator<Value = Event> {
    prop_oneof![
        8 => any::<Option<bool>>().prop_map(|outcome| Event::Connect { outcome }),
        2 => (1_u8..12).prop_map(Event::Unanswered),
        1 => prop::collection::btree_set(1_u8..12, 1..8)
            .prop_map(|set| Event::Endpoints(set.into_iter().collect())),
        2 => any::<u16>().prop_map(Event::Later),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_every_connection_reaches_every_endpoint_once(
        events in prop::collection::vec(event(), 1..200),
        random_choice: bool,
        affinity: bool,
        seed: u64,
    ) {
        let strategy = if random_choice { Strategy::Random } else { Strategy::RoundRobin };
        let chance = Chance::new(seed);
        let mut now = Instant::now();
        let mut balancer =
            Balancer::new(strategy, endpoints([1, 2, 3]), affinity.then_some(SECOND), seed);
        for event in events {
            match event {
                Event::Later(ms) => now += Duration::from_millis(ms.into()),
                Event::Unanswered(n) => balancer.unanswered(address(n), now + SECOND),
                Event::Endpoints(list) => balancer.set_endpoints(endpoints(list), chance.draw()),
                Event::Connect { outcome } => {
                    let mut tried = Vec::new();
                    while let Some(pick) = balancer.pick(CLIENT, &tried, now, chance.draw()) {
                        prop_assert!(!tried.contains(&pick.endpoint.address));
                        prop_assert!(balancer.has(pick.endpoint.address));
                        tried.push(pick.endpoint.address);
                        match outcome {
                            Some(true) => {
                                balancer.succeeded(pick.endpoint.address);
                                balancer.settled(CLIENT, pick.endpoint.address, now);
                            }
                            Some(false) => balancer.failed(pick.endpoint.address, pick.trial, now),
                            None => balancer.abandoned(&pick, now),
                        }
                    }
                    prop_assert_eq!(tried.len(), balancer.endpoints().len());
                }
            }
            let mut turns: Vec<usize> = balancer.turns.iter().copied().collect();
            turns.sort_unstable();
            prop_assert_eq!(turns, (0..balancer.endpoints().len()).collect::<Vec<_>>());
            prop_assert!(balancer.unwell.keys().all(|a| balancer.has(*a)));
        }
    }

    #[test]
    fn round_robin_over_well_endpoints_differs_by_at_most_one_use(
        first in prop::collection::btree_set(1_u8..20, 1..10),
        second in prop::collection::btree_set(1_u8..20, 1..10),
        uses in 0_usize..50,
        seed: u64,
    ) {
        let now = Instant::now();
        let mut balancer = Balancer::new(
            Strategy::RoundRobin,
            endpoints(first.iter().copied()),
            None,
            seed,
        );
        for _ in 0..uses {
            next(&mut balancer, now);
        }
        balancer.set_endpoints(endpoints(second.iter().copied()), seed);
        let mut used: BTreeMap<SocketAddr, u32> =
            second.iter().map(|n| (address(*n), 0)).collect();
        for _ in 0..uses {
            *used.entry(next(&mut balancer, now)).or_default() += 1;
        }
        let (least, most) = (used.values().min().unwrap(), used.values().max().unwrap());
        prop_assert!(most - least <= 1, "{:?}", used);
    }
}

#[test]
fn who_is_left_out_is_told_with_failures_and_the_time_that_is_left() {
    let now = Instant::now();
    let mut balancer = in_turn([1, 2]);
    fail(&mut balancer, 2, now);
    let told = |balancer: &Balancer, now| balancer.unwell(now).collect::<Vec<_>>();
    assert_eq!(told(&balancer, now), [(address(2), 1, SECOND)]);
    assert_eq!(
        told(&balancer, now + SECOND),
        [(address(2), 1, Duration::ZERO)]
    );
    balancer.succeeded(address(2));
    assert_eq!(told(&balancer, now), []);
}
