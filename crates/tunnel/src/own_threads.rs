//! The threads that the tunnel's connections live on.

use std::future::pending;
use std::io;
use std::panic::resume_unwind;
use std::thread::{self, available_parallelism};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

/// Up to so many cores all connections between nodes live on one thread.
const CORES_OF_ONE_THREAD: usize = 3;
/// The kernel shows 15 bytes of it.
const NAME: &str = "edgemesh-tunnel";

/// A runtime for the connections between nodes and the streams on them.
///
/// What the transport does for one packet is little, and many take part in it by turns: its
/// endpoint, a connection, a stream. Each wakes the next; where another thread is free, that is
/// called to take over, and the work goes from core to core. So on few cores there is one thread,
/// which moves more than two of them do. On many there is one for each core, for there may be
/// work for all.
///
/// One thread has a runtime of the kind for one, and not for that of many with one of them: in
/// that, who was woken last has his turn next, so that a stream that writes is followed by its
/// connection, which sends a packet with what that one stream wrote. Here each has his turn in
/// order, and the connection comes behind all streams that have something to say: short streams,
/// of which many are under way, share their packets.
#[derive(Debug)]
pub(crate) struct OwnThreads {
    handle: Handle,
    _running: Running,
}

/// What ends the threads when it is dropped.
#[derive(Debug)]
enum Running {
    One { _end: oneshot::Sender<()> },
    Many(Option<Runtime>),
}

impl OwnThreads {
    /// # Errors
    ///
    /// When the system gives no thread, or no descriptor to wait by.
    pub(crate) fn start() -> io::Result<Self> {
        let cores = available_parallelism().map_or(1, usize::from);
        match threads_for(cores) {
            1 => Self::start_one(),
            many => Self::start_many(many),
        }
    }

    fn start_one() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let body = move || {
            // Nothing is ever sent.
            let _ = runtime.block_on(ended);
            runtime.shutdown_background();
        };
        thread::Builder::new().name(NAME.to_owned()).spawn(body)?;
        Ok(Self {
            handle,
            _running: Running::One { _end: end },
        })
    }

    fn start_many(threads: usize) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name(NAME)
            .enable_all()
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            _running: Running::Many(Some(runtime)),
        })
    }

    /// Runs `task` there, until the future that is returned is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let running = AbortOnDropHandle::new(self.handle.spawn(task));
        match running.await.map_err(JoinError::try_into_panic) {
            Ok(output) => output,
            Err(Ok(panic)) => resume_unwind(panic),
            // Nothing else ends it.
            Err(Err(_)) => pending().await,
        }
    }

    /// By what tasks are given to them.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        match self {
            // The thread hears that the other end is gone.
            Self::One { .. } => {}
            // Waiting for tasks is not allowed in another runtime.
            Self::Many(runtime) => {
                if let Some(runtime) = runtime.take() {
                    runtime.shutdown_background();
                }
            }
        }
    }
}

fn threads_for(cores: usize) -> usize {
    if cores <= CORES_OF_ONE_THREAD {
        1
    } else {
        cores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_cores_have_one_thread_and_many_one_for_each() {
        assert_eq!([1, 2, 3, 4, 64].map(threads_for), [1, 1, 1, 4, 64]);
    }

    #[tokio::test]
    async fn what_runs_there_ends_with_them_wherever_they_are_dropped() {
        for threads in [OwnThreads::start_one(), OwnThreads::start_many(2)] {
            let threads = threads.unwrap();
            let (kept, dropped) = oneshot::channel::<()>();
            let running = threads.handle().spawn(async move {
                let _kept = kept;
                pending::<()>().await;
            });
            drop(threads);
            assert!(dropped.await.is_err());
            assert!(running.await.unwrap_err().is_cancelled());
        }
    }

    #[tokio::test]
    async fn on_one_thread_who_is_woken_has_his_turn_behind_those_who_wait_for_theirs() {
        let threads = OwnThreads::start_one().unwrap();
        let turns = threads.run(async {
            let (say, mut said) = tokio::sync::mpsc::unbounded_channel();
            let woken = std::sync::Arc::new(tokio::sync::Notify::new());
            let mut tasks = tokio::task::JoinSet::new();
            let (waits, says) = (std::sync::Arc::clone(&woken), say.clone());
            tasks.spawn(async move {
                waits.notified().await;
                says.send("connection")
            });
            tokio::task::yield_now().await;
            for _ in 0..3 {
                let (wakes, says) = (std::sync::Arc::clone(&woken), say.clone());
                tasks.spawn(async move {
                    wakes.notify_one();
                    says.send("stream")
                });
            }
            tasks.join_all().await;
            drop(say);
            let mut turns = Vec::new();
            while let Some(turn) = said.recv().await {
                turns.push(turn);
            }
            turns
        });
        let in_order = ["stream", "stream", "stream", "connection"];
        assert_eq!(turns.await, in_order);
    }
}
