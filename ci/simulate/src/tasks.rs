//! The tasks of one process, run on one thread in an order that depends on nothing outside.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tokio::task::LocalSet;

/// Dropping it ends all of them where they are, as `SIGKILL` does.
pub struct Tasks {
    set: LocalSet,
    woken: Arc<Woken>,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Tasks {
    pub fn new() -> Self {
        Self { set: LocalSet::new(), woken: Arc::new(Woken(AtomicBool::new(false))) }
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        drop(self.set.spawn_local(task));
        self.woken.0.store(true, Ordering::Relaxed);
    }

    /// Lets them go on until all wait.
    pub fn run(&mut self) {
        let waker = Waker::from(self.woken.clone());
        while self.woken.0.swap(false, Ordering::Relaxed) {
            let _done = Pin::new(&mut self.set).poll(&mut Context::from_waker(&waker));
        }
    }
}

/// The result of a future that waits for nothing; `None` if it does.
pub fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    const TURNS_MAX: usize = 1_000_000;
    let mut future = std::pin::pin!(future);
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(woken.clone());
    for _ in 0..TURNS_MAX {
        if !woken.0.swap(false, Ordering::Relaxed) {
            return None;
        }
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(result);
        }
    }
    None
}
