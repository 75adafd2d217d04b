//! Talking with the kernel, which may take its time, away from the runtime's own threads.

/// Runs a job that may block.
pub(super) async fn in_background<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> T {
    match tokio::task::spawn_blocking(job).await {
        Ok(outcome) => outcome,
        Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
    }
}
