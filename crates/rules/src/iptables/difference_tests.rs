//! The difference, applied to a simulated nat table.

use std::net::{IpAddr, Ipv4Addr};

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use proptest::prelude::*;

use crate::chain_names::OwnChain;
use crate::iptables::chain_content::portal_chains;
use crate::iptables::difference::{Means, against, between, removal};
use crate::iptables::own_rule::{OwnRule, portal_rule, recognise};
use crate::iptables::parse::Table;
use crate::iptables::render;
use crate::iptables::simulated::Simulated;
use crate::iptables::transaction::Transaction;
use crate::{
    JUMP_COMMENT, Mark, Misplacement, PortalLayout, PortalRule, Repair, RuleComment, Ruleset,
};

const KUBE_JUMP: &str = "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
const INTERCEPT: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 96, 16));

fn jump(chain: OwnChain) -> String {
    format!("-m comment --comment \"{JUMP_COMMENT}\" -j {chain}")
}

pub(super) fn frontend(number: u8) -> Frontend {
    Frontend {
        ip: IpAddr::V4(Ipv4Addr::new(10, 96, 0, number)),
        protocol: if number.is_multiple_of(3) {
            Protocol::Udp
        } else {
            Protocol::Tcp
        },
        port: 80 + u16::from(number % 2),
    }
}

fn portal(number: u8, variant: u16) -> PortalRule {
    PortalRule {
        comment: RuleComment::new(&format!("default/s{number}:p{}", variant / 2)),
        to_port: 20007 + variant % 2,
        kernel: None,
    }
}

pub(super) fn ruleset(portals: &[(u8, u16)]) -> Ruleset {
    let mut rules = Ruleset::new(INTERCEPT, 20008, Mark::AGENT);
    for &(number, variant) in portals {
        rules
            .insert(frontend(number), portal(number, variant))
            .unwrap();
    }
    rules
}

fn portal_rules(rules: &Ruleset) -> impl Iterator<Item = OwnRule<'_>> {
    rules
        .portals()
        .iter()
        .map(|(frontend, rule)| portal_rule(rules, frontend, rule))
}

#[test]
fn nothing_is_done_where_nothing_differs() {
    let wanted = ruleset(&[(1, 0), (2, 0)]);
    let (transaction, repairs) = Simulated::holding(&wanted).difference(&wanted);
    assert!(transaction.is_empty());
    assert_eq!(repairs, []);
}

#[test]
fn one_added_service_among_many_is_two_lines() {
    let many: Vec<(u8, u16)> = (1..=250).map(|number| (number, 0)).collect();
    let known = ruleset(&many);
    let mut wanted = known.clone();
    wanted.insert(frontend(251), portal(251, 0)).unwrap();
    let text = between(&known, &wanted).text();
    let line = "-d 10.96.0.251/32 -p tcp -m comment --comment \"default/s251:p0\" -m tcp \
                --dport 81 -j DNAT --to-destination 169.254.96.16:20007";
    assert_eq!(
        text,
        format!(
            "*nat\n-A EDGEMESH-PORTALS-CONTAINER {line}\n-A EDGEMESH-PORTALS-HOST {line}\nCOMMIT\n"
        )
    );
    let (read_back, _) = Simulated::holding(&known).difference(&wanted);
    assert_eq!(read_back.text(), text);
}

#[test]
fn a_changed_target_is_one_rule_for_another() {
    let text = between(
        &ruleset(&[(1, 0), (2, 0), (4, 0)]),
        &ruleset(&[(1, 1), (2, 0), (4, 0)]),
    )
    .text();
    assert_eq!(text.matches("-D ").count(), 2);
    assert_eq!(text.matches("-A ").count(), 2);
    assert!(text.find("-D").unwrap() < text.find("-A").unwrap());
}

#[test]
fn another_mark_or_intercept_address_makes_both_chains_anew() {
    let known = ruleset(&[(1, 0)]);
    let mut wanted = Ruleset::new(INTERCEPT, 20009, Mark::AGENT);
    wanted.insert(frontend(1), portal(1, 0)).unwrap();
    let text = between(&known, &wanted).text();
    assert_eq!(text.matches(" - [0:0]").count(), 2);
    assert_eq!(text.matches("-A ").count(), 10);
}

#[test]
fn fixed_rules_that_are_not_first_make_the_chain_anew() {
    let wanted = ruleset(&[(1, 0)]);
    let mut table = Simulated::holding(&wanted);
    table
        .chain("EDGEMESH-PORTALS-HOST")
        .insert(0, "-j ACCEPT".to_owned());
    let (transaction, repairs) = table.difference(&wanted);
    assert_eq!(repairs, [Repair::ChainRewritten(OwnChain::Host.into())]);
    table.restore(&transaction.text());
    assert_eq!(table, Simulated::holding(&wanted));
}

#[test]
fn a_fixed_rule_that_is_there_twice_never_loses_its_first_place() {
    let wanted = ruleset(&[(1, 0)]);
    let mut table = Simulated::holding(&wanted);
    let chain = table.chain("EDGEMESH-PORTALS-HOST");
    chain.push(chain[0].clone());
    table.restore(&table.difference(&wanted).0.text());
    assert_eq!(table, Simulated::holding(&wanted));
}

#[test]
fn a_stranger_in_our_chain_is_deleted_by_its_own_text() {
    let wanted = ruleset(&[(1, 0), (2, 0), (4, 0)]);
    let mut table = Simulated::holding(&wanted);
    let stranger = "-p tcp -m comment --comment \"a \\\" b\" -j ACCEPT";
    table
        .chain("EDGEMESH-PORTALS-HOST")
        .push(stranger.to_owned());
    let (transaction, repairs) = table.difference(&wanted);
    assert_eq!(
        transaction.text(),
        format!("*nat\n-D EDGEMESH-PORTALS-HOST {stranger}\nCOMMIT\n")
    );
    assert_eq!(
        repairs,
        [Repair::RulesSurplus {
            chain: OwnChain::Host.into(),
            first: stranger.to_owned(),
            count: 1
        }]
    );
}

#[test]
fn so_many_deletions_are_rather_a_new_chain() {
    let wanted = ruleset(&(1..=255).map(|n| (n, 0)).collect::<Vec<_>>());
    let mut table = Simulated::holding(&wanted);
    for n in 0..300 {
        let stranger = format!("-s 10.0.{}.{}/32 -j ACCEPT", n / 250, n % 250);
        table.chain("EDGEMESH-PORTALS-HOST").push(stranger);
    }
    let (transaction, repairs) = table.difference(&wanted);
    assert_eq!(repairs, [Repair::ChainRewritten(OwnChain::Host.into())]);
    assert!(!transaction.text().contains("-D "));
}

#[test]
fn all_portals_gone_is_a_short_transaction() {
    let known = ruleset(&(1..=255).map(|n| (n, 0)).collect::<Vec<_>>());
    assert_eq!(between(&known, &ruleset(&[])).lines(), 10);
}

#[test]
fn after_kube_proxys_restart_our_jump_is_moved_before_its_own() {
    let wanted = ruleset(&[]);
    let mut table = Simulated::holding(&wanted);
    table.chain("PREROUTING").insert(0, KUBE_JUMP.to_owned());
    table
        .chain("PREROUTING")
        .insert(0, "-j cali-PREROUTING".to_owned());
    let (transaction, repairs) = table.difference(&wanted);
    assert_eq!(
        repairs,
        [Repair::Jump {
            chain: OwnChain::Container,
            because: Misplacement::BehindKubeServices
        }]
    );
    table.restore(&transaction.text());
    assert_eq!(
        table.chain("PREROUTING"),
        &[
            "-j cali-PREROUTING".to_owned(),
            jump(OwnChain::Container),
            KUBE_JUMP.to_owned()
        ]
    );
}

#[test]
fn removal_empties_but_keeps_a_chain_that_a_foreign_rule_leads_into() {
    let mut table = Simulated::holding(&ruleset(&[(1, 0)]));
    table
        .chain("MINE")
        .push("-j EDGEMESH-PORTALS-HOST".to_owned());
    let text = table.save();
    let removal = removal(&Table::parse(&text));
    assert_eq!(removal.kept_by, ["MINE -j EDGEMESH-PORTALS-HOST"]);
    table.restore(&removal.transaction.text());
    assert!(table.chain("EDGEMESH-PORTALS-HOST").is_empty());
    assert!(!table.chains.contains_key("EDGEMESH-PORTALS-CONTAINER"));
    assert!(table.chain("OUTPUT").is_empty());
}

fn layout() -> impl Strategy<Value = PortalLayout> {
    prop_oneof![Just(PortalLayout::InBoth), Just(PortalLayout::ByAddress)]
}

fn portals() -> impl Strategy<Value = Ruleset> {
    let portals = proptest::collection::vec((1_u8..80, 0_u16..4), 0..20);
    (portals, layout()).prop_map(|(portals, layout)| ruleset(&portals).laid_out(layout))
}

fn hook(chain: OwnChain) -> impl Strategy<Value = Vec<String>> {
    let rule = prop_oneof![
        Just(jump(chain)),
        Just(format!("-p tcp -j {chain}")),
        Just(jump(OwnChain::Host)),
        Just(KUBE_JUMP.to_owned()),
        Just("-j cali-OUTPUT".to_owned()),
        Just("-s 10.0.0.0/8 -j RETURN".to_owned()),
    ];
    proptest::collection::vec(rule, 0..6)
}

/// What an earlier agent, and then somebody else, may have left of chains of ours: those of the
/// hook `own`, and those that it leads to.
fn own_chains(own: OwnChain) -> impl Strategy<Value = Vec<(String, Vec<String>)>> {
    let stranger = prop_oneof![
        Just("-j ACCEPT".to_owned()),
        Just("-p udp -m comment --comment \"x y\" -j RETURN".to_owned()),
    ];
    let meddling =
        proptest::collection::vec((any::<prop::sample::Index>(), 0..3_u8, stranger), 0..5);
    let chains = (portals(), meddling).prop_map(move |(rules, meddling)| {
        let mut chains: Vec<(String, Vec<String>)> = portal_chains(&rules)
            .iter()
            .filter(|content| {
                !OwnChain::BOTH
                    .iter()
                    .any(|o| *o != own && content.chain == (*o).into())
            })
            .map(|content| {
                let lines = content.rules().map(|rule| rule.to_string());
                (content.chain.to_string(), lines.collect())
            })
            .collect();
        for (at, what, stranger) in meddling {
            let chain = at.index(chains.len().min(4));
            let lines = &mut chains[chain].1;
            let at = at.index(lines.len() + 1);
            match (what, lines.get(at).cloned()) {
                (0, Some(_)) => {
                    lines.remove(at);
                }
                (1, Some(line)) => lines.push(line),
                _ => lines.insert(at, stranger),
            }
        }
        chains
    });
    proptest::option::of(chains).prop_map(Option::unwrap_or_default)
}

fn table() -> impl Strategy<Value = Simulated> {
    let of = |chain| (hook(chain), own_chains(chain));
    let (container, host) = (of(OwnChain::Container), of(OwnChain::Host));
    (container, host).prop_map(|(container, host)| {
        let mut table = Simulated::new();
        table
            .chain("KUBE-SERVICES")
            .push("-j KUBE-NODEPORTS".to_owned());
        for (chain, (hook, own)) in OwnChain::BOTH.into_iter().zip([container, host]) {
            *table.chain(chain.hook()) = hook;
            for (name, rules) in own {
                *table.chain(&name) = rules;
            }
        }
        table
    })
}

fn sorted(chain: &[String]) -> Vec<String> {
    let mut sorted = chain.to_vec();
    sorted.sort();
    sorted
}

proptest! {
    #[test]
    fn whatever_is_there_becomes_what_is_wanted_and_foreign_rules_stay(
        before in table(),
        wanted in portals(),
    ) {
        let mut after = before.clone();
        after.restore(&before.difference(&wanted).0.text());
        let right = Simulated::holding(&wanted);
        let names = |table: &Simulated| -> Vec<String> { table.chains.keys().cloned().collect() };
        let ours = |name: &String| name.starts_with("EDGEMESH-");
        prop_assert!(names(&after).into_iter().filter(ours).eq(names(&right).into_iter().filter(ours)));
        for content in portal_chains(&wanted) {
            let name = content.chain.to_string();
            let (chain, expected) = (&after.chains[&name], &right.chains[&name]);
            let head = content.head.len();
            prop_assert_eq!(&chain[..head], &expected[..head]);
            prop_assert_eq!(sorted(chain), sorted(expected));
        }
        for own in OwnChain::BOTH {
            let hook = &after.chains[own.hook()];
            let place = |rule: &str| hook.iter().position(|found| found == rule);
            prop_assert!(place(&jump(own)).is_some());
            prop_assert!(place(KUBE_JUMP).is_none_or(|kube| place(&jump(own)) < Some(kube)));
        }
        prop_assert_eq!(after.foreign(), before.foreign());
        prop_assert_eq!(after.difference(&wanted), (Transaction::default(), Vec::new()));
    }

    #[test]
    fn from_a_known_state_the_kernel_ends_with_the_same_rules(
        known in portals(),
        wanted in portals(),
    ) {
        let mut table = Simulated::holding(&known);
        table.restore(&between(&known, &wanted).text());
        prop_assert_eq!(table.difference(&wanted), (Transaction::default(), Vec::new()));
        prop_assert!(between(&wanted, &wanted).is_empty());
    }

    #[test]
    fn removal_leaves_nothing_of_ours_and_everything_else(before in table()) {
        let mut after = before.clone();
        let text = before.save();
        after.restore(&removal(&Table::parse(&text)).transaction.text());
        prop_assert!(!after.save().contains("EDGEMESH-"));
        prop_assert_eq!(after.foreign(), before.foreign());
        let text = after.save();
        prop_assert!(removal(&Table::parse(&text)).transaction.is_empty());
    }

    #[test]
    fn what_is_rendered_is_recognised(wanted in portals()) {
        let text = format!("*nat\n{}COMMIT\n", render(&wanted));
        let table = Table::parse(&text);
        for content in portal_chains(&wanted) {
            let found = table.portal_chain(content.chain).unwrap_or_default();
            prop_assert!(found.iter().map(|found| found.rule.clone().unwrap()).eq(content.rules()));
        }
    }

    #[test]
    fn a_hostile_name_stays_within_its_rule(name in any::<String>()) {
        let mut wanted = ruleset(&[]);
        let comment = RuleComment::new(&name);
        wanted.insert(frontend(1), PortalRule { comment, to_port: 1, kernel: None }).unwrap();
        prop_assert_eq!(render(&wanted).lines().count(), 10);
        let rule = portal_rules(&wanted).next().unwrap();
        let text = rule.to_string();
        prop_assert_eq!(recognise(&text), Some(rule));
    }

    #[test]
    fn whatever_iptables_prints_is_survived(text in any::<String>(), rule in "[-a-zA-Z0-9 \"\\\\:/.!]{0,80}") {
        Table::parse(&text);
        let text = format!("*nat\n-A EDGEMESH-PORTALS-HOST {rule}\n-A OUTPUT {rule}\n{text}");
        let table = Table::parse(&text);
        against(&table, &ruleset(&[(1, 0)]), Means::SmallestChange);
        removal(&table);
    }
}
