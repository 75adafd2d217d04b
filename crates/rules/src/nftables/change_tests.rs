//! The difference between two rulesets, applied to a simulated table.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use proptest::prelude::*;

use super::change::{Change, between, everything};
use super::element::{Element, Key, Leads};
use super::refusing_rules::SetChanges;
use super::render::render_nftables;
use super::rule::Rule;
use super::sticky_chains::endpoint_of;
use crate::{Family, KernelEndpoint, KernelPath, Mark, PortalRule, RuleComment, Ruleset, Sharing};

const INTERCEPT: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 96, 16));

/// A table that minds its references as the kernel does.
#[derive(Clone, Debug, Default, PartialEq)]
struct Table {
    elements: BTreeMap<Key, Element>,
    chains: BTreeMap<String, Vec<Rule>>,
    sets: BTreeMap<String, Duration>,
}

impl Table {
    fn holding(rules: &Ruleset) -> Self {
        let mut table = Self::default();
        table.change(everything(rules).all());
        table
    }

    /// As the kernel does: what is taken out must be there, what is put in must not.
    fn change(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::AddSet(name, silence) => {
                    assert!(self.sets.insert(name.clone(), *silence).is_none());
                }
                Change::AddChain(name) => {
                    assert!(self.chains.insert(name.clone(), Vec::new()).is_none());
                }
                Change::EmptyChain(name) => self.chains.get_mut(name).unwrap().clear(),
                Change::AddRule(chain, rule) => {
                    for name in self.names_in(rule) {
                        assert!(self.has(&name), "{} refers to nothing", rule.text);
                    }
                    self.chains.get_mut(chain).unwrap().push(rule.clone());
                }
                Change::Add(element) => {
                    if let Leads::Into(chain) | Leads::Over(chain) = &element.leads {
                        assert!(self.chains.contains_key(chain), "{chain} is not there");
                    }
                    assert!(self.elements.insert(element.key, element.clone()).is_none());
                }
                Change::Delete(key) => {
                    assert!(self.elements.remove(key).is_some(), "{key:?} was not there");
                }
                Change::DeleteChain(name) => {
                    assert!(self.chains.remove(name).is_some());
                    assert!(!self.is_referred_to(name), "{name} is in use");
                }
                Change::DeleteSet(name) => {
                    assert!(self.sets.remove(name).is_some());
                    assert!(!self.is_referred_to(name), "{name} is in use");
                }
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.chains.contains_key(name) || self.sets.contains_key(name)
    }

    /// Chains and sets of clients.
    fn names_in(&self, rule: &Rule) -> Vec<String> {
        let words = rule
            .text
            .split(' ')
            .map(|word| word.trim_start_matches('@'));
        words
            .filter(|word| word.starts_with("sticky/"))
            .map(str::to_owned)
            .collect()
    }

    fn is_referred_to(&self, name: &str) -> bool {
        let by_element = self.elements.values().any(|element| match &element.leads {
            Leads::Into(chain) | Leads::Over(chain) => chain == name,
            Leads::Nowhere | Leads::To(_) => false,
        });
        let mut rules = self.chains.values().flatten();
        by_element || rules.any(|rule| self.names_in(rule).iter().any(|found| found == name))
    }
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

/// The endpoints that can be drawn, sorted; each as often as it has a number.
fn led_to(table: &Table) -> Vec<SocketAddr> {
    let drawn = table
        .elements
        .iter()
        .filter_map(|(key, element)| match (key, &element.leads) {
            (Key::Endpoint(..), Leads::To(to)) => Some(*to),
            (Key::FirstChoice(..), Leads::Over(chain)) => endpoint_of(Family::V4, chain),
            _ => None,
        });
    let mut drawn: Vec<SocketAddr> = drawn.collect();
    drawn.sort_unstable();
    drawn
}

/// Those among which the kernel has to draw.
fn to_several(path: Option<&KernelPath>) -> Vec<SocketAddr> {
    let several = path.filter(|path| {
        path.endpoints().len() > 1 || matches!(path.sharing(), Sharing::WithAgent(_))
    });
    let endpoints = several.into_iter().flat_map(KernelPath::endpoints);
    endpoints.map(|endpoint| endpoint.address).collect()
}

fn frontend(number: u8) -> Frontend {
    Frontend {
        ip: IpAddr::V4(Ipv4Addr::new(10, 96, 0, number / 2)),
        protocol: [Protocol::Tcp, Protocol::Udp][usize::from(number % 2)],
        port: 80,
    }
}

fn ruleset(portals: &[(u8, u16, Option<KernelPath>)]) -> Ruleset {
    let mut rules = Ruleset::new(INTERCEPT, 20008, Mark::AGENT);
    for (number, variant, path) in portals {
        let rule = PortalRule {
            comment: RuleComment::new(&format!("default/s{number}:p{}", variant / 2)),
            to_port: 20007 + variant % 2,
            kernel: path.clone().map(Box::new),
        };
        rules.insert(frontend(*number), rule).unwrap();
    }
    rules
}

fn path() -> impl Strategy<Value = Option<KernelPath>> {
    let endpoint = (1_u8..9, any::<bool>()).prop_map(|(number, is_pod_here)| KernelEndpoint {
        address: (Ipv4Addr::new(10, 244, 1, number), 8080).into(),
        is_pod_here,
    });
    let sharing = prop_oneof![
        Just(Sharing::Alone),
        (1_u64..3).prop_map(|seconds| Sharing::Sticky(Duration::from_secs(seconds))),
        (1_u32..4).prop_map(|others| Sharing::WithAgent(NonZeroU32::new(others).unwrap())),
    ];
    (proptest::collection::vec(endpoint, 0..5), sharing)
        .prop_map(|(endpoints, sharing)| KernelPath::new(endpoints, sharing))
}

fn portals() -> impl Strategy<Value = Ruleset> {
    proptest::collection::vec((1_u8..20, 0_u16..4, path()), 0..20)
        .prop_map(|portals| ruleset(&portals))
}

#[test]
fn another_mark_or_refusal_port_or_network_of_pods_is_no_matter_of_single_portals() {
    let known = ruleset(&[(1, 0, None)]);
    assert_eq!(between(&known, &known), Some(Default::default()));
    let refused_elsewhere = Ruleset::new(INTERCEPT, 20009, Mark::AGENT);
    assert_eq!(between(&known, &refused_elsewhere), None);
    let with_pods = known.clone().with_pods(["10.244.1.0/24".parse().unwrap()]);
    assert_eq!(between(&known, &with_pods), None);
}

#[test]
fn an_endpoint_more_is_a_matter_of_that_portal_alone() {
    let to = |numbers: &[u8]| {
        let endpoints = numbers.iter().map(|number| KernelEndpoint {
            address: (Ipv4Addr::new(10, 244, 1, *number), 8080).into(),
            is_pod_here: false,
        });
        KernelPath::new(endpoints, Sharing::Alone)
    };
    let others = [(4, 0, to(&[1, 2])), (5, 0, to(&[1, 2, 3])), (6, 0, None)];
    let before = ruleset(&[&others[..], &[(1, 0, to(&[1, 2]))]].concat());
    let after = ruleset(&[&others[..], &[(1, 0, to(&[1, 2, 7]))]].concat());
    let changes = between(&before, &after).unwrap();
    let keys: Vec<_> = changes
        .all()
        .iter()
        .map(|change| match change {
            Change::Delete(key) => ('-', *key),
            Change::Add(element) => ('+', element.key),
            other => panic!("{other:?}"),
        })
        .collect();
    let portal = frontend(1);
    assert_eq!(
        keys,
        [
            ('-', Key::Shared(portal)),
            ('+', Key::Endpoint(portal, 2)),
            ('+', Key::Shared(portal)),
        ]
    );
}

#[test]
fn a_replaced_endpoint_is_one_element_for_another() {
    let to = |numbers: &[u8]| {
        let endpoints = numbers.iter().map(|number| KernelEndpoint {
            address: (Ipv4Addr::new(10, 244, 1, *number), 8080).into(),
            is_pod_here: false,
        });
        KernelPath::new(endpoints, Sharing::Alone).unwrap()
    };
    let before = to(&[2, 3, 4, 5]);
    let after = to(&[1, 2, 3, 5]).following(&before);
    let [before, after] = [before, after].map(|path| ruleset(&[(1, 0, Some(path))]));
    let changes = between(&before, &after).unwrap();
    let key = Key::Endpoint(frontend(1), 2);
    let new = Element {
        key,
        leads: Leads::To((Ipv4Addr::new(10, 244, 1, 1), 8080).into()),
        comment: None,
    };
    assert_eq!(changes.all(), [Change::Delete(key), Change::Add(new)]);
}

proptest! {
    #[test]
    fn from_a_known_state_the_table_ends_with_the_same_portals(
        known in portals(),
        wanted in portals(),
        most in 1_usize..5,
    ) {
        let changes = between(&known, &wanted).unwrap();
        let mut at_once = Table::holding(&known);
        at_once.change(changes.all());
        prop_assert_eq!(&at_once, &Table::holding(&wanted));
        let mut in_steps = Table::holding(&known);
        for step in changes.steps(most) {
            prop_assert!(step.len() <= most);
            in_steps.change(step);
        }
        prop_assert_eq!(in_steps, at_once);
    }

    #[test]
    fn after_any_changes_in_a_row_the_table_holds_each_endpoint_once(
        paths in proptest::collection::vec(path(), 1..8),
    ) {
        let mut known = ruleset(&[]);
        let mut table = Table::holding(&known);
        for path in paths {
            let portals = known.portals();
            let earlier = portals.get(&frontend(1)).and_then(|rule| rule.kernel.as_deref());
            let path = path.map(|path| match earlier {
                Some(earlier) => path.following(earlier),
                None => path,
            });
            let wanted = ruleset(&[(1, 0, path.clone())]);
            table.change(between(&known, &wanted).unwrap().all());
            prop_assert_eq!(&table, &Table::holding(&wanted));
            prop_assert_eq!(led_to(&table), to_several(path.as_ref()));
            known = wanted;
        }
    }

    #[test]
    fn every_portal_leads_somewhere_whatever_is_drawn(rules in portals()) {
        let table = Table::holding(&rules);
        for frontend in rules.portals().keys() {
            prop_assert!(table.elements.contains_key(&Key::Portal(*frontend)));
        }
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
    fn a_hostile_name_stays_within_its_element(name in any::<String>(), path in path()) {
        let lines = |name: &str| {
            let mut rules = Ruleset::new(INTERCEPT, 20008, Mark::AGENT);
            let rule = PortalRule {
                comment: RuleComment::new(name),
                to_port: 1,
                kernel: path.clone().map(Box::new),
            };
            rules.insert(frontend(1), rule).unwrap();
            render_nftables(&rules).lines().count()
        };
        prop_assert_eq!(lines(&name), lines("default/web"));
    }
}
