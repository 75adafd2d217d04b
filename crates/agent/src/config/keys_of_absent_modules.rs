//! Keys of EdgeMesh's modules that this agent doesn't have. They are checked as EdgeMesh
//! would, so that a file stays good for both, and named in a warning where they are set.

use super::key::{Key, not_honoured};
use super::keys::{FOUND_OUT, PORT};
use super::readers::{AbsolutePath, Cidr, RelayNodes};
use super::values::{Anything, Bool, List, OneOf, Text, Whole};

const NO_DNS: &str = "the agent answers no DNS queries; names are the cluster DNS's business";
const NO_TUNNEL: &str = "there is no tunnel; endpoints on other nodes are dialled directly";
const NO_CNI: &str = "the agent doesn't set up pod networks";

const COUNT: Whole<i32> = Whole {
    what: "a number",
    least: 0,
    most: i32::MAX,
};
const SECONDS: Whole<i32> = Whole {
    what: "a number of seconds",
    least: 0,
    most: i32::MAX,
};

pub(super) static EDGE_DNS: &[Key] = &[
    not_honoured!("modules.edgeDNS.enable", Bool, "false", NO_DNS, unless "false"),
    not_honoured!("modules.edgeDNS.kubeAPIConfig", Anything, "", FOUND_OUT),
    not_honoured!(
        "modules.edgeDNS.listenInterface",
        Text("the name of a network device"),
        "",
        NO_DNS
    ),
    not_honoured!("modules.edgeDNS.listenPort", PORT, "53", NO_DNS),
    not_honoured!("modules.edgeDNS.cacheDNS.enable", Bool, "false", NO_DNS, unless "false"),
    not_honoured!("modules.edgeDNS.cacheDNS.autoDetect", Bool, "true", NO_DNS),
    not_honoured!(
        "modules.edgeDNS.cacheDNS.upstreamServers",
        List(Text("an address")),
        "",
        NO_DNS
    ),
    not_honoured!("modules.edgeDNS.cacheDNS.cacheTTL", SECONDS, "30", NO_DNS),
];

pub(super) static EDGE_TUNNEL: &[Key] = &[
    not_honoured!("modules.edgeTunnel.enable", Bool, "false", NO_TUNNEL, unless "false"),
    not_honoured!("modules.edgeTunnel.mode", Text("text"), "", FOUND_OUT),
    not_honoured!("modules.edgeTunnel.nodeName", Text("text"), "", NO_TUNNEL),
    not_honoured!("modules.edgeTunnel.listenPort", PORT, "20006", NO_TUNNEL),
    not_honoured!(
        "modules.edgeTunnel.transport",
        OneOf(&[("tcp", "tcp"), ("ws", "ws"), ("quic", "quic")]),
        "tcp",
        NO_TUNNEL
    ),
    not_honoured!(
        "modules.edgeTunnel.rendezvous",
        Text("text"),
        "EDGEMESH_PLAYGOUND",
        NO_TUNNEL
    ),
    not_honoured!("modules.edgeTunnel.relayNodes", RelayNodes, "", NO_TUNNEL),
    not_honoured!("modules.edgeTunnel.enableIpfsLog", Bool, "false",
        "the agent has no libp2p; see commonConfig.log.level", unless "false"),
    not_honoured!("modules.edgeTunnel.maxCandidates", COUNT, "15", NO_TUNNEL),
    not_honoured!(
        "modules.edgeTunnel.heartbeatPeriod",
        SECONDS,
        "120",
        NO_TUNNEL
    ),
    not_honoured!("modules.edgeTunnel.finderPeriod", SECONDS, "60", NO_TUNNEL),
    not_honoured!("modules.edgeTunnel.psk.enable", Bool, "true", NO_TUNNEL, unless "false"),
    not_honoured!(
        "modules.edgeTunnel.psk.path",
        AbsolutePath,
        "/etc/edgemesh/psk",
        NO_TUNNEL
    ),
    not_honoured!("modules.edgeTunnel.tunnelLimitConfig.enable", Bool, "true", NO_TUNNEL, unless "false"),
    not_honoured!(
        "modules.edgeTunnel.tunnelLimitConfig.tunnelBaseStreamIn",
        COUNT,
        "10240",
        NO_TUNNEL
    ),
    not_honoured!(
        "modules.edgeTunnel.tunnelLimitConfig.tunnelBaseStreamOut",
        COUNT,
        "10240",
        NO_TUNNEL
    ),
    not_honoured!(
        "modules.edgeTunnel.tunnelLimitConfig.tunnelPeerBaseStreamIn",
        COUNT,
        "1024",
        NO_TUNNEL
    ),
    not_honoured!(
        "modules.edgeTunnel.tunnelLimitConfig.tunnelPeerBaseStreamOut",
        COUNT,
        "1024",
        NO_TUNNEL
    ),
    not_honoured!("modules.edgeTunnel.configPath", Text("text"), "", FOUND_OUT),
    not_honoured!(
        "modules.edgeTunnel.listenInterfaces",
        Text("names of network devices, or *"),
        "*",
        NO_TUNNEL
    ),
    not_honoured!(
        "modules.edgeTunnel.extraFilteredInterfaces",
        Text("names of network devices"),
        "",
        NO_TUNNEL
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

pub(super) static EDGE_CNI: &[Key] = &[
    not_honoured!("modules.edgeCNI.enable", Bool, "false", NO_CNI, unless "false"),
    not_honoured!(
        "modules.edgeCNI.encapsulationIP",
        Text("an IP address"),
        "",
        NO_CNI
    ),
    not_honoured!("modules.edgeCNI.tunMode", COUNT, "0", NO_CNI),
    not_honoured!(
        "modules.edgeCNI.meshCIDRConfig.cloudCIDR",
        List(Cidr),
        "",
        NO_CNI
    ),
    not_honoured!(
        "modules.edgeCNI.meshCIDRConfig.edgeCIDR",
        List(Cidr),
        "",
        NO_CNI
    ),
];
