//! The frontend's flushes (rule 17): one round at a time, and a flush joins only a round that has not
//! been sent.

use std::time::Instant;

use super::action::{Failure, IoId};
use super::core::Core;
use super::peer::{FlushFor, Purpose};
use super::slots::{Slot, Slots};
use crate::message::{Reply, Request};
use crate::mutation::{self, Mutation};

/// The frontend's flushes.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    /// Not sent to anybody yet: one that comes now joins these.
    pub(super) next: Vec<IoId>,
    running: Option<Round>,
    rounds: u64,
}

#[derive(Debug)]
struct Round {
    number: u64,
    ios: Vec<IoId>,
    needs: Slots,
    failed: bool,
}

impl Flushes {
    /// All that waited were answered with an error.
    pub(super) fn forget(&mut self) {
        (self.next, self.running) = (Vec::new(), None);
    }

    pub(super) fn add(&mut self, io: IoId) {
        match &mut self.running {
            Some(round) if mutation::is_on(Mutation::FlushJoinsRunning) => round.ios.push(io),
            _ => self.next.push(io),
        }
    }
}

impl Core {
    /// Rule 17: covers what was acknowledged before it came; joins no round that was sent.
    pub(super) fn drive_flushes(&mut self, now: Instant) {
        let serving = self.is_open();
        if let Some(round) = &self.flushes.running {
            if !round.needs.is_empty() {
                return;
            }
            if !round.failed && !self.may_acknowledge(now) {
                return self.renew_short_leases(now, None);
            }
            let round = self.flushes.running.take().expect("seen above");
            for id in round.ios {
                self.complete(id, if round.failed { Err(Failure::Io) } else { Ok(()) });
                self.retire_if_done(now, id);
            }
        }
        if !serving || self.flushes.next.is_empty() {
            return;
        }
        self.flushes.rounds += 1;
        let number = self.flushes.rounds;
        let round = Round {
            number,
            ios: std::mem::take(&mut self.flushes.next),
            needs: self.needed(),
            failed: false,
        };
        let targets = round.needs.intersection(self.writable());
        self.flushes.running = Some(round);
        for slot in targets.iter() {
            self.send(now, slot, Purpose::Flush(FlushFor::Round(number)), Request::Flush, None);
        }
    }

    pub(super) fn flush_answered(
        &mut self,
        now: Instant,
        slot: Slot,
        whose: FlushFor,
        reply: Reply<()>,
    ) {
        match whose {
            FlushFor::Round(number) => {
                let only = self.is_only_member(slot);
                let Some(round) = &mut self.flushes.running else { return };
                if round.number != number {
                    return;
                }
                if reply == Reply::Done {
                    round.needs.remove(slot);
                } else if only {
                    // Rule 10: the last member is never removed; the client must know.
                    round.needs.remove(slot);
                    round.failed = true;
                } else {
                    self.lose_for(now, slot, &reply);
                }
            }
            FlushFor::Chain => self.chain_flushed(now, slot, reply),
            FlushFor::Clear(number) => self.clear_answered(now, slot, number, reply),
            FlushFor::Closing => self.closing_flushed(now, slot, reply),
        }
    }

    pub(super) fn resend_flush(&mut self, now: Instant, slot: Slot) {
        if let Some(round) = &self.flushes.running
            && round.needs.contains(slot)
        {
            let purpose = Purpose::Flush(FlushFor::Round(round.number));
            self.send(now, slot, purpose, Request::Flush, None);
        }
    }

    pub(super) fn flushes_need_only(&mut self, needed: Slots) {
        if let Some(round) = &mut self.flushes.running {
            round.needs = round.needs.intersection(needed);
        }
    }
}
