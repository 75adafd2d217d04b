//! The owner of tasks that are started from where nothing can be awaited.

use std::future::Future;
use std::pin::Pin;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Hands tasks to their owner.
#[derive(Clone, Debug)]
pub(crate) struct Jobs(mpsc::UnboundedSender<Job>);

/// Runs what was handed over, and sees every end.
#[derive(Debug)]
pub(crate) struct JobOwner(mpsc::UnboundedReceiver<Job>);

impl Jobs {
    pub(crate) fn new() -> (Self, JobOwner) {
        // Unbounded: whoever starts a task holds a permit, or there is one per peer.
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), JobOwner(receiver))
    }

    /// Has `job` run. After the owner's end it is dropped instead.
    pub(crate) fn start(&self, job: impl Future<Output = ()> + Send + 'static) {
        let _ = self.0.send(Box::pin(job));
    }
}

impl JobOwner {
    /// Runs jobs until `stop`; those still running then are ended.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = running.join_next() => {
                    if let Err(panic) = ended {
                        error!(%panic, "a task of the tunnel panicked; what it served was closed");
                    }
                }
                Some(job) = self.0.recv() => drop(running.spawn(job)),
            }
        }
        running.shutdown().await;
    }
}
