//! iptables and ip6tables, in both flavours.

pub(crate) mod backend;
pub(crate) mod difference;
pub(crate) mod door;
pub(crate) mod fail_open;
mod flavour;
pub(crate) mod installed;
pub(crate) mod own_rule;
pub(crate) mod parse;
pub(crate) mod probe;
mod render;
pub(crate) mod transaction;
pub(crate) mod words;

#[cfg(test)]
mod difference_tests;

pub use door::ToolError;
pub use flavour::{Flavour, FlavourChoice, FlavourSetting, NoFlavour};
pub(crate) use installed::version_of;
pub use render::render;
