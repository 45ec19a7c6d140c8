//! The core's state, its entrances and its pump.
//!
//! Every entrance notes what happened and then *pumps*: each part looks whether it can go on, until
//! none can. A part never calls another part's continuation, so no event is handled twice.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::action::{
    Action, Destination, End, IoId, JobId, LinkId, Operation, PayloadRef, TransferId,
};
use super::budget::Budget;
use super::chain_work::ChainWork;
use super::clear::Clearing;
use super::closing::Closing;
use super::config::Config;
use super::epoch::Epochs;
use super::flush::Flushes;
use super::hedge::Hedges;
use super::io::Io;
use super::locks::{LockId, RangeLocks};
use super::membership::Changing;
use super::opening::Opening;
use super::peer::{Absence, Asked, Peer, PeerState, Purpose};
use super::rebuild::{Rebuilds, StepId};
use super::repair::Repairs;
use super::room::Room;
use super::settle::Settle;
use super::slots::{SLOTS_MAX, Slot, Slots};
use crate::chain::ChainInfo;
use crate::message::{Refusal, Reply, Request};
use crate::mutation::{self, Mutation};
use crate::record::{Record, Refused};
use crate::regions::RegionPage;
use crate::types::{Fence, Generation, REGION_BYTES, Region, ReplicaId, Session};

#[derive(Debug)]
pub(super) enum Phase {
    Opening(Opening),
    Serving,
    /// Asked to detach: nothing new comes in.
    Closing(Closing),
    Ended,
}

/// Who gets a lock when its turn comes.
#[derive(Clone, Copy, Debug)]
pub(super) enum LockOwner {
    Io(IoId),
    Rebuild(StepId),
    Repair,
}

#[derive(Debug)]
pub struct Core {
    pub(super) config: Config,
    pub(super) phase: Phase,
    pub(super) record: Option<Record>,
    /// Indexed by slot.
    pub(super) peers: Vec<Peer>,
    pub(super) changing: Option<Changing>,
    pub(super) pings: u64,
    /// A rebuilt replica on its way into the set: acknowledgements need it already.
    pub(super) promoting: Option<Slot>,
    /// Out of the record, but not every member has that durable: acknowledgements need it still.
    pub(super) departing: Slots,
    pub(super) locks: RangeLocks,
    pub(super) lock_owners: BTreeMap<LockId, LockOwner>,
    pub(super) ios: BTreeMap<IoId, Io>,
    /// Writes that have not been confirmed by everyone to whom they were sent.
    pub(super) writes_in_flight: usize,
    pub(super) flushes: Flushes,
    /// Released before they were answered: nobody will say so again.
    pub(super) dropped: Vec<IoId>,
    /// Writes wait here while the chain changes.
    pub(super) parked: VecDeque<IoId>,
    pub(super) settle: Settle,
    pub(super) budget: Budget,
    pub(super) clearing: Clearing,
    pub(super) epochs: Epochs,
    pub(super) repairs: Repairs,
    pub(super) room: Room,
    pub(super) rebuilds: Rebuilds,
    pub(super) chain_work: ChainWork,
    pub(super) chain: ChainInfo,
    actions: VecDeque<Action>,
    next_io: u64,
    next_job: u64,
    next_link: u64,
    next_transfer: u64,
    next_session: u64,
    /// Since when there is a live member, after there was none.
    pub(super) live_since: Instant,
    /// Reads whose data is there, and that can't be told before all leases hold.
    pub(super) lease_waiters: Vec<IoId>,
    pub(super) hedges: Hedges,
    /// Members that owe a confirmation for longer than people expect.
    pub(super) slow: Slots,
    /// When members are compared next by how fast they are.
    pub(super) slow_check_at: Instant,
    /// Something may be due earlier than the clock was told.
    pub(super) is_sooner: bool,
}

impl Core {
    /// An engine that begins to open its volume. At most [`SLOTS_MAX`] replicas.
    pub fn new(now: Instant, config: Config) -> Self {
        assert!(config.replicas.len() <= SLOTS_MAX, "the shell has refused more");
        let slots = (0..).map(Slot);
        let peers = config.replicas.iter().cloned().zip(slots);
        let peers = peers.map(|(id, slot)| Peer::new(id, slot, now)).collect();
        let rebuilds = Rebuilds::new(now, config.rebuild_bytes_per_second);
        let mut core = Self {
            phase: Phase::Opening(Opening::new(now, &config)),
            config,
            record: None,
            peers,
            changing: None,
            pings: 0,
            promoting: None,
            departing: Slots::NONE,
            locks: RangeLocks::default(),
            lock_owners: BTreeMap::new(),
            ios: BTreeMap::new(),
            writes_in_flight: 0,
            flushes: Flushes::default(),
            dropped: Vec::new(),
            parked: VecDeque::new(),
            settle: Settle::default(),
            budget: Budget::default(),
            clearing: Clearing::default(),
            epochs: Epochs::default(),
            repairs: Repairs::default(),
            room: Room::default(),
            rebuilds,
            chain_work: ChainWork::default(),
            chain: ChainInfo::empty(),
            actions: VecDeque::new(),
            next_io: 0,
            next_job: 0,
            next_link: 0,
            next_transfer: 0,
            next_session: 0,
            live_since: now,
            lease_waiters: Vec::new(),
            hedges: Hedges::default(),
            slow: Slots::NONE,
            slow_check_at: now,
            is_sooner: false,
        };
        core.act(Action::ReadRecord);
        core
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    // ---- entrances -------------------------------------------------------------------------

    /// The frontend has a request. It is answered by `Complete` and gone after `Retire`.
    pub fn submit(&mut self, now: Instant, operation: Operation) -> IoId {
        self.excuse_own_absence_at_open(now);
        let id = IoId(self.next_io);
        self.next_io += 1;
        self.rebuilds.notice_foreground(now);
        self.ios.insert(id, Io::new(operation));
        match self.phase {
            Phase::Opening(_) | Phase::Serving => self.admit(now, id),
            Phase::Closing(_) => self.complete(id, Err(super::Failure::Shutdown)),
            Phase::Ended => {}
        }
        self.pump(now);
        id
    }

    /// The answer is with the client, or nobody wants it any more: once there is one, the range may
    /// be used by others.
    pub fn release(&mut self, now: Instant, io: IoId) {
        if let Some(state) = self.ios.get_mut(&io) {
            state.released = true;
            if !state.answered {
                self.dropped.push(io);
            }
            self.retire_if_done(now, io);
            self.pump(now);
        }
    }

    pub fn connected(&mut self, now: Instant, slot: Slot, link: LinkId) {
        self.excuse_own_absence_at_open(now);
        if self.is_current(slot, link) {
            self.greet(now, slot);
            self.pump(now);
        }
    }

    pub fn disconnected(&mut self, now: Instant, slot: Slot, link: LinkId, reason: &str) {
        self.excuse_own_absence_at_open(now);
        if self.is_current(slot, link) {
            self.link_lost(now, slot, reason);
            self.pump(now);
        }
    }

    /// A replica's answer. Data has gone where the request said already.
    pub fn answered(&mut self, now: Instant, slot: Slot, link: LinkId, seq: u64, reply: Reply<()>) {
        if !self.is_current(slot, link) {
            return;
        }
        self.excuse_own_absence_at_open(now);
        let Some(Asked { purpose, sent, .. }) = self.peer_mut(slot).answered(now, seq) else {
            self.lose(now, slot, "it answered what wasn't asked");
            return self.pump(now);
        };
        if let Reply::Refused(refusal @ Refusal::StaleGeneration { .. }) = &reply {
            return self.end(End::Fenced(self.fenced_by(slot, refusal)));
        }
        self.renew_lease(now, slot, &purpose, sent, &reply);
        self.measure(slot, &purpose, now.saturating_duration_since(sent), &reply);
        self.dispatch(now, slot, purpose, reply);
        self.pump(now);
    }

    /// What the arbiter has. The shell repeats the read until there is an answer.
    pub fn record_read(&mut self, now: Instant, record: Record) {
        if self.adopt_record(now, record) && matches!(self.phase, Phase::Opening(_)) {
            self.opening_has_record(now);
        }
        self.pump(now);
    }

    /// The definite answer to a `Change`.
    pub fn change_answered(&mut self, now: Instant, answer: Result<Record, Refused>) {
        self.excuse_own_absence_at_open(now);
        self.membership_answered(now, answer);
        self.pump(now);
    }

    /// Time has passed; at the latest what [`poll_timeout`](Self::poll_timeout) said.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.excuse_own_absence(now);
        for slot in self.all_slots() {
            if self.patience_ends(self.peer(slot)).is_some_and(|at| now >= at) {
                let seconds = self.config.replica_timeout.as_secs();
                let reason = format!("no answer for {seconds} s");
                // The open has a deadline of its own for who is silent.
                let absence =
                    if self.is_open() { Absence::Gone } else { Absence::Brief { since: now } };
                self.lose_as(now, slot, absence, &reason);
            }
        }
        self.ask_whether_alive(now);
        self.drop_too_slow(now);
        self.bound_delays(now);
        self.hedge_reads(now);
        self.look_for_room(now);
        self.pump(now);
    }

    /// What was due long ago is done only now: this process wasn't running (SIGSTOP, a paused
    /// machine). What others said meanwhile may lie in the sockets: nobody is judged by that time.
    fn excuse_own_absence(&mut self, now: Instant) {
        let patience = self.config.replica_timeout / 4;
        if self.poll_timeout().is_none_or(|due| now <= due + patience) {
            return;
        }
        for peer in self.peers.iter_mut().filter(|peer| peer.owes_answer()) {
            peer.progress_at = now;
        }
        if let Phase::Opening(opening) = &mut self.phase {
            opening.begin_again(now, &self.config);
        }
    }

    /// The open judges at any event, and what excuses the others may come after this one.
    fn excuse_own_absence_at_open(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Opening(_)) {
            self.excuse_own_absence(now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if matches!(self.phase, Phase::Ended) {
            return None;
        }
        let peers = self.peers.iter().filter_map(|peer| match peer.state {
            PeerState::Down { retry_at } if self.may_connect(peer) => Some(retry_at),
            _ => self.patience_ends(peer),
        });
        let opening = match &self.phase {
            Phase::Opening(opening) => opening.deadline(),
            _ => None,
        };
        peers
            .chain(opening)
            .chain(self.next_look_for_room())
            .chain(self.next_join())
            .chain(self.next_rebuild_step())
            .chain(self.next_clear())
            .chain(self.next_epoch())
            .chain(self.hedges.due())
            .chain(self.next_grace())
            .chain(self.next_pace_check())
            .chain(self.next_delay_check())
            .chain(self.next_alive_check())
            .min()
    }

    /// When one that owes an answer is given up.
    fn patience_ends(&self, peer: &Peer) -> Option<Instant> {
        let is_bounded = peer.owes_answer()
            && !self.is_last_live(peer.slot)
            && !mutation::is_on(Mutation::SilentMemberKept);
        is_bounded.then(|| peer.progress_at + self.config.replica_timeout)
    }

    /// Whether [`poll_timeout`](Self::poll_timeout) may say something earlier than before.
    pub fn take_sooner(&mut self) -> bool {
        std::mem::take(&mut self.is_sooner)
    }

    /// Asks for a clean end: what is in flight is finished, then all is flushed.
    pub fn detach(&mut self, now: Instant) {
        match self.phase {
            Phase::Serving => self.phase = Phase::Closing(Closing::Draining),
            Phase::Opening(_) => self.end(End::Detached),
            Phase::Closing(_) | Phase::Ended => {}
        }
        self.pump(now);
    }

    /// The replicas that the volume should have. At most [`SLOTS_MAX`] over the engine's life.
    pub fn set_replicas(&mut self, now: Instant, replicas: &[ReplicaId]) -> Result<(), String> {
        let known = |id: &ReplicaId| self.peers.iter().any(|peer| peer.id == *id);
        let new: Vec<_> = replicas.iter().filter(|id| !known(id)).cloned().collect();
        if self.peers.len() + new.len() > SLOTS_MAX {
            return Err(format!("an engine knows at most {SLOTS_MAX} replicas; attach anew"));
        }
        for id in new {
            let slot = Slot(self.peers.len() as u8);
            self.peers.push(Peer::new(id, slot, now));
        }
        for peer in &mut self.peers {
            peer.wanted = replicas.contains(&peer.id);
        }
        self.pump(now);
        Ok(())
    }

    /// Queues a change of the chain; `JobDone` tells how it went.
    pub fn start_job(&mut self, now: Instant, job: super::Job) -> JobId {
        let id = JobId(self.next_job);
        self.next_job += 1;
        self.chain_work.queue.push_back((id, job));
        self.pump(now);
        id
    }

    // ---- the pump --------------------------------------------------------------------------

    /// Lets every part go on as far as it can.
    pub(super) fn pump(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Ended) {
            return;
        }
        self.drive_connections(now);
        self.drive_opening(now);
        self.drive_membership(now);
        self.drive_settle(now);
        self.drive_repair(now);
        self.drive_epochs(now); // what is agreed lets others go on
        self.drive_clear(now);
        self.drive_rebuild(now);
        self.drive_chain_work(now);
        self.drive_joins(now);
        self.drive_flushes(now);
        self.drive_failed(now);
        self.drive_leases(now);
        self.give_up_for_room(now);
        self.retire_dropped(now);
        self.drive_closing(now);
        self.drive_settle(now); // ranges were given back meanwhile
        self.drive_epochs(now); // and they may want more
        if self.bound_backlogs(now) {
            self.pump(now);
        }
    }

    fn dispatch(&mut self, now: Instant, slot: Slot, purpose: Purpose, reply: Reply<()>) {
        match purpose {
            Purpose::Hello => self.welcomed(now, slot, reply),
            Purpose::Advance(generation) => self.advanced(now, slot, generation, reply),
            Purpose::OpenMarks(from) => self.marks_told(now, slot, from, reply),
            Purpose::Epoch(epoch) => self.epoch_answered(now, slot, epoch, reply),
            Purpose::Write(io) => self.write_answered(now, slot, io, reply),
            Purpose::Read(io) => self.read_answered(now, slot, io, reply),
            Purpose::Edge(io, block) => self.edge_answered(now, slot, io, block, reply),
            Purpose::Flush(whose) => self.flush_answered(now, slot, whose, reply),
            Purpose::SettleSums(region) => self.settle_sums(now, slot, region, reply),
            Purpose::SettleFetch(region) => self.settle_fetched(now, slot, region, reply),
            Purpose::SettleCopy(region) => self.settle_copied(now, slot, region, reply),
            Purpose::RebuildDescribe(number) => self.rebuild_described(now, slot, number, reply),
            Purpose::RebuildAdopt => self.rebuild_adopted(now, slot, reply),
            Purpose::RebuildMarks(number, from) => {
                self.rebuild_target_marks(now, slot, number, from, reply);
            }
            Purpose::RebuildOccupied(number, layer, from) => {
                self.rebuild_occupied(now, slot, (number, layer, from), reply);
            }
            Purpose::RebuildStamps(number, from) => {
                self.rebuild_stamps(now, slot, number, from, reply);
            }
            Purpose::RebuildMark => self.rebuild_marked(now, slot, reply),
            Purpose::RebuildStep(step) => self.rebuild_step_answered(now, slot, step, reply),
            Purpose::Ready(begun) => self.rebuild_ready(now, slot, begun, reply),
            Purpose::Equalize(_) => self.equalized(now, slot, reply),
            Purpose::Prepare => self.chain_prepared(now, slot, reply),
            Purpose::Chain => self.chain_applied(now, slot, reply),
            Purpose::DescribeChain => self.chain_described(now, slot, reply),
            Purpose::RefreshChain => self.chain_refreshed(now, slot, reply),
            Purpose::Join(layer) => self.joined(now, slot, layer, reply),
            Purpose::Ping(round) => self.pinged(now, slot, round, reply),
            // What the last member's failed disk has can still be read.
            Purpose::Lease | Purpose::Alive if self.is_only_member(slot) => {}
            Purpose::Verified | Purpose::Lease | Purpose::Alive | Purpose::Abandon => {
                self.expect_done(now, slot, reply);
            }
            Purpose::Clear(number) => self.clear_answered(now, slot, number, reply),
            Purpose::Marked(from) => self.marked_answered(now, slot, from, reply),
            Purpose::RepairSums => self.repair_compared(now, slot, reply),
            Purpose::RepairFetch => self.repair_fetched(now, slot, reply),
            Purpose::Repair => self.repaired(now, slot, reply),
            Purpose::Bye => self.said_goodbye(slot),
        }
    }

    // ---- what all parts use ----------------------------------------------------------------

    pub(super) fn act(&mut self, action: Action) {
        if !matches!(self.phase, Phase::Ended) {
            self.actions.push_back(action);
        }
    }

    /// The engine stops here. Nothing that was planned before is carried out, nor what a part that
    /// hasn't noticed still wants.
    pub(super) fn end(&mut self, end: End) {
        if !matches!(self.phase, Phase::Ended) {
            self.actions.clear();
            if mutation::is_on(Mutation::FencedEngineAnswers) {
                let open = self.ios.iter().filter(|(_, io)| !io.answered);
                let open: Vec<_> = open.map(|(id, _)| *id).collect();
                open.into_iter().for_each(|id| self.complete(id, Err(super::Failure::Shutdown)));
            }
            self.act(Action::End(end));
            self.phase = Phase::Ended;
        }
    }

    pub(super) fn send(
        &mut self,
        now: Instant,
        slot: Slot,
        purpose: Purpose,
        request: Request<PayloadRef>,
        into: Option<Destination>,
    ) {
        let bytes = match &request {
            Request::Write { range, .. } => range.length_bytes(),
            Request::Copy { .. } | Request::Repair { .. } => REGION_BYTES,
            _ => 0,
        };
        let peer = self.peer_mut(slot);
        let seq = peer.expect(now, purpose, bytes);
        let link = peer.link;
        self.act(Action::Send { slot, link, seq, request, into });
    }

    /// For requests whose only good answer is `Done`: anything else loses the replica.
    pub(super) fn expect_done(&mut self, now: Instant, slot: Slot, reply: Reply<()>) -> bool {
        match reply {
            Reply::Done => true,
            other => {
                self.lose_for(now, slot, &other);
                false
            }
        }
    }

    /// For lists: a part of what was asked for from a region on. Without one the replica is lost.
    pub(super) fn expect_page(
        &mut self,
        now: Instant,
        slot: Slot,
        from: Region,
        reply: Reply<()>,
    ) -> Option<RegionPage> {
        match reply {
            Reply::Regions(page) if page.next.is_none_or(|next| next > from) => Some(page),
            Reply::Regions(_) => {
                self.lose(now, slot, "its list of regions goes in circles");
                None
            }
            other => {
                self.lose_for(now, slot, &other);
                None
            }
        }
    }

    pub(super) fn lose_for(&mut self, now: Instant, slot: Slot, reply: &Reply<()>) {
        if matches!(reply, Reply::Refused(Refusal::Failed { .. })) {
            self.peer_mut(slot).failed = true;
        }
        if *reply == Reply::Refused(Refusal::NoSpace) {
            return self.lose_for_room(now, slot);
        }
        let reason = match reply {
            Reply::Refused(refusal) => refusal.to_string(),
            other => format!("it answered {other:?}, which doesn't fit the request"),
        };
        self.lose(now, slot, &reason);
    }

    pub(super) fn peer(&self, slot: Slot) -> &Peer {
        &self.peers[usize::from(slot.0)]
    }

    pub(super) fn peer_mut(&mut self, slot: Slot) -> &mut Peer {
        &mut self.peers[usize::from(slot.0)]
    }

    pub(super) fn all_slots(&self) -> Vec<Slot> {
        self.peers.iter().map(|peer| peer.slot).collect()
    }

    pub(super) fn slots_where(&self, test: impl Fn(&Peer) -> bool) -> Slots {
        self.peers.iter().filter(|peer| test(peer)).map(|peer| peer.slot).collect()
    }

    /// Members of the record's set, dead or alive.
    pub(super) fn set(&self) -> Slots {
        self.slots_where(|peer| peer.in_set.is_some())
    }

    pub(super) fn live(&self) -> Slots {
        self.slots_where(|peer| peer.in_set.is_some() && peer.is_live())
    }

    /// Who takes writes: live members and those being rebuilt.
    pub(super) fn writable(&self) -> Slots {
        self.slots_where(|peer| peer.is_live() || peer.is_write_only())
    }

    /// Whose confirmation an acknowledgement needs.
    pub(super) fn needed(&self) -> Slots {
        if mutation::is_on(Mutation::PromotionNotNeeded) {
            return self.set().union(self.departing);
        }
        self.next_set().union(self.departing)
    }

    /// Members and the replica that is being added.
    pub(super) fn next_set(&self) -> Slots {
        self.set().union(self.promoting.into_iter().collect())
    }

    /// The set is as the record says and all of it has that durable: nothing is in doubt.
    pub(super) fn is_steady(&self) -> bool {
        self.changing.is_none() && !matches!(self.phase, Phase::Opening(_)) && self.all_advanced()
    }

    /// Every member has the present generation durable.
    pub(super) fn all_advanced(&self) -> bool {
        let generation = self.generation();
        self.peers.iter().filter(|peer| peer.in_set.is_some()).all(|peer| {
            matches!(peer.state, PeerState::Live { advanced } if Some(advanced) == generation)
        })
    }

    /// The volume is in use, perhaps for the last time: members come and go by the same rules.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Closing(_))
    }

    /// Nobody else could go on. While the volume opens that may also be one that waits for the others.
    fn is_last_live(&self, slot: Slot) -> bool {
        let live = self.live();
        let others = self.slots_where(|peer| peer.meant().is_some() && peer.welcome().is_some());
        live.contains(slot) && live.len() == 1 && (self.is_open() || others.is_empty())
    }

    /// For people.
    pub(super) fn names(&self, slots: Slots) -> String {
        let names: Vec<_> = slots.iter().map(|slot| self.peer(slot).id.to_string()).collect();
        names.join(", ")
    }

    /// The record names it alone, and surely so: it can't be removed, whatever it does.
    pub(super) fn is_only_member(&self, slot: Slot) -> bool {
        self.set().len() == 1 && self.live().contains(slot) && self.changing.is_none()
    }

    pub(super) fn generation(&self) -> Option<Generation> {
        self.record.as_ref().map(|record| record.generation)
    }

    fn is_current(&self, slot: Slot, link: LinkId) -> bool {
        let current = self.peers.get(usize::from(slot.0)).is_some_and(|peer| peer.link == link);
        current && !matches!(self.phase, Phase::Ended)
    }

    pub(super) fn new_link(&mut self) -> LinkId {
        self.next_link += 1;
        LinkId(self.next_link)
    }

    pub(super) fn new_transfer(&mut self) -> TransferId {
        self.next_transfer += 1;
        TransferId(self.next_transfer)
    }

    /// Nobody refers to what it carries any more.
    pub(super) fn retire_transfer(&mut self, transfer: Option<TransferId>) {
        if let Some(transfer) = transfer {
            self.act(Action::RetireTransfer { transfer });
        }
    }

    /// A fence above every earlier one of this engine.
    pub(super) fn new_fence(&mut self, generation: Generation) -> Fence {
        self.next_session += 1;
        Fence { generation, session: Session(self.next_session) }
    }
}
