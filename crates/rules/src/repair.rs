//! What was found otherwise than it should be, for logs and metrics.

use std::fmt;

use edgemesh_plan::Frontend;

use crate::chain_names::{MASQUERADE, POSTROUTING};
use crate::{Misplacement, OwnChain, PortalChain};

/// One thing that was put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// A chain of ours was gone; it was made again, with all its rules.
    ChainMissing(PortalChain),
    /// A chain of ours was made anew because its first rules were not the ones that must
    /// stand there, or because too much differed.
    ChainRewritten(PortalChain),
    /// Chains of portals were there that nothing of ours leads to any more.
    ChainsSurplus {
        /// One of them.
        first: PortalChain,
        /// How many there were in all.
        count: usize,
    },
    /// Rules of portals were gone.
    RulesMissing {
        /// The chain that they belong into.
        chain: PortalChain,
        /// One of the portals.
        first: Frontend,
        /// How many there were in all.
        count: usize,
    },
    /// Rules were there that don't belong into the chain: somebody else's, duplicates, or
    /// of portals that are no more.
    RulesSurplus {
        /// The chain that they were in.
        chain: PortalChain,
        /// The text of one of them, as read.
        first: String,
        /// How many there were in all.
        count: usize,
    },
    /// The jump to a chain of ours was not where it must be.
    Jump {
        /// The chain that it leads to.
        chain: OwnChain,
        /// What was wrong with it.
        because: Misplacement,
    },
    /// Chains by which portals are shared among endpoints were gone, held something else, or
    /// were of no portal.
    ServiceChains {
        /// The name of one of them.
        first: String,
        /// How many there were in all.
        count: usize,
    },
    /// The chain that masquerades what the kernel sends to endpoints was gone, or held
    /// something else.
    MasqueradeChain,
    /// The jump to that chain was not as it must be.
    MasqueradeJump(Misplacement),
    /// The IP set of all portals held something else.
    PortalSet,
    /// The table of this name was gone; it was made again, with all that is in it.
    TableMissing(String),
    /// The table of this name was another one or held something else; it was made anew.
    TableAltered(String),
    /// The table let everything pass: no sign of life had reached it for a while.
    GateClosed,
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Repair::ChainMissing(chain) => write!(f, "chain {chain} was missing"),
            Repair::ChainRewritten(chain) => {
                write!(
                    f,
                    "chain {chain} did not begin with its own rules, or differed too much"
                )
            }
            Repair::ChainsSurplus { first, count } => write!(
                f,
                "{count} chains were there that no rule leads to any more, among them {first}"
            ),
            Repair::RulesMissing {
                chain,
                first,
                count,
            } => write!(
                f,
                "{count} rules of {chain} were missing, among them {first}"
            ),
            Repair::RulesSurplus {
                chain,
                first,
                count,
            } => write!(
                f,
                "{count} rules too many were in {chain}, among them \"{first}\""
            ),
            Repair::Jump { chain, because } => {
                write!(f, "the jump from {} to {chain} was {because}", chain.hook())
            }
            Repair::ServiceChains { first, count } => write!(
                f,
                "{count} chains that share connections among endpoints were not as they had been \
                 made, among them {first}"
            ),
            Repair::MasqueradeChain => {
                write!(
                    f,
                    "chain {MASQUERADE} was missing, or not as it had been made"
                )
            }
            Repair::MasqueradeJump(because) => {
                write!(
                    f,
                    "the jump from {POSTROUTING} to {MASQUERADE} was {because}"
                )
            }
            Repair::PortalSet => f.write_str("the IP set of all portals held something else"),
            Repair::TableMissing(table) => write!(f, "table {table} was missing"),
            Repair::TableAltered(table) => {
                write!(f, "table {table} was not as it had been made")
            }
            Repair::GateClosed => f.write_str(
                "the gate was closed: no sign of the agent's life had reached the kernel for a \
                 while",
            ),
        }
    }
}
