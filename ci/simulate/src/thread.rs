//! The one thread of a process: what it does takes virtual time, and all else of it waits meanwhile.
//! So a loop over a whole volume is a stall here, too.
//!
//! Promises that a turn, which is what runs between two waits of a task, takes what its work costs,
//! and that no other task of the process gets a turn before that has passed. Turns so short that they
//! don't matter add up first.
//!
//! ```text
//! task ─turn─▶ calls, bytes, looks, messages ─▶ busy ── the other tasks' turns wait ─▶ free
//! ```

use std::cell::{Cell, RefCell};
use std::ops::Sub;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use ankole_replica::store::crash;

use crate::schedule::{Due, Schedule};

// Measured by `cargo run --release -p ankole-simulate --example costs` and rounded up; the README
// has the figures.

/// A system call that the page cache answers, without its bytes.
const CALL_NS: u64 = 400;
/// A look at an index page that is in memory, or at the set of those that exist.
const LOOK_NS: u64 = 50;
/// A message is received and decoded, or encoded and sent, without its bytes.
const MESSAGE_NS: u64 = 5_000;
/// A byte that is copied and summed, in picoseconds.
const BYTE_PS: u64 = 120;

/// What may add up before others wait.
const GRAIN_NS: u64 = 50_000;

/// What a thread has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    pub calls: u64,
    pub looks: u64,
    pub messages: u64,
    pub bytes: u64,
}

impl Work {
    pub fn of_disk(work: crash::Work) -> Self {
        Self { calls: work.calls, bytes: work.bytes, ..Self::default() }
    }

    pub fn message(bytes: usize) -> Self {
        Self { messages: 1, bytes: bytes as u64, ..Self::default() }
    }

    fn cost_ns(self) -> u64 {
        let Self { calls, looks, messages, bytes } = self;
        calls * CALL_NS + looks * LOOK_NS + messages * MESSAGE_NS + bytes * BYTE_PS / 1000
    }
}

impl Sub for Work {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            looks: self.looks - before.looks,
            messages: self.messages - before.messages,
            bytes: self.bytes - before.bytes,
        }
    }
}

pub struct Thread<W> {
    schedule: Rc<Schedule<W>>,
    /// When all that it has begun is done.
    free_at_ns: Cell<u64>,
    /// Until then everything takes a hundred times as long.
    crawls_until_us: Cell<u64>,
    /// What it has cost since the process began, at the usual speed.
    spent_ns: Cell<u64>,
    longest_turn_ns: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl<W: 'static> Thread<W> {
    pub fn new(schedule: &Rc<Schedule<W>>) -> Rc<Self> {
        Rc::new(Self {
            schedule: schedule.clone(),
            free_at_ns: Cell::new(0),
            crawls_until_us: Cell::new(0),
            spent_ns: Cell::new(0),
            longest_turn_ns: Cell::new(0),
            waiting: RefCell::default(),
        })
    }

    /// Another process has it: nothing of the one before is left to do.
    pub fn restart(&self) {
        self.free_at_ns.set(0);
        self.waiting.borrow_mut().clear();
    }

    /// It runs at 1 % of its speed.
    pub fn crawl_until(&self, at_us: u64) {
        self.crawls_until_us.set(at_us);
    }

    /// Its process is stopped: it reads nothing, and whoever talks to it waits.
    pub fn stop_until(&self, at_us: u64) {
        self.free_at_ns.set(self.free_at_ns.get().max(at_us * 1000));
    }

    /// What the time is where it has got to.
    pub fn now_us(&self) -> u64 {
        self.schedule.now_us() + self.ahead_us()
    }

    /// How long it is busy with what it has begun.
    pub fn ahead_us(&self) -> u64 {
        self.free_at_ns.get().div_ceil(1000).saturating_sub(self.schedule.now_us())
    }

    /// Who comes now has to wait so long for its turn.
    pub fn busy_us(&self) -> Option<u64> {
        Some(self.ahead_us()).filter(|ahead| *ahead * 1000 > GRAIN_NS)
    }

    pub fn spend(&self, work: Work) {
        let now_us = self.schedule.now_us();
        let cost_ns = work.cost_ns();
        let takes_ns = if self.crawls_until_us.get() > now_us { 100 * cost_ns } else { cost_ns };
        self.free_at_ns.set(self.free_at_ns.get().max(now_us * 1000) + takes_ns);
        self.spent_ns.set(self.spent_ns.get() + cost_ns);
    }

    /// The longest turn since somebody asked, at the usual speed.
    pub fn take_longest_turn_us(&self) -> u64 {
        self.longest_turn_ns.take() / 1000
    }

    fn wait(self: &Rc<Self>, us: u64, waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            let thread = self.clone();
            let free = move |_: &mut W| {
                let waiting = thread.waiting.take();
                waiting.into_iter().for_each(Waker::wake);
            };
            self.schedule.plan(us, Due::Event("thread", Box::new(free)));
        }
        if !waiting.iter().any(|it| it.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }
}

/// A task of a process: its turns take the thread's time.
pub struct OnThread<W, F> {
    pub thread: Rc<Thread<W>>,
    /// All that the process has done, apart from messages.
    pub work: Rc<dyn Fn() -> Work>,
    pub task: Pin<Box<F>>,
}

impl<W: 'static, F: Future<Output = ()>> Future for OnThread<W, F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(us) = self.thread.busy_us() {
            self.thread.wait(us, context.waker());
            return Poll::Pending;
        }
        let (before, spent_ns) = ((self.work)(), self.thread.spent_ns.get());
        let polled = self.task.as_mut().poll(context);
        let thread = &self.thread;
        thread.spend((self.work)() - before);
        let turn_ns = thread.spent_ns.get() - spent_ns;
        thread.longest_turn_ns.set(thread.longest_turn_ns.get().max(turn_ns));
        polled
    }
}
