//! iptables and ip6tables, in both flavours.

pub(crate) mod difference;
mod door;
mod flavour;
pub(crate) mod installed;
mod own_rule;
pub(crate) mod parse;
pub(crate) mod probe;
mod render;
pub(crate) mod transaction;
mod words;

#[cfg(test)]
mod difference_tests;

pub use door::ToolError;
pub use flavour::{Flavour, FlavourChoice, FlavourSetting, NoFlavour};
pub use render::render;
