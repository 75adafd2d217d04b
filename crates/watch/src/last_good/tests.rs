//! What is saved is loaded again, and nothing else is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, UNIX_EPOCH};

use edgemesh_catalog::{
    Change, Endpoint, EndpointHints, EndpointPort, EndpointSlice, EndpointState, Fold,
    KeySignature, MeshNode, Node, NodeName, ObjectName, PreviousKey, Protocol, PublicKey,
    RelayServer, Service, ServiceKind, ServicePort, TrafficPolicy,
};
use proptest::prelude::*;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::state::{Origin, SourceState};

fn saved_at() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn service(name: &str) -> Service {
    Service {
        name: ObjectName::new("default", name),
        kind: ServiceKind::ClusterIp,
        cluster_ips: vec!["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        headless: false,
        filter_label: true,
        session_affinity: Some(Duration::from_secs(10_800)),
        internal_traffic_policy: TrafficPolicy::Local,
        ports: vec![ServicePort {
            name: "http\n\"é".into(),
            protocol: Protocol::Udp,
            port: 65_535,
        }],
    }
}

fn catalog(names: &[&str]) -> Catalog {
    let mut fold = Fold::default();
    for name in names {
        fold.apply(Change::Service(service(name)));
    }
    fold.catalog()
}

fn small() -> Catalog {
    let mut fold = Fold::from_catalog(catalog(&["web"]));
    fold.apply(Change::Slice(EndpointSlice {
        name: ObjectName::new("default", "web-1"),
        service: "web".into(),
        ports: vec![EndpointPort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
        }],
        endpoints: vec![Endpoint {
            address: "10.244.1.2".parse().unwrap(),
            node: Some(NodeName::new("edge-1")),
            state: EndpointState::Ready,
            hints: Some(Box::new(EndpointHints {
                zones: vec!["z".into()],
                nodes: vec![NodeName::new("edge-1")],
            })),
        }],
    }));
    fold.apply(Change::Node(Node {
        name: NodeName::new("edge-1"),
        zone: None,
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        addresses: vec!["192.168.1.5".parse().unwrap()],
        labels: Default::default(),
    }));
    fold.apply(Change::MeshNode(mesh_node()));
    fold.catalog()
}

fn mesh_node() -> MeshNode {
    MeshNode {
        name: NodeName::new("edge-1"),
        uid: Some("u-1".into()),
        public_key: PublicKey::from_bytes([7; 32]),
        name_signature: Some(Box::new(KeySignature::from_bytes([9; 64]))),
        addresses: vec!["203.0.113.7:20006".parse().unwrap()],
        relay_url: Some("http://203.0.113.1".into()),
        relay_server: Some(Box::new(RelayServer {
            urls: vec!["http://203.0.113.7".into()],
            address_discovery_port: 20008,
        })),
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        probe: None,
        version: "1".into(),
        boot_id: "b".into(),
        previous_key: Some(Box::new(PreviousKey {
            public_key: PublicKey::from_bytes([8; 32]),
            signature: KeySignature::from_bytes([9; 64]),
        })),
    }
}

fn bytes_of(catalog: &Catalog) -> Vec<u8> {
    let mut bytes = Vec::new();
    format::write(catalog, saved_at(), &mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<LastGood, format::FormatError> {
    format::verify(bytes, bytes.len() as u64)?;
    format::read(bytes)
}

fn is_damaged(bytes: &[u8]) -> bool {
    matches!(read(bytes), Err(format::FormatError::Damaged(_)))
}

struct InTempDir {
    dir: tempfile::TempDir,
    file: LastGoodFile,
}

fn in_temp_dir() -> InTempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = LastGoodFile::in_dir(&dir.path().join("state"));
    InTempDir { dir, file }
}

#[test]
fn saved_catalog_is_loaded_again() {
    let at = in_temp_dir();
    assert_eq!(at.file.load().unwrap(), None);
    at.file.save(&small(), saved_at()).unwrap();
    at.file.save(&small(), saved_at()).unwrap();
    let loaded = at.file.load().unwrap().unwrap();
    assert_eq!(loaded.catalog, small());
    assert_eq!(loaded.saved_at, saved_at());
}

#[test]
fn nobody_else_can_read_the_file_and_no_temporary_one_is_left() {
    let at = in_temp_dir();
    at.file.save(&small(), saved_at()).unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(at.file.path()), 0o600);
    let dir = at.file.path().parent().unwrap();
    assert_eq!(mode(dir), 0o700);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
}

#[test]
fn left_over_temporary_file_of_a_crash_is_overwritten() {
    let at = in_temp_dir();
    at.file.save(&small(), saved_at()).unwrap();
    fs::write(at.file.path().with_extension("new"), "half a fi").unwrap();
    at.file.save(&catalog(&["db"]), saved_at()).unwrap();
    assert_eq!(at.file.load().unwrap().unwrap().catalog, catalog(&["db"]));
}

#[test]
fn failed_save_keeps_the_old_catalog() {
    let at = in_temp_dir();
    at.file.save(&small(), saved_at()).unwrap();
    // A directory in the way of the temporary file: refused to root as well.
    let in_the_way = at.file.path().with_extension("new");
    fs::create_dir(&in_the_way).unwrap();
    let error = at.file.save(&catalog(&["db"]), saved_at()).unwrap_err();
    assert!(matches!(error, LastGoodError::Io { doing: "write", .. }));
    assert_eq!(at.file.load().unwrap().unwrap().catalog, small());
}

#[test]
fn damaged_files_are_set_aside_one_by_one() {
    let at = in_temp_dir();
    for number in 1..=2 {
        at.file.save(&small(), saved_at()).unwrap();
        let mut bytes = fs::read(at.file.path()).unwrap();
        bytes[40] ^= 1;
        fs::write(at.file.path(), bytes).unwrap();
        let error = at.file.load().unwrap_err();
        let LastGoodError::Damaged { aside, reason, .. } = error else {
            panic!("damage expected, not {error}");
        };
        assert_eq!(reason, "its checksum does not match");
        assert!(aside.ends_with(format!("catalog.damaged-{number}")));
        assert!(aside.exists());
        assert_eq!(
            at.file.load().unwrap(),
            None,
            "the next start begins without"
        );
    }
    drop(at.dir);
}

#[test]
fn newer_version_is_left_alone() {
    let at = in_temp_dir();
    at.file.save(&small(), saved_at()).unwrap();
    let text = fs::read_to_string(at.file.path()).unwrap();
    let (content, _) = text.rsplit_once("sha256 ").unwrap();
    let newer = content.replacen("edgemesh-catalog 2", "edgemesh-catalog 3", 1);
    fs::write(at.file.path(), format::sealed(&newer)).unwrap();
    let error = at.file.load().unwrap_err();
    assert!(
        matches!(error, LastGoodError::UnknownVersion { version: 3, .. }),
        "{error}"
    );
    assert!(at.file.path().exists());
}

#[test]
fn file_of_an_agent_that_knew_no_mesh_nodes_is_read() {
    let mut fold = Fold::from_catalog(small());
    fold.replace_mesh_nodes([]);
    let at = in_temp_dir();
    at.file.save(&fold.catalog(), saved_at()).unwrap();
    let text = fs::read_to_string(at.file.path()).unwrap();
    let (content, _) = text.rsplit_once("sha256 ").unwrap();
    let older = content.replacen("edgemesh-catalog 2", "edgemesh-catalog 1", 1);
    fs::write(at.file.path(), format::sealed(&older)).unwrap();
    assert_eq!(at.file.load().unwrap().unwrap().catalog, fold.catalog());
}

#[test]
fn every_truncation_and_extension_is_found() {
    let bytes = bytes_of(&small());
    for length in 0..bytes.len() {
        assert!(is_damaged(&bytes[..length]), "of {length} bytes");
    }
    for more in [&b"\n"[..], b"x", b"{}\n"] {
        assert!(is_damaged(&[&bytes, more].concat()));
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let mut bytes = bytes_of(&small());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(is_damaged(&bytes), "byte {at} bit {bit}");
            bytes[at] ^= 1 << bit;
        }
    }
    assert_eq!(read(&bytes).unwrap().catalog, small());
}

fn any_catalog() -> impl Strategy<Value = Catalog> {
    let name = "[a-z\"\\\\\n\u{e9}]{0,6}";
    let port = (name, any::<u16>()).prop_map(|(name, port)| ServicePort {
        name: name.into(),
        protocol: Protocol::Sctp,
        port,
    });
    let service = (
        (name, name),
        prop::collection::vec(any::<std::net::IpAddr>(), 0..3),
        any::<(bool, bool)>(),
        prop::option::of(any::<u32>()),
        prop::collection::vec(port, 0..3),
    )
        .prop_map(|((ns, name), cluster_ips, flags, affinity, ports)| {
            Change::Service(Service {
                name: ObjectName::new(ns, name),
                kind: ServiceKind::NodePort,
                cluster_ips,
                headless: flags.0,
                filter_label: flags.1,
                session_affinity: affinity.map(|s| Duration::from_secs(s.into())),
                internal_traffic_policy: TrafficPolicy::Cluster,
                ports,
            })
        });
    let slice = (
        name,
        name,
        prop::collection::vec((any::<std::net::IpAddr>(), prop::option::of(name)), 0..3),
    )
        .prop_map(|(name, service, endpoints)| {
            Change::Slice(EndpointSlice {
                name: ObjectName::new("d", name),
                service: service.into(),
                ports: Vec::new(),
                endpoints: endpoints
                    .into_iter()
                    .map(|(address, node)| Endpoint {
                        address,
                        node: node.map(NodeName::new),
                        state: EndpointState::ServingTerminating,
                        hints: None,
                    })
                    .collect(),
            })
        });
    let mesh_node = (
        name,
        any::<[u8; 32]>(),
        prop::collection::vec(any::<(std::net::IpAddr, u16)>(), 0..3),
        any::<bool>(),
    )
        .prop_map(|(text, key, addresses, is_bare)| {
            let whole = MeshNode {
                name: NodeName::new(text.clone()),
                public_key: PublicKey::from_bytes(key),
                addresses: addresses.into_iter().map(Into::into).collect(),
                version: text.clone().into(),
                boot_id: text.into(),
                ..mesh_node()
            };
            let bare = MeshNode {
                uid: None,
                name_signature: None,
                relay_url: None,
                relay_server: None,
                pod_cidrs: Vec::new(),
                previous_key: None,
                ..whole.clone()
            };
            Change::MeshNode(if is_bare { bare } else { whole })
        });
    prop::collection::vec(prop_oneof![service, slice, mesh_node], 0..12).prop_map(|changes| {
        let mut fold = Fold::default();
        for change in changes {
            fold.apply(change);
        }
        fold.catalog()
    })
}

proptest! {
    #[test]
    fn reading_gives_back_what_was_written(catalog in any_catalog(), seconds in any::<u32>()) {
        let saved_at = UNIX_EPOCH + Duration::from_secs(seconds.into());
        let mut bytes = Vec::new();
        format::write(&catalog, saved_at, &mut bytes).unwrap();
        prop_assert_eq!(read(&bytes).unwrap(), LastGood { catalog, saved_at });
    }

    #[test]
    fn any_bytes_are_damage(bytes in any::<Vec<u8>>()) {
        prop_assert!(is_damaged(&bytes));
    }
}

fn state(catalog: Catalog, origin: Origin) -> SourceState {
    SourceState {
        catalog,
        complete: true,
        origin,
        ..SourceState::default()
    }
}

struct Saving {
    states: watch::Sender<SourceState>,
    shutdown: CancellationToken,
    task: JoinSet<()>,
}

impl Saving {
    fn to(file: &LastGoodFile, interval: Duration, loaded: Option<Catalog>) -> Self {
        let (states, receiver) = watch::channel(SourceState::default());
        let shutdown = CancellationToken::new();
        let saver = LastGoodSaver::new(file.clone(), interval, receiver, loaded);
        let mut task = JoinSet::new();
        task.spawn(saver.run(shutdown.clone()));
        Self {
            states,
            shutdown,
            task,
        }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.task.join_next().await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn last_state_is_saved_at_shutdown_however_long_the_interval() {
    let at = in_temp_dir();
    let saving = Saving::to(&at.file, Duration::from_secs(86_400), None);
    for names in [&["a"][..], &["a", "b"], &["a", "b", "c"]] {
        saving
            .states
            .send_replace(state(catalog(names), Origin::Api));
        tokio::task::yield_now().await;
    }
    saving.stop().await;
    let loaded = at.file.load().unwrap().unwrap();
    assert_eq!(loaded.catalog, catalog(&["a", "b", "c"]));
}

#[tokio::test]
async fn only_what_the_api_server_said_is_saved() {
    let at = in_temp_dir();
    let saving = Saving::to(&at.file, Duration::ZERO, None);
    for origin in [
        Origin::Manifests,
        Origin::LastGood {
            saved_at: saved_at(),
        },
    ] {
        saving.states.send_replace(state(small(), origin));
        tokio::task::yield_now().await;
    }
    saving.stop().await;
    assert_eq!(at.file.load().unwrap(), None);
}

#[tokio::test]
async fn what_was_loaded_is_not_written_again() {
    let at = in_temp_dir();
    let saving = Saving::to(&at.file, Duration::ZERO, Some(small()));
    saving.states.send_replace(state(small(), Origin::Api));
    saving.stop().await;
    assert_eq!(at.file.load().unwrap(), None);
}

#[tokio::test]
async fn source_that_ends_has_its_last_state_saved() {
    let at = in_temp_dir();
    let Saving {
        states, mut task, ..
    } = Saving::to(&at.file, Duration::from_secs(86_400), None);
    states.send_replace(state(small(), Origin::Api));
    drop(states);
    task.join_next().await.unwrap().unwrap();
    assert_eq!(at.file.load().unwrap().unwrap().catalog, small());
}
