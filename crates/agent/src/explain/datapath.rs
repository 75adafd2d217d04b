//! Who takes the connections of a portal to its endpoints, for people. Pure.

use edgemesh_plan::{Datapath, HostFacts, Portal, PortalEndpoint, Target};
use serde::{Deserialize, Serialize};

/// Who takes the connections of a portal to its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DatapathExplained {
    /// Who.
    pub(crate) by: TakenBy,
    /// Why, with the share of each.
    pub(crate) why: String,
    /// Endpoints to which the kernel takes connections.
    pub(crate) kernel_endpoints: usize,
    /// Endpoints to which the agent does.
    pub(crate) agent_endpoints: usize,
}

/// Who takes a connection to its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TakenBy {
    /// The kernel.
    Kernel,
    /// The kernel or the agent.
    KernelAndAgent,
    /// The agent, in user mode.
    Agent,
}

/// What is planned for `portal`; none when it leads to no endpoint.
pub(super) fn explain(portal: &Portal, facts: &HostFacts) -> Option<DatapathExplained> {
    let Target::Forward {
        endpoints,
        datapath,
        ..
    } = &portal.target
    else {
        return None;
    };
    let all = endpoints.len();
    let kernels = datapath.kernel_endpoints(endpoints).count();
    let agents = all - kernels;
    let (by, why) = match datapath {
        Datapath::Kernel => (
            TakenBy::Kernel,
            match all {
                1 => "its endpoint is reached natively".to_owned(),
                _ => format!("all {all} endpoints are reached natively"),
            },
        ),
        Datapath::KernelAndAgent => (
            TakenBy::KernelAndAgent,
            format!(
                "of {all} connections {kernels} by the kernel and {agents} by the agent, through \
                 the tunnel; each endpoint has the same share"
            ),
        ),
        Datapath::User(why) => {
            let addresses = endpoints.iter().map(|endpoint| endpoint.address);
            let detail = why.detail(facts.of(portal.frontend.ip), addresses);
            let text = match detail {
                Some(detail) => format!("{why}: {detail}"),
                None => why.to_string(),
            };
            (TakenBy::Agent, text)
        }
    };
    Some(DatapathExplained {
        by,
        why,
        kernel_endpoints: kernels,
        agent_endpoints: agents,
    })
}

/// Who takes connections to one of a portal's endpoints.
pub(super) fn taken_by(portal: &Portal, endpoint: std::net::SocketAddr) -> Option<TakenBy> {
    let Target::Forward {
        endpoints,
        datapath,
        ..
    } = &portal.target
    else {
        return None;
    };
    let is_it = |known: &&PortalEndpoint| known.address == endpoint;
    endpoints.iter().find(is_it)?;
    let kernels = datapath
        .kernel_endpoints(endpoints)
        .any(|known| is_it(&known));
    Some(if kernels {
        TakenBy::Kernel
    } else {
        TakenBy::Agent
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use edgemesh_catalog::{NodeName, Protocol};
    use edgemesh_plan::{BypassingNetwork, EndpointChoice, FamilyFacts, Frontend, UserMode, Way};

    use super::*;

    fn portal(datapath: Datapath) -> Portal {
        let endpoint = |address: &str, way| PortalEndpoint {
            address: address.parse().unwrap(),
            node: Some(NodeName::new("edge-1")),
            way,
        };
        Portal {
            frontend: Frontend {
                ip: "10.96.0.1".parse().unwrap(),
                protocol: Protocol::Tcp,
                port: 80,
            },
            target: Target::Forward {
                endpoints: [
                    endpoint("10.244.1.2:80", Way::Native),
                    endpoint("10.244.1.3:80", Way::Native),
                    endpoint("10.244.2.2:80", Way::Tunnel),
                ]
                .into(),
                choice: EndpointChoice::Ready,
                datapath,
            },
        }
    }

    #[test]
    fn shares_of_kernel_and_agent_are_told() {
        let portal = portal(Datapath::KernelAndAgent);
        let explained = explain(&portal, &HostFacts::default()).unwrap();
        assert_eq!(explained.by, TakenBy::KernelAndAgent);
        assert_eq!(
            (explained.kernel_endpoints, explained.agent_endpoints),
            (2, 1)
        );
        assert!(
            explained
                .why
                .starts_with("of 3 connections 2 by the kernel and 1 by the agent"),
            "{}",
            explained.why
        );
        let by = |address: &str| taken_by(&portal, address.parse::<SocketAddr>().unwrap());
        assert_eq!(by("10.244.1.3:80"), Some(TakenBy::Kernel));
        assert_eq!(by("10.244.2.2:80"), Some(TakenBy::Agent));
        assert_eq!(by("10.244.9.9:80"), None);
    }

    #[test]
    fn what_stands_in_the_way_is_told_with_what_was_found_on_the_host() {
        let facts = HostFacts {
            ipv4: FamilyFacts {
                bypassing: [BypassingNetwork {
                    network: "10.244.1.0/24".parse().unwrap(),
                    why: "10.244.1.0/24 on bridge cni0".into(),
                }]
                .into(),
                ..FamilyFacts::default()
            },
            ..HostFacts::default()
        };
        let explained = explain(&portal(Datapath::User(UserMode::PastNat)), &facts).unwrap();
        assert_eq!(explained.by, TakenBy::Agent);
        assert!(
            explained.why.ends_with(": 10.244.1.0/24 on bridge cni0"),
            "{}",
            explained.why
        );
    }
}
