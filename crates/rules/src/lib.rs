//! Everything that the agent puts into the kernel: nat rules, its own address, and
//! last-resort routes.
//!
//! Deciding is pure and apart from doing. A [`Ruleset`] says what shall be there;
//! reading back is structural; the difference between both is the input of one
//! iptables-restore. Where nothing differs, nothing is called.

mod backend;
mod chain_names;
mod error;
mod family;
mod iptables;
mod netlink;
mod nf_tables;
mod precedence;
mod removal;
mod repair;
mod ruleset;
mod unchanged;

pub use backend::{Applied, Backend, Change, Switched, Verified};
pub use chain_names::{JUMP_COMMENT, KUBE_SERVICES, OwnChain};
pub use error::RulesError;
pub use family::Family;
pub use iptables::{Flavour, FlavourChoice, FlavourSetting, NoFlavour, ToolError, render};
pub use precedence::Misplacement;
pub use removal::Removed;
pub use repair::Repair;
pub use ruleset::{Mark, Misplaced, PortalRule, RuleComment, Ruleset};
