use std::sync::{LazyLock, Mutex};

use edgemesh_catalog::{Change, Fold, KeySignature, Node, PreviousKey};
use proptest::prelude::*;

use super::*;
use crate::identity::NodeKey;

const OWN: &str = "own";

/// Made once: that takes most of the time of these tests.
static KEYS: LazyLock<[PublicKey; 8]> =
    LazyLock::new(|| [0, 1, 2, 3, 4, 5, 6, 7].map(|seed| NodeKey::of_seed(seed).public()));

/// Each made once, for the same reason.
fn name_signature(node: &str, seed: u8) -> KeySignature {
    static MADE: Mutex<BTreeMap<(String, u8), KeySignature>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap();
    let make = || NodeKey::of_seed(seed).sign_name(&name(node));
    *made.entry((node.to_owned(), seed)).or_insert_with(make)
}

fn key(seed: u8) -> PublicKey {
    KEYS[usize::from(seed)]
}

fn name(node: &str) -> NodeName {
    NodeName::new(node)
}

/// What `node` says of itself: uid, key, key before.
fn says(node: &str, uid: &str, seed: u8, before: Option<u8>) -> MeshNode {
    MeshNode {
        name: name(node),
        uid: (!uid.is_empty()).then(|| uid.into()),
        public_key: key(seed),
        name_signature: Some(Box::new(name_signature(node, seed))),
        addresses: Vec::new(),
        relay_url: None,
        relay_server: None,
        pod_cidrs: Vec::new(),
        probe: None,
        version: "".into(),
        boot_id: "".into(),
        previous_key: before
            .map(|before| Box::new(NodeKey::of_seed(before).statement_for(key(seed)))),
    }
}

/// A cluster that changes, and the book that follows it.
#[derive(Default)]
struct Cluster {
    fold: Fold,
    book: PeerBook,
}

impl Cluster {
    fn of(mesh_nodes: &[MeshNode]) -> Self {
        let mut cluster = Self::default();
        for mesh_node in mesh_nodes {
            cluster.say(mesh_node.clone());
        }
        cluster
    }

    fn say(&mut self, mesh_node: MeshNode) {
        self.fold.apply(Change::Node(Node {
            name: mesh_node.name.clone(),
            zone: None,
            pod_cidrs: Vec::new(),
            addresses: Vec::new(),
            labels: Default::default(),
        }));
        self.fold.apply(Change::MeshNode(mesh_node));
    }

    fn remove_node(&mut self, node: &str) {
        self.fold.apply(Change::NodeGone(name(node)));
    }

    fn remove_mesh_node(&mut self, node: &str) {
        self.fold.apply(Change::MeshNodeGone(name(node)));
    }

    fn follow(&mut self) -> Peers {
        let catalog = self.fold.catalog();
        self.book.follow(&catalog, &name(OWN), &[key(0)])
    }
}

/// The peers as `node=seed`.
fn believed(peers: &Peers) -> Vec<String> {
    let seed = |wanted: &PublicKey| KEYS.iter().position(|key| key == wanted).unwrap();
    let text = |peer: &Arc<Peer>| format!("{}={}", peer.name(), seed(peer.key()));
    peers.iter().map(text).collect()
}

fn refused(peers: &Peers) -> Vec<String> {
    let text = |peer: &RefusedPeer| format!("{} {}", peer.node, peer.reason.word());
    peers.refused().iter().map(text).collect()
}

#[test]
fn nodes_with_keys_of_their_own_are_believed() {
    let peers = Cluster::of(&[
        says("a", "1", 1, None),
        says("b", "2", 2, None),
        says(OWN, "3", 0, None),
    ])
    .follow();
    assert_eq!(believed(&peers), ["a=1", "b=2"]);
    assert_eq!(peers.refused(), []);
    assert_eq!(peers.with_key(&key(2)).unwrap().name(), &name("b"));
    assert_eq!(peers.with_key(&key(0)), None);
}

#[test]
fn mesh_node_without_a_node_is_no_peer_until_there_is_one() {
    let mut cluster = Cluster::of(&[says("a", "1", 1, None)]);
    cluster.remove_node("a");
    let peers = cluster.follow();
    assert_eq!(believed(&peers), [""; 0]);
    assert_eq!(refused(&peers), ["a NodeGone"]);
    cluster.say(says("a", "1", 1, None));
    assert_eq!(believed(&cluster.follow()), ["a=1"]);
}

#[test]
fn key_that_was_copied_without_its_private_half_is_no_claim() {
    let mut copied = says("a", "1", 1, None);
    copied.name = name("b");
    let mut unsigned = says("c", "3", 1, None);
    unsigned.name_signature = None;
    let mut cluster = Cluster::of(&[copied, unsigned]);
    assert_eq!(refused(&cluster.follow()), ["b NotSigned", "c NotSigned"]);
    // Nothing holds it back that others claim its key, nor while its Node was away.
    cluster.say(says("a", "1", 1, None));
    assert_eq!(believed(&cluster.follow()), ["a=1"]);
    cluster.remove_node("a");
    cluster.follow();
    cluster.say(says("a", "1", 1, None));
    assert_eq!(believed(&cluster.follow()), ["a=1"]);
}

#[test]
fn two_strangers_with_one_key_are_both_refused_and_named() {
    let mut cluster = Cluster::of(&[says("a", "1", 1, None), says("b", "2", 1, None)]);
    let peers = cluster.follow();
    assert_eq!(believed(&peers), [""; 0]);
    let with = |other: &str| NotBelieved::DuplicateKey {
        with: vec![name(other)],
    };
    let reasons: Vec<_> = peers.refused().iter().map(|peer| &peer.reason).collect();
    assert_eq!(reasons, [&with("b"), &with("a")]);

    cluster.say(says("b", "2", 2, None));
    assert_eq!(believed(&cluster.follow()), ["a=1", "b=2"]);
}

#[test]
fn newcomer_with_the_key_of_a_believed_peer_is_refused_alone() {
    let mut cluster = Cluster::of(&[says("b", "1", 1, None)]);
    cluster.follow();
    cluster.say(says("a", "2", 1, None));
    let peers = cluster.follow();
    assert_eq!(believed(&peers), ["b=1"]);
    assert_eq!(refused(&peers), ["a DuplicateKey"]);
}

#[test]
fn key_of_this_node_is_nobody_elses() {
    let peers = Cluster::of(&[says("a", "1", 0, None)]).follow();
    assert_eq!(refused(&peers), ["a OwnKey"]);
}

#[test]
fn changed_key_is_refused_and_the_last_word_that_was_believed_stays() {
    let mut cluster = Cluster::of(&[says("a", "1", 1, None)]);
    let first = cluster.follow();
    let mut other = says("a", "1", 2, None);
    other.boot_id = "another".into();
    cluster.say(other);
    let peers = cluster.follow();
    let believed = key(1);
    assert_eq!(
        peers.refused()[0].reason,
        NotBelieved::ChangedKey { believed }
    );
    let (before, after) = (first.node(&name("a")), peers.node(&name("a")));
    assert!(Arc::ptr_eq(before.unwrap(), after.unwrap()));
}

#[test]
fn changed_key_of_an_object_that_was_made_anew_is_believed() {
    let mut cluster = Cluster::of(&[says("a", "1", 1, None)]);
    cluster.follow();
    cluster.say(says("a", "2", 2, None));
    assert_eq!(believed(&cluster.follow()), ["a=2"]);
    // Manifests have no uid: that the file was gone in between tells the same.
    cluster.remove_mesh_node("a");
    cluster.follow();
    cluster.say(says("a", "", 3, None));
    assert_eq!(believed(&cluster.follow()), ["a=3"]);
}

#[test]
fn uid_that_becomes_known_is_no_new_object() {
    let mut cluster = Cluster::of(&[says("a", "", 1, None)]);
    cluster.follow();
    cluster.say(says("a", "1", 2, None));
    assert_eq!(refused(&cluster.follow()), ["a ChangedKey"]);
    cluster.say(says("a", "2", 2, None));
    assert_eq!(believed(&cluster.follow()), ["a=2"]);
}

#[test]
fn rotated_key_is_believed_and_the_old_one_holds_what_there_is() {
    let mut cluster = Cluster::of(&[says("a", "1", 1, None)]);
    cluster.follow();
    cluster.say(says("a", "1", 2, Some(1)));
    let peers = cluster.follow();
    assert_eq!(believed(&peers), ["a=2"]);
    assert_eq!(peers.with_key(&key(1)), None);
    assert!(peers.keys().any(|known| *known == key(1)));

    cluster.book.forget_previous(&name("a"));
    assert!(!cluster.follow().keys().any(|known| *known == key(1)));
}

#[test]
fn word_of_another_key_than_the_believed_one_rotates_nothing() {
    let mut cluster = Cluster::of(&[says("a", "1", 1, None)]);
    cluster.follow();
    cluster.say(says("a", "1", 3, Some(2)));
    assert_eq!(refused(&cluster.follow()), ["a ChangedKey"]);
    let mut forged = says("a", "1", 3, Some(2));
    forged.previous_key = forged.previous_key.map(|previous| {
        Box::new(PreviousKey {
            public_key: key(1),
            ..*previous
        })
    });
    cluster.say(forged);
    assert_eq!(refused(&cluster.follow()), ["a ChangedKey"]);
}

#[test]
fn step_back_to_an_earlier_key_needs_the_word_of_the_present_one() {
    let mut cluster = Cluster::of(&[says("a", "1", 1, None)]);
    cluster.follow();
    cluster.say(says("a", "1", 2, Some(1)));
    cluster.follow();
    cluster.say(says("a", "1", 1, None));
    assert_eq!(refused(&cluster.follow()), ["a ChangedKey"]);
}

#[test]
fn claim_to_a_key_that_was_just_published_does_not_stop_its_rotation() {
    let mut cluster = Cluster::of(&[says("b", "1", 1, None)]);
    cluster.follow();
    cluster.say(says("b", "1", 2, Some(1)));
    cluster.say(says("a", "2", 2, None));
    let peers = cluster.follow();
    assert_eq!(believed(&peers), ["b=2"]);
    assert_eq!(refused(&peers), ["a DuplicateKey"]);
}

#[test]
fn rotation_to_the_key_of_another_peer_leaves_both_as_they_were() {
    let mut cluster = Cluster::of(&[says("a", "1", 1, None), says("b", "2", 2, None)]);
    cluster.follow();
    cluster.say(says("a", "1", 2, Some(1)));
    let peers = cluster.follow();
    assert_eq!(believed(&peers), ["a=1", "b=2"]);
    assert_eq!(refused(&peers), ["a DuplicateKey"]);
}

#[test]
fn key_before_the_present_one_is_still_its_owners() {
    let mut cluster = Cluster::of(&[says("b", "1", 1, None)]);
    cluster.follow();
    cluster.say(says("b", "1", 2, Some(1)));
    cluster.say(says("a", "2", 1, None));
    assert_eq!(refused(&cluster.follow()), ["a DuplicateKey"]);
}

#[test]
fn renamed_node_takes_its_key_along() {
    let mut cluster = Cluster::of(&[says("old", "1", 1, None)]);
    cluster.follow();
    cluster.remove_node("old");
    cluster.say(says("new", "2", 1, None));
    assert_eq!(believed(&cluster.follow()), ["new=1"]);
    // And keeps it, should there be a Node of the old name again.
    cluster.say(says("old", "1", 1, None));
    let peers = cluster.follow();
    assert_eq!(believed(&peers), ["new=1"]);
    assert_eq!(refused(&peers), ["old DuplicateKey"]);
}

#[test]
fn node_that_comes_back_is_judged_by_the_key_that_it_had() {
    let mut cluster = Cluster::of(&[says("a", "1", 1, None)]);
    cluster.follow();
    cluster.remove_node("a");
    cluster.follow();
    cluster.say(says("a", "1", 2, None));
    let peers = cluster.follow();
    assert_eq!(believed(&peers), ["a=1"]);
    assert_eq!(refused(&peers), ["a ChangedKey"]);
}

#[test]
fn bytes_for_which_anybody_could_sign_are_no_key() {
    // No point of the curve, and the neutral element of the group.
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let mut no_point = [0; 32];
    no_point[0] = 2;
    for bytes in [no_point, neutral] {
        let mut mesh_node = says("a", "1", 1, None);
        mesh_node.public_key = PublicKey::from_bytes(bytes);
        let peers = Cluster::of(&[mesh_node]).follow();
        assert_eq!(refused(&peers), ["a NoKey"]);
    }
}

#[test]
fn what_did_not_change_is_the_same_value() {
    let mut cluster = Cluster::of(&[says("a", "1", 1, None)]);
    let first = cluster.follow();
    cluster.say(says("b", "2", 2, None));
    let second = cluster.follow();
    let of = |peers: &Peers| Arc::clone(peers.node(&name("a")).unwrap());
    assert!(Arc::ptr_eq(&of(&first), &of(&second)));
}

/// Something that anybody might do to the cluster.
#[derive(Clone, Debug)]
enum Event {
    Says {
        node: usize,
        uid: bool,
        seed: u8,
        before: Option<u8>,
    },
    NodeGone(usize),
    MeshNodeGone(usize),
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn saying() -> impl Strategy<Value = Event> {
    let parts = (
        0..NAMES.len(),
        any::<bool>(),
        0..6u8,
        prop::option::of(0..6u8),
    );
    parts.prop_map(|(node, uid, seed, before)| Event::Says {
        node,
        uid,
        seed,
        before,
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => saying(),
        1 => (0..NAMES.len()).prop_map(Event::NodeGone),
        1 => (0..NAMES.len()).prop_map(Event::MeshNodeGone),
    ]
}

fn happen(cluster: &mut Cluster, event: &Event, names: &[&str]) {
    match *event {
        Event::Says {
            node,
            uid,
            seed,
            before,
        } => {
            let uid = if uid { "1" } else { "2" };
            cluster.say(says(names[node], uid, seed, before));
        }
        Event::NodeGone(node) => cluster.remove_node(names[node]),
        Event::MeshNodeGone(node) => cluster.remove_mesh_node(names[node]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn each_key_is_one_peers_and_each_node_is_a_peer_or_has_a_reason(
        events in prop::collection::vec(event(), 0..24)
    ) {
        let mut cluster = Cluster::default();
        for event in &events {
            happen(&mut cluster, event, &NAMES);
            let peers = cluster.follow();
            prop_assert_eq!(&cluster.follow(), &peers);
            let keys: Vec<_> = peers.iter().flat_map(|peer| peer.keys()).collect();
            prop_assert_eq!(keys.len(), peers.keys().count());
            prop_assert!(!keys.contains(&key(0)));
            for mesh_node in cluster.fold.catalog().mesh_nodes() {
                let reason = peers.refused().iter().any(|of| of.node == mesh_node.name);
                let as_it_says = peers.node(&mesh_node.name).is_some_and(|peer| {
                    peer.key() == &mesh_node.public_key
                });
                prop_assert!(reason != as_it_says, "{}", mesh_node.name);
            }
        }
    }

    #[test]
    fn no_name_is_an_advantage(events in prop::collection::vec(event(), 0..24)) {
        let mirrored: Vec<_> = NAMES.iter().rev().copied().collect();
        let (mut one, mut other) = (Cluster::default(), Cluster::default());
        for event in &events {
            happen(&mut one, event, &NAMES);
            happen(&mut other, event, &mirrored);
            let (one, other) = (one.follow(), other.follow());
            for (straight, mirrored) in NAMES.iter().zip(&mirrored) {
                let key_of = |peers: &Peers, node: &str| {
                    peers.node(&name(node)).map(|peer| *peer.key())
                };
                prop_assert_eq!(key_of(&one, straight), key_of(&other, mirrored));
            }
        }
    }

    #[test]
    fn without_memory_only_what_is_there_counts(
        events in prop::collection::vec(saying(), 0..12).prop_shuffle()
    ) {
        // The last word of each node, told in any order.
        let mut cluster = Cluster::default();
        for event in &events {
            happen(&mut cluster, event, &NAMES);
        }
        let last: Vec<_> = cluster.fold.catalog().mesh_nodes().map(|of| (**of).clone()).collect();
        let backwards: Vec<_> = last.iter().rev().cloned().collect();
        prop_assert_eq!(Cluster::of(&backwards).follow(), cluster.follow());
    }

    #[test]
    fn no_claim_takes_the_place_of_a_believed_peer(
        claims in prop::collection::vec(saying(), 0..24)
    ) {
        let mut cluster = Cluster::of(&[says("c", "1", 1, None), says("e", "1", 2, None)]);
        let before = cluster.follow();
        for claim in claims {
            // Everything but what its own key says, or an administrator.
            let allowed = match &claim {
                Event::Says { node, uid, before, .. } => match NAMES[*node] {
                    "c" => *uid && *before != Some(1),
                    "e" => *uid && *before != Some(2),
                    _ => true,
                },
                Event::NodeGone(_) | Event::MeshNodeGone(_) => false,
            };
            if allowed {
                happen(&mut cluster, &claim, &NAMES);
            }
            let after = cluster.follow();
            for node in ["c", "e"] {
                let key_of = |peers: &Peers| *peers.node(&name(node)).unwrap().key();
                prop_assert_eq!(key_of(&before), key_of(&after));
            }
        }
    }
}
