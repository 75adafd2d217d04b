//! What is said of the tunnel. Pure.

use super::finding::{Finding, fails, ok, warning};
use super::tunnel_facts::{TunnelFacts, TunnelPort};

const TOPIC: &str = "tunnel";

/// The findings; `facts` is none where the tunnel is off, and `agent_runs` tells whether an
/// agent is there that may have the ports.
pub(super) fn tunnel_findings(facts: Option<&TunnelFacts>, agent_runs: bool) -> Vec<Finding> {
    let Some(facts) = facts else {
        return vec![ok(
            TOPIC,
            "off: endpoints on other nodes are dialled from here (modules.edgeTunnel.enable)",
        )];
    };
    let mut all = vec![key(facts)];
    if !agent_runs {
        all.extend(facts.taken.iter().map(taken));
    }
    all.extend(relays(facts));
    all.extend(running(facts));
    all
}

fn taken(port: &TunnelPort) -> Finding {
    let TunnelPort {
        port,
        bound,
        key,
        is_needed,
    } = port;
    let says = format!("somebody has {port}/{bound}, which is {key}");
    let remedy = "stop it, or set that key to a port that is free and open in the firewall";
    if *is_needed {
        fails(TOPIC, says, remedy)
    } else {
        let says = format!("{says}: what peers move goes by QUIC unless this node can dial them");
        warning(TOPIC, says, remedy)
    }
}

fn key(facts: &TunnelFacts) -> Finding {
    match &facts.key {
        Ok(Some(key)) => ok(TOPIC, format!("this node's public key is {key}")),
        Ok(None) => ok(TOPIC, "the agent will make this node's key when it starts"),
        Err(problem) => fails(
            TOPIC,
            problem,
            "give --state-dir as the agent has it, and run this as the agent's user; a key that \
             is lost for good is made anew when its file and the MeshNode are deleted",
        ),
    }
}

fn relays(facts: &TunnelFacts) -> Vec<Finding> {
    if facts.is_relay && facts.relays.is_empty() {
        return vec![ok(TOPIC, "this node is the relay of the others")];
    }
    if facts.relays.is_empty() {
        return vec![ok(
            TOPIC,
            "no relay nodes: two nodes reach each other only where one can be dialled \
             (modules.edgeTunnel.relayNodes)",
        )];
    }
    let none_answers = facts.relays.iter().all(|(_, outcome)| outcome.is_err());
    facts
        .relays
        .iter()
        .map(|(node, outcome)| match outcome {
            Ok(address) => ok(
                TOPIC,
                format!("relay {node} takes connections at {address}"),
            ),
            Err(problems) => {
                let says = if problems.is_empty() {
                    format!("relay {node} has no advertiseAddress that could be tried")
                } else {
                    format!("relay {node} takes no connection: {}", problems.join("; "))
                };
                let remedy = if none_answers {
                    "let TCP to these ports out of this site and into theirs; without a relay \
                     nodes behind NATs can't find each other"
                } else {
                    "see whether its agent runs; the other relays take its part"
                };
                warning(TOPIC, says, remedy)
            }
        })
        .collect()
}

fn running(facts: &TunnelFacts) -> Vec<Finding> {
    let Some(report) = &facts.running else {
        return Vec::new();
    };
    let mut all = Vec::new();
    if let Some(problem) = &report.unpublished {
        all.push(warning(
            TOPIC,
            format!("this node's MeshNode can't be written: {problem}"),
            "run `edgemesh-agent crd | kubectl apply -f -`, and apply the agent's RBAC",
        ));
    }
    all.extend(report.refused.first().map(|first| {
        let more = report.refused.len() + report.more_refused - 1;
        let others = if more == 0 {
            String::new()
        } else {
            format!(", and {more} more")
        };
        warning(
            TOPIC,
            format!("{} is not believed: {}{others}", first.node, first.why),
            "`edgemesh-agent status` names them all",
        )
    }));
    let down: Vec<&str> = report
        .peers
        .iter()
        .filter(|peer| peer.way == "down")
        .map(|peer| peer.node.as_str())
        .collect();
    if !down.is_empty() {
        all.push(warning(
            TOPIC,
            format!("does not answer now: {}", down.join(", ")),
            "see whether their agents run, and what is between; connections go elsewhere meanwhile",
        ));
    }
    if all.is_empty() {
        all.push(ok(
            TOPIC,
            format!(
                "{} peers are believed, {} of them in touch",
                report.believed,
                report
                    .peers
                    .iter()
                    .filter(|peer| matches!(&*peer.way, "direct" | "relayed" | "unsettled"))
                    .count()
            ),
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::finding::Grade;
    use super::super::listeners::Bound;
    use super::*;
    use crate::tunnel::{PeerReport, RefusedReport, TunnelReport};

    fn good() -> TunnelFacts {
        TunnelFacts {
            key: Ok(None),
            taken: Vec::new(),
            is_relay: false,
            relays: vec![("cloud1".to_owned(), Ok(([203, 0, 113, 5], 20006).into()))],
            running: None,
        }
    }

    fn listen_port(bound: Bound) -> TunnelPort {
        TunnelPort {
            port: 20006,
            bound,
            key: "modules.edgeTunnel.listenPort",
            is_needed: bound == Bound::Udp,
        }
    }

    /// What is not ok.
    fn wrong(change: impl FnOnce(&mut TunnelFacts)) -> Vec<(Grade, String)> {
        let mut facts = good();
        change(&mut facts);
        let all = tunnel_findings(Some(&facts), false).into_iter();
        all.filter(|finding| finding.grade != Grade::Ok)
            .map(|finding| (finding.grade, finding.says))
            .collect()
    }

    #[test]
    fn a_node_whose_relay_answers_has_nothing_to_be_done() {
        assert_eq!(wrong(|_| ()), []);
        assert_eq!(tunnel_findings(None, false)[0].grade, Grade::Ok);
    }

    #[test]
    fn a_key_that_cannot_be_used_and_a_port_of_another_fail() {
        let found = wrong(|facts| {
            facts.key = Err("others can read it".to_owned());
            facts.taken = vec![listen_port(Bound::Udp), listen_port(Bound::TcpListening)];
        });
        let port = "somebody has 20006/udp, which is modules.edgeTunnel.listenPort";
        let lanes = "somebody has 20006/tcp, which is modules.edgeTunnel.listenPort: what peers \
                     move goes by QUIC unless this node can dial them";
        assert_eq!(
            found,
            [
                (Grade::Fails, "others can read it".to_owned()),
                (Grade::Fails, port.to_owned()),
                (Grade::Warning, lanes.to_owned()),
            ]
        );
    }

    #[test]
    fn ports_of_a_running_agent_are_its_own() {
        let mut facts = good();
        facts.taken = vec![listen_port(Bound::Udp)];
        let found = tunnel_findings(Some(&facts), true);
        assert!(found.iter().all(|finding| finding.grade == Grade::Ok));
    }

    #[test]
    fn a_relay_out_of_reach_is_a_warning_that_names_each_address() {
        let found = wrong(|facts| {
            let problems = vec!["203.0.113.5:20006: no answer within 3 s".to_owned()];
            facts.relays = vec![("cloud1".to_owned(), Err(problems))];
        });
        let says = "relay cloud1 takes no connection: 203.0.113.5:20006: no answer within 3 s";
        assert_eq!(found, [(Grade::Warning, says.to_owned())]);
    }

    #[test]
    fn what_ails_a_running_tunnel_is_told() {
        let found = wrong(|facts| {
            facts.running = Some(TunnelReport {
                unpublished: Some("forbidden".to_owned()),
                refused: vec![RefusedReport {
                    node: "edge-9".to_owned(),
                    public_key: String::new(),
                    reason: "NodeGone".to_owned(),
                    why: "there is no Node of that name".to_owned(),
                }],
                more_refused: 2,
                peers: vec![PeerReport {
                    node: "edge-2".to_owned(),
                    public_key: String::new(),
                    way: "down".to_owned(),
                    by: None,
                    round_trip_microseconds: None,
                    streams: 0,
                    by_tcp: 0,
                }],
                ..TunnelReport::default()
            });
        });
        let says: Vec<&str> = found.iter().map(|(_, says)| says.as_str()).collect();
        assert_eq!(
            says,
            [
                "this node's MeshNode can't be written: forbidden",
                "edge-9 is not believed: there is no Node of that name, and 2 more",
                "does not answer now: edge-2",
            ]
        );
    }
}
