use edgemesh_catalog::Protocol;
use edgemesh_rules::{BaseChain, Inspected};

use super::*;

const OURS: &str = "[6:360] -A PREROUTING -m comment --comment \"handle ClusterIPs; NOTE: this \
                    must be before the NodePort rules\" -j EDGEMESH-PORTALS-CONTAINER\n";
const KUBES: &str = "[5:300] -A PREROUTING -m comment --comment \"kubernetes service portals\" \
                     -j KUBE-SERVICES\n";
const OUR_RULE: &str = "[3:180] -A EDGEMESH-PORTALS-CONTAINER -d 10.96.0.1/32 -p tcp -m comment \
                        --comment \"default/web:http\" -m tcp --dport 80 -j DNAT \
                        --to-destination 169.254.96.16:20007\n";
const REFUSING: &str = "[0:0] -A EDGEMESH-PORTALS-CONTAINER -d 169.254.96.16/32 -p tcp -m comment \
                        --comment \"edgemesh: not through a portal\" -j DNAT --to-destination \
                        169.254.96.16:20007\n";
/// By this rule it is known which address is the agent's.
const STRAYS: &str = "[0:0] -A EDGEMESH-PORTALS-CONTAINER -d 169.254.96.16/32 -p udp -m comment \
                      --comment \"edgemesh: not through a portal\" -j DNAT --to-destination \
                      169.254.96.16:20009\n";
const INTO_CHAIN: &str = "[3:180] -A EDGEMESH-PORTALS-CONTAINER -d 10.96.0.1/32 -p tcp -m comment \
                          --comment \"default/web:http\" -m tcp --dport 80 -j EDGEMESH-SVC-A\n";
const TO_ENDPOINT: &str = "[2:120] -A EDGEMESH-SVC-A -p tcp -m statistic --mode random \
                           --probability 0.50000000000 -j DNAT --to-destination \
                           10.244.1.2:8080\n";
const TO_AGENT: &str = "[1:60] -A EDGEMESH-SVC-A -p tcp -j DNAT --to-destination \
                        169.254.96.16:20007\n";
const GATE: &str = "[0:0] -A EDGEMESH-PORTALS-CONTAINER -m set ! --match-set EDGEMESH-ALIVE dst \
                    -j RETURN\n";
const KUBES_RULE: &str = "[2:120] -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \
                          \"default/web:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC-ABC\n";
const KUBES_REFUSAL: &str = "[9:540] -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \
                             \"default/web:http has no endpoints\" -m tcp --dport 80 -j REJECT\n";
const RUNS: Agent = Agent::Runs(Some(Decision::Forward));

fn web() -> Frontend {
    Frontend {
        ip: "10.96.0.1".parse().unwrap(),
        protocol: Protocol::Tcp,
        port: 80,
    }
}

fn kernel(nat: &[&str], filter: &[&str]) -> Kernel {
    Kernel {
        nats: vec![inspected(Flavour::Nft, nat, filter)],
        ..Kernel::default()
    }
}

fn inspected(flavour: Flavour, nat: &[&str], filter: &[&str]) -> Inspected {
    Inspected {
        family: Family::V4,
        flavour,
        nat: Ok(NatView::from_saved(
            &(STRAYS.to_owned() + &nat.concat()),
            &filter.concat(),
        )),
    }
}

fn from_pods(kernel: &Kernel, agent: Agent) -> Verdict {
    verdict(OwnChain::Container, &web(), kernel, agent)
}

fn base(table: &str, kind: &str, priority: i32) -> (Family, BaseChain) {
    (
        Family::V4,
        BaseChain {
            table: table.to_owned(),
            name: "chain".to_owned(),
            kind: kind.to_owned(),
            hook: "prerouting",
            priority,
        },
    )
}

#[test]
fn who_handles_follows_from_jumps_and_rules() {
    use Handler::{Edgemesh, KubeProxy, Nobody};
    for (what, nat, filter, handler, outcome) in [
        (
            "ours first",
            vec![OURS, KUBES, OUR_RULE, KUBES_RULE],
            vec![],
            Edgemesh,
            "forwarded",
        ),
        (
            "ours alone",
            vec![OURS, OUR_RULE],
            vec![],
            Edgemesh,
            "forwarded",
        ),
        (
            "refused by us",
            vec![OURS, REFUSING, OUR_RULE],
            vec![],
            Edgemesh,
            "refused at once",
        ),
        (
            "theirs first",
            vec![KUBES, OURS, OUR_RULE, KUBES_RULE],
            vec![],
            KubeProxy,
            "sent",
        ),
        (
            "theirs first but without a rule",
            vec![KUBES, OURS, OUR_RULE],
            vec![],
            Edgemesh,
            "forw",
        ),
        (
            "filtered",
            vec![OURS, KUBES, KUBES_RULE],
            vec![],
            KubeProxy,
            "sent",
        ),
        (
            "our jump is gone",
            vec![KUBES, OUR_RULE, KUBES_RULE],
            vec![],
            KubeProxy,
            "sent",
        ),
        (
            "refused by them",
            vec![KUBES],
            vec![KUBES_REFUSAL],
            KubeProxy,
            "refused by kube",
        ),
        (
            "a rule, but no jump",
            vec![OUR_RULE],
            vec![],
            Nobody,
            "no rule",
        ),
        ("nothing", vec![], vec![], Nobody, "no rule"),
    ] {
        let verdict = from_pods(&kernel(&nat, &filter), RUNS);
        assert_eq!(verdict.handler, handler, "{what}");
        assert!(
            verdict.outcome.starts_with(outcome),
            "{what}: {}",
            verdict.outcome
        );
    }
}

#[test]
fn the_place_of_both_jumps_and_the_rule_with_its_packets_are_told() {
    let kernel = kernel(&[OURS, KUBES, OUR_RULE, KUBES_RULE], &[]);
    let verdict = from_pods(&kernel, RUNS);
    assert_eq!(
        verdict.place.unwrap(),
        "iptables-nft PREROUTING: ours is rule 1, KUBE-SERVICES rule 2"
    );
    let rule = verdict.rule.unwrap();
    assert_eq!(
        rule.command,
        "iptables-nft -t nat -nvL EDGEMESH-PORTALS-CONTAINER 2"
    );
    assert_eq!(rule.packets, 3);
    assert!(rule.text.contains("default/web:http"));
    assert_eq!(verdict.notes, [""; 0]);
}

#[test]
fn the_host_has_a_hook_of_its_own() {
    let kernel = kernel(&[OURS, OUR_RULE], &[]);
    let verdict = verdict(OwnChain::Host, &web(), &kernel, RUNS);
    assert_eq!(
        (verdict.from.as_str(), verdict.handler),
        ("host", Handler::Nobody)
    );
    assert!(
        verdict
            .notes
            .iter()
            .any(|note| note.contains("its rule is missing"))
    );
}

#[test]
fn what_is_out_of_order_is_noted() {
    let behind = kernel(&[KUBES, OURS, OUR_RULE, KUBES_RULE], &[]);
    let notes = from_pods(&behind, RUNS).notes;
    assert!(notes[0].contains("behind KUBE-SERVICES"), "{notes:?}");
    let unled = kernel(&[KUBES, OUR_RULE, KUBES_RULE], &[]);
    let notes = from_pods(&unled, RUNS).notes;
    assert!(notes[0].contains("no jump leads"), "{notes:?}");
    let both = Kernel {
        nats: vec![
            inspected(Flavour::Nft, &[OURS, OUR_RULE], &[]),
            inspected(Flavour::Legacy, &[KUBES, KUBES_RULE], &[]),
        ],
        ..Kernel::default()
    };
    let notes = from_pods(&both, RUNS).notes;
    assert!(notes[0].contains("both flavours"), "{notes:?}");
}

#[test]
fn rules_of_an_agent_that_is_gone_refuse_unless_a_gate_lets_pass() {
    let without_gate = kernel(&[OURS, KUBES, OUR_RULE, KUBES_RULE], &[]);
    let verdict = from_pods(&without_gate, Agent::Silent);
    assert_eq!(verdict.handler, Handler::Edgemesh);
    assert!(
        verdict.outcome.contains("does not run"),
        "{}",
        verdict.outcome
    );
    assert!(verdict.notes[0].contains("cleanup"), "{:?}", verdict.notes);
    let with_gate = kernel(&[OURS, KUBES, GATE, OUR_RULE, KUBES_RULE], &[]);
    assert_eq!(
        from_pods(&with_gate, Agent::Silent).handler,
        Handler::KubeProxy
    );
    assert_eq!(from_pods(&with_gate, RUNS).handler, Handler::Edgemesh);
}

#[test]
fn what_the_kernel_sends_to_whom_is_told_with_its_counts() {
    let shared = kernel(&[OURS, INTO_CHAIN, TO_ENDPOINT, TO_AGENT], &[]);
    let verdict = from_pods(&shared, RUNS);
    assert_eq!(
        verdict.outcome,
        "sent to an endpoint by the kernel, or forwarded to one by the agent"
    );
    let sends: Vec<_> = verdict
        .sends
        .iter()
        .map(|sends| (sends.to.as_str(), sends.is_agent, sends.connections))
        .collect();
    assert_eq!(
        sends,
        [
            ("10.244.1.2:8080", false, Some(2)),
            ("169.254.96.16:20007", true, Some(1))
        ]
    );
    let of_gone = from_pods(&shared, Agent::Silent).outcome;
    assert!(of_gone.contains("does not run"), "{of_gone}");
    let alone = kernel(&[OURS, INTO_CHAIN, TO_ENDPOINT], &[]);
    for agent in [RUNS, Agent::Silent] {
        let outcome = from_pods(&alone, agent).outcome;
        assert_eq!(outcome, "sent to an endpoint by the kernel");
    }
}

#[test]
fn other_modes_of_kube_proxy_are_told_by_their_own_tables() {
    let mut ipvs = Kernel::default();
    ipvs.ipvs.insert(web());
    assert!(from_pods(&ipvs, RUNS).outcome.contains("IPVS"));
    let mut nft = Kernel::default();
    nft.nft
        .insert(web(), NftElement::Refuses("reject".to_owned()));
    let verdict = from_pods(&nft, RUNS);
    assert_eq!(verdict.handler, Handler::KubeProxy);
    assert!(verdict.outcome.contains("want of endpoints"));
}

#[test]
fn nat_of_others_that_comes_first_is_noted() {
    let mut kernel = kernel(&[OURS, OUR_RULE], &[]);
    kernel.chains.push(base("mine", "nat", -150));
    kernel.chains.push(base("mine", "filter", -200));
    kernel.chains.push(base("kube-proxy", "nat", -100));
    let notes = from_pods(&kernel, RUNS).notes;
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("mine chain (priority -150)"), "{notes:?}");
}

#[test]
fn a_rule_in_a_chain_of_its_address_is_told_with_the_gate_before_the_way_there() {
    const ENTRY: &str = "[3:180] -A EDGEMESH-PORTALS-CONTAINER -d 0.0.0.1/0.0.0.63 \
                         -j EDGEMESH-PORTALS-01\n";
    let by_address = OUR_RULE.replace("PORTALS-CONTAINER", "PORTALS-01");
    let nat = [OURS, KUBES, GATE, ENTRY, &by_address, KUBES_RULE];
    let running = from_pods(&kernel(&nat, &[]), RUNS);
    assert_eq!(running.handler, Handler::Edgemesh);
    let rule = running.rule.unwrap();
    assert_eq!(
        (rule.chain.as_str(), rule.place),
        ("EDGEMESH-PORTALS-01", 1)
    );
    assert!(rule.of_both);
    let silent = from_pods(&kernel(&nat, &[]), Agent::Silent);
    assert_eq!(silent.handler, Handler::KubeProxy);
    let in_the_hooks_chain = from_pods(&kernel(&[OURS, KUBES, OUR_RULE], &[]), RUNS);
    assert!(!in_the_hooks_chain.rule.unwrap().of_both);
}
