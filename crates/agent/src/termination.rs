//! The two signals that end the agent: the first asks, the second insists.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for SIGTERM and SIGINT from the moment it is made.
pub(crate) struct Termination {
    terminate: Signal,
    interrupt: Signal,
}

impl Termination {
    /// Starts to listen.
    ///
    /// # Errors
    ///
    /// When the handlers cannot be installed.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
        })
    }

    /// Waits for the next of them and returns its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// A second signal has ended the agent.
#[derive(Debug, thiserror::Error)]
#[error(
    "told by a second {0} to end at once: connections are reset, and rules may be left; \
     `edgemesh-agent cleanup` removes them"
)]
pub(crate) struct EndedAtOnce(pub(crate) &'static str);
