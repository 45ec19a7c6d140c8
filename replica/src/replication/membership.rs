//! Connections, and how the in-sync set changes.
//!
//! ```text
//!          member lost                all answered            arbiter says yes
//! steady ──────────────▶ Pinging ───────────────▶ Swapping ───────────────────▶ Advancing ─▶ steady
//!    │                      ▲ another is lost: again   ▲                            │ all durable:
//!    └── rebuilt, ready ────┼──────────────────────────┘                            │ the removed
//!                           └──────────── another is lost ◀─────────────────────────┘ aren't needed
//! ```

use std::time::{Duration, Instant};

use super::action::{Action, End};
use super::core::{Core, Phase};
use super::fan_out::FanOut;
use super::peer::{Absence, Peer, PeerState, Purpose};
use super::slots::{Slot, Slots};
use crate::message::{Advance, Claim, Hello, Refusal, Reply, Request, Role, Welcome};
use crate::mutation::{self, Mutation};
use crate::record::{Change, Member, Record, Refused};
use crate::types::{Generation, Region};

/// A change of the record that is under way. One at a time.
#[derive(Debug)]
pub(super) enum Changing {
    /// The survivors answer a ping that was sent after the failure: the engine isn't the one that
    /// was cut off.
    Pinging { round: u64, asked: FanOut },
    /// The arbiter was asked and has not said yes or no.
    Swapping { target: Vec<Member> },
}

impl Core {
    // ---- connections -----------------------------------------------------------------------

    pub(super) fn drive_connections(&mut self, now: Instant) {
        for slot in self.all_slots() {
            let peer = self.peer(slot);
            let due = matches!(peer.state, PeerState::Down { retry_at } if now >= retry_at);
            if due && self.may_connect(peer) {
                let link = self.new_link();
                self.peer_mut(slot).begin(now, link);
                self.act(Action::Connect { slot, link });
            } else if !peer.wanted
                && self.is_open() // before, whoever may hold acknowledged writes is needed
                && !peer.is_down()
            {
                let others = self.live().without([slot].into_iter().collect());
                if peer.in_set.is_none() || !others.is_empty() {
                    self.lose(now, slot, "it isn't wanted any more");
                }
            }
        }
    }

    /// A member may be back before it is removed; one that isn't fit only if nobody else is left.
    pub(super) fn may_connect(&self, peer: &Peer) -> bool {
        match &self.phase {
            Phase::Opening(opening) => opening.may_greet(peer),
            Phase::Serving | Phase::Closing(_) => match peer.in_set {
                Some(_) if peer.absence == Absence::Unfit => {
                    self.live().is_empty() && self.changing.is_none()
                }
                Some(_) => !matches!(self.changing, Some(Changing::Swapping { .. })),
                None => peer.wanted && self.is_steady() && matches!(self.phase, Phase::Serving),
            },
            Phase::Ended => false,
        }
    }

    pub(super) fn greet(&mut self, now: Instant, slot: Slot) {
        let Some(generation) = self.generation() else {
            return self.lose(now, slot, "connected before there was a generation");
        };
        let fence = self.new_fence(generation);
        let (volume, instance) = (self.config.volume.clone(), self.config.instance.clone());
        let process = self.config.process;
        let peer = self.peer_mut(slot);
        peer.state = PeerState::Greeting;
        peer.greeted = Some(fence);
        let incarnation = peer.meant();
        let role = if incarnation.is_some() { Role::Member } else { Role::WriteOnly };
        let claim = Some(Claim { fence, instance, incarnation, process });
        let hello = Hello { volume, replica: peer.id.clone(), role, claim };
        self.send(now, slot, Purpose::Hello, Request::Hello(Box::new(hello)), None);
    }

    pub(super) fn welcomed(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        let welcome = match reply {
            Reply::Welcome(welcome) => welcome,
            Reply::Refused(refusal @ Refusal::LeaseBusy { .. }) => {
                return self.lease_is_busy(now, slot, &refusal);
            }
            other => return self.lose_for(now, slot, &other),
        };
        let peer = self.peer_mut(slot);
        peer.failed = false;
        let other = peer.meant().is_some_and(|incarnation| incarnation != welcome.incarnation);
        if other && !mutation::is_on(Mutation::WrongIncarnationAccepted) {
            return self.lose(now, slot, "its directory was made anew: it isn't the copy it was");
        }
        let was_lost_while_serving = peer.in_set.is_some();
        self.note_epochs_of(slot, &welcome);
        let is_older = match self.peer(slot).in_set {
            Some(_) => self.why_older(slot, &welcome).is_some(),
            None => self.is_older_than_it_left(slot, &welcome),
        };
        self.peer_mut(slot).is_older |= is_older;
        let unfit = self.why_unfit(slot, &welcome);
        let is_another_process = welcome.unrecovered_regions > 0
            && !mutation::is_on(Mutation::AnotherProcessNotCompared);
        self.peer_mut(slot).state = PeerState::Welcomed(welcome);
        if was_lost_while_serving && self.is_open() {
            match unfit {
                None => {
                    if is_another_process {
                        self.settle.expect_marks(slot);
                    }
                    self.advance(now, slot);
                }
                Some(why) if self.live().is_empty() => {
                    let who = &self.peer(slot).id;
                    self.end(End::Reopen(format!("{who} came back: {why}")));
                }
                Some(why) => self.lose(now, slot, &why),
            }
        }
    }

    /// Rules 10a and 10b: why a member that reconnects can't go on where it was.
    fn why_unfit(&self, slot: Slot, welcome: &Welcome) -> Option<String> {
        if let Some(why) = self.why_older(slot, welcome) {
            return Some(why);
        }
        if !welcome.continuous && !mutation::is_on(Mutation::SuspectStays) {
            return Some("it may have lost acknowledged writes".into());
        }
        let missed = self.chain_work.is_applying() || welcome.chain.last_op != self.chain.last_op;
        missed.then(|| "it may have missed a change of the chain".into())
    }

    /// Another engine may still read there: soon again, with a newer session.
    fn lease_is_busy(&mut self, now: Instant, slot: Slot, refusal: &Refusal) {
        let Refusal::LeaseBusy { ms } = refusal else { return };
        let wait = Duration::from_millis(u64::from(*ms)).min(self.config.reconnect_after);
        let absence = Absence::Lending { since: now };
        self.lose_as(now, slot, absence, &refusal.to_string());
        self.peer_mut(slot).state = PeerState::Down { retry_at: now + wait };
    }

    /// Rule 8: what is known of who fenced this engine. If nobody was granted the volume, a person
    /// needs it.
    pub(super) fn fenced_by(&self, slot: Slot, refusal: &Refusal) -> String {
        let who = &self.peer(slot).id;
        let Refusal::StaleGeneration { seen, synced_generation, synced_set } = refusal else {
            return format!("replica {who} refused this engine");
        };
        let granted = self.generation().map_or("none".into(), |granted| granted.to_string());
        let synced = synced_generation.map_or("never in sync".into(), |synced| {
            let with: Vec<_> = synced_set.iter().map(|it| it.replica.to_string()).collect();
            format!("last in sync in {synced} with {}", with.join(", "))
        });
        format!(
            "replica {who} has served a newer engine ({}, session {}; this one was granted \
             {granted}); it was {synced}. If there is no newer engine, the arbiter's record was \
             rolled back, and a person has to choose what to trust",
            seen.generation, seen.session.0
        )
    }

    /// The link broke, or couldn't be made.
    pub(super) fn link_lost(&mut self, now: Instant, slot: Slot, reason: &str) {
        let nobody = self.live().is_empty();
        let peer = self.peer(slot);
        let absence = match (&peer.state, peer.absence) {
            // It answers nobody, and while it could have come back: no use in waiting.
            (PeerState::Connecting | PeerState::Greeting, _)
                if matches!(self.phase, Phase::Opening(_))
                    || !nobody && peer.begun_at >= self.live_since =>
            {
                Absence::Gone
            }
            (PeerState::Connecting | PeerState::Greeting, before) => before,
            _ => Absence::Brief { since: now },
        };
        let was_live = peer.is_live();
        self.lose_as(now, slot, absence, reason);
        if was_live && self.is_open() {
            self.peer_mut(slot).state = PeerState::Down { retry_at: now };
        }
    }

    /// The replica doesn't do what it should: it can't be counted on.
    pub(super) fn lose(&mut self, now: Instant, slot: Slot, reason: &str) {
        self.lose_as(now, slot, Absence::Unfit, reason);
    }

    /// Its connection ends, what it was asked is forgotten.
    pub(super) fn lose_as(&mut self, now: Instant, slot: Slot, absence: Absence, reason: &str) {
        let retry_at = now + self.config.reconnect_after;
        self.is_sooner = true;
        let peer = self.peer_mut(slot);
        peer.lease.give_up();
        peer.latencies.forget();
        peer.absence = absence;
        let link = peer.link;
        let was_connected = !peer.is_down();
        peer.state = PeerState::Down { retry_at };
        peer.reason = Some(reason.to_owned());
        peer.expect_nothing();
        if was_connected {
            self.act(Action::Disconnect { slot, link });
        }
        if let Some(Changing::Pinging { .. }) = self.changing {
            self.changing = None; // survivors must answer a ping sent after this failure too
        }
        // Steps of rebuilds learn it before a lock is let go that may wake one of them; requests before
        // what waits for their locks; the changes of the chain last, since they may end the engine.
        self.opening_lost(slot);
        self.rebuild_lost(now, slot, reason);
        self.room_lost(slot);
        self.ios_lost(now, slot);
        self.settle_lost(now, slot);
        self.clear_lost(slot);
        self.epoch_lost(slot);
        self.repair_lost(now, slot);
        self.closing_lost(slot);
        self.chain_work_lost(slot);
    }

    // ---- the set ---------------------------------------------------------------------------

    pub(super) fn drive_membership(&mut self, now: Instant) {
        if !self.is_open() {
            return;
        }
        match &self.changing {
            None => {
                let live = self.live();
                let lost = self.set().without(live);
                let nobody = live.is_empty() && !mutation::is_on(Mutation::LastMemberRemoved);
                if nobody || lost.is_empty() {
                    return; // nobody is removed; I/O waits for a member to come back
                }
                // All failed members leave in one change.
                if lost.iter().all(|slot| self.is_given_up(now, slot)) {
                    if mutation::is_on(Mutation::NoPing) {
                        return self.swap(live);
                    }
                    self.ping(now, live);
                }
            }
            Some(Changing::Pinging { .. }) if self.set().without(self.live()).is_empty() => {
                self.changing = None; // all are back
                if self.is_steady() {
                    self.forget_the_removed(now);
                }
            }
            Some(Changing::Pinging { asked, .. }) if asked.is_over() => self.swap(self.live()),
            Some(_) => {}
        }
    }

    /// Rule 5: those who are to stay show that they are there, after the others were lost.
    pub(super) fn ping(&mut self, now: Instant, staying: Slots) {
        self.pings += 1;
        let round = self.pings;
        let asked = self.ask(now, staying, &Purpose::Ping(round), &Request::Ping);
        self.changing = Some(Changing::Pinging { round, asked });
    }

    /// When a lost member is waited for no longer.
    fn grace_ends(&self, slot: Slot) -> Option<Instant> {
        match self.peer(slot).absence {
            Absence::Brief { since } | Absence::Lending { since } => {
                Some(since.max(self.live_since) + self.config.rejoin_grace)
            }
            Absence::Gone | Absence::Unfit => None,
        }
    }

    fn is_given_up(&self, now: Instant, slot: Slot) -> bool {
        self.grace_ends(slot).is_none_or(|at| now >= at)
    }

    pub(super) fn next_grace(&self) -> Option<Instant> {
        let (live, open) = (self.live(), self.is_open() && self.changing.is_none());
        let lost = self.set().without(live);
        lost.iter()
            .filter(|_| open && !live.is_empty())
            .filter_map(|slot| self.grace_ends(slot))
            .max()
    }

    /// The first member is live again after none was: the engine itself may have been cut off, so
    /// the others get their time to come back too.
    fn first_is_back(&mut self, now: Instant) {
        self.live_since = now;
        self.is_sooner = true;
        for slot in self.set().without(self.live()).iter() {
            let peer = self.peer_mut(slot);
            if peer.absence == Absence::Gone {
                peer.absence = Absence::Brief { since: now };
            }
            if let PeerState::Down { retry_at } = &mut peer.state {
                *retry_at = now;
            }
        }
    }

    /// The answer to a ping from before the newest failure doesn't count.
    pub(super) fn pinged(&mut self, now: Instant, slot: Slot, number: u64, reply: Reply<()>) {
        if self.expect_done(now, slot, reply)
            && let Some(Changing::Pinging { round, asked }) = &mut self.changing
            && *round == number
        {
            asked.answered(slot);
        }
    }

    /// Asks the arbiter to make the set what `members` are.
    pub(super) fn swap(&mut self, members: Slots) {
        let target: Vec<Member> = members
            .iter()
            .map(|slot| {
                let peer = self.peer(slot);
                let incarnation = peer.meant().or(self.rebuilt_incarnation(slot));
                let incarnation = incarnation.expect("a member or a rebuilt replica has one");
                Member { replica: peer.id.clone(), incarnation }
            })
            .collect();
        let expected = self.generation().expect("the volume was opened");
        let by = self.config.instance.clone();
        self.act(Action::Change {
            expected,
            change: Change::Members { by, in_sync: target.clone() },
        });
        self.changing = Some(Changing::Swapping { target });
    }

    pub(super) fn membership_answered(&mut self, now: Instant, answer: Result<Record, Refused>) {
        let Some(Changing::Swapping { target }) = self.changing.take() else {
            return; // the engine ended meanwhile
        };
        // An earlier attempt whose reply was lost may have been made: then the record names this
        // engine and is ours, whatever the refusal says.
        let record = match answer {
            Err(_) if mutation::is_on(Mutation::AmbiguousIsRefused) => match &self.record {
                Some(record) => record.clone(),
                None => return,
            },
            answer => answer.unwrap_or_else(Refused::into_record),
        };
        let made = record.in_sync == target;
        if !self.adopt_record(now, record) {
            return;
        }
        if made && self.promotion_recorded() {
            self.promoting = None;
        } else if !made {
            self.promotion_refused(now);
        }
        if self.is_open() {
            for slot in self.live().iter() {
                self.advance(now, slot);
            }
            if mutation::is_on(Mutation::AcknowledgeBeforeSurvivorsKnow) {
                self.forget_the_removed(now);
            }
        }
    }

    /// Takes the record as the truth. `false`: it names another engine, and this one has ended.
    pub(super) fn adopt_record(&mut self, now: Instant, record: Record) -> bool {
        let is_other =
            record.engine.as_ref().is_none_or(|engine| engine.instance != self.config.instance);
        let opens_anyway = mutation::is_on(Mutation::UngrantedEngineOpens) && !self.is_open();
        if is_other && !opens_anyway {
            let now_is = record.engine.map_or("none".into(), |engine| engine.node);
            self.end(End::Fenced(format!(
                "the record names another engine (on node {now_is}, {})",
                record.generation
            )));
            return false;
        }
        let before = self.set();
        for slot in self.all_slots() {
            let peer = self.peer_mut(slot);
            let member = record.in_sync.iter().find(|member| member.replica == peer.id);
            let left = std::mem::replace(&mut peer.in_set, member.map(|it| it.incarnation));
            let replica = peer.id.clone();
            if let Some(member) = member {
                self.epochs_added(member);
            } else if let Some(incarnation) = left {
                self.epochs_removed(slot, Member { replica, incarnation });
            }
        }
        self.record = Some(record);
        // One that was on its way back comes anew, to be rebuilt.
        let removed = before.without(self.set());
        self.departing = self.departing.union(removed).without(self.set());
        for slot in removed.iter() {
            self.settle.expect_no_marks(slot);
            if !self.peer(slot).is_down() {
                let why = self.peer(slot).welcome().and_then(|it| self.why_older(slot, it));
                self.lose(now, slot, why.as_deref().unwrap_or("it was removed from the set"));
            }
        }
        true
    }

    pub(super) fn advance(&mut self, now: Instant, slot: Slot) {
        let Some(record) = &self.record else { return };
        let (generation, in_sync) = (record.generation, record.in_sync.clone());
        let departed = self.epochs.departed();
        let advance = Box::new(Advance { generation, in_sync, departed });
        self.send(now, slot, Purpose::Advance(generation), Request::Advance(advance), None);
    }

    pub(super) fn advanced(
        &mut self,
        now: Instant,
        slot: Slot,
        generation: Generation,
        reply: Reply<()>,
    ) {
        if !self.expect_done(now, slot, reply) {
            return;
        }
        if matches!(self.phase, Phase::Opening(_)) {
            self.note_marks(slot);
        }
        let peer = self.peer_mut(slot);
        peer.confirmed.advanced(peer.greeted, generation);
        let before = match peer.state {
            PeerState::Live { advanced } => Some(advanced),
            _ => None,
        };
        let is_new = before.is_none();
        let was_alone = self.live().is_empty();
        let peer = self.peer_mut(slot);
        // Two may be under way, and be answered in any order.
        let advanced = before.map_or(generation, |before| before.max(generation));
        peer.state = PeerState::Live { advanced };
        (peer.reason, peer.pause, peer.is_older) = (None, None, false);
        if self.is_open() {
            self.repairs.hope_again(self.chain.head);
        }
        if is_new && self.is_open() {
            if was_alone {
                self.first_is_back(now);
            }
            if matches!(self.changing, Some(Changing::Pinging { .. })) {
                self.changing = None; // it stays only if it answers a ping of after the failure too
            }
            if self.settle.expects_marks(slot) {
                self.ask_marks(now, slot, Region(0));
            }
            self.resend(now, slot);
        }
        if self.is_steady() {
            self.forget_the_removed(now);
        }
    }

    /// Every member has the present set durable: whoever isn't in it isn't needed any more.
    pub(super) fn forget_the_removed(&mut self, now: Instant) {
        self.departing = Slots::NONE;
        let needed = self.needed();
        let ids: Vec<_> = self.ios.keys().copied().collect();
        for id in ids {
            self.need_only(now, id, needed);
        }
        self.flushes_need_only(needed);
    }

    /// In words, for people: what holds the volume up.
    pub(super) fn membership_waits_for(&self) -> Option<String> {
        match &self.changing {
            Some(Changing::Swapping { .. }) => {
                Some("the arbiter must record a change of the in-sync set".into())
            }
            Some(Changing::Pinging { .. }) => None,
            None => {
                let set = self.set();
                (!set.is_empty() && self.live().is_empty() && matches!(self.phase, Phase::Serving))
                    .then(|| format!("no replica that is in sync answers ({})", self.names(set)))
            }
        }
    }
}
