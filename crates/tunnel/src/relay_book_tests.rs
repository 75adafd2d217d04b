use edgemesh_catalog::RelayServer;

use super::*;
use crate::identity::NodeKey;
use crate::relay_stage::{believed, mesh_node};

fn name(node: &str) -> NodeName {
    NodeName::new(node)
}

fn key(seed: u8) -> PublicKey {
    NodeKey::of_seed(seed).public()
}

/// A node that is a relay at `urls`, if there are any, and whose own relay is `at`.
fn says(node: &str, seed: u8, urls: &[&str], at: Option<&str>) -> MeshNode {
    MeshNode {
        relay_url: at.map(Into::into),
        relay_server: (!urls.is_empty()).then(|| {
            Box::new(RelayServer {
                urls: urls.iter().map(|url| (*url).into()).collect(),
                address_discovery_port: 7000,
            })
        }),
        ..mesh_node(node, &NodeKey::of_seed(seed))
    }
}

fn named(node: &str, addresses: &[&str]) -> RelayNode {
    RelayNode {
        node: name(node),
        addresses: addresses.iter().map(|of| of.parse().unwrap()).collect(),
    }
}

fn urls(relays: &Relays) -> Vec<String> {
    relays.configs().keys().map(ToString::to_string).collect()
}

/// The relays by which a peer is reached.
fn ways(relays: &Relays, peer: &MeshNode) -> Vec<String> {
    let address = relays.address_of(peer).unwrap();
    address.relay_urls().map(ToString::to_string).collect()
}

#[test]
fn without_a_list_a_peer_that_says_it_is_a_relay_is_one() {
    let peers = believed(&[
        says("cloud", 1, &["http://192.0.2.1:443"], None),
        says("edge", 2, &[], None),
    ]);
    let relays = Relays::new(&peers, &[], &name("own"), None);
    assert_eq!(urls(&relays), ["http://192.0.2.1:443/"]);
    let config = relays.configs().into_values().next().unwrap();
    assert_eq!(config.quic.unwrap().port, 7000);
    let at = "192.0.2.1".parse().unwrap();
    assert_eq!(
        relays.keys(),
        BTreeMap::from([(at, BTreeSet::from([key(1)]))])
    );
}

#[test]
fn with_a_list_only_those_on_it_are_relays_and_only_when_they_are_believed() {
    let peers = believed(&[
        says("cloud", 1, &["http://192.0.2.1"], None),
        says("other", 2, &["http://192.0.2.2"], None),
    ]);
    let list = [
        named("cloud", &["192.0.2.9"]),
        named("gone", &["192.0.2.3"]),
    ];
    let relays = Relays::new(&peers, &list, &name("own"), None);
    assert_eq!(urls(&relays), ["http://192.0.2.9:20006/"]);
}

#[test]
fn listed_node_without_an_address_is_reached_as_it_says() {
    let peers = believed(&[says("cloud", 1, &["http://192.0.2.1:20006"], None)]);
    let relays = Relays::new(&peers, &[named("cloud", &[])], &name("own"), None);
    assert_eq!(urls(&relays), ["http://192.0.2.1:20006/"]);
}

#[test]
fn listed_node_that_says_nothing_is_asked_at_the_usual_ports() {
    let peers = believed(&[says("cloud", 1, &[], None)]);
    let relays = Relays::new(
        &peers,
        &[named("cloud", &["192.0.2.1"])],
        &name("own"),
        None,
    );
    let config = relays.configs().into_values().next().unwrap();
    assert_eq!(config.quic.unwrap().port, DISCOVERY_PORT);
}

#[test]
fn no_peer_sends_others_to_their_own_host_or_to_names_or_elsewhere() {
    let urls_of_its_own = [
        "http://127.0.0.1:6443",
        "http://[::1]:6443",
        "http://169.254.169.254",
        "http://[fe80::1]",
        "http://0.0.0.0",
        "http://relay.example",
        "https://192.0.2.1",
        "192.0.2.1",
    ];
    let peers = believed(&[says("a", 1, &urls_of_its_own, None)]);
    let relays = Relays::new(&peers, &[], &name("own"), None);
    assert_eq!(urls(&relays), [""; 0]);
}

#[test]
fn peer_is_reached_by_its_relay_however_that_is_called() {
    let edge = says("edge", 2, &[], Some("http://10.0.0.1:20006/"));
    let cloud = says("cloud", 1, &["http://10.0.0.1:20006/"], None);
    let peers = believed(&[cloud, edge.clone()]);
    // From outside it has another address, and two of them.
    let list = [named("cloud", &["192.0.2.1", "[2001:db8::1]:443"])];
    let relays = Relays::new(&peers, &list, &name("own"), None);
    assert_eq!(
        ways(&relays, &edge),
        ["http://192.0.2.1:20006/", "http://[2001:db8::1]:443/"]
    );
}

#[test]
fn relay_node_is_reached_by_its_own_relay_though_it_does_not_say_so() {
    let cloud = says("cloud", 1, &["http://192.0.2.1:20006/"], None);
    let relays = Relays::new(
        &believed(std::slice::from_ref(&cloud)),
        &[],
        &name("own"),
        None,
    );
    assert_eq!(ways(&relays, &cloud), ["http://192.0.2.1:20006/"]);
}

#[test]
fn relay_that_is_not_known_is_no_way() {
    let edge = says("edge", 2, &[], Some("http://203.0.113.1:80/"));
    let relays = Relays::new(
        &believed(std::slice::from_ref(&edge)),
        &[],
        &name("own"),
        None,
    );
    assert_eq!(ways(&relays, &edge), [""; 0]);
}

#[test]
fn own_relay_is_reached_locally_and_called_by_its_public_address() {
    let edge = says("edge", 2, &[], Some("http://192.0.2.1:443/"));
    let list = [named("own", &["192.0.2.1:443"])];
    let local: RelayAddress = "127.0.0.1".parse().unwrap();
    let relays = Relays::new(
        &believed(std::slice::from_ref(&edge)),
        &list,
        &name("own"),
        Some(local),
    );
    assert_eq!(urls(&relays), ["http://127.0.0.1:20006/"]);
    assert_eq!(ways(&relays, &edge), ["http://127.0.0.1:20006/"]);
    let public = relays.public_url(&local.url().unwrap()).unwrap();
    assert_eq!(public.to_string(), "http://192.0.2.1:443/");
    // It says nothing about addresses: it would see a loopback one.
    assert_eq!(relays.configs().into_values().next().unwrap().quic, None);
    assert!(relays.keys().is_empty());
}

#[test]
fn own_relay_that_is_not_open_is_no_way() {
    let edge = says("edge", 2, &[], Some("http://192.0.2.1:443/"));
    let list = [named("own", &["192.0.2.1:443"])];
    let relays = Relays::new(
        &believed(std::slice::from_ref(&edge)),
        &list,
        &name("own"),
        None,
    );
    assert_eq!(urls(&relays), [""; 0]);
    assert_eq!(ways(&relays, &edge), [""; 0]);
}

#[test]
fn all_nodes_turn_to_the_same_stand_in_for_a_relay_that_is_away() {
    let urls = ["http://192.0.2.1", "http://192.0.2.2", "http://192.0.2.3"];
    let says = [
        says("a", 1, &urls[..1], None),
        says("b", 2, &urls[1..2], None),
        says("c", 3, &urls[2..], None),
    ];
    let at = |url: &str| RelayAddress::of_url(&url.parse().unwrap()).unwrap();
    let [a, b, c] = urls.map(at);
    let client = Relays::new(&believed(&says), &[], &name("edge"), None);
    assert_eq!(client.stand_ins(a), [b, c]);
    assert_eq!(client.stand_ins(b), [c, a]);
    assert_eq!(client.stand_ins(c), [a, b]);
    assert_eq!(client.stand_ins(at("http://192.0.2.4")), []);
    // As one of them sees it, which reaches its own by another address.
    let local = at("http://127.0.0.1:20006");
    let list = [
        named("a", &["192.0.2.1:80"]),
        named("b", &["192.0.2.2:80"]),
        named("c", &["192.0.2.3:80"]),
    ];
    let on_b = Relays::new(
        &believed(&[says[0].clone(), says[2].clone()]),
        &list,
        &name("b"),
        Some(local),
    );
    assert_eq!(on_b.stand_ins(a), [local, c]);
    assert_eq!(on_b.stand_ins(local), []);
    // It takes for another's clients those that ask for the other, and no others.
    assert_eq!(on_b.stands_in_for(a), Some(&name("a")));
    assert_eq!(on_b.stands_in_for(b), None);
    assert_eq!(on_b.stands_in_for(local), None);
    assert_eq!(on_b.stands_in_for(at("http://192.0.2.4")), None);
}
