//! Portals laid out by address, in a simulated nat table.

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use proptest::prelude::*;

use crate::chain_names::OwnChain;
use crate::iptables::difference::{between, removal};
use crate::iptables::difference_tests::{frontend, ruleset};
use crate::iptables::own_rule::{OwnRule, recognise};
use crate::iptables::parse::Table;
use crate::iptables::simulated::Simulated;
use crate::iptables::transaction::Transaction;
use crate::{Bucket, Extensions, PortalChain, PortalLayout, Repair, Ruleset};

/// The rule of ours that takes a packet for this portal, if it comes by the hook of `chain`.
fn taken_by(table: &Simulated, chain: &str, packet: &Frontend) -> Option<String> {
    table
        .chains
        .get(chain)?
        .iter()
        .find_map(|text| match recognise(text)? {
            OwnRule::ByAddress(_, bucket) if bucket == Bucket::of(packet.ip) => {
                taken_by(table, &bucket.to_string(), packet)
            }
            OwnRule::Portal { frontend, .. } => (frontend == *packet).then(|| text.clone()),
            OwnRule::RuleToCome { .. } => (packet.protocol == Protocol::Tcp).then(|| text.clone()),
            _ => None,
        })
}

fn both_hooks(table: &Simulated, packet: &Frontend) -> [Option<String>; 2] {
    OwnChain::BOTH.map(|chain| taken_by(table, chain.name(), packet))
}

fn of_both_layouts(portals: &[(u8, u16)]) -> [Ruleset; 2] {
    [PortalLayout::InBoth, PortalLayout::ByAddress].map(|layout| ruleset(portals).laid_out(layout))
}

/// The same where the agent takes what is in the set of portals and has no rule. Who looks for a
/// rule here has asked the set before.
fn with_rules_to_come(portals: &[(u8, u16)]) -> [Ruleset; 2] {
    of_both_layouts(portals).map(|rules| rules.forwarding_tcp_at(20007))
}

#[test]
fn one_added_service_is_one_line_where_portals_are_laid_out_by_address() {
    let [_, known] = of_both_layouts(&[(1, 0), (2, 0)]);
    let [_, wanted] = of_both_layouts(&[(1, 0), (2, 0), (66, 0)]);
    let text = between(&known, &wanted).text();
    assert_eq!(
        text,
        "*nat\n-A EDGEMESH-PORTALS-02 -d 10.96.0.66/32 -p udp -m comment --comment \
         \"default/s66:p0\" -m udp --dport 80 -j DNAT --to-destination 169.254.96.16:20007\n\
         COMMIT\n"
    );
    let (read_back, _) = Simulated::holding(&known).difference(&wanted);
    assert_eq!(read_back.text(), text);
}

#[test]
fn among_many_portals_one_without_a_rule_yet_is_the_agents() {
    let [in_both, by_address] = with_rules_to_come(&[(1, 0), (2, 0)]);
    let to_come = "-p tcp -m comment --comment \"edgemesh: a portal whose own rule is still to \
                   come\" -j DNAT --to-destination 169.254.96.16:20007";
    // Number 65 is TCP and shares its chain with number 1, number 66 is UDP.
    for (packet, expected) in [(65, Some(to_come)), (66, None)] {
        let taken = both_hooks(&Simulated::holding(&by_address), &frontend(packet));
        assert_eq!(
            taken,
            [expected.map(str::to_owned), expected.map(str::to_owned)]
        );
        assert_eq!(
            both_hooks(&Simulated::holding(&in_both), &frontend(packet)),
            [None, None]
        );
    }
    let no_set = Extensions {
        portal_set: false,
        ..by_address.extensions()
    };
    let without_set = Simulated::holding(&by_address.with_extensions(no_set));
    assert!(!without_set.save().contains("still to come"));
}

#[test]
fn a_rule_to_come_stays_the_last_when_a_service_is_added() {
    let [_, known] = with_rules_to_come(&[(1, 0), (2, 0)]);
    let [_, wanted] = with_rules_to_come(&[(1, 0), (2, 0), (66, 0)]);
    let transaction = between(&known, &wanted);
    assert_eq!(transaction.lines(), 1);
    let mut table = Simulated::holding(&known);
    table.restore(&transaction.text());
    assert_eq!(
        table.difference(&wanted),
        (Transaction::default(), Vec::new())
    );
}

#[test]
fn who_meddles_with_a_chain_of_portals_is_undone_and_named() {
    let [_, wanted] = of_both_layouts(&[(1, 0), (2, 0), (65, 0), (129, 0)]);
    let right = Simulated::holding(&wanted);
    let bucket = Bucket::of(frontend(1).ip);
    let meddled = |meddle: &dyn Fn(&mut Simulated)| {
        let mut table = right.clone();
        meddle(&mut table);
        let (transaction, repairs) = table.difference(&wanted);
        table.restore(&transaction.text());
        assert_eq!(table.difference(&wanted).0, Transaction::default());
        repairs
    };
    let chain = PortalChain::Bucket(bucket);
    let missing = Repair::RulesMissing {
        chain,
        first: frontend(129),
        count: 1,
    };
    assert_eq!(
        meddled(&|table| drop(table.chain("EDGEMESH-PORTALS-01").pop())),
        [missing]
    );
    let stranger = "-j ACCEPT".to_owned();
    let surplus = Repair::RulesSurplus {
        chain,
        first: stranger.clone(),
        count: 1,
    };
    assert_eq!(
        meddled(&|table| table
            .chain("EDGEMESH-PORTALS-01")
            .insert(0, stranger.clone())),
        [surplus]
    );
    assert_eq!(
        meddled(&|table| drop(table.chain("EDGEMESH-PORTALS-HOST").pop())),
        [Repair::ChainRewritten(OwnChain::Host.into())]
    );
}

#[test]
fn chains_of_portals_that_lead_nowhere_go_unless_a_strangers_rule_leads_there() {
    let [wanted, older] = of_both_layouts(&[(1, 0)]);
    let mut table = Simulated::holding(&older);
    table
        .chain("MINE")
        .push("-j EDGEMESH-PORTALS-01".to_owned());
    let (transaction, repairs) = table.difference(&wanted);
    assert!(repairs.contains(&Repair::ChainsSurplus {
        first: PortalChain::Bucket(Bucket::of([0, 0, 0, 0].into())),
        count: 64
    }));
    table.restore(&transaction.text());
    assert!(table.chains["EDGEMESH-PORTALS-01"].is_empty());
    assert!(!table.chains.contains_key("EDGEMESH-PORTALS-02"));
    assert_eq!(
        table.difference(&wanted),
        (Transaction::default(), Vec::new())
    );
    let text = table.save();
    let removal = removal(&Table::parse(&text));
    assert_eq!(removal.kept_by, ["MINE -j EDGEMESH-PORTALS-01"]);
}

proptest! {
    // A packet's way is found by reading all rules it meets.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_packet_is_taken_by_the_same_rule_in_either_layout(
        wanted in proptest::collection::vec((1_u8..200, 0_u16..4), 0..12),
    ) {
        let [in_both, by_address] = of_both_layouts(&wanted);
        let tables = [&in_both, &by_address].map(Simulated::holding);
        for number in (0..=255).step_by(7).chain(wanted.iter().map(|(number, _)| *number)) {
            let packet = frontend(number);
            let taken = both_hooks(&tables[0], &packet);
            prop_assert_eq!(&taken, &both_hooks(&tables[1], &packet));
            prop_assert_eq!(taken[0].is_some(), in_both.portals().contains_key(&packet));
        }
    }

    #[test]
    fn no_packet_misses_its_rule_while_the_layout_changes_in_steps(
        portals in proptest::collection::vec((1_u8..200, 0_u16..4), 1..12),
        to_both in any::<bool>(),
        rules_to_come in any::<bool>(),
        most in 20_usize..200,
    ) {
        let [in_both, by_address] = match rules_to_come {
            true => with_rules_to_come(&portals),
            false => of_both_layouts(&portals),
        };
        let (known, wanted) = match to_both {
            true => (by_address, in_both),
            false => (in_both, by_address),
        };
        let mut table = Simulated::holding(&known);
        let (text, _) = between(&known, &wanted).sections(most);
        for step in text.split_inclusive("COMMIT\n") {
            let before = table.clone();
            table.restore(step);
            for packet in wanted.portals().keys() {
                prop_assert_eq!(both_hooks(&table, packet), both_hooks(&before, packet));
            }
        }
        prop_assert_eq!(table.difference(&wanted), (Transaction::default(), Vec::new()));
    }
}
