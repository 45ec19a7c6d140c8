//! The read lease that a replica lends (rule 9).
//!
//! An engine answers a read only while every member's lease holds; a replica welcomes another
//! instance only when the lease that it lent has run out. So an engine that is cut off from its
//! successor doesn't read what is old. Owns whom the replica last lent to, and until when.
//!
//! ```text
//! nobody ──Welcome──▶ lent, until now + length ◀──any request of that session
//!    ▲                     │
//!    └──Bye, its process on this machine is gone, or time──┘
//! ```
//! Who has it is durable (`Store::lessee`), since a killed replica may have lent until its last
//! moment; until when isn't: after a start a whole lease has to pass, unless the lessee's process was
//! one of this machine and is gone. What may never happen: a lease ends because a *newer* session of
//! the same engine replaced the one that lost its link.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::mutation::{self, Mutation};
use crate::record::InstanceId;
use crate::types::Fence;

/// How long an engine may be cut off before it stops answering reads, and how long the next one
/// waits for it at most. Clocks are trusted to run equally fast within 10 %, see [`usable`].
pub const LEASE: Duration = Duration::from_secs(3);

/// What the borrower may count on of a lease of this length: its clock may run slower.
pub fn usable(length: Duration) -> Duration {
    if mutation::is_on(Mutation::LeaseWithoutMargin) {
        return length;
    }
    length * 9 / 10
}

/// Whom this replica lends to.
#[derive(Debug)]
pub(crate) struct Lender {
    length: Duration,
    lent: RefCell<Option<Lent>>,
}

#[derive(Debug)]
struct Lent {
    to: InstanceId,
    /// The newest session of that instance; unknown after a start.
    session: Option<Fence>,
    until: Instant,
}

impl Lender {
    /// A replica that starts: the process before it may have lent to `lessee` until just now.
    pub(crate) fn after_start(now: Instant, length: Duration, lessee: Option<InstanceId>) -> Self {
        let lent = lessee.map(|to| Lent { to, session: None, until: now + length });
        Self { length, lent: RefCell::new(lent) }
    }

    pub(crate) fn length(&self) -> Duration {
        self.length
    }

    /// How long `instance` has to wait for the lease of another one.
    pub(crate) fn busy(&self, now: Instant, instance: &InstanceId) -> Option<Duration> {
        if mutation::is_on(Mutation::ForgetLeaseOnFence) {
            return None;
        }
        let lent = self.lent.borrow();
        let other = lent.as_ref().filter(|lent| lent.to != *instance)?;
        other.until.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// A session was welcomed; nobody else is [`busy`](Self::busy) with the lease.
    pub(crate) fn lend(&self, now: Instant, to: &InstanceId, session: Fence) {
        let until = now + self.length;
        self.lent.replace(Some(Lent { to: to.clone(), session: Some(session), until }));
    }

    /// A session that isn't over asked for something.
    pub(crate) fn renew(&self, now: Instant, session: Fence) {
        if let Some(lent) = &mut *self.lent.borrow_mut()
            && lent.session == Some(session)
        {
            lent.until = lent.until.max(now + self.length);
        }
    }

    /// The borrower gave it back, or is gone. `false`: a newer session of it has the lease.
    pub(crate) fn end(&self, session: Fence) -> bool {
        let mut lent = self.lent.borrow_mut();
        lent.take_if(|lent| lent.session == Some(session)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Generation, Session};

    fn fence(session: u64) -> Fence {
        Fence { generation: Generation::FIRST, session: Session(session) }
    }

    fn engine(name: &str) -> InstanceId {
        InstanceId(name.into())
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn another_engine_waits_for_the_rest_of_the_lease_and_the_same_one_never() {
        let start = Instant::now();
        let lender = Lender::after_start(start, LEASE, None);
        assert_eq!(lender.busy(start, &engine("e1")), None);
        lender.lend(start, &engine("e1"), fence(1));
        lender.renew(start + seconds(2), fence(1));
        assert_eq!(lender.busy(start + seconds(4), &engine("e2")), Some(seconds(1)));
        assert_eq!(lender.busy(start + seconds(4), &engine("e1")), None);
        assert_eq!(lender.busy(start + seconds(5), &engine("e2")), None);
    }

    /// A killed replica may have renewed a lease just before it died.
    #[test]
    fn after_a_start_whoever_had_the_lease_may_have_it_for_a_whole_one() {
        let start = Instant::now();
        let lender = Lender::after_start(start, LEASE, Some(engine("e1")));
        assert_eq!(lender.busy(start + seconds(1), &engine("e2")), Some(seconds(2)));
        assert_eq!(lender.busy(start + seconds(1), &engine("e1")), None);
        assert_eq!(lender.busy(start + seconds(3), &engine("e2")), None);
    }

    /// An engine that reconnected closes its old socket late: it still reads under the new one.
    #[test]
    fn the_end_of_an_older_session_ends_no_lease() {
        let start = Instant::now();
        let lender = Lender::after_start(start, LEASE, None);
        lender.lend(start, &engine("e1"), fence(1));
        lender.lend(start, &engine("e1"), fence(2));
        assert!(!lender.end(fence(1)));
        assert_eq!(lender.busy(start, &engine("e2")), Some(LEASE));
        assert!(lender.end(fence(2)));
        assert_eq!(lender.busy(start, &engine("e2")), None);
    }

    /// The session was fenced: what it still sends keeps nobody waiting.
    #[test]
    fn only_the_newest_session_renews() {
        let start = Instant::now();
        let lender = Lender::after_start(start, LEASE, None);
        lender.lend(start, &engine("e1"), fence(1));
        lender.lend(start, &engine("e1"), fence(2));
        lender.renew(start + seconds(2), fence(1));
        assert_eq!(lender.busy(start + seconds(3), &engine("e2")), None);
    }
}
