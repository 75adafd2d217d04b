//! What the host's own settings allow the kernel to do for a portal: whether it forwards
//! packets, and whether NAT sees those that cross a bridge.
//!
//! * A host that does not **forward** drops what pods send to an endpoint of another device.
//! * On a **bridge**, the answer of one pod to another does not leave the bridge: it comes from
//!   the endpoint's address instead of the ClusterIP's, and the client refuses it. With
//!   `br_netfilter` and its parameter set, NAT sees it there.
//!
//! Where a portal needs it, a parameter is set to 1, as kube-proxy and kubeadm want it. It is
//! done once: whoever sets it back, wants it so, and the portals concerned are then served in
//! user mode, which needs neither. When the agent ends it sets nothing back, for kube-proxy,
//! which takes over, and the network plugin need the same, and nobody can tell who relies on
//! it by then. IPv6 forwarding is not set: a host that forwards no longer takes its routes
//! from router advertisements, and may lose its only default route.
//!
//! Files that are written (a container needs them writable, or `privileged`; else everything
//! works, in user mode where it must): `/proc/sys/net/ipv4/ip_forward`,
//! `/proc/sys/net/bridge/bridge-nf-call-iptables` and `…-ip6tables`.

mod bridges;
mod kernel_parameter;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use edgemesh_plan::{BypassingNetwork, FamilyFacts, HostFacts, UserMode};
use nix::sys::socket::SockProtocol;

use crate::Family;
use crate::netlink::NetlinkSocket;
use bridges::{BridgedNetwork, bridged_networks};
use kernel_parameter::{Parameter, SYSCTL_ROOT, Setting, bridge_calls, forwarding};

/// Finds out what the host's settings allow, and changes them where that is needed.
#[derive(Debug)]
pub struct HostForwarding {
    root: PathBuf,
    /// The kernel's word that devices or addresses changed; none where it gives none.
    changes: Option<NetlinkSocket>,
    bridged: Vec<BridgedNetwork>,
    /// What came of setting a parameter, which is done once at most.
    attempts: BTreeMap<Parameter, Attempt>,
    facts: HostFacts,
}

/// What came of setting a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Attempt {
    Done,
    Refused(String),
}

impl HostForwarding {
    /// Looks for the first time; changes nothing.
    #[must_use]
    pub fn open() -> Self {
        let changes = NetlinkSocket::open(SockProtocol::NetlinkRoute, groups())
            .inspect_err(|error| {
                tracing::warn!(%error, "not told of changed devices; reading them each time");
            })
            .ok();
        let mut opened = Self {
            root: SYSCTL_ROOT.into(),
            changes,
            bridged: Vec::new(),
            attempts: BTreeMap::new(),
            facts: HostFacts::default(),
        };
        opened.read_bridges();
        opened.decide();
        opened
    }

    /// What was found by the last look.
    #[must_use]
    pub fn facts(&self) -> &HostFacts {
        &self.facts
    }

    /// Looks again; whether the facts are others now. Costs next to nothing while the kernel
    /// tells of no change: four small files are read.
    pub fn look(&mut self) -> bool {
        if self.any_change() {
            self.read_bridges();
        }
        self.decide()
    }

    /// Sets the parameter that keeps portals of `family` in user mode for the reason `why`, if
    /// there is one that the agent sets; whether the facts are others now.
    pub fn make_way(&mut self, family: Family, why: UserMode) -> bool {
        let Some(parameter) = settable(family, why) else {
            return false;
        };
        if self.attempts.contains_key(&parameter) || parameter.read(&self.root) != Setting::Off {
            return false;
        }
        let attempt = match parameter.turn_on(&self.root) {
            Ok(()) => {
                tracing::info!(
                    "set {} to 1, so that the kernel can send connections to endpoints",
                    parameter.0
                );
                Attempt::Done
            }
            Err(error) => {
                tracing::warn!(
                    "{} is 0, and can't be set to 1 ({error}): Services that need it are served \
                     in user mode; set it on the host, or let this container write to /proc/sys",
                    parameter.0
                );
                Attempt::Refused(error.to_string())
            }
        };
        self.attempts.insert(parameter, attempt);
        self.decide()
    }

    fn any_change(&mut self) -> bool {
        let Some(changes) = &mut self.changes else {
            return true;
        };
        let mut any = false;
        let drained = changes.drain(|_| any = true);
        // More than could be kept may have been anything.
        any || drained.is_err()
    }

    fn read_bridges(&mut self) {
        match bridged_networks() {
            Ok(bridged) => self.bridged = bridged,
            Err(error) => tracing::warn!(
                %error,
                "can't read this host's bridges; those known before are taken for all"
            ),
        }
    }

    fn decide(&mut self) -> bool {
        let facts = HostFacts {
            ipv4: self.of(Family::V4),
            ipv6: self.of(Family::V6),
        };
        let changed = facts != self.facts;
        self.facts = facts;
        changed
    }

    fn of(&self, family: Family) -> FamilyFacts {
        FamilyFacts {
            not_forwarding: self.not_forwarding(family),
            bypassing: self.bypassing(family),
            ..FamilyFacts::default()
        }
    }

    fn not_forwarding(&self, family: Family) -> Option<Arc<str>> {
        let parameter = forwarding(family);
        match (parameter.read(&self.root), family) {
            // Where it can't be read, it is not for us to doubt it.
            (Setting::On | Setting::Absent, _) => None,
            (Setting::Off, Family::V4) => Some(self.off(parameter).into()),
            (Setting::Off, Family::V6) => Some(
                format!(
                    "{} is 0; the agent does not set it, because the host would no longer take \
                     routes from router advertisements",
                    parameter.0
                )
                .into(),
            ),
        }
    }

    fn bypassing(&self, family: Family) -> Arc<[BypassingNetwork]> {
        let parameter = bridge_calls(family);
        let setting = parameter.read(&self.root);
        let why = match setting {
            Setting::On => return Arc::default(),
            Setting::Off => self.off(parameter),
            Setting::Absent => format!(
                "there is no {}: load the kernel module br_netfilter",
                parameter.0
            ),
        };
        self.bridged
            .iter()
            .filter(|bridged| Family::of(bridged.network.addr()) == family)
            .filter(|bridged| setting == Setting::Absent || !bridged.calls)
            .map(|bridged| BypassingNetwork {
                network: bridged.network,
                why: format!("{} on bridge {}: {why}", bridged.network, bridged.bridge).into(),
            })
            .collect()
    }

    fn off(&self, parameter: Parameter) -> String {
        let Parameter(name) = parameter;
        match self.attempts.get(&parameter) {
            None => format!("{name} is 0"),
            Some(Attempt::Done) => {
                format!("{name} is 0; the agent had set it to 1, and somebody set it back")
            }
            Some(Attempt::Refused(error)) => {
                format!("{name} is 0, and setting it to 1 failed: {error}")
            }
        }
    }
}

/// The parameter that is set for a portal which is in user mode for the reason `why`.
fn settable(family: Family, why: UserMode) -> Option<Parameter> {
    match (why, family) {
        (UserMode::NotForwarding, Family::V4) => Some(forwarding(family)),
        (UserMode::PastNat, _) => Some(bridge_calls(family)),
        (UserMode::NotForwarding, Family::V6)
        | (
            UserMode::Configured
            | UserMode::NoNativeEndpoint
            | UserMode::AffinityAcrossTunnel
            | UserMode::RulesCannot
            | UserMode::RulesCannotKeepClients,
            _,
        ) => None,
    }
}

/// Changes of devices, of addresses, and of forwarding (`RTNLGRP_*` of `linux/rtnetlink.h`,
/// as a mask).
fn groups() -> u32 {
    [1, 5, 9, 24, 25]
        .map(|number| 1 << (number - 1))
        .iter()
        .sum()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
