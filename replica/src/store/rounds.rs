//! Many callers, one sync: whoever asks joins the next round, never the one that is running.

use std::cell::Cell;

use tokio::sync::Notify;

/// Group commit. A round covers everything that was asked for before it began.
#[derive(Default)]
pub(super) struct Rounds {
    asked: Cell<u64>,
    done: Cell<u64>,
    running: Cell<bool>,
    ended: Notify,
}

/// Lets the next round go even if the future that ran this one is dropped.
struct Running<'a>(&'a Rounds);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.set(false);
        self.0.ended.notify_waiters();
    }
}

impl Rounds {
    /// Returns after a `work` that began after this call has succeeded, or its own has failed.
    pub(super) async fn join<E>(&self, work: impl AsyncFn() -> Result<(), E>) -> Result<(), E> {
        let mine = self.asked.get() + 1;
        self.asked.set(mine);
        loop {
            if self.done.get() >= mine {
                return Ok(());
            }
            if self.running.replace(true) {
                self.ended.notified().await;
                continue;
            }
            let running = Running(self);
            let covered = self.asked.get();
            let result = work().await;
            if result.is_ok() {
                self.done.set(covered);
            }
            drop(running);
            return result;
        }
    }
}
