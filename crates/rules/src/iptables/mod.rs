//! iptables and ip6tables, in both flavours.

pub(crate) mod backend;
pub(crate) mod chain_content;
pub(crate) mod changes;
pub(crate) mod difference;
pub(crate) mod door;
mod extensions;
pub(crate) mod fail_open;
mod flavour;
pub(crate) mod installed;
mod kernel_path_difference;
mod last_read;
mod masquerade;
pub(crate) mod options;
pub(crate) mod own_rule;
pub(crate) mod parse;
mod parting;
pub(crate) mod probe;
mod render;
pub(crate) mod service_chain;
pub(crate) mod transaction;
mod trial;
pub(crate) mod words;

#[cfg(test)]
mod difference_tests;
#[cfg(test)]
mod kernel_path_tests;
#[cfg(test)]
mod portal_layout_tests;
#[cfg(test)]
mod simulated;

pub use door::ToolError;
pub use extensions::Extensions;
pub use flavour::{Flavour, FlavourChoice, FlavourSetting, NoFlavour};
pub(crate) use installed::version_of;
pub use render::render;
