//! The keys of `modules.edgeTunnel`.

use super::key::{FOUND_OUT, Key, honoured, not_honoured};
use super::readers::{AbsolutePath, COUNT, PORT, SECONDS};
use super::tunnel_addresses::{OwnAddress, PortOr, RelayNodes};
use super::values::{Bool, List, OneOf, Text, Whole};

const NO_RENDEZVOUS: &str = "peers are those of the cluster's MeshNodes";
const OWN_KEYS: &str = "each node has a key of its own, made at its first start, and proves it to \
                        every peer; nothing is shared by all nodes";

const STREAMS: Whole<usize> = Whole {
    what: "a number of streams",
    least: 0,
    most: i32::MAX as usize,
};

pub(super) static EDGE_TUNNEL: &[Key] = &[
    honoured!(EdgeMesh Restart "modules.edgeTunnel.enable", edge_tunnel.enable = Bool,
        "Whether endpoints on nodes whose agents have a tunnel too are reached through it, and this \
         node's through this one. If not, every endpoint is dialled by this node itself."),
    honoured!(EdgeMesh Restart "modules.edgeTunnel.listenPort", edge_tunnel.listen_port = PORT,
        "UDP port of the tunnel, and TCP port of `tcpCarrier`, on all addresses. Who cannot prove the \
         key of a known node is told nothing."),
    honoured!(Own Restart "modules.edgeTunnel.advertiseAddress",
        edge_tunnel.advertise = List(OwnAddress),
        "Addresses at which other nodes reach this one, beside those of its interfaces and what \
         relays see it come from: the public address of a cloud node, a forwarded port. Without a \
         port it is `listenPort`. At most 16."),
    honoured!(EdgeMesh Restart "modules.edgeTunnel.relayNodes", edge_tunnel.relay_nodes = RelayNodes,
        "The nodes that carry, encrypted, what passes between nodes that cannot reach each other, and \
         where others reach them. Whose node is named here is a relay. Without a port it is \
         `relayListenPort`. Names are not taken: who could not reach the cluster's DNS needs a \
         relay most."),
    honoured!(Own Restart "modules.edgeTunnel.relayListenPort",
        edge_tunnel.relay_listen_port = PortOr("listenPort"),
        "TCP port of the relay, where this node is one. 443 or 80 passes the strictest firewalls."),
    honoured!(Own Restart "modules.edgeTunnel.addressDiscoveryPort",
        edge_tunnel.address_discovery_port = PORT,
        "UDP port of a relay node at which others learn under which address they are seen, without \
         which two nodes behind NATs find no direct way to each other."),
    honoured!(Own Restart "modules.edgeTunnel.keepAlive", edge_tunnel.keep_alive = Bool,
        "Whether a connection with a peer, once made, stays open when nothing uses it. The next \
         one to use it then starts at once, for a packet in every 1.5 s."),
    honoured!(Own Restart "modules.edgeTunnel.tcpCarrier",
        edge_tunnel.tcp_carrier = OneOf(&[("auto", true), ("off", false)]),
        "Whether a connection that moves much may go by a TCP connection with TLS 1.3 of its own \
         between the two nodes, where one can dial the other (`listenPort`, TCP). It begins and \
         ends by QUIC, and goes on by QUIC without losing a byte when the TCP connection is \
         lost. With off that port is not listened at."),
    honoured!(EdgeMesh Restart "modules.edgeTunnel.tunnelLimitConfig.enable",
        edge_tunnel.limits.enable = Bool,
        "Whether the four limits below apply. If not, only the limit on open files does."),
    honoured!(EdgeMesh Restart "modules.edgeTunnel.tunnelLimitConfig.tunnelBaseStreamIn",
        edge_tunnel.limits.streams_in = STREAMS,
        "TCP connections and UDP flows of other nodes that this one serves at a time. One more is \
         told so, and goes to another endpoint if there is one."),
    honoured!(EdgeMesh Restart "modules.edgeTunnel.tunnelLimitConfig.tunnelBaseStreamOut",
        edge_tunnel.limits.streams_out = STREAMS,
        "TCP connections and UDP flows that this node has open to others at a time."),
    honoured!(EdgeMesh Restart "modules.edgeTunnel.tunnelLimitConfig.tunnelPeerBaseStreamIn",
        edge_tunnel.limits.streams_in_per_peer = STREAMS,
        "The same as `tunnelBaseStreamIn`, for one other node."),
    honoured!(EdgeMesh Restart "modules.edgeTunnel.tunnelLimitConfig.tunnelPeerBaseStreamOut",
        edge_tunnel.limits.streams_out_per_peer = STREAMS,
        "The same as `tunnelBaseStreamOut`, for one other node."),
    not_honoured!("modules.edgeTunnel.psk.enable", Bool, "true", OWN_KEYS, unless "false"),
    not_honoured!(
        "modules.edgeTunnel.psk.path",
        AbsolutePath,
        "/etc/edgemesh/psk",
        OWN_KEYS
    ),
    not_honoured!("modules.edgeTunnel.transport",
        OneOf(&[("tcp", "tcp"), ("ws", "ws"), ("quic", "quic")]),
        "tcp",
        "the tunnel is QUIC over UDP, and goes by a relay's HTTP port where UDP does not pass",
        unless "\"quic\""),
    not_honoured!("modules.edgeTunnel.mode", Text("text"), "", FOUND_OUT),
    not_honoured!(
        "modules.edgeTunnel.nodeName",
        Text("text"),
        "",
        "the node's name is that of --node-name, NODE_NAME or the host"
    ),
    not_honoured!(
        "modules.edgeTunnel.rendezvous",
        Text("text"),
        "EDGEMESH_PLAYGOUND",
        NO_RENDEZVOUS
    ),
    not_honoured!(
        "modules.edgeTunnel.maxCandidates",
        COUNT,
        "15",
        "the relays are those of relayNodes; no others are looked for"
    ),
    not_honoured!(
        "modules.edgeTunnel.heartbeatPeriod",
        SECONDS,
        "120",
        NO_RENDEZVOUS
    ),
    not_honoured!(
        "modules.edgeTunnel.finderPeriod",
        SECONDS,
        "60",
        NO_RENDEZVOUS
    ),
    not_honoured!("modules.edgeTunnel.enableIpfsLog", Bool, "false",
        "the agent has no libp2p; see commonConfig.log.level", unless "false"),
    not_honoured!("modules.edgeTunnel.configPath", Text("text"), "", FOUND_OUT),
    not_honoured!("modules.edgeTunnel.listenInterfaces",
        Text("names of network devices, or *"),
        "*",
        "the tunnel listens on all addresses",
        unless "\"*\""),
    not_honoured!(
        "modules.edgeTunnel.extraFilteredInterfaces",
        Text("names of network devices"),
        "",
        "which addresses lead to this node is found out by trying"
    ),
    not_honoured!("modules.edgeTunnel.metricConfig.enable", Bool, "false",
        "metrics are served at commonConfig.admin.address", unless "false"),
    not_honoured!(
        "modules.edgeTunnel.metricConfig.port",
        PORT,
        "9999",
        "metrics are served at commonConfig.admin.address"
    ),
];
