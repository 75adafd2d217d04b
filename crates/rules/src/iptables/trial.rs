//! Finds out what the kernel takes of what the kernel path is made of.
//!
//! Which modules a kernel has can't be asked: it loads them when a rule wants them, and only
//! then says that it has none. So rules are tried in a chain that nothing leads to.

use std::sync::Arc;

use crate::iptables::backend::IptablesBackend;
use crate::iptables::extensions::{Extensions, Lacking};
use crate::{Ruleset, ToolError};

/// What was found out so far; nothing is tried before a portal wants it.
#[derive(Debug, Default)]
pub(crate) struct Trial {
    kernel_path: Option<bool>,
    recent: Option<bool>,
}

impl Trial {
    /// Tries what `wanted` takes and was not tried yet.
    pub(crate) async fn begin(&mut self, backend: &mut IptablesBackend, wanted: &Ruleset) {
        if !wanted.extensions().kernel_path {
            return;
        }
        if self.kernel_path.is_none() {
            let rules = Extensions::trial_of_kernel_path(backend.has_random_fully());
            self.kernel_path = outcome(backend.takes(&rules).await, Lacking::KernelPath);
        }
        if self.kernel_path == Some(true) && self.recent.is_none() {
            let rules = Extensions::trial_of_recent();
            self.recent = outcome(backend.takes(&rules).await, Lacking::Recent);
        }
    }

    /// Another flavour of iptables may have what this one lacks.
    pub(crate) fn begin_anew(&mut self) {
        *self = Self::default();
    }

    /// The rules as a whole were refused although each of their kind was not.
    pub(crate) fn give_up(&mut self) {
        self.kernel_path = Some(false);
    }

    /// What there is, if the set of portals is right.
    pub(crate) fn extensions(&self, portal_set: bool, random_fully: bool) -> Extensions {
        Extensions {
            portal_set,
            kernel_path: self.kernel_path.unwrap_or(false),
            recent: self.recent.unwrap_or(false),
            random_fully,
        }
    }

    pub(crate) fn no_kernel_path(&self) -> Option<Arc<str>> {
        (self.kernel_path == Some(false)).then(|| Lacking::KernelPath.reason().into())
    }

    pub(crate) fn no_affinity(&self) -> Option<Arc<str>> {
        (self.recent == Some(false)).then(|| Lacking::Recent.reason().into())
    }
}

/// None when it has to be tried again.
fn outcome(tried: Result<(), ToolError>, lacking: Lacking) -> Option<bool> {
    match tried {
        Ok(()) => Some(true),
        Err(error) if error.is_retryable() => {
            tracing::debug!(%error, "could not try rules; trying again later");
            None
        }
        Err(error) => {
            tracing::warn!(
                %error,
                "{}: portals that would take it stay with the agent", lacking.reason()
            );
            Some(false)
        }
    }
}
