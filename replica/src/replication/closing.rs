//! The clean end: what is in flight is finished, all is flushed, and the members hear that nothing is
//! left to compare.
//!
//! ```text
//! Draining ──idle, steady──▶ Flushing ──all have, and agree on the epoch──▶ SayingGoodbye ─▶ ended
//!    ▲                          │ members differ somewhere: ended, and the marks stay
//!    └─── one is lost ──────────┘
//! ```

use std::time::Instant;

use super::action::End;
use super::core::{Core, Phase};
use super::fan_out::FanOut;
use super::peer::{FlushFor, Purpose};
use super::slots::Slot;
use crate::message::{Reply, Request};
use crate::mutation::{self, Mutation};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    Draining,
    Flushing(FanOut),
    SayingGoodbye(FanOut),
}

impl Core {
    pub(super) fn drive_closing(&mut self, now: Instant) {
        match self.phase {
            Phase::Closing(Closing::Draining) if self.is_drained() => self.flush_to_close(now),
            Phase::Closing(Closing::Flushing(asked)) if asked.is_over() => {
                // With unsettled regions left the marks must stay, for the next engine.
                let is_unequal = !self.settle.is_done() || self.has_given_up();
                if is_unequal || self.repairs.has_undecided() {
                    self.end(End::Detached);
                } else if self.epochs.may_close() {
                    self.say_goodbye(now);
                }
            }
            Phase::Closing(Closing::SayingGoodbye(asked)) if asked.is_over() => {
                self.end(End::Detached);
            }
            _ => {}
        }
    }

    fn is_drained(&self) -> bool {
        let idle = self.writes_in_flight == 0
            && !self.chain_work.is_changing()
            && self.ios.values().all(|io| io.answered);
        (idle || mutation::is_on(Mutation::ClearEarly)) && self.is_steady()
    }

    fn flush_to_close(&mut self, now: Instant) {
        if mutation::is_on(Mutation::ClearEarly) {
            return self.say_goodbye(now);
        }
        self.epochs.want_to_close();
        let purpose = Purpose::Flush(FlushFor::Closing);
        let asked = self.ask(now, self.live(), &purpose, &Request::Flush);
        self.phase = Phase::Closing(Closing::Flushing(asked));
    }

    fn say_goodbye(&mut self, now: Instant) {
        let asked = self.ask(now, self.live(), &Purpose::Bye, &Request::Bye);
        self.phase = Phase::Closing(Closing::SayingGoodbye(asked));
    }

    pub(super) fn closing_flushed(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        if self.expect_done(now, slot, reply)
            && let Phase::Closing(Closing::Flushing(asked)) = &mut self.phase
        {
            asked.answered(slot);
        }
    }

    pub(super) fn said_goodbye(&mut self, slot: Slot) {
        if let Phase::Closing(Closing::SayingGoodbye(asked)) = &mut self.phase {
            asked.answered(slot);
        }
    }

    pub(super) fn closing_lost(&mut self, slot: Slot) {
        let Phase::Closing(closing) = &mut self.phase else { return };
        match closing {
            Closing::Draining => {}
            Closing::Flushing(asked) => {
                if asked.lost(slot) {
                    *closing = Closing::Draining; // the rest must remove it first
                }
            }
            Closing::SayingGoodbye(asked) => {
                asked.lost(slot);
            }
        }
    }
}
