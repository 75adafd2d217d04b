use edgemesh_catalog::{Change, Fold, MeshNode, Node, NodeName};
use edgemesh_tunnel::PeerBook;
use proptest::prelude::*;

use super::*;

const UNIX: u64 = 1_800_000_000;
const LOCAL: &str = "10.244.1.1:20010";

/// A node that answers, and a peer that asks.
struct Stage {
    answerer: Answerer,
    own: PublicKey,
    peer: NodeKey,
    now: Instant,
}

impl Stage {
    fn new() -> Self {
        let (own, peer) = (NodeKey::generate(), NodeKey::generate());
        let now = Instant::now();
        let mut answerer = Answerer::new(own.clone(), now);
        answerer.believe(peers(&[("cloud", &peer)]));
        Self {
            answerer,
            own: own.public(),
            peer,
            now,
        }
    }

    fn probe(&self) -> Probe {
        Probe {
            nonce: [7; 32],
            from: self.peer.public(),
            to: self.own,
            address: LOCAL.parse().unwrap(),
            sent_at: UNIX,
        }
    }

    fn ask_from(&mut self, from: &str, datagram: &[u8]) -> Result<ProbeAnswer, Refused> {
        let (from, local) = (from.parse().unwrap(), LOCAL.parse().unwrap());
        let answer = self
            .answerer
            .answer(datagram, from, local, self.now, UNIX)?;
        Ok(ProbeAnswer::decode(&answer).unwrap())
    }

    fn ask(&mut self, probe: &Probe) -> Result<ProbeAnswer, Refused> {
        let datagram = signed(probe, &self.peer);
        self.ask_from("10.244.0.1", &datagram)
    }
}

fn signed(probe: &Probe, by: &NodeKey) -> [u8; Probe::LENGTH] {
    probe.encode(&by.sign(&probe.to_sign()))
}

fn peers(all: &[(&str, &NodeKey)]) -> Arc<Peers> {
    let mut fold = Fold::default();
    for (name, key) in all {
        let name = NodeName::new(*name);
        fold.apply(Change::Node(Node {
            name: name.clone(),
            zone: None,
            pod_cidrs: Vec::new(),
            addresses: Vec::new(),
            labels: Default::default(),
        }));
        fold.apply(Change::MeshNode(MeshNode {
            name_signature: Some(Box::new(key.sign_name(&name))),
            name,
            uid: None,
            public_key: key.public(),
            addresses: Vec::new(),
            relay_url: None,
            relay_server: None,
            pod_cidrs: Vec::new(),
            probe: None,
            version: "".into(),
            boot_id: "".into(),
            previous_key: None,
        }));
    }
    Arc::new(PeerBook::default().follow(&fold.catalog(), &NodeName::new("own"), &[]))
}

#[test]
fn a_peer_gets_an_answer_that_only_this_node_can_give_to_this_question() {
    let mut stage = Stage::new();
    let probe = stage.probe();
    let bytes = signed(&probe, &stage.peer);
    let answer = stage.ask(&probe).unwrap();
    assert_eq!(answer.nonce, probe.nonce);
    let signed_for = |bytes| {
        let message = ProbeAnswer::to_sign(bytes);
        is_signed_by(&stage.own, &message, &answer.signature)
    };
    assert!(signed_for(&bytes));
    let other = Probe {
        address: "10.244.2.1:20010".parse().unwrap(),
        ..probe
    };
    assert!(!signed_for(
        &other.encode(&stage.peer.sign(&other.to_sign()))
    ));
    // Neither a probe nor its answer is a signature over anything else.
    assert!(!is_signed_by(
        &stage.own,
        &probe.to_sign(),
        &answer.signature
    ));
}

#[test]
fn nobody_else_gets_one() {
    let mut stage = Stage::new();
    let stranger = NodeKey::generate();
    let probe = stage.probe();
    let (from, to) = (stranger.public(), stranger.public());
    let elsewhere = "10.244.2.1:20010".parse().unwrap();
    let other_port = "10.244.1.1:20011".parse().unwrap();
    for (probe, reason) in [
        (Probe { from, ..probe }, Refused::Stranger),
        (Probe { to, ..probe }, Refused::Elsewhere),
        (
            Probe {
                address: elsewhere,
                ..probe
            },
            Refused::Elsewhere,
        ),
        (
            Probe {
                address: other_port,
                ..probe
            },
            Refused::Elsewhere,
        ),
        (
            Probe {
                sent_at: UNIX - 301,
                ..probe
            },
            Refused::WrongTime,
        ),
        (
            Probe {
                sent_at: UNIX + 301,
                ..probe
            },
            Refused::WrongTime,
        ),
        (
            Probe {
                sent_at: u64::MAX,
                ..probe
            },
            Refused::WrongTime,
        ),
    ] {
        assert_eq!(stage.ask(&probe), Err(reason));
    }
    let forged = signed(&probe, &stranger);
    assert_eq!(stage.ask_from("10.244.0.1", &forged), Err(Refused::Forged));
    stage.answerer.believe(Arc::default());
    assert_eq!(stage.ask(&probe), Err(Refused::Stranger));
}

#[test]
fn truncated_and_oversized_probes_are_none() {
    let mut stage = Stage::new();
    let bytes = signed(&stage.probe(), &stage.peer);
    for length in [0, 1, 104, Probe::LENGTH - 1] {
        let cut = &bytes[..length];
        assert_eq!(stage.ask_from("10.244.0.1", cut), Err(Refused::Malformed));
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(
        stage.ask_from("10.244.0.1", &longer),
        Err(Refused::Malformed)
    );
}

#[test]
fn a_node_behind_a_nat_answers_at_the_address_that_the_cluster_knows_it_by() {
    let mut stage = Stage::new();
    let probe = Probe {
        address: "203.0.113.5:20010".parse().unwrap(),
        ..stage.probe()
    };
    assert_eq!(stage.ask(&probe), Err(Refused::Elsewhere));
    let known = |of: [&str; 2]| of.map(|ip| ip.parse().unwrap()).to_vec();
    stage
        .answerer
        .known_by(known(["203.0.113.5", "10.244.1.1"]));
    assert!(stage.ask(&probe).is_ok());
    // Not so what came to an address of its pods: whoever passes that on may be anywhere.
    stage
        .answerer
        .known_by(known(["203.0.113.5", "192.168.0.5"]));
    assert_eq!(stage.ask(&probe), Err(Refused::Elsewhere));
}

#[test]
fn a_flood_costs_so_many_signatures_a_second_and_keeps_no_peer_out_that_is_known() {
    let mut stage = Stage::new();
    let probe = stage.probe();
    assert!(stage.ask(&probe).is_ok());
    let forged = signed(&probe, &NodeKey::generate());
    let mut verified = 0;
    for source in 0..200_u32 {
        let from = format!("192.0.2.{source}");
        for _ in 0..25 {
            match stage.ask_from(&from, &forged) {
                Err(Refused::Forged) => verified += 1,
                other => assert_eq!(other, Err(Refused::TooMany)),
            }
        }
    }
    // The peer's own first one was a stranger's still.
    assert_eq!(verified, STRANGERS - 1);
    assert!(stage.ask(&probe).is_ok());
}

#[test]
fn sources_are_forgotten_and_never_more_than_a_bound() {
    let mut stage = Stage::new();
    let forged = signed(&stage.probe(), &NodeKey::generate());
    for source in 0..(2 * SOURCES as u32) {
        let from = std::net::Ipv4Addr::from_bits(0x0b00_0000 + source).to_string();
        let _ = stage.ask_from(&from, &forged);
    }
    assert!(stage.answerer.sources.len() <= SOURCES);
    stage.now += Duration::from_secs(10);
    assert!(stage.ask(&stage.probe()).is_ok());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_no_change_is_answered(at in 0..Probe::LENGTH, flip in 1..=u8::MAX, junk: Vec<u8>) {
        let mut stage = Stage::new();
        let mut bytes = signed(&stage.probe(), &stage.peer);
        bytes[at] ^= flip;
        prop_assert!(stage.ask_from("10.244.0.1", &bytes).is_err());
        prop_assert!(stage.ask_from("10.244.0.1", &junk).is_err());
    }
}

/// With `--release --ignored --nocapture` it prints what each side spends on a probe.
#[test]
#[ignore = "a measurement, to be made with --release"]
fn what_a_probe_costs() {
    const PROBES: u32 = 2000;
    let mut stage = Stage::new();
    let mut probe = stage.probe();
    let mut spent = [Duration::ZERO; 3];
    for number in 0..PROBES {
        probe.nonce[..4].copy_from_slice(&number.to_be_bytes());
        stage.now += Duration::from_millis(50);
        let began = Instant::now();
        let bytes = signed(&probe, &stage.peer);
        let asked = Instant::now();
        let answer = stage.ask_from("10.244.0.1", &bytes).unwrap();
        let answered = Instant::now();
        let message = ProbeAnswer::to_sign(&bytes);
        assert!(is_signed_by(&stage.own, &message, &answer.signature));
        spent[0] += asked - began;
        spent[1] += answered - asked;
        spent[2] += answered.elapsed();
    }
    let [ask, answer, believe] = spent.map(|all| all / PROBES);
    println!("asking {ask:?}, answering {answer:?}, believing the answer {believe:?}");
}
