use edgemesh_catalog::{Change, Fold, Node, PublicKey};
use edgemesh_plan::Policy;
use iroh::address_lookup::MemoryLookup;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::endpoint_options::{EndpointOptions, bind_endpoint};
use crate::peer_book::Peers;
use crate::relay_address::RelayAddress;
use crate::relay_book::RelayNode;
use crate::relay_stage::{LOOPBACK, believed, mesh_node};
use crate::relay_trust::RelayTrust;

fn facts() -> OwnFacts {
    OwnFacts {
        node: NodeName::new("own"),
        key: NodeKey::of_seed(1),
        version: "1.2.3".into(),
        boot_id: "b".into(),
        advertise: vec!["198.51.100.1:20006".parse().unwrap()],
        never: Vec::new(),
    }
}

fn catalog(pods: &[&str]) -> Catalog {
    let mut fold = Fold::default();
    fold.apply(Change::Node(Node {
        name: NodeName::new("own"),
        zone: None,
        pod_cidrs: pods.iter().map(|of| of.parse().unwrap()).collect(),
        addresses: Vec::new(),
        labels: Default::default(),
    }));
    fold.catalog()
}

fn named(node: &str, address: &str) -> RelayNode {
    RelayNode {
        node: NodeName::new(node),
        addresses: vec![address.parse().unwrap()],
    }
}

fn said(relays: &Relays, home: Option<&str>, own_relay: Option<OpenRelay>) -> MeshNode {
    let home = home.map(|url| url.parse().unwrap());
    facts().mesh_node(&Now {
        found: Vec::new(),
        everywhere: [None, None],
        home: home.as_ref(),
        relays,
        own_relay,
        catalog: &catalog(&["10.244.1.0/24"]),
    })
}

#[test]
fn node_says_who_and_where_it_is_and_which_networks_are_its_pods() {
    let said = said(&Relays::default(), None, None);
    assert_eq!(said.name, NodeName::new("own"));
    assert_eq!(said.public_key, NodeKey::of_seed(1).public());
    assert_eq!(said.addresses, facts().advertise);
    assert_eq!(said.pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
    assert_eq!((&*said.version, &*said.boot_id), ("1.2.3", "b"));
    assert_eq!((said.relay_url, said.relay_server), (None, None));
}

#[test]
fn relay_that_is_none_any_more_is_not_told() {
    let cloud = believed(&[mesh_node("cloud", &NodeKey::of_seed(2))]);
    let list = [named("cloud", "192.0.2.1")];
    let own = NodeName::new("own");
    let with = Relays::new(&cloud, &list, &own, None);
    let without = Relays::new(&Peers::default(), &list, &own, None);
    let home = Some("http://192.0.2.1:20006/");
    assert_eq!(said(&with, home, None).relay_url.as_deref(), home);
    assert_eq!(said(&without, home, None).relay_url, None);
}

#[test]
fn node_that_is_a_relay_says_so_while_it_is_open_and_is_found_there_by_its_public_address() {
    let list = [named("own", "192.0.2.1:443")];
    let open = OpenRelay {
        relay: "[::]:20006".parse().unwrap(),
        discovery: "[::]:20009".parse().unwrap(),
    };
    let local: RelayAddress = "127.0.0.1:20006".parse().unwrap();
    let relays = Relays::new(&Peers::default(), &list, &NodeName::new("own"), Some(local));
    let home = Some("http://127.0.0.1:20006/");
    let as_relay = said(&relays, home, Some(open));
    let server = as_relay.relay_server.unwrap();
    assert_eq!(server.urls, ["http://192.0.2.1:443/".into()]);
    assert_eq!(server.address_discovery_port, 20009);
    assert_eq!(as_relay.relay_url.as_deref(), Some("http://192.0.2.1:443/"));
    assert_eq!(said(&relays, home, None).relay_server, None);
}

/// A task that says what a node is, with all that it follows.
struct Saying {
    exits: watch::Sender<Arc<Exits>>,
    own: watch::Receiver<Option<MeshNode>>,
    endpoint: Endpoint,
    tasks: JoinSet<()>,
}

impl Saying {
    async fn start() -> Self {
        Self::start_with(exits(&[])).await
    }

    async fn start_with(exits: Arc<Exits>) -> Self {
        let endpoint = bind_endpoint(&EndpointOptions {
            key: NodeKey::of_seed(1),
            alpns: vec![b"test".to_vec()],
            bind: vec![LOOPBACK.ip()],
            port: 0,
            advertise: Vec::new(),
            lookup: MemoryLookup::new(),
            trust: RelayTrust::default(),
            relay_dialer: None,
        })
        .await
        .unwrap();
        let (exits, following) = watch::channel(exits);
        let told = watch::Sender::new(None);
        let own = told.subscribe();
        let record = OwnRecord {
            facts: facts(),
            endpoint: endpoint.clone(),
            book: RelayBook::new(),
            exits: following,
            own_relay: watch::channel(None).1,
            told,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(record.run(CancellationToken::new()));
        Self {
            exits,
            own,
            endpoint,
            tasks,
        }
    }

    /// What it says next.
    async fn next(&mut self) -> MeshNode {
        let long = Duration::from_secs(60);
        let changed = timeout(long, self.own.changed()).await;
        changed.expect("it says something").unwrap();
        self.own.borrow_and_update().clone().unwrap()
    }

    async fn end(mut self) {
        self.endpoint.close().await;
        self.tasks.shutdown().await;
    }
}

fn exits_of(catalog: Catalog) -> Arc<Exits> {
    let policy = Policy::of(NodeName::new("own"));
    Arc::new(Exits::new(catalog, policy))
}

fn exits(pods: &[&str]) -> Arc<Exits> {
    exits_of(catalog(pods))
}

#[tokio::test]
async fn first_word_comes_at_once_and_changes_that_come_together_are_one() {
    let mut saying = Saying::start().await;
    let first = saying.next().await;
    let key: PublicKey = first.public_key;
    assert_eq!(key, NodeKey::of_seed(1).public());
    assert_eq!(first.pod_cidrs, []);
    assert_eq!(first.addresses, facts().advertise, "loopback is not told");

    for network in ["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"] {
        saying.exits.send_replace(exits(&[network]));
        tokio::task::yield_now().await;
    }
    let second = saying.next().await;
    assert_eq!(second.pod_cidrs, ["10.244.3.0/24".parse().unwrap()]);
    saying.end().await;
}

#[tokio::test]
async fn nothing_is_said_before_the_cluster_is_known() {
    let mut saying = Saying::start_with(exits_of(Catalog::default())).await;
    tokio::task::yield_now().await;
    assert_eq!(*saying.own.borrow(), None);
    saying.exits.send_replace(exits(&["10.244.1.0/24"]));
    assert_eq!(saying.next().await.pod_cidrs.len(), 1);
    saying.end().await;
}

#[tokio::test]
async fn what_does_not_concern_it_is_no_reason_to_say_something() {
    let mut saying = Saying::start().await;
    saying.next().await;
    let mut fold = Fold::from_catalog(catalog(&[]));
    fold.apply(Change::Node(Node {
        name: NodeName::new("another"),
        zone: None,
        pod_cidrs: Vec::new(),
        addresses: Vec::new(),
        labels: Default::default(),
    }));
    let same = exits_of(fold.catalog());
    saying.exits.send_replace(same);
    tokio::task::yield_now().await;
    saying.exits.send_replace(exits(&["10.244.1.0/24"]));
    let second = saying.next().await;
    assert_eq!(second.pod_cidrs.len(), 1);
    saying.end().await;
}
