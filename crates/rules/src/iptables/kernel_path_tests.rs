//! Portals that the kernel serves, in a simulated nat table.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use proptest::prelude::*;

use crate::chain_names::{MASQUERADE, POSTROUTING, SERVICE_PREFIX};
use crate::iptables::difference::{between, removal};
use crate::iptables::parse::Table;
use crate::iptables::render;
use crate::iptables::service_chain::{chain_name, endpoint_rules};
use crate::iptables::simulated::Simulated;
use crate::iptables::transaction::Transaction;
use crate::{
    Extensions, KernelEndpoint, KernelPath, Mark, OwnChain, PortalLayout, PortalRule, Repair,
    RuleComment, Ruleset, Sharing,
};

/// Endpoints of a portal, by the last byte of their address, and who shares them.
type Portal = (u8, Vec<u8>, Sharing);

const HOUR: Sharing = Sharing::Sticky(Duration::from_secs(3600));

fn with_agent(others: u32) -> Sharing {
    Sharing::WithAgent(NonZeroU32::new(others).unwrap())
}

fn frontend(number: u8) -> Frontend {
    Frontend {
        ip: IpAddr::from([10, 96, 0, number]),
        protocol: [Protocol::Tcp, Protocol::Udp][usize::from(number % 2)],
        port: 80,
    }
}

fn portal(number: u8, endpoints: &[u8], sharing: Sharing) -> PortalRule {
    let endpoints = endpoints.iter().map(|&last| KernelEndpoint {
        address: ([10, 244, 1, last], 8080).into(),
        is_pod_here: last.is_multiple_of(2),
    });
    PortalRule {
        comment: RuleComment::new(&format!("default/s{number}:http")),
        to_port: 20007,
        kernel: KernelPath::new(endpoints, sharing).map(Box::new),
    }
}

fn ruleset(portals: &[Portal]) -> Ruleset {
    let mut rules = Ruleset::new([169, 254, 96, 16].into(), 20008, Mark::AGENT);
    for (number, endpoints, sharing) in portals {
        rules
            .insert(frontend(*number), portal(*number, endpoints, *sharing))
            .unwrap();
    }
    rules
}

/// The rules of the only chain that shares connections.
fn shared(rules: &Ruleset) -> Vec<String> {
    render(rules)
        .lines()
        .filter(|line| line.starts_with("-A EDGEMESH-SVC-"))
        .map(|line| line.splitn(3, ' ').last().unwrap().to_owned())
        .collect()
}

fn to(last: u8) -> String {
    format!("-j DNAT --to-destination 10.244.1.{last}:8080")
}

#[test]
fn every_endpoint_has_the_same_share() {
    let tcp = "-p tcp";
    let chance = "-m statistic --mode random --probability";
    assert_eq!(
        shared(&ruleset(&[(2, vec![1, 3, 5], Sharing::Alone)])),
        [
            format!("{tcp} {chance} 0.33333333349 {}", to(1)),
            format!("{tcp} {chance} 0.50000000000 {}", to(3)),
            format!("{tcp} {}", to(5)),
        ]
    );
}

#[test]
fn the_agent_has_as_many_shares_as_endpoints_behind_it() {
    let tcp = "-p tcp";
    let chance = "-m statistic --mode random --probability";
    assert_eq!(
        shared(&ruleset(&[(2, vec![1, 3], with_agent(2))])),
        [
            format!("{tcp} {chance} 0.25000000000 {}", to(1)),
            format!("{tcp} {chance} 0.33333333349 {}", to(3)),
            format!("{tcp} -j DNAT --to-destination 169.254.96.16:20007"),
        ]
    );
}

#[test]
fn a_returning_client_is_sent_where_it_was_before_chance_decides() {
    let rules = shared(&ruleset(&[(2, vec![1, 3], HOUR)]));
    let [first, second, third, fourth] = &rules[..] else {
        panic!("{rules:?}");
    };
    for (rule, last) in [(first, 1), (second, 3)] {
        assert!(rule.contains("-m recent --update --seconds 3600 --reap --name EDGEMESH-SEP-"));
        assert!(rule.ends_with(&format!("--mask 255.255.255.255 --rsource {}", to(last))));
    }
    assert!(third.contains("--probability 0.50000000000 -m recent --set --name EDGEMESH-SEP-"));
    assert!(!fourth.contains("statistic") && fourth.contains("-m recent --set"));
    let list = |rule: &str| {
        rule.split(' ')
            .find(|w| w.starts_with("EDGEMESH-SEP-"))
            .map(str::to_owned)
    };
    assert_eq!((list(first), list(second)), (list(third), list(fourth)));
    assert_ne!(list(first), list(second));
}

#[test]
fn the_only_endpoint_needs_no_chain() {
    for sharing in [Sharing::Alone, HOUR] {
        let text = render(&ruleset(&[(2, vec![1], sharing)]));
        assert!(!text.contains("-SVC-"), "{text}");
        assert_eq!(text.matches(&to(1)).count(), 2);
    }
    assert!(render(&ruleset(&[(2, vec![1], with_agent(1))])).contains("-SVC-"));
}

#[test]
fn a_chains_name_is_as_long_as_iptables_allows_and_never_changes() {
    let name = chain_name(&frontend(2), "default/s2:http");
    assert_eq!(name, "EDGEMESH-SVC-VDGT44BUT5VWTEQ");
    assert_eq!(name.len(), 28);
    assert_ne!(name, chain_name(&frontend(4), "default/s2:http"));
    assert_ne!(name, chain_name(&frontend(2), "default/s2:grpc"));
}

#[test]
fn what_the_kernel_lacks_stays_with_the_agent() {
    let rules = ruleset(&[(2, vec![1, 3], HOUR), (4, vec![1, 3], Sharing::Alone)]);
    let has = |extensions: Extensions| {
        let rules = rules.clone().with_extensions(extensions);
        let chains = rules
            .portals()
            .iter()
            .map(|(f, r)| endpoint_rules(&rules, f, r).len());
        chains.collect::<Vec<_>>()
    };
    let all = rules.extensions();
    assert_eq!(has(all), [4, 2]);
    assert_eq!(
        has(Extensions {
            recent: false,
            ..all
        }),
        [0, 2]
    );
    assert_eq!(
        has(Extensions {
            portal_set: false,
            ..all
        }),
        [0, 0]
    );
    assert_eq!(
        has(Extensions {
            kernel_path: false,
            ..all
        }),
        [0, 0]
    );
    let without = rules.clone().with_extensions(Extensions {
        kernel_path: false,
        ..all
    });
    let text = render(&without);
    assert!(
        !text.contains("MASQUERADE") && !text.contains("MARK"),
        "{text}"
    );
}

#[test]
fn changed_endpoints_are_the_chain_alone() {
    let known = ruleset(&[
        (2, vec![1, 3], Sharing::Alone),
        (4, vec![1], Sharing::Alone),
    ]);
    let wanted = ruleset(&[
        (2, vec![1, 3, 5], Sharing::Alone),
        (4, vec![1], Sharing::Alone),
    ]);
    let transaction = between(&known, &wanted);
    let chain = chain_name(&frontend(2), "default/s2:http");
    assert_eq!(transaction.lines(), 4);
    for line in transaction.text().lines() {
        assert!(
            line.contains(&chain) || ["*nat", "COMMIT"].contains(&line),
            "{line}"
        );
    }
}

#[test]
fn a_chain_is_filled_before_and_deleted_after_rules_lead_there() {
    let one = ruleset(&[(2, vec![1], Sharing::Alone)]);
    let two = ruleset(&[(2, vec![1, 3], Sharing::Alone)]);
    let line = |text: &str, part: &str| {
        text.lines()
            .position(|line| line.starts_with(part))
            .unwrap_or_else(|| panic!("{part}: {text}"))
    };
    let text = between(&one, &two).text();
    assert!(line(&text, "-A EDGEMESH-SVC-") < line(&text, "-A EDGEMESH-PORTALS-"));
    let text = between(&two, &one).text();
    assert!(line(&text, "-D EDGEMESH-PORTALS-") < line(&text, ":EDGEMESH-SVC-"));
    assert!(line(&text, ":EDGEMESH-SVC-") < line(&text, "-X EDGEMESH-SVC-"));
}

#[test]
fn however_many_chains_iptables_has_few_to_search_through_for_each_line() {
    let all = 0..=255;
    let portals: Vec<Portal> = all
        .map(|number| (number, vec![1, 2], Sharing::Alone))
        .collect();
    let wanted = ruleset(&portals).laid_out(PortalLayout::ByAddress);
    let (transaction, _) = Simulated::new().difference(&wanted);
    // As iptables-nft keeps them: sorted, looked through from the front.
    let mut named = BTreeSet::new();
    for line in transaction.text().lines() {
        let words = line.split([' ', ':']);
        for chain in words.filter(|word| word.starts_with("EDGEMESH-")) {
            let before = named.range(..chain.to_owned()).count();
            assert!(before <= 64 + 8, "{before} chains before that of {line}");
            named.insert(chain.to_owned());
        }
    }
    assert!(named.len() > 256);
}

#[test]
fn a_chain_is_never_split() {
    let portals: Vec<Portal> = (0..20)
        .map(|n| (n, vec![1, 3, 5], Sharing::Alone))
        .collect();
    let (text, steps) = between(&ruleset(&[]), &ruleset(&portals)).sections(8);
    assert_eq!(steps, text.matches("COMMIT\n").count());
    for step in text.split("COMMIT\n") {
        let chains = step.matches(":EDGEMESH-SVC-").count();
        assert_eq!(step.matches("-A EDGEMESH-SVC-").count(), 3 * chains);
    }
}

#[test]
fn pods_that_come_and_go_are_a_line_each() {
    let known = ruleset(&[(2, vec![2], Sharing::Alone), (4, vec![6], Sharing::Alone)]);
    let wanted = ruleset(&[(2, vec![4], Sharing::Alone), (4, vec![6], Sharing::Alone)]);
    let text = between(&known, &wanted).text();
    assert_eq!(text.matches(MASQUERADE).count(), 2, "{text}");
    assert!(text.contains("-D EDGEMESH-POSTROUTING -s 10.244.1.2/32 -d 10.244.1.2/32 "));
    assert!(text.contains("-I EDGEMESH-POSTROUTING 4 -s 10.244.1.4/32 -d 10.244.1.4/32 "));
}

#[test]
fn rules_that_an_older_agent_gave_comments_are_made_anew() {
    let wanted = ruleset(&[(2, vec![1, 3], Sharing::Alone)]);
    let right = Simulated::holding(&wanted);
    let mut older = right.clone();
    let name = chain_name(&frontend(2), "default/s2:http");
    for rule in older.chain(&name) {
        *rule = rule.replace("-p tcp", "-p tcp -m comment --comment \"default/s2:http\"");
    }
    let (transaction, _) = older.difference(&wanted);
    assert_eq!(transaction.lines(), 3, "{}", transaction.text());
    older.restore(&transaction.text());
    assert_eq!(older, right);
}

#[test]
fn who_meddles_with_a_chain_is_undone_and_named() {
    let wanted = ruleset(&[(2, vec![1, 3], Sharing::Alone)]);
    let right = Simulated::holding(&wanted);
    let name = chain_name(&frontend(2), "default/s2:http");
    let meddled = |meddle: &dyn Fn(&mut Simulated)| {
        let mut table = right.clone();
        meddle(&mut table);
        let (transaction, repairs) = table.difference(&wanted);
        table.restore(&transaction.text());
        assert_eq!(table, right);
        repairs
    };
    let service = Repair::ServiceChains {
        first: name.clone(),
        count: 1,
    };
    assert_eq!(
        meddled(&|table| drop(table.chain(&name).pop())),
        std::slice::from_ref(&service)
    );
    assert_eq!(meddled(&|table| table.chain(&name).swap(0, 1)), [service]);
    assert_eq!(
        meddled(&|table| drop(table.chain(MASQUERADE).pop())),
        [Repair::MasqueradeChain]
    );
    let jumps = meddled(&|table| drop(table.chain(POSTROUTING).pop()));
    assert!(
        matches!(jumps[..], [Repair::MasqueradeJump(_)]),
        "{jumps:?}"
    );
    let leftover = meddled(&|table| {
        let stray = "-p tcp -j DNAT --to-destination 10.9.9.9:1".to_owned();
        table.chain("EDGEMESH-SVC-LEFTOVER").push(stray);
    });
    assert!(
        matches!(leftover[..], [Repair::ServiceChains { .. }]),
        "{leftover:?}"
    );
}

#[test]
fn the_masquerading_jump_is_not_moved_when_others_come_before_it() {
    let wanted = ruleset(&[(2, vec![1], Sharing::Alone)]);
    let mut table = Simulated::holding(&wanted);
    table
        .chain(POSTROUTING)
        .insert(0, "-j KUBE-POSTROUTING".to_owned());
    assert_eq!(
        table.difference(&wanted),
        (Transaction::default(), Vec::new())
    );
}

fn sharing() -> impl Strategy<Value = Sharing> {
    prop_oneof![
        2 => Just(Sharing::Alone),
        1 => (1..4_u32).prop_map(with_agent),
        1 => (1..5_u64).prop_map(|s| Sharing::Sticky(Duration::from_secs(s))),
    ]
}

fn rulesets() -> impl Strategy<Value = Ruleset> {
    let endpoints = proptest::collection::vec(1_u8..12, 0..5);
    let portals = proptest::collection::vec((1_u8..10, endpoints, sharing()), 0..10);
    let pods = proptest::collection::vec(0_u8..3, 0..3);
    (portals, pods, any::<[bool; 2]>()).prop_map(|(portals, pods, [recent, random_fully])| {
        let rules = ruleset(&portals);
        let networks = pods
            .iter()
            .map(|n| format!("10.244.{n}.0/24").parse().unwrap());
        let extensions = Extensions {
            recent,
            random_fully,
            ..rules.extensions()
        };
        rules.with_pods(networks).with_extensions(extensions)
    })
}

/// The order of rules about different traffic is of no matter.
fn in_any_order(table: &Simulated) -> Simulated {
    let mut table = table.clone();
    for (name, rules) in &mut table.chains {
        if !name.starts_with(SERVICE_PREFIX) {
            rules.sort();
        }
    }
    table
}

proptest! {
    #[test]
    fn what_another_agent_left_becomes_what_is_wanted(before in rulesets(), wanted in rulesets()) {
        let mut table = Simulated::holding(&before);
        table.chain(POSTROUTING).push("-j KUBE-POSTROUTING".to_owned());
        let foreign = table.foreign();
        table.restore(&table.difference(&wanted).0.text());
        prop_assert_eq!(table.difference(&wanted), (Transaction::default(), Vec::new()));
        prop_assert_eq!(table.foreign(), foreign);
        let mut fresh = Simulated::holding(&wanted);
        fresh.chain(POSTROUTING).push("-j KUBE-POSTROUTING".to_owned());
        prop_assert_eq!(in_any_order(&table), in_any_order(&fresh));
    }

    #[test]
    fn from_a_known_state_it_ends_with_the_same_rules(known in rulesets(), wanted in rulesets()) {
        let mut table = Simulated::holding(&known);
        table.restore(&between(&known, &wanted).text());
        prop_assert_eq!(table.difference(&wanted), (Transaction::default(), Vec::new()));
        prop_assert!(between(&wanted, &wanted).is_empty());
    }

    #[test]
    fn in_steps_it_ends_with_the_same_rules(
        known in rulesets(),
        wanted in rulesets(),
        most in 1_usize..20,
    ) {
        let mut table = Simulated::holding(&known);
        table.restore(&between(&known, &wanted).sections(most).0);
        prop_assert_eq!(table.difference(&wanted), (Transaction::default(), Vec::new()));
    }

    #[test]
    fn what_is_rendered_is_read_back_as_it_is(wanted in rulesets()) {
        let table = Simulated::holding(&wanted);
        let rendered = render(&wanted);
        let mut held: Vec<&str> = rendered.lines().collect();
        held.sort_unstable();
        let saved = table.save();
        let mut found: Vec<&str> =
            saved.lines().filter(|line| line.starts_with("-A EDGEMESH-")).collect();
        found.sort_unstable();
        prop_assert_eq!(found, held);
    }

    #[test]
    fn nothing_is_left_by_a_removal(wanted in rulesets()) {
        let mut table = Simulated::holding(&wanted);
        let text = table.save();
        let read = Table::parse(&text);
        let removal = removal(&read);
        prop_assert_eq!(read.own_rules(), render(&wanted).lines().count());
        let jumps = OwnChain::BOTH.len() + usize::from(wanted.extensions().kernel_path);
        prop_assert_eq!(read.own_jumps(), jumps);
        table.restore(&removal.transaction.text());
        prop_assert_eq!(table, Simulated::new());
    }
}
