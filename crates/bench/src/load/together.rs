//! The same work by several threads at once.

use std::thread::{self, ScopedJoinHandle};

use anyhow::{Result, anyhow};
use edgemesh_lab::Namespace;

/// Does `work` on so many threads inside the namespace; what each came to.
///
/// # Errors
///
/// When the namespace can't be entered, or a thread panicked.
pub(super) fn together<T: Send>(
    place: &Namespace,
    threads: usize,
    work: impl Fn() -> T + Sync,
) -> Result<Vec<T>> {
    place.run(|| {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
            let end = |worker: ScopedJoinHandle<'_, T>| {
                let end = worker.join();
                end.map_err(|_| anyhow!("a client panicked"))
            };
            workers.into_iter().map(end).collect()
        })
    })?
}
