//! MeshNodes as agents, strangers and foes write them.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

fn signature() -> String {
    KeySignature::from_bytes([9; 64]).to_string()
}

fn read(spec: &Value) -> Reading<MeshNode> {
    let object = json!({"metadata": {"name": "edge-1", "uid": "u-1"}, "spec": spec});
    read_mesh_node(&object, &mut KnownNames::default())
}

fn complaints(reading: &Reading<MeshNode>) -> Vec<String> {
    reading.problems.iter().map(ToString::to_string).collect()
}

fn whole() -> Value {
    json!({
        "publicKey": KEY,
        "nameSignature": signature(),
        "addresses": ["203.0.113.7:20006", "[2001:db8::7]:20006"],
        "relayURL": "http://203.0.113.1:20007",
        "relayServer": {"urls": ["https://relay.example.org/"], "addressDiscoveryPort": 20008},
        "podCIDRs": ["10.244.1.0/24"],
        "probe": {"port": 20010, "podAddresses": ["10.244.1.1", "fd00:1::1"]},
        "version": "1.2.3",
        "bootID": "b-1",
        "renewTime": "2026-01-02T03:04:05.000000Z",
        "previousKey": {"publicKey": KEY, "signature": signature()},
    })
}

#[test]
fn mesh_node_is_read_whole() {
    let reading = read(&whole());
    assert_eq!(complaints(&reading), Vec::<String>::new());
    let key = PublicKey::from_bytes([7; 32]);
    assert_eq!(
        reading.object,
        Some(MeshNode {
            name: NodeName::new("edge-1"),
            uid: Some("u-1".into()),
            public_key: key,
            name_signature: Some(Box::new(KeySignature::from_bytes([9; 64]))),
            addresses: vec![
                "203.0.113.7:20006".parse().unwrap(),
                "[2001:db8::7]:20006".parse().unwrap(),
            ],
            relay_url: Some("http://203.0.113.1:20007".into()),
            relay_server: Some(Box::new(RelayServer {
                urls: vec!["https://relay.example.org/".into()],
                address_discovery_port: 20008,
            })),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            probe: Some(Box::new(ProbePlaces {
                port: 20010,
                pod_addresses: ["10.244.1.1", "fd00:1::1"]
                    .map(|of| of.parse().unwrap())
                    .into(),
            })),
            version: "1.2.3".into(),
            boot_id: "b-1".into(),
            previous_key: Some(Box::new(PreviousKey {
                public_key: key,
                signature: KeySignature::from_bytes([9; 64]),
            })),
        })
    );
}

#[test]
fn a_key_is_all_that_a_mesh_node_needs() {
    let reading = read(&json!({"publicKey": KEY}));
    assert_eq!(complaints(&reading), Vec::<String>::new());
    let node = reading.object.unwrap();
    assert_eq!((&*node.version, &*node.boot_id), ("", ""));
}

#[test]
fn renewal_changes_nothing() {
    let mut renewed = whole();
    renewed["renewTime"] = json!("2027-01-02T03:04:05.000000Z");
    assert_eq!(read(&renewed).object, read(&whole()).object);
}

#[test]
fn without_a_key_or_a_name_there_is_no_mesh_node() {
    for (spec, complaint) in [
        (json!({}), "spec.publicKey: is missing"),
        (json!({"publicKey": ""}), "spec.publicKey: is missing"),
        (
            json!({"publicKey": "c2VjcmV0"}),
            "spec.publicKey: is not a public key; write its 32 bytes as 44 characters of \
             standard base64, with padding",
        ),
    ] {
        let reading = read(&spec);
        assert_eq!(reading.object, None);
        assert_eq!(complaints(&reading), [complaint]);
    }
    let nameless = json!({"metadata": {}, "spec": whole()});
    let reading = read_mesh_node(&nameless, &mut KnownNames::default());
    assert_eq!(reading.object, None);
    assert_eq!(complaints(&reading), ["metadata.name: is missing"]);
}

#[test]
fn name_that_no_node_can_have_is_refused() {
    for name in ["../x", "a b", "a\n", "é", &"n".repeat(254)] {
        let object = json!({"metadata": {"name": name}, "spec": whole()});
        let reading = read_mesh_node(&object, &mut KnownNames::default());
        assert_eq!(reading.object, None, "{name:?}");
        assert_eq!(reading.problems[0].field(), "metadata.name");
    }
}

#[test]
fn addresses_that_lead_to_no_other_node_are_left_out() {
    let bad = [
        "127.0.0.1:22",
        "[::1]:22",
        "[::ffff:127.0.0.1]:22",
        "0.0.0.0:1",
        "[::]:1",
        "255.255.255.255:1",
        "224.0.0.1:1",
        "[ff02::1]:1",
        "[fe80::1]:1",
        "[2001:db8::7%2]:1",
        "203.0.113.7:0",
        "203.0.113.7",
        "relay.example.org:20006",
    ];
    let mut spec = whole();
    spec["addresses"] = json!(bad);
    spec["addresses"]
        .as_array_mut()
        .unwrap()
        .push(json!("203.0.113.7:20006"));
    let reading = read(&spec);
    assert_eq!(reading.problems.len(), bad.len());
    assert_eq!(
        reading.problems[0].to_string(),
        "spec.addresses[0]: 127.0.0.1:22 leads to no other node; write a unicast address and a \
         port"
    );
    let kept = reading.object.unwrap().addresses;
    assert_eq!(kept, ["203.0.113.7:20006".parse().unwrap()]);
}

#[test]
fn lists_are_cut_at_their_bounds() {
    let mut spec = whole();
    let addresses: Vec<String> = (1..=1000)
        .map(|port| format!("203.0.113.7:{port}"))
        .collect();
    let urls: Vec<String> = (1..=9).map(|n| format!("http://r{n}")).collect();
    let cidrs: Vec<String> = (1..=99).map(|n| format!("10.244.{n}.0/24")).collect();
    spec["addresses"] = json!(addresses);
    spec["relayServer"]["urls"] = json!(urls);
    spec["podCIDRs"] = json!(cidrs);
    let bridges: Vec<String> = (1..=30).map(|n| format!("10.244.{n}.1")).collect();
    spec["probe"]["podAddresses"] = json!(bridges);
    let reading = read(&spec);
    assert_eq!(
        complaints(&reading),
        [
            "spec.addresses: has 1000 entries; write the best 16 at most",
            "spec.relayServer.urls: has 9 entries; write the best 4 at most",
            "spec.podCIDRs: has 99 entries; write the best 16 at most",
            "spec.probe.podAddresses: has 30 entries; write the best 8 at most",
        ]
    );
    let node = reading.object.unwrap();
    assert_eq!(node.addresses.len(), MeshNode::MAX_ADDRESSES);
    assert_eq!(
        node.relay_server.unwrap().urls.len(),
        MeshNode::MAX_RELAY_URLS
    );
    assert_eq!(node.pod_cidrs.len(), MeshNode::MAX_POD_CIDRS);
}

#[test]
fn nobody_is_made_to_probe_itself_or_many() {
    let mut spec = whole();
    let bad = ["127.0.0.1", "0.0.0.0", "224.0.0.1", "fe80::1", "none"];
    spec["probe"]["podAddresses"] = json!(bad);
    let reading = read(&spec);
    assert_eq!(reading.problems.len(), bad.len());
    assert_eq!(
        reading.problems[0].to_string(),
        "spec.probe.podAddresses[0]: 127.0.0.1 leads to no other node; write a unicast address"
    );
    let probe = reading.object.unwrap().probe.unwrap();
    assert_eq!((probe.port, probe.pod_addresses), (20010, Vec::new()));
    spec["probe"] = json!({"podAddresses": []});
    let reading = read(&spec);
    assert_eq!(
        complaints(&reading),
        ["spec.probe.port: is missing; write the UDP port of the probes"]
    );
    assert_eq!(reading.object.unwrap().probe, None);
}

#[test]
fn what_is_no_url_of_a_relay_is_left_out() {
    let long = format!("http://{}/", "r".repeat(256));
    for bad in [
        "ftp://r/",
        "203.0.113.1:20007",
        "http://",
        "http:///x",
        "http://user:password@r/",
        "http://r /",
        "http://r\n",
        "/r",
        &long,
    ] {
        let mut spec = whole();
        spec["relayURL"] = json!(bad);
        let reading = read(&spec);
        assert_eq!(reading.problems.len(), 1, "{bad:?}");
        assert_eq!(reading.problems[0].field(), "spec.relayURL");
        assert_eq!(reading.object.unwrap().relay_url, None, "{bad:?}");
    }
}

#[test]
fn half_a_relay_or_half_a_rotation_is_none() {
    for (field, half, complaint) in [
        (
            "relayServer",
            json!({"urls": ["http://r"]}),
            "spec.relayServer.addressDiscoveryPort: is missing; write the relay's UDP port",
        ),
        (
            "relayServer",
            json!({"addressDiscoveryPort": 20008}),
            "spec.relayServer.urls: has no usable URL; the relay is not used",
        ),
        (
            "previousKey",
            json!({"publicKey": KEY}),
            "spec.previousKey.signature: is missing",
        ),
        (
            "previousKey",
            json!({"publicKey": KEY, "signature": KEY}),
            "spec.previousKey.signature: is not a signature; write its 64 bytes as 88 characters \
             of standard base64, with padding",
        ),
    ] {
        let mut spec = json!({"publicKey": KEY});
        spec[field] = half;
        let reading = read(&spec);
        assert_eq!(complaints(&reading), [complaint]);
        let node = reading.object.unwrap();
        assert!(node.relay_server.is_none() && node.previous_key.is_none());
    }
}

#[test]
fn odd_characters_do_not_reach_a_log() {
    for bad in ["1.0\u{1b}[2J", "1 0", &"9".repeat(65)] {
        let reading = read(&json!({"publicKey": KEY, "version": bad, "bootID": bad}));
        assert_eq!(reading.problems.len(), 2);
        assert_eq!(&*reading.object.unwrap().version, "");
    }
}

#[test]
fn nodes_at_one_relay_share_its_url() {
    let mut names = KnownNames::default();
    let mut at = |name: &str| {
        let object = json!({"metadata": {"name": name}, "spec": whole()});
        read_mesh_node(&object, &mut names).object.unwrap()
    };
    let (one, other) = (at("a"), at("b"));
    assert!(Arc::ptr_eq(
        &one.relay_url.unwrap(),
        &other.relay_url.unwrap()
    ));
    assert!(Arc::ptr_eq(&one.version, &other.version));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::sample::select(vec![KEY, "203.0.113.7:1", "http://r", "10.0.0.0/8"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 16, 4, |inner| {
        prop::collection::vec(inner, 0..20).prop_map(Value::from)
    })
}

proptest! {
    #[test]
    fn whatever_a_field_holds_the_bounds_are_kept(
        fields in prop::collection::vec((0..9_usize, any_json()), 0..9)
    ) {
        let mut spec = whole();
        let keys: Vec<String> = spec.as_object().unwrap().keys().cloned().collect();
        for (at, value) in fields {
            spec[&keys[at]] = value;
        }
        if let Some(node) = read(&spec).object {
            prop_assert!(node.addresses.len() <= MeshNode::MAX_ADDRESSES);
            prop_assert!(node.pod_cidrs.len() <= MeshNode::MAX_POD_CIDRS);
            let probed = node.probe.map_or(0, |probe| probe.pod_addresses.len());
            prop_assert!(probed <= MeshNode::MAX_PROBE_ADDRESSES);
            prop_assert!(node.version.len() <= MeshNode::MAX_VERSION_LENGTH);
            prop_assert!(node.boot_id.len() <= MeshNode::MAX_BOOT_ID_LENGTH);
            prop_assert!(node.relay_url.is_none_or(|u| u.len() <= MeshNode::MAX_URL_LENGTH));
        }
    }
}
