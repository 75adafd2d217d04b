//! The forwarder's long-running tasks, none of which can end unnoticed.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use edgemesh_plan::Frontend;
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// What a task serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskName {
    /// The TCP worker of that number.
    Worker(usize),
    /// The worker beside the tunnel.
    TunnelWorker,
    UdpPortal(Frontend),
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(number) => write!(f, "TCP connections, worker {number}"),
            Self::TunnelWorker => f.write_str("TCP connections into the tunnel"),
            Self::UdpPortal(frontend) => write!(f, "the portal {frontend}"),
        }
    }
}

/// How a task ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskEnd {
    pub(crate) task: TaskName,
    pub(crate) panicked: bool,
    /// Whether it was told to.
    pub(crate) expected: bool,
}

/// Owner of the tasks; dropping it aborts them.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    running: JoinSet<TaskEnd>,
    workers: usize,
}

impl Tasks {
    /// Starts a task that runs until `stop`. Should it end by itself, `stop` is cancelled,
    /// so that whoever holds it knows.
    pub(crate) fn own(
        &mut self,
        task: TaskName,
        stop: CancellationToken,
        running: impl Future<Output = ()> + Send + 'static,
    ) {
        self.own_in(&Handle::current(), task, stop, running);
    }

    /// The same in another runtime.
    pub(crate) fn own_in(
        &mut self,
        runtime: &Handle,
        task: TaskName,
        stop: CancellationToken,
        running: impl Future<Output = ()> + Send + 'static,
    ) {
        self.workers += is_worker(task);
        let running = async move {
            // The task's state is dropped with it; nobody sees it half changed.
            let ended = AssertUnwindSafe(running).catch_unwind().await;
            let end = TaskEnd {
                task,
                panicked: ended.is_err(),
                expected: ended.is_ok() && stop.is_cancelled(),
            };
            stop.cancel();
            if end.panicked {
                error!(%task, "a task of the forwarder panicked");
            }
            end
        };
        self.running.spawn_on(running, runtime);
    }

    /// The next task to end; waits forever when none runs.
    pub(crate) async fn next(&mut self) -> TaskEnd {
        loop {
            match self.running.join_next().await {
                Some(Ok(end)) => return self.note(end),
                // Aborted, which only a dying runtime does.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Waits until no worker runs any more.
    pub(crate) async fn workers_done(&mut self) {
        while self.workers > 0 {
            self.next().await;
        }
    }

    /// Waits until nothing runs any more.
    pub(crate) async fn all_done(&mut self) {
        while !self.running.is_empty() {
            self.next().await;
        }
    }

    /// Aborts what still runs, and waits until it is gone, for `patience` at most: a task that
    /// never yields can't be ended.
    pub(crate) async fn shutdown(&mut self, patience: Duration) {
        let _ = timeout(patience, self.running.shutdown()).await;
    }

    fn note(&mut self, end: TaskEnd) -> TaskEnd {
        self.workers = self.workers.saturating_sub(is_worker(end.task));
        end
    }
}

fn is_worker(task: TaskName) -> usize {
    match task {
        TaskName::Worker(_) | TaskName::TunnelWorker => 1,
        TaskName::UdpPortal(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> TaskName {
        TaskName::Worker(0)
    }

    #[tokio::test]
    async fn a_task_that_panics_is_seen_by_its_owner_and_by_who_could_stop_it() {
        let mut tasks = Tasks::default();
        let stop = CancellationToken::new();
        tasks.own(name(), stop.clone(), async { panic!("a test's panic") });
        let end = tasks.next().await;
        assert!(end.panicked && !end.expected);
        assert!(stop.is_cancelled());
    }

    #[tokio::test]
    async fn what_cannot_be_ended_is_not_waited_for() {
        let mut tasks = Tasks::default();
        let (keeps, never) = std::sync::mpsc::channel::<()>();
        let (runs, running) = tokio::sync::oneshot::channel();
        tasks.running.spawn_blocking(move || {
            runs.send(()).unwrap();
            let _ = never.recv();
            TaskEnd {
                task: name(),
                panicked: false,
                expected: true,
            }
        });
        running.await.unwrap();
        tasks.shutdown(Duration::ZERO).await;
        drop(keeps);
    }

    #[tokio::test]
    async fn a_task_that_was_told_to_end_is_no_news() {
        let mut tasks = Tasks::default();
        let stop = CancellationToken::new();
        let until_told = stop.clone();
        tasks.own(
            name(),
            stop.clone(),
            async move { until_told.cancelled().await },
        );
        stop.cancel();
        let end = tasks.next().await;
        assert!(!end.panicked && end.expected);
    }
}
