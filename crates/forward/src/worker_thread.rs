//! The threads that workers run in.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// Starts the thread of worker `number`, which has a runtime of its own and runs `work` in it.
/// The future that is returned ends, or panics, as that does; at once when the thread can't be
/// made. When it is dropped before, all that the runtime holds is dropped, too.
pub(crate) fn start(
    number: usize,
    work: impl AsyncFnOnce() + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let abandoned = CancellationToken::new();
    let given_up = abandoned.clone().drop_guard();
    let (ended, end) = oneshot::channel();
    let started = OwnRuntime::new().and_then(|runtime| {
        let body = move || {
            // All state of the work is dropped here; nobody sees it half changed.
            let result = catch_unwind(AssertUnwindSafe(|| runtime.run(work, &abandoned)));
            // Nobody may be waiting any more.
            let _ = ended.send(result);
        };
        // The kernel shows 15 bytes of the name.
        let thread = thread::Builder::new().name(format!("edgemesh-tcp-{number}"));
        thread.spawn(body).map(drop)
    });
    if let Err(error) = started {
        error!(
            %error,
            "cannot start worker {number} for TCP connections; see the limits of this process \
             and of its control group (ulimit -n, ulimit -u, pids.max)"
        );
    }
    async move {
        let _given_up = given_up;
        if let Ok(Err(panic)) = end.await {
            resume_unwind(panic);
        }
    }
}

/// A runtime for one thread. It may be dropped anywhere, where tokio's own panics when it is
/// dropped within another one.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn new() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    fn run(self, work: impl AsyncFnOnce(), abandoned: &CancellationToken) {
        if let Some(runtime) = &self.0 {
            runtime.block_on(abandoned.run_until_cancelled(work()));
        }
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn its_end_is_seen_and_so_is_its_panic() {
        start(0, async || {}).await;
        let panics = start(1, async || panic!("a test's panic"));
        assert!(AssertUnwindSafe(panics).catch_unwind().await.is_err());
    }

    #[tokio::test]
    async fn whoever_gives_it_up_ends_it() {
        let held = Arc::new(());
        let holds = Arc::clone(&held);
        let running = start(0, async move || {
            let _holds = holds;
            std::future::pending::<()>().await;
        });
        drop(running);
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
