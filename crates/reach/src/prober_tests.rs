use super::*;

/// Peers whose answers are scripted, on a clock that is moved by hand.
struct Network {
    prober: Prober,
    now: Instant,
    wanted: BTreeMap<NodeName, PeerPlaces>,
    /// Addresses that answer, with the key that is there.
    there: BTreeMap<IpAddr, PublicKey>,
    /// Addresses that there is no route to.
    no_route: BTreeSet<IpAddr>,
    sent: u64,
}

impl Network {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            prober: Prober::new(Timing::default(), 7, now),
            now,
            wanted: BTreeMap::new(),
            there: BTreeMap::new(),
            no_route: BTreeSet::new(),
            sent: 0,
        }
    }

    fn peer(&mut self, name: &str, place: u8) {
        let networks = Arc::from([format!("10.244.{place}.0/24").parse().unwrap()]);
        let places = PeerPlaces {
            key: key(place),
            boot_id: "1".into(),
            port: 20010,
            places: BTreeMap::from([(ip(place), networks)]),
        };
        self.wanted.insert(NodeName::new(name), places);
        self.prober.follow(self.wanted.clone(), self.now);
    }

    fn answers(&mut self, place: u8) {
        self.there.insert(ip(place), key(place));
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.prober.next_at(self.now).filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.step();
        }
        self.now = end;
    }

    /// Until so many peers are direct; how long that took.
    fn until_direct(&mut self, count: usize) -> Duration {
        let start = self.now;
        while self.direct().len() != count {
            let passed = self.now - start;
            assert!(passed < Duration::from_secs(600), "not within {passed:?}");
            self.run(Duration::from_millis(10));
        }
        self.now - start
    }

    fn step(&mut self) {
        self.prober.expire(self.now);
        while let Some(due) = self.prober.due(self.now) {
            if self.no_route.contains(&due.address.ip()) {
                self.prober.unsendable(&due, self.now);
                continue;
            }
            self.sent += 1;
            let mut nonce = [0; 32];
            nonce[..8].copy_from_slice(&self.sent.to_be_bytes());
            let proof = self.there.get(&due.address.ip()) == Some(&due.key);
            self.prober
                .sent(due, nonce, Box::new([0; Probe::LENGTH]), self.now);
            if proof {
                self.prober.proved(&nonce, self.now);
            }
        }
    }

    fn direct(&self) -> Vec<String> {
        let verified = self.prober.verified();
        assert_eq!(verified.len(), self.prober.direct as usize);
        verified.keys().map(ToString::to_string).collect()
    }
}

fn ip(place: u8) -> IpAddr {
    [10, 244, place, 1].into()
}

fn key(place: u8) -> PublicKey {
    PublicKey::from_bytes([place; 32])
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_peer_that_answers_is_direct_within_a_second_and_stays_so() {
    let mut network = Network::new();
    network.answers(1);
    network.peer("cloud", 1);
    assert!(network.until_direct(1) < SECOND);
    network.run(60 * SECOND);
    assert_eq!(network.direct(), ["cloud"]);
    // Three to be convinced, and then one every five seconds.
    assert!((13..=18).contains(&network.sent), "{}", network.sent);
}

#[test]
fn a_stranger_at_the_address_of_a_peer_never_makes_it_direct() {
    let mut network = Network::new();
    network.there.insert(ip(1), key(9));
    network.peer("cloud", 1);
    network.run(120 * SECOND);
    assert_eq!(network.direct(), [""; 0]);
}

#[test]
fn a_peer_is_dropped_within_a_second_of_the_kernels_word() {
    for no_route in [true, false] {
        let mut network = Network::new();
        network.answers(1);
        network.peer("cloud", 1);
        network.until_direct(1);
        network.run(SECOND);
        network.there.clear();
        if no_route {
            network.no_route.insert(ip(1));
        }
        let change = NetworkChange::Route("10.244.1.0/24".parse().unwrap());
        network.prober.network_changed(change, network.now);
        assert!(network.until_direct(0) <= SECOND, "{no_route}");
        // Back when it answers again, but not at once.
        network.no_route.clear();
        network.answers(1);
        let back = network.until_direct(1);
        assert!(back >= SECOND && back <= 4 * SECOND, "{back:?}");
    }
}

#[test]
fn without_a_word_a_lost_peer_is_dropped_after_three_probes() {
    let mut network = Network::new();
    network.answers(1);
    network.peer("cloud", 1);
    network.until_direct(1);
    network.there.clear();
    assert!(network.until_direct(0) <= 7 * SECOND);
}

#[test]
fn routes_to_elsewhere_concern_nobody() {
    let mut network = Network::new();
    network.answers(1);
    network.peer("cloud", 1);
    network.until_direct(1);
    let before = network.sent;
    for place in 2..200 {
        let change = NetworkChange::Route(format!("10.244.{place}.0/24").parse().unwrap());
        network.prober.network_changed(change, network.now);
    }
    network.run(SECOND);
    assert_eq!(network.sent, before);
    network
        .prober
        .network_changed(NetworkChange::Anything, network.now);
    network.run(SECOND);
    assert_eq!(network.sent, before + 1);
}

#[test]
fn another_key_another_port_or_no_peer_is_forgotten_at_once() {
    for change in [
        |of: &mut PeerPlaces| of.key = key(8),
        |of: &mut PeerPlaces| of.port += 1,
        |of: &mut PeerPlaces| drop(of.places.pop_first()),
    ] {
        let mut network = Network::new();
        network.answers(1);
        network.peer("cloud", 1);
        network.until_direct(1);
        let mut wanted = network.wanted.clone();
        wanted.values_mut().for_each(change);
        network.prober.follow(wanted, network.now);
        assert_eq!(network.direct(), [""; 0]);
    }
    let mut network = Network::new();
    network.answers(1);
    network.peer("cloud", 1);
    network.until_direct(1);
    network.prober.follow(BTreeMap::new(), network.now);
    assert_eq!(network.direct(), [""; 0]);
    assert_eq!(network.prober.next_at(network.now), None);
}

#[test]
fn an_answer_to_who_was_forgotten_counts_for_nothing() {
    let mut network = Network::new();
    network.peer("cloud", 1);
    network.now += SECOND;
    let due = network.prober.due(network.now).unwrap();
    let nonce = [1; 32];
    network
        .prober
        .sent(due, nonce, Box::new([0; Probe::LENGTH]), network.now);
    assert!(network.prober.asked(&nonce).is_some());
    network.prober.follow(BTreeMap::new(), network.now);
    assert!(network.prober.asked(&nonce).is_none());
    network.prober.proved(&nonce, network.now);
    network.run(SECOND);
}

#[test]
fn a_new_run_of_its_agent_has_a_peer_probed_at_once() {
    let mut network = Network::new();
    network.answers(1);
    network.peer("cloud", 1);
    network.until_direct(1);
    let before = network.sent;
    for of in network.wanted.values_mut() {
        of.boot_id = "2".into();
    }
    network.prober.follow(network.wanted.clone(), network.now);
    assert_eq!(network.direct(), ["cloud"]);
    network.run(SECOND / 10);
    assert_eq!(network.sent, before + 1);
}

#[test]
fn connections_that_fail_at_several_endpoints_count_more_than_answers_to_probes() {
    let mut network = Network::new();
    network.answers(1);
    network.peer("cloud", 1);
    network.until_direct(1);
    let node = NodeName::new("cloud");
    let endpoint = |last| IpAddr::from([10, 244, 1, last]);
    // One endpoint may be the one to blame.
    for _ in 0..9 {
        network.prober.dial_failed(&node, endpoint(7), network.now);
        network.run(SECOND / 20);
    }
    assert_eq!(network.direct(), ["cloud"]);
    network.prober.dial_failed(&node, endpoint(8), network.now);
    assert_eq!(network.direct(), [""; 0]);
    // Elsewhere on the same node is another matter.
    network.until_direct(1);
    for last in 1..9 {
        let other = IpAddr::from([192, 168, 0, last]);
        network.prober.dial_failed(&node, other, network.now);
    }
    assert_eq!(network.direct(), ["cloud"]);
}

/// 2,000 peers that answer.
fn thousands() -> Network {
    let mut network = Network::new();
    for peer in 0..2000_u32 {
        let address = IpAddr::from((0x0af4_0001 + (peer << 8)).to_be_bytes());
        let network_of = format!("{address}/24").parse::<IpNet>().unwrap().trunc();
        let places = PeerPlaces {
            key: key(1),
            boot_id: "1".into(),
            port: 20010,
            places: BTreeMap::from([(address, Arc::from([network_of]))]),
        };
        network
            .wanted
            .insert(NodeName::new(format!("node-{peer:04}")), places);
        network.there.insert(address, key(1));
    }
    network.prober.follow(network.wanted.clone(), network.now);
    network
}

#[test]
fn thousands_of_peers_are_probed_by_no_more_than_so_many_a_second() {
    let mut network = thousands();
    let timing = Timing::default();
    network.run(SECOND);
    assert!(network.sent <= u64::from(timing.probes_per_second) * 5 / 4 + 1);
    assert!(network.until_direct(2000) < 30 * SECOND);
    network.run(60 * SECOND);
    let before = network.sent;
    network.run(60 * SECOND);
    let each_second = (network.sent - before) / 60;
    assert!((80..=120).contains(&each_second), "{each_second}");
    assert_eq!(network.direct().len(), 2000);
}

/// With `--release --ignored --nocapture` it prints what the bookkeeping of one probe costs.
#[test]
#[ignore = "a measurement, to be made with --release"]
fn what_bookkeeping_costs() {
    let mut network = thousands();
    network.until_direct(2000);
    let (before, began) = (network.sent, Instant::now());
    network.run(600 * SECOND);
    let probes = network.sent - before;
    let each = began.elapsed() / u32::try_from(probes).unwrap();
    println!("2000 direct peers: {probes} probes in 600 s, {each:?} of bookkeeping each");
}
