//! The tunnel's part of a status report as text. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::moment::length;
use crate::text::{Paragraph, count, grouped, mebibytes};
use crate::tunnel::{PeerReport, ReachReport, TunnelReport};

/// As many peers, and as many of those that are not believed, are shown.
const MOST_SHOWN: usize = 10;

/// Writes it, what is wrong in capitals.
pub(super) fn write(page: &mut Paragraph, tunnel: &TunnelReport) {
    page.line("tunnel", &summary(tunnel));
    if let Some(why) = &tunnel.unpublished {
        page.line("  UNPUBLISHED", &format!("this node's MeshNode: {why}"));
    }
    // Whoever is in use or in trouble first.
    let mut peers: Vec<&PeerReport> = tunnel.peers.iter().collect();
    peers.sort_by_key(|peer| (peer.way != "down", peer.streams == 0, peer.way == "idle"));
    for peer in peers.iter().take(MOST_SHOWN) {
        page.line("", &in_words(peer));
    }
    let more = tunnel.more_peers + peers.len().saturating_sub(MOST_SHOWN);
    if more > 0 {
        page.line("", &format!("and {} more", grouped(more as u64)));
    }
    if tunnel.probed > 0 {
        let summary = format!(
            "{} of {} with endpoints reached without the tunnel",
            grouped(tunnel.direct as u64),
            count(tunnel.probed as u64, "peer", "peers"),
        );
        page.line("  direct", &summary);
    }
    for reach in tunnel.reach.iter().take(MOST_SHOWN) {
        page.line("", &reach_in_words(reach));
    }
    let more = tunnel.reach.len().saturating_sub(MOST_SHOWN);
    if more > 0 {
        page.line("", &format!("and {more} more addresses"));
    }
    for refused in tunnel.refused.iter().take(MOST_SHOWN) {
        page.line(
            "  NOT BELIEVED",
            &format!("{}: {}", refused.node, refused.why),
        );
    }
    let more = tunnel.more_refused + tunnel.refused.len().saturating_sub(MOST_SHOWN);
    if more > 0 {
        page.line("  NOT BELIEVED", &format!("{} more", grouped(more as u64)));
    }
}

fn summary(tunnel: &TunnelReport) -> String {
    let mut ways: BTreeMap<&str, u64> = BTreeMap::new();
    for peer in &tunnel.peers {
        *ways.entry(peer.way.as_str()).or_default() += 1;
    }
    let ways: Vec<String> = ways
        .iter()
        .filter(|(way, _)| **way != "idle")
        .map(|(way, number)| format!("{number} {way}"))
        .collect();
    let ways = if ways.is_empty() {
        "none in use".to_owned()
    } else {
        ways.join(", ")
    };
    format!(
        "{}: {ways}; {} served for others, {} to others, {} in, {} out",
        count(tunnel.believed as u64, "peer", "peers"),
        count(tunnel.streams_in, "stream", "streams"),
        grouped(tunnel.streams_out),
        mebibytes(tunnel.bytes_in),
        mebibytes(tunnel.bytes_out),
    )
}

fn in_words(peer: &PeerReport) -> String {
    let mut streams = count(peer.streams as u64, "stream", "streams");
    if peer.by_tcp > 0 {
        streams.push_str(&format!(", {} of them by tcp", peer.by_tcp));
    }
    let by = peer.by.as_deref().unwrap_or("an unknown way");
    let way = match peer.way.as_str() {
        "direct" => format!("direct to {by}"),
        "relayed" => format!("relayed by {by}"),
        "down" => "DOWN, it does not answer".to_owned(),
        other => other.to_owned(),
    };
    let round_trip = peer
        .round_trip_microseconds
        .map(|micros| format!(", {}", milliseconds(Duration::from_micros(micros))))
        .unwrap_or_default();
    format!("{}: {way}{round_trip}, {streams}", peer.node)
}

fn reach_in_words(reach: &ReachReport) -> String {
    let round_trip = reach
        .round_trip_microseconds
        .map(|micros| format!(", {}", milliseconds(Duration::from_micros(micros))))
        .unwrap_or_default();
    format!(
        "{}: {} at {} for {}{round_trip}: {}",
        reach.node,
        reach.way,
        reach.address,
        length(Duration::from_secs(reach.seconds)),
        reach.why
    )
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::RefusedReport;

    fn peer(node: &str, way: &str, by: Option<&str>, streams: usize) -> PeerReport {
        PeerReport {
            node: node.to_owned(),
            public_key: "key".to_owned(),
            way: way.to_owned(),
            by: by.map(str::to_owned),
            round_trip_microseconds: by.map(|_| 31_250),
            streams,
            by_tcp: 0,
        }
    }

    fn written(tunnel: &TunnelReport) -> String {
        let mut page = Paragraph::new(14);
        write(&mut page, tunnel);
        page.finish()
    }

    #[test]
    fn each_peer_is_told_with_its_path_those_that_are_down_first() {
        let tunnel = TunnelReport {
            believed: 1234,
            peers: vec![
                peer("cloud1", "direct", Some("203.0.113.5:20006"), 12),
                peer("edge2", "relayed", Some("http://203.0.113.5:20006/"), 1),
                peer("edge3", "down", None, 0),
                peer("edge4", "idle", None, 0),
            ],
            streams_in: 1,
            streams_out: 12,
            bytes_in: 3 << 20,
            ..TunnelReport::default()
        };
        assert_eq!(
            written(&tunnel),
            "\
tunnel        1,234 peers: 1 direct, 1 down, 1 relayed; 1 stream served for
              others, 12 to others, 3 MiB in, 0 MiB out
              edge3: DOWN, it does not answer, 0 streams
              cloud1: direct to 203.0.113.5:20006, 31.2 ms, 12 streams
              edge2: relayed by http://203.0.113.5:20006/, 31.2 ms, 1 stream
              edge4: idle, 0 streams
"
        );
    }

    #[test]
    fn peers_that_need_no_tunnel_are_told_with_their_proof_and_others_with_what_is_missing() {
        let reach = |node: &str, way: &str, why: &str, round_trip| ReachReport {
            node: node.to_owned(),
            address: "10.244.1.1".to_owned(),
            networks: vec!["10.244.1.0/24".to_owned()],
            way: way.to_owned(),
            why: why.to_owned(),
            seconds: 90,
            round_trip_microseconds: round_trip,
        };
        let tunnel = TunnelReport {
            direct: 1,
            probed: 2,
            reach: vec![
                reach("cloud2", "direct", "it proves its key there", Some(400)),
                reach("edge1", "tunnel", "no answer", None),
            ],
            ..TunnelReport::default()
        };
        let text = written(&tunnel);
        let has = |line: &str| assert!(text.contains(line), "{text}");
        has("  direct      1 of 2 peers with endpoints reached without the tunnel\n");
        has("cloud2: direct at 10.244.1.1 for 1 min 30 s, 0.4 ms: it proves its\n");
        has("edge1: tunnel at 10.244.1.1 for 1 min 30 s: no answer");
    }

    #[test]
    fn streams_that_go_by_tcp_are_told() {
        let mut busy = peer("cloud1", "direct", Some("203.0.113.5:20006"), 12);
        busy.by_tcp = 2;
        let tunnel = TunnelReport {
            peers: vec![busy],
            ..TunnelReport::default()
        };
        let text = written(&tunnel);
        let in_one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            in_one_line.contains("12 streams, 2 of them by tcp"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_believed_is_told_with_what_to_do() {
        let tunnel = TunnelReport {
            unpublished: Some("the API server forbids it".to_owned()),
            refused: vec![RefusedReport {
                node: "edge9".to_owned(),
                public_key: "key".to_owned(),
                reason: "NodeGone".to_owned(),
                why: "there is no Node of that name".to_owned(),
            }],
            ..TunnelReport::default()
        };
        let text = written(&tunnel);
        assert!(text.contains("NOT BELIEVED"), "{text}");
        assert!(text.contains("edge9: there is no Node"), "{text}");
        assert!(text.contains("UNPUBLISHED"), "{text}");
    }

    #[test]
    fn many_peers_do_not_fill_the_screen() {
        let tunnel = TunnelReport {
            peers: (0..100)
                .map(|n| peer(&format!("edge{n}"), "idle", None, 0))
                .collect(),
            more_peers: 900,
            ..TunnelReport::default()
        };
        let text = written(&tunnel);
        assert!(text.lines().count() < 15, "{text}");
        assert!(text.contains("and 990 more"), "{text}");
    }
}
