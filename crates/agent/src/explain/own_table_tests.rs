use std::collections::BTreeMap;
use std::time::Duration;

use edgemesh_catalog::Protocol;
use edgemesh_rules::{BaseChain, ChainFound, Flavour, Inspected, NatView, SharedFound};

use super::*;
use crate::explain::answer::Decision;
use crate::explain::judge::verdict;

const KUBE_PROXY: &str = "\
[5:300] -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
[2:120] -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \"default/web:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC-ABC
";
const RUNS: Agent = Agent::Runs(Some(Decision::Forward));

fn web() -> Frontend {
    Frontend {
        ip: "10.96.0.1".parse().unwrap(),
        protocol: Protocol::Tcp,
        port: 80,
    }
}

fn table() -> TableFound {
    let chain = |name: &str, place| ChainFound {
        name: name.to_owned(),
        priority: -110,
        place,
        shared_place: Some(place - 1),
    };
    let element = ElementFound {
        to: "169.254.96.16:20007".parse().unwrap(),
        to_agent: true,
        refused: false,
        comment: "default/web:http".to_owned(),
        text: "10.96.0.1 . tcp . 80 comment \"default/web:http\" : 169.254.96.16 . 20007"
            .to_owned(),
        packets: 4,
        shared: None,
    };
    TableFound {
        family: Family::V4,
        name: "edgemesh",
        open_for: Some(Duration::from_secs(2)),
        chains: BTreeMap::from([
            (OwnChain::Container, chain("portals-container", 5)),
            (OwnChain::Host, chain("portals-host", 6)),
        ]),
        portals: BTreeMap::from([(web(), element)]),
    }
}

/// Tables of ours before kube-proxy in iptables mode.
fn before_iptables(tables: &[TableFound]) -> Kernel {
    Kernel {
        nats: vec![Inspected {
            family: Family::V4,
            flavour: Flavour::Nft,
            nat: Ok(NatView::from_saved(KUBE_PROXY, "")),
        }],
        tables: tables.to_vec(),
        ..Kernel::default()
    }
}

fn from_pods(kernel: &Kernel, agent: Agent) -> Verdict {
    verdict(OwnChain::Container, &web(), kernel, agent)
}

#[test]
fn an_element_of_our_table_goes_before_all_of_iptables() {
    let verdict = from_pods(&before_iptables(&[table()]), RUNS);
    assert_eq!(verdict.handler, Handler::Edgemesh);
    assert_eq!(
        verdict.place.unwrap(),
        "nft table ip edgemesh, chain portals-container: hook prerouting at priority -110, \
         before KUBE-SERVICES (iptables-nft PREROUTING rule 1) at -100"
    );
    let rule = verdict.rule.unwrap();
    assert_eq!((rule.place, rule.packets), (5, 4));
    assert_eq!(rule.map.as_deref(), Some("ip edgemesh portals"));
    assert_eq!(
        rule.command,
        "nft get element ip edgemesh portals '{ 10.96.0.1 . tcp . 80 }'"
    );
    assert!(rule.text.contains("default/web:http"));
    assert_eq!(verdict.notes, [""; 0]);
}

#[test]
fn the_host_has_a_chain_of_its_own() {
    let verdict = verdict(OwnChain::Host, &web(), &before_iptables(&[table()]), RUNS);
    assert_eq!(
        verdict.place.unwrap(),
        "nft table ip edgemesh, chain portals-host: hook output at priority -110, no kube-proxy \
         behind it"
    );
    assert_eq!(verdict.rule.unwrap().place, 6);
}

#[test]
fn without_an_element_the_portal_is_kube_proxys() {
    let empty = TableFound {
        portals: BTreeMap::new(),
        ..table()
    };
    let filtered = Agent::Runs(Some(Decision::LeaveAlone));
    let verdict = from_pods(&before_iptables(&[empty]), filtered);
    assert_eq!(verdict.handler, Handler::KubeProxy);
    assert_eq!(verdict.notes, [""; 0]);
}

#[test]
fn kube_proxys_own_table_is_named_as_what_stands_behind() {
    let mut kernel = Kernel {
        tables: vec![table()],
        ..Kernel::default()
    };
    let theirs = BaseChain {
        table: "kube-proxy".to_owned(),
        name: "nat-prerouting".to_owned(),
        kind: "nat".to_owned(),
        hook: "prerouting",
        priority: -100,
    };
    kernel.chains.push((Family::V4, theirs));
    let place = from_pods(&kernel, RUNS).place.unwrap();
    assert!(
        place.ends_with("before table kube-proxy chain nat-prerouting at -100"),
        "{place}"
    );
}

#[test]
fn what_the_kernel_sends_to_endpoints_is_told_with_the_agents_part() {
    let endpoints = ["10.244.1.2:8080", "10.244.1.3:8080"].map(|to| to.parse().unwrap());
    let mut sharing = table();
    let shared = |among| SharedFound {
        chain: "among-3".to_owned(),
        among: Some(among),
        endpoints: endpoints.to_vec(),
        text: "10.96.0.1 . tcp . 80 comment \"default/web:http\" : jump among-3".to_owned(),
        packets: 9,
    };
    let told = |table: &TableFound| from_pods(&before_iptables(std::slice::from_ref(table)), RUNS);
    for (among, outcome, sends) in [
        (
            3,
            "sent to an endpoint by the kernel, or forwarded to one by the agent",
            &[None, None, Some(4)][..],
        ),
        (2, "sent to an endpoint by the kernel", &[None, None]),
    ] {
        for element in sharing.portals.values_mut() {
            element.shared = Some(shared(among));
        }
        let verdict = told(&sharing);
        assert_eq!(verdict.outcome, outcome);
        let counted: Vec<_> = verdict.sends.iter().map(|to| to.connections).collect();
        assert_eq!(counted, sends);
        let rule = verdict.rule.unwrap();
        assert_eq!((rule.place, rule.packets), (4, 9));
        assert_eq!(rule.map.as_deref(), Some("ip edgemesh shared"));
    }
    let mut single = table();
    for element in single.portals.values_mut() {
        element.to = endpoints[0];
        element.to_agent = false;
    }
    let verdict = told(&single);
    assert_eq!(verdict.outcome, "sent to an endpoint by the kernel");
    assert_eq!(verdict.sends, []);
}

#[test]
fn an_element_that_leads_to_the_refusal_port_refuses() {
    let mut refusing = table();
    for element in refusing.portals.values_mut() {
        element.refused = true;
    }
    let verdict = from_pods(&before_iptables(&[refusing]), RUNS);
    assert_eq!(verdict.outcome, "refused at once");
}

#[test]
fn a_table_whose_gate_is_closed_handles_nothing_and_that_is_noted() {
    let closed = TableFound {
        open_for: None,
        ..table()
    };
    let kernel = before_iptables(std::slice::from_ref(&closed));
    for (agent, advice) in [(RUNS, "status"), (Agent::Silent, "cleanup")] {
        let verdict = from_pods(&kernel, agent);
        assert_eq!(verdict.handler, Handler::KubeProxy);
        let [note] = &verdict.notes[..] else {
            panic!("{:?}", verdict.notes);
        };
        assert!(note.contains("lets everything pass"), "{note}");
        assert!(note.contains(advice), "{note}");
    }
    // Another agent has taken its place.
    let second = TableFound {
        name: "edgemesh-2",
        ..table()
    };
    let verdict = from_pods(&before_iptables(&[closed, second]), RUNS);
    assert!(verdict.place.unwrap().contains("ip edgemesh-2"));
}

#[test]
fn without_an_agent_the_elements_name_their_services() {
    let kernel = Kernel {
        tables: vec![table()],
        ..Kernel::default()
    };
    let named: Vec<String> = kernel.portals().into_values().collect();
    assert_eq!(named, ["default/web:http"]);
}

#[test]
fn what_nobody_takes_is_refused_by_the_table_that_outlives_the_agent() {
    let refused = BTreeMap::from([(web(), "default/web:http".to_owned())]);
    let alone = Kernel {
        refused,
        ..Kernel::default()
    };
    let of_killed = verdict(OwnChain::Host, &web(), &alone, Agent::Silent);
    assert_eq!(of_killed.handler, Handler::Nobody);
    assert_eq!(of_killed.outcome, "refused at once: nobody serves it");
    let place = of_killed.place.unwrap();
    assert!(place.contains("ip edgemesh-refuse portals"), "{place}");
    assert!(place.contains("hook output"), "{place}");
    assert!(of_killed.notes[0].contains("start the agent again"));
    let named: Vec<String> = alone.portals().into_values().collect();
    assert_eq!(named, ["default/web:http"]);

    let mut halted = alone.clone();
    let closed = TableFound {
        open_for: None,
        ..table()
    };
    halted.tables.push(closed);
    let of_halted = verdict(OwnChain::Container, &web(), &halted, Agent::Silent);
    assert_eq!(of_halted.handler, Handler::Nobody);
    assert_eq!(of_halted.notes.len(), 1, "{:?}", of_halted.notes);

    let served = Kernel {
        tables: vec![table()],
        ..alone.clone()
    };
    let of_running = verdict(OwnChain::Host, &web(), &served, RUNS);
    assert_eq!(of_running.handler, Handler::Edgemesh);
    let beside_kube_proxy = Kernel {
        refused: alone.refused,
        ..before_iptables(&[])
    };
    let of_kube_proxy = verdict(
        OwnChain::Container,
        &web(),
        &beside_kube_proxy,
        Agent::Silent,
    );
    assert_eq!(of_kube_proxy.handler, Handler::KubeProxy);
}
