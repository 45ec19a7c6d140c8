//! What an engine's task remembers between passes.

use std::time::{Duration, Instant};

use ankole_api::volume::Device;
use ankole_replica::admin::EngineStatus as Said;
use jiff::Timestamp;

use super::ear::Heard;
use crate::node::past::Past;
use crate::supervisor::Ended;

/// All of it may be lost.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    pub(super) past: Past,
    pub(super) was_killed: bool,
    pub(super) left: bool,
    /// When it last refused to detach, and why.
    pub(super) refused: Option<(Instant, String)>,
    pub(super) waits: Option<Instant>,
    /// Since when it hasn't answered, and since when nobody has been listening on its socket.
    pub(super) silent: Option<Instant>,
    pub(super) unreachable: Option<Instant>,
    pub(super) unknown_since: Option<Timestamp>,
    pub(super) waiting_since: Option<Timestamp>,
    /// What it said last.
    pub(super) said: Option<Box<Said>>,
    /// The volume's device as it was when no engine could be reached.
    pub(super) device: Option<Device>,
    /// Since when it has no engine.
    pub(super) unserved: Option<Instant>,
}

impl Memory {
    pub(super) fn ended(&mut self, ended: Ended) {
        let well = ended.how.as_deref().is_none_or(|how| how == "exit status: 0");
        let was_asked = self.past.ended(ended);
        self.left = was_asked && well && !self.was_killed;
        self.was_killed = false;
        (self.refused, self.said) = (None, None);
        (self.silent, self.unreachable, self.unknown_since) = (None, None, None);
    }

    pub(super) fn note_heard(&mut self, heard: Heard) {
        (self.silent, self.unreachable) = (heard.silent, heard.unreachable);
        let begun = heard.silent.map(|since| Timestamp::now() - since.elapsed());
        self.unknown_since = begun.map(|begun| self.unknown_since.unwrap_or(begun));
        let Some(said) = heard.said else { return };
        let waits = !said.waiting.is_empty();
        self.waits = waits.then(|| self.waits.unwrap_or_else(Instant::now));
        self.waiting_since = waits.then(|| self.waiting_since.unwrap_or_else(Timestamp::now));
        self.said = Some(Box::new(Said::clone(&said)));
    }

    /// How long the device has been waiting for an engine.
    pub(super) fn note_unserved(
        &mut self,
        own: Option<Device>,
        has_process: bool,
    ) -> Option<Duration> {
        let is_served = match (&self.said, has_process) {
            (Some(said), true) => said.endpoint.is_some(),
            (None, true) => self.unserved.is_none(), // too busy to answer: it is as it was
            (_, false) => false,
        };
        let since = self.unserved.unwrap_or_else(Instant::now);
        self.unserved = (own.is_some() && !is_served).then_some(since);
        self.unserved.map(|since| since.elapsed())
    }
}
