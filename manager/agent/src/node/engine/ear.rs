//! Hearing an engine: a task for each, without a thread, so that nobody has to ask.
//!
//! ```text
//!        ┌─── the connection ends ────┐
//!        ▼                            │
//! nobody there ──▶ watching: a line at least each second ──▶ silent: none for two
//!        ▲   │                                  ▲──────── a line ──────┘
//!        │   └─ it doesn't know `watch` ─▶ asked each second
//!        └──────── no answer ────────────────────┘
//! ```
//! An engine that is stopped keeps its task waiting, and nobody else.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ankole_replica::admin::{Answer, EngineStatus as Said, Request};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::admin::{AdminError, Conversation, ask_async};

/// One that watches is told something each second.
const SILENCE: Duration = Duration::from_secs(2);
/// Whoever looks first waits for the first word so long.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// What an engine says while it opens is told together.
const WHILE_OPENING: Duration = Duration::from_millis(200);
/// One that doesn't know `watch` is asked so often, and may take so long.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Before the next line of one that sends many.
const PACE: Duration = Duration::from_millis(5);
/// Before one that isn't there is looked for again: at first its process is just starting.
const PAUSES: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(2)..=Duration::from_millis(200);

/// What an engine was heard to say last.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    pub(super) said: Option<Arc<Said>>,
    /// Since when it hasn't said anything, though it should.
    pub(super) silent: Option<Instant>,
    /// Since when nobody has been listening on its socket.
    pub(super) unreachable: Option<Instant>,
}

/// Of one process.
pub(super) struct Ear {
    pub(super) pid: u32,
    heard: watch::Receiver<Heard>,
    task: JoinHandle<()>,
}

impl Ear {
    pub(super) fn open(pid: u32, socket: PathBuf) -> Self {
        let (tells, heard) = watch::channel(Heard::default());
        let listener = Listener { socket, tells, last: Instant::now() };
        Self { pid, heard, task: tokio::spawn(listener.run()) }
    }

    /// Or that it says none.
    pub(super) async fn first_word(&mut self) {
        let _ = timeout(FIRST_WORD, self.heard.changed()).await;
    }

    pub(super) fn heard(&mut self) -> Heard {
        self.heard.borrow_and_update().clone()
    }

    /// When there is something that wasn't heard before.
    pub(super) async fn news(&mut self) {
        if self.heard.changed().await.is_err() {
            return pending().await;
        }
        let is_usable =
            |heard: &Heard| heard.said.as_ref().is_some_and(|said| said.endpoint.is_some());
        let _ = timeout(WHILE_OPENING, self.heard.wait_for(is_usable)).await;
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Listener {
    socket: PathBuf,
    tells: watch::Sender<Heard>,
    /// When it said something last.
    last: Instant,
}

impl Listener {
    async fn run(mut self) {
        let mut pause = *PAUSES.start();
        loop {
            let before = self.last;
            let error = match self.watch().await {
                Unheard::Lost(error) => error,
                Unheard::NoWatch => self.ask_again_and_again().await,
            };
            self.note_lost(&error);
            let has_spoken = self.last != before;
            pause = if has_spoken { *PAUSES.start() } else { (pause * 2).min(*PAUSES.end()) };
            sleep(pause).await;
        }
    }

    async fn watch(&mut self) -> Unheard {
        let mut conversation = match Conversation::open(&self.socket, &Request::Watch).await {
            Ok(conversation) => conversation,
            Err(error) => return Unheard::Lost(error),
        };
        self.note_reached();
        let mut has_answered = false;
        loop {
            let before = self.last;
            let left = SILENCE.saturating_sub(before.elapsed());
            let next = conversation.next();
            let is_silent = self.tells.borrow().silent.is_some();
            let next = match is_silent {
                true => next.await,
                false => match timeout(left, next).await {
                    Ok(next) => next,
                    Err(_) => {
                        self.note_silence(before);
                        continue;
                    }
                },
            };
            match next {
                Ok(Answer::Status(said)) => self.note_said(said),
                Ok(Answer::Alive) => self.note_alive(),
                Ok(Answer::Ok | Answer::Error { .. }) => return Unheard::NoWatch,
                Err(_) if !has_answered => return Unheard::NoWatch,
                Err(error) => return Unheard::Lost(error),
            }
            has_answered = true;
            if before.elapsed() < PACE {
                sleep(PACE).await;
            }
        }
    }

    /// One of a version before.
    async fn ask_again_and_again(&mut self) -> AdminError {
        loop {
            match ask_async(&self.socket, &Request::Status, ASK_EVERY).await {
                Ok(Answer::Status(said)) => self.note_said(said),
                Ok(_) => {}
                Err(error) => return error,
            }
            sleep(ASK_EVERY).await;
        }
    }

    fn note_said(&mut self, said: Box<Said>) {
        self.last = Instant::now();
        self.tells.send_replace(Heard { said: Some(said.into()), ..Heard::default() });
    }

    fn note_alive(&mut self) {
        self.last = Instant::now();
        self.tells.send_if_modified(|heard| {
            heard.unreachable = None;
            heard.silent.take().is_some()
        });
    }

    /// Somebody listens there; whether it says something is to be seen.
    fn note_reached(&self) {
        self.tells.send_if_modified(|heard| heard.unreachable.take().is_some());
    }

    fn note_silence(&self, since: Instant) {
        self.tells.send_if_modified(|heard| {
            let is_new = heard.silent.is_none();
            heard.silent.get_or_insert(since);
            is_new
        });
    }

    fn note_lost(&self, error: &AdminError) {
        self.note_silence(Instant::now());
        self.tells.send_if_modified(|heard| {
            let (before, is_nobody) = (heard.unreachable, error.is_nobody());
            heard.unreachable = is_nobody.then(|| before.unwrap_or_else(Instant::now));
            before.is_some() != is_nobody
        });
    }
}

/// Why nothing is heard any more.
enum Unheard {
    Lost(AdminError),
    NoWatch,
}

#[cfg(test)]
mod tests;
