//! What Prometheus is told of probes: how many, never who.

use edgemesh_reach::{Reach, Refused};

use super::figures::{counter, gauge};
use crate::metrics::{Figures, Sample};

impl Figures for Reach {
    fn samples(&self) -> Vec<Sample> {
        let peers = self.report();
        let direct = peers.iter().filter(|peer| peer.is_direct()).count();
        let mut all: Vec<Sample> = [("direct", direct), ("tunnel", peers.len() - direct)]
            .map(|(way, value)| {
                gauge(
                    "edgemesh_reach_peers",
                    "Peers with endpoints that answer probes, by how they are reached",
                    vec![("way", way.to_owned())],
                    value as u64,
                )
            })
            .into();
        let counters = self.counters();
        all.extend(
            [
                ("proved", counters.proved()),
                ("lost", counters.lost()),
                ("unsendable", counters.unsendable()),
            ]
            .map(|(outcome, value)| {
                counter(
                    "edgemesh_reach_probes",
                    "Probes of peers, by what came of them",
                    vec![("outcome", outcome.to_owned())],
                    value,
                )
            }),
        );
        all.push(counter(
            "edgemesh_reach_odd_answers",
            "Datagrams that looked like answers to probes and proved nothing",
            vec![],
            counters.odd(),
        ));
        all.push(counter(
            "edgemesh_reach_answered",
            "Probes of peers that were answered",
            vec![],
            counters.answered(),
        ));
        all.extend(Refused::ALL.map(|reason| {
            counter(
                "edgemesh_reach_refused",
                "Datagrams to the port for probes that were not answered, by reason",
                vec![("reason", reason.as_str().to_owned())],
                counters.refused(reason),
            )
        }));
        all
    }
}
