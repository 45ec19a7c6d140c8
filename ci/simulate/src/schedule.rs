//! Virtual time: what happens when, and nothing else decides the order.
//!
//! Owns the queue of the world's events and of the tasks that sleep. Two things that are due at
//! the same time happen in the order in which they were planned.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What is due.
pub enum Due<W> {
    Event(&'static str, Box<dyn FnOnce(&mut W)>),
    Wake(Waker),
}

pub struct Schedule<W> {
    now_us: Cell<u64>,
    planned: Cell<u64>,
    queue: RefCell<BTreeMap<(u64, u64), Due<W>>>,
}

impl<W> Schedule<W> {
    pub fn new() -> Rc<Self> {
        let queue = RefCell::new(BTreeMap::new());
        Rc::new(Self { now_us: Cell::new(0), planned: Cell::new(0), queue })
    }

    pub fn now_us(&self) -> u64 {
        self.now_us.get()
    }

    pub fn plan(&self, after_us: u64, due: Due<W>) {
        self.planned.set(self.planned.get() + 1);
        let at = (self.now_us.get() + after_us, self.planned.get());
        self.queue.borrow_mut().insert(at, due);
    }

    /// Goes to the next thing that is due.
    pub fn next(&self) -> Option<Due<W>> {
        let ((at, _), due) = self.queue.borrow_mut().pop_first()?;
        self.now_us.set(at);
        Some(due)
    }

    pub fn sleep(self: &Rc<Self>, us: u64) -> Sleep<W> {
        Sleep { schedule: self.clone(), until_us: self.now_us() + us, planned: false }
    }
}

/// Of a machine's clock, in thousandths.
#[derive(Clone, Copy, Debug)]
pub struct Speed(u64);

impl Speed {
    /// Clocks are trusted to run equally fast within 10 % (rule 9): these are as far apart as that.
    pub const ALL: [Self; 5] = [Self(950), Self(975), Self(1000), Self(1025), Self(1050)];

    /// What the clock shows.
    pub fn clock(self, now_us: u64) -> Duration {
        Duration::from_nanos(now_us * self.0)
    }

    /// When it will show that.
    pub fn when_us(self, clock: Duration) -> u64 {
        (clock.as_nanos() as u64).div_ceil(self.0)
    }
}

/// Ready when its time has come.
pub struct Sleep<W> {
    schedule: Rc<Schedule<W>>,
    until_us: u64,
    planned: bool,
}

impl<W> Future for Sleep<W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let now_us = self.schedule.now_us();
        if now_us >= self.until_us {
            return Poll::Ready(());
        }
        if !std::mem::replace(&mut self.planned, true) {
            let wake = Due::Wake(context.waker().clone());
            self.schedule.plan(self.until_us - now_us, wake);
        }
        Poll::Pending
    }
}
