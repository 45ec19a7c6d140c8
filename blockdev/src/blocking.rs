//! What blocks, beside the thread that serves requests.

use tokio::task::spawn_blocking;

/// Runs `work` on a thread of its own, while this one goes on to serve what it waits for.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(gone) => match gone.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await, // the runtime ends, and we with it
        },
    }
}
