//! What Prometheus is told of the tunnel: how many, never who, for peers come and go.

use std::collections::BTreeMap;

use edgemesh_tunnel::{DatagramDropped, LinkStatus, OpenFault, Path, PeerStatus, Tunnel};
use edgemesh_wire::Answer;

use crate::metrics::{Figures, Kind, Sample};

/// How the ways to peers may be.
const WAYS: [&str; 6] = [
    "direct",
    "relayed",
    "unsettled",
    "connecting",
    "down",
    "idle",
];

impl Figures for Tunnel {
    fn samples(&self) -> Vec<Sample> {
        let mut all = peers(self);
        all.extend(streams(self));
        all.extend(traffic(self));
        all.extend(tcp_carrier(self));
        all.extend(trouble(self));
        all.extend(relay(self));
        all
    }
}

fn peers(tunnel: &Tunnel) -> Vec<Sample> {
    let statuses = tunnel.peers();
    let mut ways: BTreeMap<&str, usize> = BTreeMap::new();
    for status in &statuses {
        *ways.entry(way(status)).or_default() += 1;
    }
    let mut all: Vec<Sample> = WAYS
        .iter()
        .map(|way| {
            gauge(
                "edgemesh_tunnel_peers",
                "Peers that this node has had to do with, by the way to them now",
                vec![("way", (*way).to_owned())],
                ways.get(way).copied().unwrap_or(0) as u64,
            )
        })
        .collect();
    all.push(gauge(
        "edgemesh_tunnel_peers_believed",
        "Nodes whose MeshNode is believed, so that they are reached through the tunnel",
        vec![],
        tunnel.known_peers() as u64,
    ));
    all.push(gauge(
        "edgemesh_tunnel_peers_refused",
        "MeshNodes that are not believed; `edgemesh-agent status` tells why",
        vec![],
        tunnel.refused().len() as u64,
    ));
    all
}

/// The word for how a peer is reached.
pub(super) fn way(status: &PeerStatus) -> &'static str {
    match &status.link {
        LinkStatus::Idle => "idle",
        LinkStatus::Connecting => "connecting",
        LinkStatus::Down => "down",
        LinkStatus::Up { path, .. } => match path {
            Some(Path::Direct(_)) => "direct",
            Some(Path::Relayed(_)) => "relayed",
            None => "unsettled",
        },
    }
}

fn streams(tunnel: &Tunnel) -> Vec<Sample> {
    let counters = tunnel.counters();
    let going = [
        ("in", counters.streams_in()),
        ("out", counters.streams_out()),
    ];
    let mut all: Vec<Sample> = going
        .map(|(direction, value)| {
            gauge(
                "edgemesh_tunnel_streams",
                "Connections and flows that go on; in are those that this node's exit serves",
                vec![("direction", direction.to_owned())],
                value,
            )
        })
        .into();
    all.push(counter(
        "edgemesh_tunnel_streams_opened",
        "Connections and flows opened to endpoints of other nodes",
        vec![],
        counters.opened(),
    ));
    all.push(counter(
        "edgemesh_tunnel_streams_resumed",
        "Connections opened to other nodes that went on by another QUIC connection, after the peer was silent",
        vec![],
        counters.resumed(),
    ));
    all.push(gauge(
        "edgemesh_tunnel_kept_bytes",
        "Bytes kept of connections that go on, to be sent again after a silence",
        vec![],
        counters.bytes_kept(),
    ));
    all.extend(OpenFault::ALL.map(|fault| {
        counter(
            "edgemesh_tunnel_opens_failed",
            "Connections and flows that were not to be had, by reason",
            vec![("reason", fault.as_str().to_owned())],
            counters.open_failed(fault),
        )
    }));
    all.extend(Answer::ALL.map(|answer| {
        counter(
            "edgemesh_tunnel_requests",
            "Requests of peers to this node's exit, by its answer",
            vec![("answer", answer.as_str().to_owned())],
            counters.answered(answer),
        )
    }));
    all
}

fn traffic(tunnel: &Tunnel) -> Vec<Sample> {
    let counters = tunnel.counters();
    let directions = |name, help, came, went| {
        [("in", came), ("out", went)].map(|(direction, value)| {
            counter(name, help, vec![("direction", direction.to_owned())], value)
        })
    };
    let mut all: Vec<Sample> = directions(
        "edgemesh_tunnel_bytes",
        "Bytes of TCP connections carried; in is from peers",
        counters.bytes_in(),
        counters.bytes_out(),
    )
    .into();
    all.extend(directions(
        "edgemesh_tunnel_datagrams",
        "Datagrams of UDP flows carried; in is from peers",
        counters.datagrams_in(),
        counters.datagrams_out(),
    ));
    all.extend(DatagramDropped::ALL.map(|reason| {
        counter(
            "edgemesh_tunnel_datagrams_dropped",
            "Datagrams of UDP flows dropped, by reason; lost are those that peers sent and that did not come",
            vec![("reason", reason.as_str().to_owned())],
            counters.datagrams_dropped(reason),
        )
    }));
    all
}

fn tcp_carrier(tunnel: &Tunnel) -> Vec<Sample> {
    let counters = tunnel.counters();
    vec![
        gauge(
            "edgemesh_tunnel_tcp_connections",
            "TCP connections with peers by which the bytes of a connection go that moves much",
            vec![],
            counters.lanes(),
        ),
        counter(
            "edgemesh_tunnel_tcp_connections_made",
            "TCP connections with peers made for connections that moved much",
            vec![],
            counters.lanes_made(),
        ),
        counter(
            "edgemesh_tunnel_tcp_connections_lost",
            "TCP connections with peers that broke; what went by them went on by QUIC",
            vec![],
            counters.lanes_lost(),
        ),
        counter(
            "edgemesh_tunnel_tcp_connections_failed",
            "Attempts to make a TCP connection with a peer that failed, by either side",
            vec![],
            counters.lanes_failed(),
        ),
        counter(
            "edgemesh_tunnel_tcp_bytes",
            "Bytes that went or came by TCP connections with peers",
            vec![],
            counters.lane_bytes(),
        ),
    ]
}

fn trouble(tunnel: &Tunnel) -> Vec<Sample> {
    let counters = tunnel.counters();
    vec![
        counter(
            "edgemesh_tunnel_connections",
            "Connections made with peers, whoever began",
            vec![],
            counters.connected(),
        ),
        counter(
            "edgemesh_tunnel_connects_failed",
            "Attempts to reach a peer that failed",
            vec![],
            counters.connects_failed(),
        ),
        counter(
            "edgemesh_tunnel_strangers",
            "Handshakes with those who proved a key that is no peer's",
            vec![],
            counters.strangers(),
        ),
        counter(
            "edgemesh_tunnel_handshakes_refused",
            "Handshakes refused because too many were under way",
            vec![],
            counters.handshakes_refused(),
        ),
        counter(
            "edgemesh_tunnel_offences",
            "Frames, requests and streams of peers that broke the protocol",
            vec![],
            counters.offences(),
        ),
    ]
}

fn relay(tunnel: &Tunnel) -> Vec<Sample> {
    let relay = tunnel.relay_counters();
    let refused = [
        ("stranger", relay.denied()),
        ("peer_no_more", relay.cut()),
        ("too_many", relay.turned_away()),
        ("too_many_observers", relay.observers_turned_away()),
    ];
    let mut all: Vec<Sample> = refused
        .map(|(reason, value)| {
            counter(
                "edgemesh_relay_refused",
                "Connections to this node's relay that were refused or cut, by reason",
                vec![("reason", reason.to_owned())],
                value,
            )
        })
        .into();
    all.extend(
        [("in", relay.bytes_in()), ("out", relay.bytes_out())].map(|(direction, value)| {
            counter(
                "edgemesh_relay_bytes",
                "Bytes carried by this node's relay; in is from its clients",
                vec![("direction", direction.to_owned())],
                value,
            )
        }),
    );
    all.push(gauge(
        "edgemesh_relay_clients",
        "Peers connected with this node's relay",
        vec![],
        relay.clients() as u64,
    ));
    all.push(counter(
        "edgemesh_relay_packets_dropped",
        "Packets for a client of this node's relay that is not there or too slow",
        vec![],
        relay.packets_dropped(),
    ));
    all.push(counter(
        "edgemesh_relay_slowed_down",
        "Clients of this node's relay that were slowed down, for they sent more than one may",
        vec![],
        relay.slowed_down(),
    ));
    all
}

pub(super) fn counter(
    name: &'static str,
    help: &'static str,
    labels: Vec<(&'static str, String)>,
    value: u64,
) -> Sample {
    Sample {
        name,
        help,
        kind: Kind::Counter,
        labels,
        value: value as f64,
    }
}

pub(super) fn gauge(
    name: &'static str,
    help: &'static str,
    labels: Vec<(&'static str, String)>,
    value: u64,
) -> Sample {
    Sample {
        kind: Kind::Gauge,
        ..counter(name, help, labels, value)
    }
}
