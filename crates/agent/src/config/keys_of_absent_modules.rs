//! Keys of EdgeMesh's modules that this agent doesn't have. They are checked as EdgeMesh
//! would, so that a file stays good for both, and named in a warning where they are set.

use super::key::{FOUND_OUT, Key, not_honoured};
use super::readers::{COUNT, Cidr, PORT, SECONDS};
use super::values::{Anything, Bool, List, Text};

const NO_DNS: &str = "the agent answers no DNS queries; names are the cluster DNS's business";
const NO_CNI: &str = "the agent doesn't set up pod networks";

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
