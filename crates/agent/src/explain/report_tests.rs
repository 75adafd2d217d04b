use edgemesh_rules::{Family, Flavour, Inspected, NatView};

use super::*;
use crate::explain::screen;

const NAT: &str = "\
[5:300] -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
[2:120] -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \"default/web:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC-ABC
[2:120] -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \"default/web:https cluster IP\" -m tcp --dport 443 -j KUBE-SVC-DEF
";

fn kernel() -> Kernel {
    Kernel {
        nats: vec![Inspected {
            family: Family::V4,
            flavour: Flavour::Nft,
            nat: Ok(NatView::from_saved(NAT, "")),
        }],
        ..Kernel::default()
    }
}

fn without_agent(query: &str) -> ExplainReport {
    let query = query.parse().unwrap();
    report(&query, None, Some("no agent answers".to_owned()), &kernel())
}

fn answered(answer: &AgentAnswer) -> ExplainReport {
    report(&"web".parse().unwrap(), Some(answer), None, &kernel())
}

#[test]
fn without_an_agent_rules_tell_of_a_service_by_name_or_address() {
    for (query, ports) in [("web", 2), ("default/web:http", 1), ("10.96.0.1:443", 1)] {
        let report = without_agent(query);
        assert_eq!(report.services.len(), 1, "{query}");
        assert_eq!(report.services[0].ports.len(), ports, "{query}");
        assert_eq!(report.services[0].kind, None);
    }
    let text = screen(&without_agent("web"));
    assert!(text.starts_with("NO AGENT"), "{text}");
    assert!(
        text.contains("host      KUBE-PROXY: sent to an endpoint"),
        "{text}"
    );
    assert!(text.contains("pods      NOBODY"), "{text}");
}

#[test]
fn without_an_agent_too_a_wrong_name_gets_near_ones() {
    let report = without_agent("wep");
    assert!(report.services.is_empty());
    assert_eq!(report.near, ["default/web"]);
    let text = screen(&report);
    assert!(text.contains("Did you mean default/web?"), "{text}");
}

#[test]
fn an_agent_without_a_plan_says_so() {
    let report = answered(&AgentAnswer::default());
    assert!(report.without_agent.unwrap().contains("no plan yet"));
    assert_eq!(report.services[0].name, "default/web");
}

#[test]
fn a_service_that_the_agent_does_not_know_is_told_by_its_rules() {
    let answer = AgentAnswer {
        planned: true,
        ..AgentAnswer::default()
    };
    let report = answered(&answer);
    assert_eq!(report.services[0].name, "default/web");
    assert_eq!(report.services[0].ports[0].portals[0].decision, None);
}

#[test]
fn a_headless_service_is_nobodys_and_says_why() {
    let answer = AgentAnswer {
        planned: true,
        services: vec![ServiceExplained {
            name: "default/web".to_owned(),
            kind: "ClusterIP".to_owned(),
            cluster_ips: vec![],
            left_alone: Some("headless (clusterIP: None)".to_owned()),
            ports: vec![PortExplained {
                name: "default/web:http".to_owned(),
                protocol: "tcp".to_owned(),
                port: 80,
                left_alone: Some("headless (clusterIP: None)".to_owned()),
                affinity_seconds: None,
                portals: vec![],
            }],
            other_ports: vec![],
        }],
        ..AgentAnswer::default()
    };
    let text = screen(&answered(&answer));
    assert!(
        text.contains("left alone    by the agent: headless"),
        "{text}"
    );
    assert!(text.contains("nobody: there is no ClusterIP"), "{text}");
}
