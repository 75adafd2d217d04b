use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

/// A host whose parameters are the files of a folder.
struct Host {
    folder: TempDir,
    forwarding: HostForwarding,
}

impl Host {
    fn with(parameters: &[(Parameter, &str)], bridged: Vec<BridgedNetwork>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let forwarding = HostForwarding {
            root: folder.path().to_owned(),
            changes: None,
            bridged,
            attempts: BTreeMap::new(),
            facts: HostFacts::default(),
        };
        let mut host = Self { folder, forwarding };
        for (parameter, value) in parameters {
            host.set(*parameter, value);
        }
        host.forwarding.decide();
        host
    }

    fn set(&self, parameter: Parameter, value: &str) {
        let path = file(self.folder.path(), parameter);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
    }

    fn value(&self, parameter: Parameter) -> String {
        fs::read_to_string(file(self.folder.path(), parameter)).unwrap()
    }

    fn not_forwarding(&self, family: Family) -> Option<&str> {
        of(self.forwarding.facts(), family)
            .not_forwarding
            .as_deref()
    }

    fn past_nat(&self, family: Family) -> Vec<&str> {
        of(self.forwarding.facts(), family)
            .bypassing
            .iter()
            .map(|network| &*network.why)
            .collect()
    }
}

fn file(root: &Path, parameter: Parameter) -> PathBuf {
    root.join(parameter.0.replace('.', "/"))
}

fn of(facts: &HostFacts, family: Family) -> &FamilyFacts {
    facts.of(family.loopback())
}

fn on_cni0(calls: bool) -> Vec<BridgedNetwork> {
    ["10.244.1.0/24", "fd00:244:1::/64"]
        .map(|network| BridgedNetwork {
            network: network.parse().unwrap(),
            bridge: "cni0".into(),
            calls,
        })
        .to_vec()
}

#[test]
fn host_that_forwards_and_shows_bridges_to_nat_has_no_obstacles() {
    for family in Family::BOTH {
        let host = Host::with(
            &[(forwarding(family), "1\n"), (bridge_calls(family), "1\n")],
            on_cni0(false),
        );
        assert_eq!(host.not_forwarding(family), None);
        assert!(host.past_nat(family).is_empty());
    }
}

#[test]
fn ipv4_forwarding_is_set_where_a_portal_needs_it_and_only_once() {
    let parameter = forwarding(Family::V4);
    let mut host = Host::with(&[(parameter, "0\n")], vec![]);
    assert_eq!(
        host.not_forwarding(Family::V4),
        Some("net.ipv4.ip_forward is 0")
    );
    assert!(
        host.forwarding
            .make_way(Family::V4, UserMode::NotForwarding)
    );
    assert_eq!(host.value(parameter), "1\n");
    assert_eq!(host.not_forwarding(Family::V4), None);

    host.set(parameter, "0\n");
    host.forwarding.decide();
    assert!(
        !host
            .forwarding
            .make_way(Family::V4, UserMode::NotForwarding)
    );
    assert_eq!(host.value(parameter), "0\n");
    let why = host.not_forwarding(Family::V4).unwrap();
    assert!(why.contains("somebody set it back"), "{why}");
}

#[test]
fn ipv6_forwarding_is_never_set() {
    let parameter = forwarding(Family::V6);
    let mut host = Host::with(&[(parameter, "0\n")], vec![]);
    assert!(
        !host
            .forwarding
            .make_way(Family::V6, UserMode::NotForwarding)
    );
    assert_eq!(host.value(parameter), "0\n");
    let why = host.not_forwarding(Family::V6).unwrap();
    assert!(why.contains("router advertisements"), "{why}");
}

#[test]
fn bridges_are_shown_to_nat_for_the_family_that_needs_it() {
    let both = Family::BOTH.map(|family| (bridge_calls(family), "0\n"));
    let mut host = Host::with(&both, on_cni0(false));
    assert_eq!(
        host.past_nat(Family::V6),
        ["fd00:244:1::/64 on bridge cni0: net.bridge.bridge-nf-call-ip6tables is 0"]
    );
    assert!(host.forwarding.make_way(Family::V6, UserMode::PastNat));
    assert!(host.past_nat(Family::V6).is_empty());
    assert_eq!(host.past_nat(Family::V4).len(), 1);
}

#[test]
fn bridge_that_calls_nat_by_itself_needs_no_parameter() {
    let both = Family::BOTH.map(|family| (bridge_calls(family), "0\n"));
    let host = Host::with(&both, on_cni0(true));
    assert!(host.past_nat(Family::V4).is_empty());
}

#[test]
fn without_br_netfilter_it_is_named_and_nothing_is_written() {
    let mut host = Host::with(&[], on_cni0(true));
    assert!(!host.forwarding.make_way(Family::V4, UserMode::PastNat));
    let why = host.past_nat(Family::V4);
    assert!(
        why[0].contains("load the kernel module br_netfilter"),
        "{why:?}"
    );
}

#[test]
fn what_could_not_be_written_is_not_tried_again_and_is_explained() {
    let parameter = bridge_calls(Family::V4);
    let mut host = Host::with(&[(parameter, "0\n")], on_cni0(false));
    let refused = Attempt::Refused("Read-only file system".to_owned());
    host.forwarding.attempts.insert(parameter, refused);
    host.forwarding.decide();
    assert!(!host.forwarding.make_way(Family::V4, UserMode::PastNat));
    assert_eq!(host.value(parameter), "0\n");
    let why = host.past_nat(Family::V4);
    assert!(
        why[0].ends_with("setting it to 1 failed: Read-only file system"),
        "{why:?}"
    );
}

#[test]
fn nothing_is_set_for_who_wants_user_mode() {
    let parameter = forwarding(Family::V4);
    let mut host = Host::with(&[(parameter, "0\n")], on_cni0(false));
    assert!(!host.forwarding.make_way(Family::V4, UserMode::Configured));
    assert_eq!(host.value(parameter), "0\n");
}
