//! Everything that the agent puts into the kernel: nat rules, its own address, and
//! last-resort routes.
//!
//! Deciding is pure and apart from doing. A [`Ruleset`] says what shall be there;
//! reading back is structural; the difference between both is one transaction, by
//! iptables or by nftables (see [`Backend`]). Where nothing differs, nothing is called.

mod backend;
mod backend_choice;
mod chain_names;
mod cleanup;
mod error;
mod events;
mod family;
mod gate;
mod host_forwarding;
mod host_network;
mod host_support;
mod inspect;
mod ip_set;
mod iptables;
mod kernel_path;
mod leftover;
mod mark;
mod merged;
mod netlink;
mod network_events;
mod nf_hook;
mod nf_tables;
mod nftables;
mod outcome;
mod portal_layout;
mod precedence;
mod pulse;
mod removal;
mod repair;
mod rule_comment;
mod ruleset;
mod stale_flows;
mod unchanged;
mod way;

pub use backend::Backend;
pub use backend_choice::{BackendChoice, BackendKind, BackendSetting};
pub use chain_names::{JUMP_COMMENT, KUBE_SERVICES, OwnChain};
pub use cleanup::{CleanedUp, cleanup};
pub use error::RulesError;
pub use events::{Changer, RuleChange, RuleEvents};
pub use family::Family;
pub use gate::Gate;
pub use host_forwarding::HostForwarding;
pub use host_network::{
    HostNetwork, HostNetworkChanges, HostNetworkError, LAST_RESORT_PRIORITY, LAST_RESORT_TABLE,
    LAST_RESORT_TABLE_V4, OWN_PROTOCOL,
};
pub use host_support::{HostSupport, host_supports};
pub use inspect::{
    BaseChain, ChainFound, ElementFound, Hook, Inspected, KubeAction, KubeRule, MasqueradeFound,
    NatView, NftElement, PortalFound, PortalLeads, SentTo, SharedFound, StandingRule, TableFound,
    ToolFound, base_chains, find_tools, inspect, kube_proxy_element, kube_proxy_portals,
    own_tables, refused_portals,
};
pub use iptables::{
    Extensions, Flavour, FlavourChoice, FlavourSetting, NoFlavour, ToolError, render,
};
pub use kernel_path::{KernelEndpoint, KernelPath, Sharing};
pub use mark::Mark;
pub use network_events::{NetworkEvent, NetworkEvents};
pub use nftables::{NftablesError, render_nftables, render_refusing};
pub use outcome::{Applied, Change, Switched, Verified};
pub use portal_layout::{Bucket, PortalChain, PortalLayout};
pub use precedence::Misplacement;
pub use pulse::Pulse;
pub use removal::Removed;
pub use repair::Repair;
pub use rule_comment::RuleComment;
pub use ruleset::{Misplaced, PortalAddresses, PortalRule, Ruleset};
pub use stale_flows::{LeftWays, remove_stale_flows, udp_ways_left};
