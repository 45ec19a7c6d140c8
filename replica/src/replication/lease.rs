//! The leases that the members lend this engine (rule 9).
//!
//! Owns when a read, a write or a flush may be told. A newer engine acknowledges nothing before one
//! member has welcomed it, and a member welcomes it only when the lease it lent has run out. So while
//! the leases of *all* members hold, what was read under the range lock is still the newest. A lease
//! counts from the moment at which the request was sent whose answer renewed it. A write whose last
//! confirmation is late isn't told either: its members may have answered a newer engine since, and,
//! if they all lost power, forgotten the write (P4; the model's `AcknowledgeNeedsLeases`).
//!
//! - Needed are those whom the next engine may find in the record: the set, and a replica whose
//!   addition was asked for. One whose removal is not definite is still in the set. One that is out
//!   isn't needed: no engine opens with it.
//! - Edges of partly written blocks, and what settling and rebuilds read, are told to nobody.
//! - A lease is given up with its link, before the link is closed: a replica on the same machine
//!   takes the closed socket for the end of the lease.
//!
//! An idle volume sends nothing: a lease is renewed by whatever is asked, and by a ping when
//! something is to be told and it is about to run out.

use std::time::{Duration, Instant};

use super::action::IoId;
use super::core::Core;
use super::io::IoStage;
use super::peer::Purpose;
use super::slots::{Slot, Slots};
use crate::lease;
use crate::message::{Reply, Request};
use crate::mutation::{self, Mutation};

/// What one replica has lent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lease {
    length: Duration,
    until: Option<Instant>,
    /// A ping that will renew it is on its way.
    asked: bool,
}

impl Lease {
    fn holds(self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// In its last third, or out.
    fn is_short(self, now: Instant) -> bool {
        self.until.is_none_or(|until| now + self.length / 3 >= until)
    }

    fn renew(&mut self, from: Instant) {
        let until = from + self.length;
        self.until = Some(self.until.map_or(until, |before| before.max(until)));
    }

    /// Before the link is closed.
    pub(super) fn give_up(&mut self) {
        (self.until, self.asked) = (None, false);
    }
}

impl Core {
    /// Whatever a session that isn't fenced answers renews its lease.
    pub(super) fn renew_lease(
        &mut self,
        now: Instant,
        slot: Slot,
        purpose: &Purpose,
        sent: Instant,
        reply: &Reply<()>,
    ) {
        let from = if mutation::is_on(Mutation::RenewLeaseAtAnswer) { now } else { sent };
        let lease = &mut self.peer_mut(slot).lease;
        match (purpose, reply) {
            (Purpose::Hello, Reply::Welcome(welcome)) => {
                lease.length = lease::usable(Duration::from_millis(welcome.lease_ms.into()));
                lease.renew(from);
            }
            (Purpose::Hello, _) => {}
            _ => lease.renew(from),
        }
        if *purpose == Purpose::Lease {
            lease.asked = false;
        }
    }

    /// Everyone whom the next engine may find in the record.
    fn lenders(&self) -> Slots {
        self.next_set()
    }

    pub(super) fn leases_hold(&self, now: Instant) -> bool {
        self.lenders().iter().all(|slot| self.peer(slot).lease.holds(now))
    }

    /// A read goes to `reader`, which renews that lease; others may be short too.
    pub(super) fn renew_short_leases(&mut self, now: Instant, reader: Option<Slot>) {
        let linked = self.lenders().intersection(self.writable());
        for slot in linked.without(reader.into_iter().collect()).iter() {
            let lease = &mut self.peer_mut(slot).lease;
            if lease.is_short(now) && !lease.asked {
                lease.asked = true;
                self.send(now, slot, Purpose::Lease, Request::Ping, None);
            }
        }
    }

    /// The data is there: it is told now, or when all leases hold.
    pub(super) fn tell_read(&mut self, now: Instant, id: IoId) {
        if self.leases_hold(now) || mutation::is_on(Mutation::ReadWithoutLease) {
            return self.complete(id, Ok(()));
        }
        self.io(id).stage = IoStage::Leasing;
        self.lease_waiters.push(id);
    }

    /// Whether a write or a flush that all have confirmed may be told.
    pub(super) fn may_acknowledge(&self, now: Instant) -> bool {
        self.leases_hold(now) || mutation::is_on(Mutation::AcknowledgeWithoutLease)
    }

    /// A write that all have confirmed is told when all leases hold, if it needs nobody else then.
    pub(super) fn acknowledge_later(&mut self, id: IoId) {
        if !self.lease_waiters.contains(&id) {
            self.lease_waiters.push(id);
        }
    }

    pub(super) fn drive_leases(&mut self, now: Instant) {
        if self.lease_waiters.is_empty() {
            return;
        }
        if !self.leases_hold(now) {
            return self.renew_short_leases(now, None);
        }
        for id in std::mem::take(&mut self.lease_waiters) {
            match self.ios.get(&id).map(|io| io.stage) {
                Some(IoStage::Leasing) => {
                    self.complete(id, Ok(()));
                    self.retire_if_done(now, id);
                }
                Some(IoStage::Writing) => self.check_write(now, id),
                _ => {}
            }
        }
    }

    /// In words, for people.
    pub(super) fn lease_waits_for(&self) -> Option<String> {
        let missing = self.lenders().without(self.live());
        (!self.lease_waiters.is_empty() && !missing.is_empty()).then(|| {
            let names = self.names(missing);
            format!("requests wait until {names} answers or is removed from the in-sync set")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The answer may have been on its way for long: the replica counts from when it was asked at
    /// the earliest, so the engine must not count from later.
    #[test]
    fn an_answer_to_an_older_request_shortens_no_lease() {
        let start = Instant::now();
        let mut lease = Lease { length: 3 * SECOND, ..Lease::default() };
        lease.renew(start + 2 * SECOND);
        lease.renew(start);
        assert!(lease.holds(start + 4 * SECOND));
        assert!(!lease.holds(start + 5 * SECOND));
        assert!(!lease.is_short(start + 3 * SECOND) && lease.is_short(start + 4 * SECOND));
        lease.give_up();
        assert!(!lease.holds(start));
    }
}
