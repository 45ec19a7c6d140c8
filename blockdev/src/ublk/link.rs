//! What passes between a queue's thread and the engine's.
//!
//! ```text
//!  queue thread                                            engine thread
//!    ring.wait ◀── bell (eventfd, polled by the ring) ◀──┐
//!    take_answers ◀──────── inbox ◀──────────────────────┴── answer
//!    Turn { requests, committed } ── bounded channel ─────▶  recv
//! ```
//!
//! A tag is in one place at a time: with the kernel, in a turn, with the engine, or in the inbox.
//! So no more than `depth` answers can wait, and the engine never blocks on a queue. The bell is
//! rung only for a queue that has said it will sleep; both sides say so under the inbox's lock.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::request::{Command, Errno};
use super::sys;
use crate::disk::Buffer;

/// A request's slot in its queue; the kernel reuses it once it has been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(pub(super) u16);

impl Tag {
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

pub(super) struct Request {
    pub(super) tag: Tag,
    pub(super) command: Command,
    /// What is to be written, or room for what is to be read; empty for all else.
    pub(super) data: Buffer,
}

pub(super) struct Answer {
    pub(super) tag: Tag,
    /// What was read, or an empty buffer.
    pub(super) outcome: Result<Buffer, Errno>,
}

/// What one round of the queue brought.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) requests: Vec<Request>,
    /// Tags whose answers the kernel has consumed.
    pub(super) committed: Vec<Tag>,
}

impl Turn {
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.committed.is_empty()
    }
}

#[derive(Default)]
struct Inbox {
    answers: Vec<Answer>,
    is_asleep: bool,
    must_leave: bool,
}

/// Where the engine leaves answers for one queue.
pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    bell: File,
    depth: usize,
}

/// What a queue finds when it has nothing left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// Nothing: it may sleep, and will be woken.
    Sleep,
    /// Answers have come meanwhile.
    GoOn,
    /// The device is to be left to another server.
    Leave,
}

impl Mailbox {
    pub(super) fn answer(&self, answer: Answer) {
        let mut inbox = self.lock();
        inbox.answers.push(answer);
        assert!(inbox.answers.len() <= self.depth, "a tag is answered once");
        self.wake(inbox);
    }

    /// Asks the queue to end, with its unanswered requests left to the device's next server.
    pub(super) fn ask_to_leave(&self) {
        let mut inbox = self.lock();
        inbox.must_leave = true;
        self.wake(inbox);
    }

    fn wake(&self, mut inbox: MutexGuard<'_, Inbox>) {
        let was_asleep = std::mem::take(&mut inbox.is_asleep);
        drop(inbox);
        if was_asleep {
            // Each write wakes the poll, so nobody has to read; the counter outlasts any machine.
            let _ = (&self.bell).write(&1_u64.to_ne_bytes());
        }
    }

    /// Moves the answers that have come into `into`, which is empty.
    pub(super) fn take_answers(&self, into: &mut Vec<Answer>) {
        std::mem::swap(&mut self.lock().answers, into);
    }

    pub(super) fn pause(&self) -> Pause {
        let mut inbox = self.lock();
        match (inbox.must_leave, inbox.answers.is_empty()) {
            (true, _) => Pause::Leave,
            (false, false) => Pause::GoOn,
            (false, true) => {
                inbox.is_asleep = true;
                Pause::Sleep
            }
        }
    }

    /// The queue is awake again, by whatever cause.
    pub(super) fn awake(&self) {
        self.lock().is_asleep = false;
    }

    pub(super) fn bell(&self) -> &File {
        &self.bell
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // No code that holds the lock panics but for the assertion above, which leaves it whole.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue's end.
pub(super) struct QueueEnd {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) turns: mpsc::Sender<io::Result<Turn>>,
}

/// The engine's end.
pub(super) struct EngineEnd {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) turns: mpsc::Receiver<io::Result<Turn>>,
    pub(super) depth: usize,
}

pub(super) fn pair(depth: u16) -> io::Result<(QueueEnd, EngineEnd)> {
    let depth = usize::from(depth);
    let mailbox = Arc::new(Mailbox { inbox: Mutex::default(), bell: sys::event_fd()?, depth });
    // A tag is in at most two turns that wait: committed, and then requested anew.
    let (sender, receiver) = mpsc::channel(2 * depth);
    let engine = EngineEnd { mailbox: mailbox.clone(), turns: receiver, depth };
    Ok((QueueEnd { mailbox, turns: sender }, engine))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn answer(tag: u16) -> Answer {
        Answer { tag: Tag(tag), outcome: Ok(Buffer::zeroed(0)) }
    }

    fn rings(mailbox: &Mailbox) -> bool {
        (&mailbox.bell).read(&mut [0; 8]).is_ok()
    }

    /// An answer that came between the last look and the sleep would wait for the next request.
    #[test]
    fn queue_does_not_fall_asleep_over_an_answer() {
        let (queue, engine) = pair(4).unwrap();
        engine.mailbox.answer(answer(1));
        assert!(!rings(&queue.mailbox), "nobody slept");
        assert_eq!(queue.mailbox.pause(), Pause::GoOn);
        let mut answers = Vec::new();
        queue.mailbox.take_answers(&mut answers);
        assert_eq!(answers.len(), 1);
        assert_eq!(queue.mailbox.pause(), Pause::Sleep);
    }

    /// A system call for each answer would cost more than the answer.
    #[test]
    fn bell_rings_once_for_a_queue_that_sleeps() {
        let (queue, engine) = pair(4).unwrap();
        assert_eq!(queue.mailbox.pause(), Pause::Sleep);
        engine.mailbox.answer(answer(1));
        assert!(rings(&queue.mailbox));
        engine.mailbox.answer(answer(2));
        assert!(!rings(&queue.mailbox), "it was woken already");
    }

    #[test]
    fn queue_that_sleeps_is_woken_to_leave() {
        let (queue, engine) = pair(4).unwrap();
        assert_eq!(queue.mailbox.pause(), Pause::Sleep);
        engine.mailbox.ask_to_leave();
        assert!(rings(&queue.mailbox));
        assert_eq!(queue.mailbox.pause(), Pause::Leave);
    }
}
