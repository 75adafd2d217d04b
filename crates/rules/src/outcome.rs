//! What the ways into the kernel tell of what they did.

use std::time::Duration;

use crate::{BackendChoice, Repair};

/// How the kernel was brought to hold what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing had to be done.
    None,
    /// By the difference to what was known to be there.
    Incremental,
    /// By the difference to what was read back.
    ReadBack,
    /// By making all of it anew, in one step (nftables).
    Rewritten,
}

/// What [`Backend::apply`](crate::Backend::apply) did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// How.
    pub change: Change,
    /// Lines of the transaction: rules or elements added and deleted, chains made, jumps
    /// moved.
    pub lines: usize,
    /// How long it took.
    pub took: Duration,
    /// What differed from what is wanted, if it was read back; that which is wanted since
    /// this call counts too.
    pub repairs: Vec<Repair>,
}

/// What [`Backend::verify`](crate::Backend::verify) found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What was put right; empty when all was as it should be.
    pub repairs: Vec<Repair>,
    /// Whether the rules had to be read back, or made anew, for that.
    pub read_back: bool,
    /// How long it took.
    pub took: Duration,
}

/// What [`Backend::reconsider`](crate::Backend::reconsider) did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switched {
    /// Where the rules are now, and why.
    pub choice: BackendChoice,
}
