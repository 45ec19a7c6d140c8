//! One question to several replicas at once.
//!
//! Whoever was asked answers or is lost. Until nobody owes an answer, what the question holds (range
//! locks, transfers) must stay, even when nobody wants the answers any more: what was sent may still
//! be carried out.

use std::time::Instant;

use super::action::PayloadRef;
use super::core::Core;
use super::peer::Purpose;
use super::slots::{Slot, Slots};
use crate::message::Request;

/// Who owes an answer. Nobody, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FanOut {
    owing: Slots,
    spoiled: bool,
}

impl FanOut {
    pub(super) fn to(asked: Slots) -> Self {
        Self { owing: asked, spoiled: false }
    }

    /// The next question of the same matter, which stays spoiled if it was.
    pub(super) fn ask(&mut self, asked: Slots) {
        self.owing = self.owing.union(asked);
    }

    pub(super) fn answered(&mut self, slot: Slot) {
        self.owing.remove(slot);
    }

    /// It answers no more. Tells whether it owed an answer.
    pub(super) fn lost(&mut self, slot: Slot) -> bool {
        let owed = self.owing.contains(slot);
        self.owing.remove(slot);
        owed
    }

    /// The answers are of no use any more, but are waited for.
    pub(super) fn spoil(&mut self) {
        self.spoiled = true;
    }

    pub(super) fn is_spoiled(&self) -> bool {
        self.spoiled
    }

    /// Nobody owes an answer.
    pub(super) fn is_over(&self) -> bool {
        self.owing.is_empty()
    }
}

impl Core {
    /// Asks all of them the same.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        slots: Slots,
        purpose: &Purpose,
        request: &Request<PayloadRef>,
    ) -> FanOut {
        for slot in slots.iter() {
            self.send(now, slot, purpose.clone(), request.clone(), None);
        }
        FanOut::to(slots)
    }
}
