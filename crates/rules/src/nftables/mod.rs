//! A table of our own in nf_tables, spoken to by netlink.
//!
//! | what | how |
//! | --- | --- |
//! | precedence | base chains at priority -110: the first NAT decision on a connection counts, and iptables and kube-proxy's nftables mode both decide at -100 |
//! | portals | one map from address, protocol and port to address and port: a lookup costs the same for one portal and for ten thousand |
//! | kernel path | portals with several destinations are in a second map, which is asked first and leads to a chain that draws one; see [`mod@serving`] |
//! | masquerading | a base chain in postrouting, before kube-proxy's; see [`mod@kernel_rules`] |
//! | owner | the table belongs to the netlink socket that made it: others can't change or flush it, and it vanishes when that socket is closed, however the process ends |
//! | gate | a set whose only element lives for a few seconds: where it isn't renewed, the chains let everything pass; see [`mod@sign_of_life`] |
//! | refusal | where there is no kube-proxy, a second table, which belongs to nobody and so outlives the agent, rejects what still goes to a portal behind all NAT, and by which connections go on that the kernel sent elsewhere |
//!
//! The kernel is spoken to directly, not by way of nft: the owner of a table has to be a
//! socket that lives as long as the agent, the kernel's word on a transaction is its own,
//! and no program needs to be installed. nft lists the table as it lists any other.

pub(crate) mod backend;
mod background;
mod change;
mod element;
mod expression;
mod fixed_chain;
mod fixed_sets;
mod kernel_expression;
mod kernel_rules;
mod kernel_support;
pub(crate) mod leftover;
mod nftables_error;
mod own_table_parts;
pub(crate) mod own_tables;
mod refusal;
pub(crate) mod refuse_table;
mod refused_element;
mod refusing_rules;
mod render;
mod rule;
mod serving;
pub(crate) mod sign_of_life;
mod sticky_chains;
mod table;
mod table_look;
pub(crate) mod table_name;
mod transaction;
mod wire;

#[cfg(test)]
mod change_tests;
#[cfg(test)]
mod table_tests;

pub use nftables_error::NftablesError;
pub use refusing_rules::render_refusing;
pub use render::render_nftables;
