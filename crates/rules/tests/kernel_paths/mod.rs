//! Rulesets in which the kernel serves portals itself, and a stage for traffic through them.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_catalog::Protocol;
use edgemesh_plan::Frontend;
use edgemesh_rules::{
    Family, KernelEndpoint, KernelPath, Mark, PortalRule, RuleComment, Ruleset, Sharing,
};

/// The agent's address.
pub(crate) fn intercept(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([169, 254, 96, 16]),
        Family::V6 => IpAddr::from([0xfd00, 0xed6e, 0x6d65, 0x7368, 0, 0, 0, 1]),
    }
}

/// The ClusterIP of this number.
pub(crate) fn cluster_ip(family: Family, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match family {
        Family::V4 => IpAddr::from([10, 100, high, low]),
        Family::V6 => IpAddr::from([0xfd00, 0x100, 0, 0, 0, 0, 0, number]),
    }
}

/// A pod's address; pods of node 1 are the node's own.
pub(crate) fn pod(family: Family, node: u8, number: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 244, node, number]),
        Family::V6 => {
            let (node, number) = (u16::from(node), u16::from(number));
            IpAddr::from([0xfd00, 0x244, node, 0, 0, 0, 0, number])
        }
    }
}

/// Pods of this node (1) and others, at one port.
pub(crate) fn endpoints(family: Family, pods: &[(u8, u8)], port: u16) -> Vec<KernelEndpoint> {
    let endpoint = |&(node, number): &(u8, u8)| KernelEndpoint {
        address: SocketAddr::new(pod(family, node, number), port),
        is_pod_here: node == 1,
    };
    pods.iter().map(endpoint).collect()
}

/// A part of the agent's.
pub(crate) fn with_agent(others: u32) -> Result<Sharing> {
    Ok(Sharing::WithAgent(
        NonZeroU32::new(others).context("nobody")?,
    ))
}

/// A client keeps its endpoint as long as Kubernetes' default has it.
pub(crate) const STICKY: Sharing = Sharing::Sticky(Duration::from_secs(10_800));

/// Adds a portal.
pub(crate) fn add(
    rules: &mut Ruleset,
    (ip, protocol, port): (u16, Protocol, u16),
    name: &str,
    path: Option<(&[KernelEndpoint], Sharing)>,
) -> Result<()> {
    let frontend = Frontend {
        ip: cluster_ip(rules.family(), ip),
        protocol,
        port,
    };
    let kernel = path.and_then(|(endpoints, sharing)| {
        KernelPath::new(endpoints.iter().copied(), sharing).map(Box::new)
    });
    let rule = PortalRule {
        comment: RuleComment::new(name),
        to_port: 20007,
        kernel,
    };
    Ok(rules.insert(frontend, rule)?)
}

/// One portal of each kind.
pub(crate) fn example(family: Family) -> Result<Ruleset> {
    use Protocol::{Tcp, Udp};
    let mut rules = Ruleset::new(intercept(family), 20008, Mark::AGENT);
    if family == Family::V4 {
        rules = rules.with_pods(["10.244.1.0/24".parse()?, "10.245.0.0/17".parse()?]);
    }
    let two = endpoints(family, &[(1, 11), (2, 11)], 8080);
    let three = endpoints(family, &[(1, 11), (1, 12), (3, 11)], 5353);
    add(&mut rules, (1, Tcp, 80), "default/tunnel:http", None)?;
    let alone = Some((&two[..1], Sharing::Alone));
    add(&mut rules, (2, Tcp, 80), "default/single:http", alone)?;
    add(
        &mut rules,
        (3, Tcp, 80),
        "default/web:http",
        Some((&two, Sharing::Alone)),
    )?;
    add(
        &mut rules,
        (4, Udp, 53),
        "kube-system/dns:dns",
        Some((&three, Sharing::Alone)),
    )?;
    add(
        &mut rules,
        (5, Tcp, 80),
        "default/border:http",
        Some((&two, with_agent(1)?)),
    )?;
    add(
        &mut rules,
        (6, Tcp, 80),
        "default/sticky:http",
        Some((&two, STICKY)),
    )?;
    Ok(rules)
}
