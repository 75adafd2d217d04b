//! What can go wrong between us and the kernel.

use crate::{Family, NftablesError, NoFlavour, ToolError};

/// Rules could not be read or changed. The kernel keeps what it had.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// There are no programs to do it with.
    #[error(transparent)]
    NoFlavour(#[from] NoFlavour),
    /// A program failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// nf_tables refused a change of our table.
    #[error(transparent)]
    Nftables(#[from] NftablesError),
    /// A ruleset was given to the other family's backend.
    #[error("{given} rules were given to the {own} backend")]
    OtherFamily {
        /// The family of the rules.
        given: Family,
        /// The family of the backend.
        own: Family,
    },
    /// Rules of ours came back as often as they were removed.
    #[error(
        "the chains EDGEMESH-PORTALS-* of {tool} ({flavour}) are there again after they were \
         removed; does another agent run on this node? stop it, then run \
         `edgemesh-agent cleanup`",
        tool = .family.tool()
    )]
    NotRemoved {
        /// The family.
        family: Family,
        /// The flavour.
        flavour: crate::Flavour,
    },
}

impl RulesError {
    /// Whether the same call may succeed a little later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            RulesError::NoFlavour(_) | RulesError::OtherFamily { .. } => false,
            RulesError::Tool(error) => error.is_retryable(),
            RulesError::Nftables(error) => error.is_retryable(),
            RulesError::NotRemoved { .. } => true,
        }
    }
}
