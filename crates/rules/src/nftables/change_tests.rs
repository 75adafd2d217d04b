//! The difference between two rulesets, applied to a simulated map.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use proptest::prelude::*;

use super::change::{Changes, between, everything};
use super::refusing_rules::SetChanges;
use super::render::render_nftables;
use crate::{Mark, PortalRule, RuleComment, Ruleset};

const INTERCEPT: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 96, 16));

type Map = BTreeMap<Frontend, (SocketAddr, String)>;

/// As the kernel does: what is taken out must be there, what is put in must not.
fn change(map: &mut Map, changes: &Changes) {
    for frontend in &changes.delete {
        assert!(map.remove(frontend).is_some(), "{frontend} was not there");
    }
    for element in &changes.add {
        let value = (element.to, element.comment.clone());
        assert!(map.insert(element.frontend, value).is_none());
    }
}

fn holding(rules: &Ruleset) -> Map {
    let mut map = Map::new();
    change(&mut map, &everything(rules));
    map
}

/// As the kernel does, in the set of what is refused.
fn refused(
    mut set: BTreeMap<Frontend, String>,
    steps: &[SetChanges],
) -> BTreeMap<Frontend, String> {
    for changes in steps {
        for frontend in &changes.delete {
            assert!(set.remove(frontend).is_some(), "{frontend} was not there");
        }
        for element in &changes.add {
            let comment = element.comment.clone();
            assert!(set.insert(element.frontend, comment).is_none());
        }
    }
    set
}

fn ruleset(portals: &[(u8, u16)]) -> Ruleset {
    let mut rules = Ruleset::new(INTERCEPT, 20008, Mark::AGENT);
    for &(number, variant) in portals {
        let frontend = Frontend {
            ip: IpAddr::V4(Ipv4Addr::new(10, 96, 0, number)),
            protocol: [Protocol::Tcp, Protocol::Udp][usize::from(number % 2)],
            port: 80,
        };
        let rule = PortalRule {
            comment: RuleComment::new(&format!("default/s{number}:p{}", variant / 2)),
            to_port: 20007 + variant % 2,
            kernel: None,
        };
        rules.insert(frontend, rule).unwrap();
    }
    rules
}

fn portals() -> impl Strategy<Value = Ruleset> {
    proptest::collection::vec((1_u8..20, 0_u16..4), 0..20).prop_map(|portals| ruleset(&portals))
}

#[test]
fn another_mark_or_refusal_port_is_no_matter_of_single_portals() {
    let known = ruleset(&[(1, 0)]);
    assert_eq!(between(&known, &known), Some(Changes::default()));
    let refused_elsewhere = Ruleset::new(INTERCEPT, 20009, Mark::AGENT);
    assert_eq!(between(&known, &refused_elsewhere), None);
}

proptest! {
    #[test]
    fn from_a_known_state_the_map_ends_with_the_same_portals(
        known in portals(),
        wanted in portals(),
        most in 1_usize..5,
    ) {
        let changes = between(&known, &wanted).unwrap();
        let mut at_once = holding(&known);
        change(&mut at_once, &changes);
        prop_assert_eq!(&at_once, &holding(&wanted));
        let mut in_steps = holding(&known);
        for step in changes.steps(most) {
            prop_assert!(step.delete.len() + step.add.len() <= most);
            change(&mut in_steps, &step);
        }
        prop_assert_eq!(in_steps, at_once);
    }

    #[test]
    fn from_a_known_state_the_set_ends_with_the_same_portals(
        known in portals(),
        wanted in portals(),
        most in 1_usize..5,
    ) {
        let held = refused(BTreeMap::new(), &[SetChanges::everything(&known)]);
        let whole = refused(BTreeMap::new(), &[SetChanges::everything(&wanted)]);
        let changes = SetChanges::between(&known, &wanted);
        let in_steps: Vec<SetChanges> = changes.steps(most).collect();
        prop_assert_eq!(&refused(held.clone(), &[changes]), &whole);
        prop_assert_eq!(&refused(held, &in_steps), &whole);
    }

    #[test]
    fn a_hostile_name_stays_within_its_element(name in any::<String>()) {
        let mut rules = ruleset(&[(1, 0)]);
        let lines = render_nftables(&rules).lines().count();
        let (frontend, _) = rules.portals().first_key_value().unwrap();
        let rule = PortalRule { comment: RuleComment::new(&name), to_port: 1, kernel: None };
        rules.insert(*frontend, rule).unwrap();
        prop_assert_eq!(render_nftables(&rules).lines().count(), lines);
    }
}
