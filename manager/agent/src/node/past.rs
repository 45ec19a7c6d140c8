//! What is remembered of the processes of an engine or a replica. All of it may be lost: then one is
//! started a little earlier, or waited for a little longer, than it would have been.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ankole_plan::node::facts::{History, LastWords};

use crate::backoff::Backoff;
use crate::last_words::last_words;
use crate::supervisor::Ended;

#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    started: Option<Instant>,
    asked_to_end: Option<Instant>,
    backoff: Backoff,
    /// How the last one ended that nobody had asked to.
    last_end: Option<String>,
    /// The log of the process that was started last, and where its part begins, in bytes.
    log: Option<(PathBuf, u64)>,
}

impl Past {
    pub(super) fn started(&mut self, log: PathBuf, begins_bytes: u64) {
        self.started = Some(Instant::now());
        self.asked_to_end = None;
        self.log = Some((log, begins_bytes));
    }

    pub(super) fn ask_to_end(&mut self) {
        self.asked_to_end.get_or_insert_with(Instant::now);
    }

    /// It won't.
    pub(super) fn take_back_asking(&mut self) {
        self.asked_to_end = None;
    }

    pub(super) fn asked_to_end(&self) -> Option<Duration> {
        self.asked_to_end.map(|since| since.elapsed())
    }

    /// Whether it was asked to.
    pub(super) fn ended(&mut self, ended: Ended) -> bool {
        let was_asked = self.asked_to_end.take().is_some();
        if !was_asked {
            let lived = self.started.map_or(Duration::MAX, |started| started.elapsed());
            self.backoff.failed(Instant::now(), lived);
            self.last_end = ended.how;
        }
        was_asked
    }

    /// Without doubts, which are the supervisor's.
    pub(super) fn history(&self) -> History {
        let last_words = match (&self.log, &self.last_end) {
            (Some((log, from_bytes)), Some(_)) => last_words(log, *from_bytes),
            _ => None,
        };
        let last_words = last_words.map(|it| LastWords { error: it.error, next: it.next });
        let hold_off = self.backoff.hold_off(Instant::now());
        History { hold_off, last_end: self.last_end.clone(), last_words, doubt: None }
    }
}
