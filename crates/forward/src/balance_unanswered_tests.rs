//! Endpoints with an attempt that lasts.

use super::*;

const UNTIL: Duration = Duration::from_secs(2);

fn all_in_turn(balancer: &mut Balancer, now: Instant) -> Vec<SocketAddr> {
    let mut tried = Vec::new();
    while let Some(pick) = balancer.pick(CLIENT, &tried, now, 0) {
        tried.push(pick.endpoint.address);
    }
    tried
}

#[test]
fn who_keeps_one_waiting_is_tried_after_the_others_and_before_those_that_failed() {
    let now = Instant::now();
    for strategy in [Strategy::RoundRobin, Strategy::Random] {
        let mut balancer = Balancer::new(strategy, endpoints([1, 2, 3]), None, 0);
        fail(&mut balancer, 1, now);
        balancer.unanswered(address(2), now + UNTIL);
        for _ in 0..3 {
            let order = all_in_turn(&mut balancer, now);
            assert_eq!(order, [address(3), address(2), address(1)], "{strategy:?}");
        }
    }
}

#[test]
fn an_answer_gives_its_turns_back() {
    let now = Instant::now();
    let mut balancer = in_turn([1, 2]);
    balancer.unanswered(address(1), now + UNTIL);
    assert_eq!(next(&mut balancer, now), address(2));
    balancer.succeeded(address(1));
    let round: Vec<SocketAddr> = (0..2).map(|_| next(&mut balancer, now)).collect();
    assert!(round.contains(&address(1)));
}

#[test]
fn a_failure_counts_as_the_first() {
    let now = Instant::now();
    for outcome in [
        |b: &mut Balancer, now| b.failed(address(1), false, now),
        |b: &mut Balancer, now| b.way_failed(address(1), now),
    ] {
        let mut balancer = in_turn([1, 2]);
        balancer.unanswered(address(1), now + UNTIL);
        assert_eq!(balancer.unwell(now).count(), 0, "it has not failed yet");
        outcome(&mut balancer, now);
        let told: Vec<_> = balancer.unwell(now).collect();
        assert_eq!(told, [(address(1), 1, SECOND)]);
        // The others who waited find out the same, and it counts once.
        balancer.failed(address(1), false, now + SECOND / 2);
        let told: Vec<_> = balancer.unwell(now).collect();
        assert_eq!(told, [(address(1), 1, SECOND)]);
    }
}

#[test]
fn without_an_outcome_one_connection_tries_it_again_when_the_time_is_over() {
    let now = Instant::now();
    let mut balancer = in_turn([1, 2]);
    balancer.unanswered(address(1), now + UNTIL);
    let due = now + UNTIL;
    let picks = [pick(&mut balancer, due), pick(&mut balancer, due)];
    let trials: Vec<&Pick> = picks.iter().filter(|pick| pick.trial).collect();
    assert_eq!(trials.len(), 1);
    assert_eq!(trials[0].endpoint.address, address(1));
    for _ in 0..3 {
        assert_eq!(next(&mut balancer, due), address(2));
    }
}

#[test]
fn what_is_known_of_a_failed_one_does_not_change_when_it_keeps_one_waiting() {
    let now = Instant::now();
    let mut balancer = in_turn([1, 2]);
    fail(&mut balancer, 1, now);
    balancer.unanswered(address(1), now + 100 * UNTIL);
    let told: Vec<_> = balancer.unwell(now).collect();
    assert_eq!(told, [(address(1), 1, SECOND)]);
}

#[test]
fn a_client_that_is_used_to_it_stays_and_others_go_elsewhere() {
    let now = Instant::now();
    let hour = Some(3600 * SECOND);
    let mut balancer = Balancer::new(Strategy::RoundRobin, endpoints([1, 2]), hour, 0);
    let used = next(&mut balancer, now);
    balancer.unanswered(used, now + UNTIL);
    let other = balancer.pick([10, 9, 0, 2].into(), &[], now, 0).unwrap();
    assert_ne!(other.endpoint.address, used);
    // Also when the time is over, and while another's trial goes on.
    for later in [Duration::ZERO, UNTIL, UNTIL] {
        let again = pick(&mut balancer, now + later);
        assert!(again.remembered);
        assert_eq!(again.endpoint.address, used);
    }
}

#[test]
fn one_that_is_gone_keeps_nobody_waiting() {
    let now = Instant::now();
    let mut balancer = in_turn([1]);
    balancer.unanswered(address(2), now + UNTIL);
    assert!(balancer.unwell.is_empty());
    balancer.unanswered(address(1), now + UNTIL);
    assert_eq!(next(&mut balancer, now), address(1), "it is all there is");
    balancer.set_endpoints(endpoints([2]), 0);
    assert!(balancer.unwell.is_empty());
}

#[test]
fn beside_the_kernel_its_endpoints_stand_in_for_one_that_keeps_waiting() {
    let now = Instant::now();
    let mut balancer = sharing_with_the_kernel(Strategy::RoundRobin);
    balancer.unanswered(address(3), now + UNTIL);
    for _ in 0..3 {
        assert_eq!(next(&mut balancer, now), address(4));
    }
    let order = all_in_turn(&mut balancer, now);
    assert_eq!((order[0], order[3]), (address(4), address(3)));
}

proptest! {
    #[test]
    fn those_that_answer_share_evenly_whoever_keeps_waiting(
        silent in prop::collection::btree_set(1_u8..10, 0..9),
        uses in 0_usize..60,
        seed: u64,
    ) {
        let now = Instant::now();
        let mut balancer = Balancer::new(Strategy::RoundRobin, endpoints(1..10), None, seed);
        for n in &silent {
            balancer.unanswered(address(*n), now + UNTIL);
        }
        let mut used: BTreeMap<SocketAddr, u32> = (1..10)
            .filter(|n| !silent.contains(n))
            .map(|n| (address(n), 0))
            .collect();
        for _ in 0..uses {
            let address = next(&mut balancer, now);
            prop_assert!(used.contains_key(&address));
            *used.entry(address).or_default() += 1;
        }
        let (least, most) = (used.values().min().unwrap(), used.values().max().unwrap());
        prop_assert!(most - least <= 1, "{:?}", used);
    }
}
