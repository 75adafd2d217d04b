//! The threads that the tunnel's connections live on.

use std::future::pending;
use std::io;
use std::panic::resume_unwind;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

/// Up to so many cores all connections between nodes live on one thread.
const CORES_OF_ONE_THREAD: usize = 3;

/// A runtime for the connections between nodes and the streams on them.
///
/// What the transport does for one packet is little, and many take part in it by turns: its
/// endpoint, a connection, a stream. Each wakes the next; where another thread is free, that is
/// called to take over, and the work goes from core to core. So on few cores there is one thread,
/// which moves more than two of them do. On many there is one for each core, for there may be
/// work for all.
#[derive(Debug)]
pub(crate) struct OwnThreads {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl OwnThreads {
    /// # Errors
    ///
    /// When the system gives no thread, or no descriptor to wait by.
    pub(crate) fn start() -> io::Result<Self> {
        let cores = available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads_for(cores))
            // The kernel shows 15 bytes of it.
            .thread_name("edgemesh-tunnel")
            .enable_all()
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
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

impl Drop for OwnThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for tasks is not allowed in another runtime.
            runtime.shutdown_background();
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
        let threads = OwnThreads::start().unwrap();
        let (kept, dropped) = tokio::sync::oneshot::channel::<()>();
        let running = threads.handle().spawn(async move {
            let _kept = kept;
            pending::<()>().await;
        });
        drop(threads);
        assert!(dropped.await.is_err());
        assert!(running.await.unwrap_err().is_cancelled());
    }
}
