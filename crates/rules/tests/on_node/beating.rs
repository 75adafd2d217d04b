//! A backend whose gates stay open, as those of an agent that serves.

use std::ops::{Deref, DerefMut};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use edgemesh_rules::{Backend, RulesError};

/// As often as the agent.
const EVERY: Duration = Duration::from_millis(250);

/// The backend, until it is dropped.
pub(crate) struct Beating {
    backend: Backend,
    _goes_on: Sender<()>,
}

impl Beating {
    /// Signs of life are given by a thread of their own, whatever the runtime does.
    pub(crate) fn keep_open(backend: Backend) -> Self {
        let mut pulse = backend.pulse();
        let (goes_on, over) = mpsc::channel();
        thread::spawn(move || {
            while over.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                // Not every lab has a kernel with IP sets.
                let _ = pulse.beat();
            }
        });
        Self {
            backend,
            _goes_on: goes_on,
        }
    }

    /// From now on there are none.
    pub(crate) fn hold_still(self) -> Backend {
        self.backend
    }

    pub(crate) async fn let_go(self) -> Result<(), RulesError> {
        self.backend.let_go().await
    }
}

impl Deref for Beating {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.backend
    }
}

impl DerefMut for Beating {
    fn deref_mut(&mut self) -> &mut Backend {
        &mut self.backend
    }
}
