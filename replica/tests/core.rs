//! Single turns of the replication core, told event by event in virtual time: who may write and read
//! when members hang, die or come back. The replicas are a few lines; `replication.rs` has real
//! histories.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use ankole_replica::admin::ReplicaMode;
use ankole_replica::chain::index::{BlockSum, Blocks};
use ankole_replica::chain::{ChainChange, ChainInfo, ChainOp, LayerInfo, Seal};
use ankole_replica::message::{
    BadRegion, Contents, Departed, Refusal, RegionSums, Reply, Request, Welcome,
};
use ankole_replica::record::{EngineGrant, InstanceId, Member, Record};
use ankole_replica::regions::{RegionPage, RegionSet};
use ankole_replica::replication::{
    Action, Config, Core, End, Failure, IoId, Job, JobId, LinkId, Operation, PayloadRef,
    PeerStatus, Slot,
};
use ankole_replica::types::{
    BlockIndex, BlockRange, ChainOpId, Epoch, Fence, Generation, Incarnation, LayerId, Region,
    ReplicaId, Session,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SIZE_BYTES: u64 = 16 << 20;
/// Marked regions that a replica tells in one answer.
const MARKS_AT_ONCE: usize = 3;
const A: Slot = Slot(0);
const B: Slot = Slot(1);
const C: Slot = Slot(2);

struct Asked {
    slot: Slot,
    link: LinkId,
    seq: u64,
    request: Request<PayloadRef>,
}

/// An engine's core, and what is around it.
struct Stage {
    core: Core,
    now: Instant,
    record: Record,
    links: BTreeMap<Slot, LinkId>,
    asked: VecDeque<Asked>,
    done: BTreeMap<IoId, Result<(), Failure>>,
    /// Who was away can be rebuilt.
    rebuilds: bool,
    /// Requests that nobody waits for any more.
    dropped: BTreeSet<IoId>,
    ended: Option<End>,
    opened: bool,
    /// The arbiter answers later.
    arbiter_is_away: bool,
    /// Changes of the set that the arbiter made, and how many of them before the volume was open.
    changes: u32,
    changes_to_open: u32,
    /// Nobody listens there.
    dead: BTreeSet<Slot>,
    /// Takes connections and requests, and answers nothing.
    hung: BTreeSet<Slot>,
    /// Came back after a power cut.
    suspect: BTreeSet<Slot>,
    /// Answers this to what isn't a ping; that its disk is full only to what takes room.
    refusing: BTreeMap<Slot, Refusal>,
    chain: ChainInfo,
    /// Changes of the chain, and how they went.
    jobs: BTreeMap<JobId, Result<(), String>>,
    /// Who was asked to take room for a change, and how many were told to give it back.
    prepared: Vec<Slot>,
    abandoned: u32,
    joined: u32,
    goodbyes: u32,
    marked: RegionSet,
    /// Those of them at which a replica that is greeted hasn't looked.
    unrecovered: u64,
    /// What each holds of the marked regions.
    sums: BTreeMap<Slot, RegionSums>,
    told: BTreeMap<Slot, Told>,
}

/// What a replica has made durable of what it was told.
#[derive(Clone, Default)]
struct Told {
    fence: Option<Fence>,
    synced: Option<Generation>,
    epoch: Epoch,
    departed: Vec<Departed>,
}

fn member(slot: Slot) -> Member {
    Member { replica: replica(slot), incarnation: Incarnation(slot.0.into()) }
}

fn replica(slot: Slot) -> ReplicaId {
    ReplicaId::from(format!("r{}", slot.0).as_str())
}

fn layer(number: u32) -> LayerInfo {
    let parent = (number > 1).then(|| LayerId(number - 1));
    let (id, size_bytes) = (LayerId(number), SIZE_BYTES);
    LayerInfo { id, parent, seal: None, removed: false, size_bytes, data_bytes: 0 }
}

impl Stage {
    fn new(members: u8) -> Self {
        Self::with(members, |_| ())
    }

    /// A client of the engine before waits for answers.
    fn recovering(members: u8) -> Self {
        Self::with(members, |config| config.recover = true)
    }

    fn with(members: u8, set: impl FnOnce(&mut Config)) -> Self {
        let slots: Vec<_> = (0..members).map(Slot).collect();
        let instance = InstanceId("e1".into());
        let mut config =
            Config::new("v", instance.clone(), slots.iter().copied().map(replica).collect());
        set(&mut config);
        let now = Instant::now();
        Self {
            core: Core::new(now, config),
            now,
            record: Record {
                engine: Some(EngineGrant { node: "n".into(), instance }),
                ..Record::first(slots.into_iter().map(member).collect())
            },
            links: BTreeMap::new(),
            asked: VecDeque::new(),
            done: BTreeMap::new(),
            rebuilds: false,
            dropped: BTreeSet::new(),
            ended: None,
            opened: false,
            arbiter_is_away: false,
            changes: 0,
            changes_to_open: 0,
            dead: BTreeSet::new(),
            hung: BTreeSet::new(),
            suspect: BTreeSet::new(),
            refusing: BTreeMap::new(),
            chain: ChainInfo { layers: vec![layer(1)], head: LayerId(1), last_op: ChainOpId(0) },
            jobs: BTreeMap::new(),
            prepared: Vec::new(),
            abandoned: 0,
            joined: 0,
            goodbyes: 0,
            marked: RegionSet::new(),
            unrecovered: 0,
            sums: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    fn open(members: u8) -> Self {
        let mut stage = Self::new(members);
        stage.settle();
        assert!(stage.opened, "{:?}", stage.core.status().waiting);
        stage
    }

    /// Does what the core wants, until it only waits.
    fn settle(&mut self) {
        loop {
            while let Some(action) = self.core.poll_action() {
                self.perform(action);
            }
            let answers = |asked: &Asked| !self.hung.contains(&asked.slot);
            let Some(at) = self.asked.iter().position(answers) else { return };
            let Asked { slot, link, seq, request } = self.asked.remove(at).expect("found");
            if self.links.get(&slot) == Some(&link) {
                let reply = self.reply(slot, &request);
                match &request {
                    Request::Chain(op) if reply == Reply::Done => self.take_op(op),
                    Request::Abandon => self.abandoned += 1,
                    Request::Prepare(_) => self.prepared.push(slot),
                    Request::Join { .. } => self.joined += 1,
                    Request::Bye => self.goodbyes += 1,
                    _ => {}
                }
                self.core.answered(self.now, slot, link, seq, reply);
            }
        }
    }

    fn perform(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::Connect { slot, link } if self.dead.contains(&slot) => {
                self.core.disconnected(now, slot, link, "connection refused");
            }
            Action::Connect { slot, link } => {
                self.links.insert(slot, link);
                self.core.connected(now, slot, link);
            }
            Action::Disconnect { slot, .. } => {
                self.links.remove(&slot);
            }
            Action::Send { slot, link, seq, request, .. } => {
                self.asked.push_back(Asked { slot, link, seq, request });
            }
            Action::Complete { io, result } => {
                self.done.insert(io, result);
                if !self.dropped.contains(&io) {
                    self.core.release(now, io);
                }
            }
            Action::ReadRecord if self.arbiter_is_away => {}
            Action::ReadRecord => self.core.record_read(now, self.record.clone()),
            Action::Change { expected, change } => {
                let after = self.record.after(expected, change);
                if let Ok(record) = &after {
                    self.record = record.clone();
                    self.changes += 1;
                }
                self.core.change_answered(now, after);
            }
            Action::Opened { .. } => {
                self.opened = true;
                self.changes_to_open = self.changes;
            }
            Action::End(end) => self.ended = Some(end),
            Action::JobDone { job, result } => {
                self.jobs.insert(job, result);
            }
            Action::Retire { .. } | Action::RetireTransfer { .. } | Action::Damage { .. } => {}
        }
    }

    fn reply(&mut self, slot: Slot, request: &Request<PayloadRef>) -> Reply<()> {
        if let Some(refusal) = self.refusing.get(&slot)
            && *request != Request::Ping
        {
            let takes_room = match request {
                Request::Copy { .. } | Request::Zero { .. } => true,
                Request::Chain(op) | Request::Prepare(op) => {
                    !matches!(op.change, ChainChange::Remove { .. })
                }
                _ => false,
            };
            if takes_room || *refusal != Refusal::NoSpace {
                return Reply::Refused(refusal.clone());
            }
        }
        let told = self.told.entry(slot).or_default();
        let before = told.clone();
        match request {
            Request::Hello(hello) => told.fence = hello.claim.as_ref().map(|claim| claim.fence),
            Request::Advance(advance) => {
                told.synced = Some(advance.generation);
                told.departed = advance.departed.clone();
            }
            Request::Epoch(epoch) => told.epoch = told.epoch.max(*epoch),
            Request::Ready { begun, .. } => told.epoch = Epoch { begun: *begun, agreed: 0 },
            _ => {}
        }
        match request {
            Request::Hello(_) => Reply::Welcome(Box::new(Welcome {
                incarnation: member(slot).incarnation,
                size_bytes: SIZE_BYTES,
                continuous: !self.suspect.contains(&slot),
                synced_generation: before.synced.or(Some(Generation::FIRST)),
                seen: before.fence,
                epoch: before.epoch,
                departed: before.departed,
                marked_regions: self.marked.len(),
                unrecovered_regions: self.unrecovered,
                chain: self.chain.clone(),
                lease_ms: 3000,
            })),
            Request::Read { .. } => Reply::Data(()),
            Request::Sums { .. } => Reply::Sums(Box::new(self.sums[&slot].clone())),
            Request::Fetch { .. } => Reply::Digest(1),
            Request::Copy { .. } => Reply::Digest(1),
            Request::Marked { from } if !self.opened || self.unrecovered > 0 => {
                Reply::Regions(RegionPage::of(self.marked.from(*from), MARKS_AT_ONCE))
            }
            Request::Stamps { from, .. } if self.rebuilds => {
                Reply::Regions(RegionPage::of(self.marked.from(*from), MARKS_AT_ONCE))
            }
            Request::Marked { .. } | Request::Stamps { .. } => {
                Reply::Regions(RegionPage::default())
            }
            Request::AdoptChain(_) if self.rebuilds => Reply::Adopted(Box::default()),
            Request::DescribeChain => Reply::Chain(Box::new(self.chain.clone())),
            _ => Reply::Done,
        }
    }

    /// What the replicas have of it once the first has done it.
    fn take_op(&mut self, op: &ChainOp) {
        if op.id <= self.chain.last_op {
            return;
        }
        self.chain.last_op = op.id;
        match &op.change {
            ChainChange::Remove { layer } => {
                let layers = &mut self.chain.layers;
                layers.iter_mut().filter(|it| it.id == *layer).for_each(|it| it.removed = true);
            }
            ChainChange::Snapshot { new_head, .. } => {
                self.chain.layers.push(layer(new_head.0));
                self.chain.head = *new_head;
            }
            other => panic!("{other:?} isn't played here"),
        }
    }

    fn start_job(&mut self, job: Job) -> JobId {
        let id = self.core.start_job(self.now, job);
        self.settle();
        id
    }

    /// The oldest request that wasn't answered gets this answer, whoever hangs.
    fn answer(&mut self, reply: Reply<()>) {
        let Asked { slot, link, seq, .. } = self.asked.pop_front().expect("something is asked");
        self.core.answered(self.now, slot, link, seq, reply);
        self.settle();
    }

    /// One request of a replica that hangs is answered after all; then the others go on.
    fn answer_one(&mut self, slot: Slot) {
        self.settle();
        if let Some(at) = self.asked.iter().position(|asked| asked.slot == slot) {
            let Asked { slot, link, seq, request } = self.asked.remove(at).expect("found");
            let reply = self.reply(slot, &request);
            self.core.answered(self.now, slot, link, seq, reply);
        }
        self.settle();
    }

    /// Lets time pass, as the clock is told to.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.core.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.core.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
        self.core.handle_timeout(self.now);
        self.settle();
    }

    fn cut(&mut self, slot: Slot) {
        if let Some(link) = self.links.remove(&slot) {
            self.core.disconnected(self.now, slot, link, "link lost");
            self.settle();
        }
    }

    fn submit(&mut self, operation: Operation) -> IoId {
        let io = self.core.submit(self.now, operation);
        self.settle();
        io
    }

    fn write(&mut self) -> IoId {
        self.submit(Operation::Zero { range: BlockRange::new(BlockIndex(0), 1), forced: false })
    }

    fn read(&mut self) -> IoId {
        self.submit(Operation::Read { range: BlockRange::new(BlockIndex(9), 1) })
    }

    fn members(&self) -> Vec<ReplicaId> {
        self.record.in_sync.iter().map(|member| member.replica.clone()).collect()
    }

    fn peer(&self, slot: Slot) -> PeerStatus {
        self.core.status().peers.swap_remove(usize::from(slot.0))
    }

    fn mode_of(&self, slot: Slot) -> ReplicaMode {
        self.peer(slot).mode
    }

    fn waits_for(&self) -> String {
        self.core.status().waiting.join("; ")
    }
}

// ---- leases ------------------------------------------------------------------------------------

/// A cut-off engine reads its local copy while the next one acknowledges on another.
#[test]
fn a_read_is_told_only_while_the_leases_of_all_members_hold() {
    let mut stage = Stage::open(2);
    let fresh = stage.read();
    assert_eq!(stage.done.get(&fresh), Some(&Ok(())));
    stage.pass(4 * SECOND);
    stage.hung.insert(B);
    let late = stage.read();
    let second = stage.read();
    assert!(!stage.done.contains_key(&late) && !stage.done.contains_key(&second));
    stage.hung.clear();
    stage.settle();
    assert_eq!((stage.done.get(&late), stage.done.get(&second)), (Some(&Ok(())), Some(&Ok(()))));
}

/// The member is out of the record: no engine opens with it, and reads go on.
#[test]
fn reads_go_on_when_the_member_that_hangs_is_removed() {
    let mut stage = Stage::open(2);
    stage.pass(4 * SECOND);
    stage.hung.insert(B);
    let read = stage.read();
    stage.pass(7 * SECOND);
    assert!(!stage.done.contains_key(&read));
    stage.pass(2 * SECOND);
    assert_eq!(stage.members(), [replica(A)]);
    assert_eq!(stage.done.get(&read), Some(&Ok(())));
}

#[test]
fn a_volume_that_nobody_uses_sends_nothing() {
    let mut stage = Stage::open(3);
    stage.hung = [A, B, C].into(); // whatever is asked stays in the queue
    stage.pass(60 * SECOND);
    assert!(stage.asked.is_empty());
    assert_eq!(stage.changes, 0);
}

/// Reads that come all the time renew only the reader's own lease: the other must be asked before
/// it is out, or every read after that waits for a round trip.
#[test]
fn a_busy_reader_never_waits_for_a_lease() {
    let mut stage = Stage::open(2);
    for _ in 0..200 {
        stage.pass(100 * MS);
        let read = stage
            .core
            .submit(stage.now, Operation::Read { range: BlockRange::new(BlockIndex(9), 1) });
        while let Some(action) = stage.core.poll_action() {
            stage.perform(action);
        }
        let at = stage.asked.iter().position(|it| matches!(it.request, Request::Read { .. }));
        let Asked { slot, link, seq, .. } =
            stage.asked.remove(at.expect("it is sent")).expect("found");
        stage.core.answered(stage.now, slot, link, seq, Reply::Data(()));
        while let Some(action) = stage.core.poll_action() {
            stage.perform(action);
        }
        assert_eq!(stage.done.get(&read), Some(&Ok(())), "it waits for a lease");
        stage.settle();
    }
}

#[test]
fn while_another_engine_may_read_the_open_asks_again() {
    let mut stage = Stage::new(1);
    stage.refusing.insert(A, Refusal::LeaseBusy { ms: 2500 });
    stage.settle();
    stage.pass(2 * SECOND);
    assert!(!stage.opened && stage.changes == 0);
    assert!(stage.waits_for().contains("may still read"), "{}", stage.waits_for());
    stage.refusing.clear();
    stage.pass(500 * MS);
    assert!(stage.opened);
}

// ---- what is marked ----------------------------------------------------------------------------

/// The welcome once carried the marked regions, and outgrew what a message may be.
#[test]
fn a_volume_is_open_when_all_members_have_told_all_that_they_have_marked() {
    let mut stage = Stage::new(2);
    stage.sums = [A, B].into_iter().map(|slot| (slot, RegionSums::absent())).collect();
    stage.marked.insert_run(1..12);
    stage.hung.insert(B);
    let first_of_b = |asked: &Asked| {
        asked.slot == B && matches!(asked.request, Request::Marked { from: Region(0) })
    };
    for _ in 0..9 {
        stage.answer_one(B);
        assert!(!stage.opened && stage.core.status().unsettled_bytes <= 11 << 20);
        if stage.asked.iter().any(first_of_b) {
            break;
        }
    }
    assert_eq!(stage.core.status().unsettled_bytes, 11 << 20, "A has told all that it has");
    assert!(stage.waits_for().contains("what was being written"), "{}", stage.waits_for());
    // One that is lost on the way is asked again from the start.
    stage.answer_one(B);
    stage.cut(B);
    stage.hung.clear();
    stage.pass(2 * SECOND);
    assert!(stage.opened, "{}", stage.waits_for());
    assert_eq!(stage.core.status().unsettled_bytes, 0);
}

#[test]
fn a_replica_whose_list_of_marks_goes_in_circles_is_lost() {
    let mut stage = Stage::new(2);
    stage.marked.insert(Region(1));
    stage.hung.insert(B);
    while !stage.asked.iter().any(|it| matches!(it.request, Request::Marked { .. })) {
        stage.answer_one(B);
    }
    let at = stage.asked.iter().position(|it| matches!(it.request, Request::Marked { .. }));
    let Asked { slot, link, seq, .. } = stage.asked.remove(at.expect("seen above")).expect("there");
    let circle = RegionPage { regions: RegionSet::new(), next: Some(Region(0)) };
    stage.core.answered(stage.now, slot, link, seq, Reply::Regions(circle));
    let peer = &stage.core.status().peers[usize::from(slot.0)];
    assert_eq!(peer.reason.as_deref(), Some("its list of regions goes in circles"));
}

/// An engine that had been stopped (SIGSTOP, a paused machine) took all members but one for silent
/// when it went on, though their answers lay in its sockets: four copies became one.
#[test]
fn after_the_engine_itself_was_stopped_nobody_is_taken_for_silent() {
    let mut stage = Stage::open(3);
    stage.hung = [A, B, C].into();
    let write = stage.write();
    stage.now += Duration::from_secs(60);
    stage.core.handle_timeout(stage.now);
    stage.hung.clear();
    stage.settle();
    assert_eq!(stage.done.get(&write), Some(&Ok(())));
    assert_eq!((stage.changes, stage.members().len()), (0, 3));
    // Who is silent while the engine runs is given up as ever.
    stage.hung.insert(B);
    let write = stage.write();
    stage.pass(Duration::from_secs(12));
    assert_eq!(stage.done.get(&write), Some(&Ok(())));
    assert_eq!(stage.members().len(), 2);
}

/// The same while it opened: whoever had answered last was alone, since the others' time was over.
#[test]
fn an_engine_that_is_stopped_while_it_opens_gives_members_their_time() {
    let mut stage = Stage::new(3);
    stage.hung = [A, B, C].into();
    stage.settle();
    stage.now += Duration::from_secs(60);
    stage.answer_one(A); // its welcome is read before the clock is looked at
    stage.hung.remove(&A);
    stage.settle(); // and it answers whatever it is asked, before the others are heard
    stage.hung.clear();
    stage.settle();
    assert_eq!((stage.changes, stage.members().len()), (0, 3));
}

/// The same when the first that it heard of was a link that had broken meanwhile.
#[test]
fn an_engine_that_was_stopped_while_it_opened_judges_nobody_by_the_first_that_it_hears() {
    let mut stage = Stage::new(3);
    stage.hung = [B, C].into();
    stage.settle();
    stage.now += Duration::from_secs(60);
    stage.cut(C);
    stage.settle(); // who has answered is there at once, before the others are heard
    stage.hung.clear();
    stage.settle();
    assert_eq!((stage.changes, stage.members().len()), (0, 3));
}

// ---- who comes back ----------------------------------------------------------------------------

/// A short break of one link once cost a change of the set and a rebuild.
#[test]
fn a_member_that_is_back_at_once_stays_and_gets_what_it_has_not_confirmed() {
    let mut stage = Stage::open(2);
    stage.hung.insert(B);
    let write = stage.write();
    assert!(!stage.done.contains_key(&write));
    stage.cut(B); // reconnects at once; its Hello isn't answered yet
    stage.pass(500 * MS);
    assert_eq!(stage.changes, 0);
    stage.hung.clear();
    stage.settle();
    assert_eq!(stage.done.get(&write), Some(&Ok(())));
    assert_eq!((stage.changes, stage.members().len()), (0, 2));
}

/// A block that had rotted while its replica was down got a fresh checksum, which nobody compared;
/// its mark went, and when the others were gone it was read as good.
#[test]
fn a_member_that_comes_back_as_another_process_is_compared_where_it_has_marks() {
    let mut stage = Stage::open(2);
    stage.sums = [A, B].into_iter().map(|slot| (slot, RegionSums::absent())).collect();
    let in_region = |region: u64| BlockRange::new(BlockIndex(region * 256 + 9), 1);
    stage.hung.insert(B);
    let before = stage.submit(Operation::Zero { range: in_region(3), forced: false });
    stage.marked.insert_run(1..12);
    stage.unrecovered = 11;
    stage.cut(B);
    let is_list =
        |asked: &Asked| asked.slot == B && matches!(asked.request, Request::Marked { .. });
    for _ in 0..9 {
        if !stage.asked.iter().any(is_list) {
            stage.answer_one(B);
        }
    }
    // Until it has told all nothing is cut.
    let snapshot = stage.start_job(Job::Snapshot { seal: Seal::default() });
    while let Some(at) = stage.asked.iter().position(is_list) {
        let Asked { slot, link, seq, request } = stage.asked.remove(at).expect("seen above");
        let reply = stage.reply(slot, &request);
        stage.core.answered(stage.now, slot, link, seq, reply);
        stage.settle();
    }
    assert_eq!(stage.core.status().unsettled_bytes, 11 << 20);
    assert!(!stage.jobs.contains_key(&snapshot));
    let [elsewhere, here] =
        [0, 2].map(|region| stage.submit(Operation::Read { range: in_region(region) }));
    let is_compared = |stage: &Stage, at| {
        let is_it =
            |it: &Asked| matches!(it.request, Request::Sums { region, .. } if region == Region(at));
        stage.asked.iter().any(is_it)
    };
    assert!(is_compared(&stage, 2) && !stage.done.contains_key(&here));
    // A write that was on its way has its region to itself.
    assert!(!is_compared(&stage, 3) && !stage.done.contains_key(&before));
    stage.hung.clear();
    stage.pass(SECOND);
    assert_eq!(stage.core.status().unsettled_bytes, 0);
    assert!([before, elsewhere, here].iter().all(|io| stage.done.get(io) == Some(&Ok(()))));
    assert_eq!(stage.jobs.get(&snapshot), Some(&Ok(())));
    assert_eq!((stage.changes, stage.members().len()), (0, 2));
}

/// The write waits no longer than the arbiter takes.
#[test]
fn a_member_at_whose_address_nobody_listens_is_removed_without_a_pause() {
    let mut stage = Stage::open(3);
    stage.dead.insert(B);
    stage.cut(B);
    assert_eq!(stage.members(), [replica(A), replica(C)]);
    let write = stage.write();
    assert_eq!(stage.done.get(&write), Some(&Ok(())));
}

#[test]
fn a_member_that_does_not_come_back_is_waited_for_a_second() {
    let mut stage = Stage::open(3);
    stage.hung.insert(B);
    stage.cut(B);
    stage.pass(900 * MS);
    assert_eq!(stage.changes, 0);
    stage.pass(200 * MS);
    assert_eq!(stage.members(), [replica(A), replica(C)]);
}

/// It rebooted and lost what it had acknowledged and not flushed.
#[test]
fn a_member_that_may_have_lost_writes_does_not_stay() {
    let mut stage = Stage::open(2);
    stage.suspect.insert(B);
    stage.cut(B);
    assert_eq!(stage.members(), [replica(A)]);
    assert_eq!(stage.ended, None);
}

#[test]
fn if_the_only_member_may_have_lost_writes_the_volume_is_opened_anew() {
    let mut stage = Stage::open(1);
    stage.suspect.insert(A);
    stage.cut(A);
    assert!(matches!(stage.ended, Some(End::Reopen(_))), "{:?}", stage.ended);
}

/// The engine's own network was away. The first member to be back once had the others removed.
#[test]
fn after_all_links_were_lost_the_first_one_back_waits_for_the_others() {
    let mut stage = Stage::open(3);
    stage.dead = [A, B, C].into();
    for slot in [A, B, C] {
        // The loss is noticed on all before the survivors were asked anything.
        stage.hung.insert(slot);
    }
    for slot in [A, B, C] {
        stage.cut(slot);
    }
    stage.hung.clear();
    stage.pass(5 * SECOND);
    assert_eq!(stage.changes, 0);
    stage.dead = [B, C].into();
    stage.hung = [B, C].into();
    stage.dead.clear(); // they take connections, and answer a little later
    stage.pass(700 * MS);
    assert_eq!(stage.changes, 0);
    stage.hung.clear();
    stage.pass(300 * MS);
    let write = stage.write();
    assert_eq!(stage.done.get(&write), Some(&Ok(())));
    assert_eq!((stage.changes, stage.members().len()), (0, 3));
}

/// The one that hangs must answer a ping before the other is removed, and can't be given up while
/// it is the last: both waited for ever.
#[test]
fn a_last_member_that_hangs_is_given_up_when_another_is_back() {
    let mut stage = Stage::open(2);
    stage.hung.insert(A);
    stage.dead.insert(B);
    stage.cut(B);
    let write = stage.write();
    stage.pass(20 * SECOND);
    assert_eq!(stage.changes, 0);
    stage.dead.clear();
    stage.pass(20 * SECOND);
    assert_eq!(stage.members(), [replica(B)]);
    assert_eq!(stage.done.get(&write), Some(&Ok(())));
}

/// A client that went away in the middle of a read: its range stayed locked for ever.
#[test]
fn a_read_that_nobody_waits_for_any_more_gives_its_range_back_when_it_is_answered() {
    let mut stage = Stage::open(1);
    stage.hung.insert(A);
    let read = stage.read();
    stage.dropped.insert(read);
    stage.core.release(stage.now, read);
    let range = BlockRange::new(BlockIndex(9), 1);
    let write = stage.submit(Operation::Zero { range, forced: false });
    stage.answer(Reply::Data(()));
    stage.hung.clear();
    stage.settle();
    assert_eq!(stage.done.get(&write), Some(&Ok(())));
}

// ---- the last disk -----------------------------------------------------------------------------

#[test]
fn when_the_last_disk_has_failed_requests_get_an_error_and_nobody_is_removed() {
    let mut stage = Stage::open(1);
    let failed = Refusal::Failed { message: "fdatasync: EIO".into() };
    stage.refusing.insert(A, failed);
    let flush = stage.submit(Operation::Flush);
    assert_eq!(stage.done.get(&flush), Some(&Err(Failure::Io)));
    let write = stage.write();
    assert_eq!(stage.done.get(&write), Some(&Err(Failure::Io)));
    stage.cut(A); // its process starts again: the Hello is refused from then on
    let (write, read) = (stage.write(), stage.read());
    let flush = stage.submit(Operation::Flush);
    stage.pass(SECOND);
    for io in [write, read, flush] {
        assert_eq!(stage.done.get(&io), Some(&Err(Failure::Io)));
    }
    assert!(stage.waits_for().contains("salvage"), "{}", stage.waits_for());
    assert_eq!((stage.changes, stage.members().len()), (0, 1));
}

/// The repair ended after the read had its error, and started the read anew: the engine panicked.
#[test]
fn a_read_that_waits_for_a_repair_when_the_last_disk_fails_gets_its_error_once() {
    let mut stage = Stage::open(1);
    stage.hung.insert(A);
    let read = stage.read();
    let range = BlockRange::new(BlockIndex(9), 1);
    let write = stage.submit(Operation::Zero { range, forced: false }); // waits for the read
    let blocks = Blocks::span(9..10);
    let bad = BadRegion { layer: LayerId(1), region: Region(0), blocks, index: false };
    let refusal = Refusal::BadBlocks { regions: vec![bad], message: "checksum".into() };
    stage.answer(Reply::Refused(refusal)); // now the read waits for the repair, that for the write
    stage.refusing.insert(A, Refusal::Failed { message: "fdatasync: EIO".into() });
    stage.hung.clear();
    stage.cut(A);
    stage.pass(SECOND);
    for io in [read, write] {
        assert_eq!(stage.done.get(&io), Some(&Err(Failure::Io)));
    }
}

// ---- opening -----------------------------------------------------------------------------------

#[test]
fn the_open_waits_long_for_a_silent_member_and_briefly_for_one_that_is_not_there() {
    let mut stage = Stage::new(2);
    stage.dead.insert(B);
    stage.settle();
    stage.pass(1900 * MS);
    assert!(!stage.opened);
    stage.pass(200 * MS);
    assert!(stage.opened && stage.members() == [replica(A)]);

    let mut stage = Stage::new(2);
    stage.hung.insert(B);
    stage.settle();
    stage.pass(9 * SECOND);
    assert!(!stage.opened);
    stage.pass(2 * SECOND);
    assert!(stage.opened && stage.members() == [replica(A)]);
}

/// After an engine's death the first lease that ran out opened the volume, and the members whose
/// leases ran out a millisecond later were removed and rebuilt.
#[test]
fn a_member_that_still_lends_is_waited_for_beyond_the_deadline() {
    let mut stage = Stage::new(2);
    let busy = || Refusal::LeaseBusy { ms: 300 };
    stage.refusing = [(A, busy()), (B, busy())].into();
    stage.settle();
    stage.pass(12 * SECOND);
    stage.refusing.remove(&A);
    stage.pass(100 * MS);
    assert!(!stage.opened);
    stage.refusing.clear();
    stage.pass(SECOND);
    assert!(stage.opened && stage.changes == 0);
}

/// It was the only one that hadn't lost power: acknowledged writes were lost.
#[test]
fn one_that_still_lends_is_waited_for_before_those_that_lost_power_open_alone() {
    let mut stage = Stage::new(2);
    stage.suspect = [A].into();
    stage.refusing = [(B, Refusal::LeaseBusy { ms: 300 })].into();
    stage.settle();
    stage.pass(12 * SECOND);
    assert!(!stage.opened);
    stage.refusing.clear();
    stage.pass(SECOND);
    assert!(stage.opened && stage.members() == [replica(B)]);
}

/// One that answered that its disk failed won't answer anything else.
#[test]
fn the_open_does_not_wait_for_a_member_whose_disk_failed() {
    let mut stage = Stage::new(2);
    stage.refusing.insert(B, Refusal::Failed { message: "fdatasync: EIO".into() });
    stage.settle();
    assert!(stage.opened && stage.members() == [replica(A)]);
}

/// The missing one may hold what the others lost.
#[test]
fn if_all_that_answered_lost_power_and_one_is_missing_the_open_waits_for_it() {
    let mut stage = Stage::new(3);
    stage.suspect = [A, B].into();
    stage.dead.insert(C);
    stage.settle();
    stage.pass(9 * SECOND);
    assert!(!stage.opened && stage.changes == 0);
    stage.dead.clear();
    stage.pass(500 * MS);
    assert!(stage.opened);
    assert_eq!(stage.members(), [replica(C)], "only it has all that was acknowledged");
}

/// It had said Welcome, lost power and was nevertheless kept, alone: what was acknowledged and not
/// flushed was lost, and the silent one, which was only cut off, had it.
#[test]
fn who_stays_answers_once_more_before_the_open_leaves_out_who_is_silent() {
    let mut stage = Stage::recovering(2);
    stage.hung.insert(B);
    stage.settle();
    stage.pass(9 * SECOND);
    stage.hung.insert(A); // its power is gone, and nobody is told
    stage.pass(2 * SECOND);
    assert!(stage.waits_for().contains("r0 must answer once more before r1 can be left out"));
    stage.pass(8 * SECOND);
    assert!(!stage.opened && stage.changes == 0, "{:?}", stage.members());
    stage.hung.remove(&A);
    stage.suspect.insert(A);
    stage.pass(30 * SECOND);
    assert!(!stage.opened && stage.changes == 0, "{:?}", stage.members());
    assert!(stage.waits_for().contains("must answer: r1"), "{}", stage.waits_for());
    stage.hung.clear();
    stage.pass(10 * SECOND);
    assert!(stage.opened, "{}", stage.waits_for());
    assert_eq!(stage.members(), [replica(B)], "only it has all that was acknowledged");
}

/// Each takes its time to be given up, and then the volume opens with who answers.
#[test]
fn an_open_ends_however_many_of_those_who_stay_are_silent_at_the_ping() {
    let mut stage = Stage::recovering(4);
    stage.hung.insert(B);
    stage.settle();
    stage.pass(9 * SECOND);
    stage.hung.extend([C, Slot(3)]);
    stage.pass(10 * SECOND);
    assert!(stage.opened, "{}", stage.waits_for());
    assert_eq!(stage.members(), [replica(A)]);
}

/// The same a moment later: it had answered, the other was removed, and then its power went.
#[test]
fn until_the_volume_is_open_who_was_removed_is_waited_for_if_all_others_lost_power() {
    let mut stage = Stage::recovering(2);
    stage.hung.insert(B);
    stage.settle();
    stage.pass(9 * SECOND);
    stage.hung.insert(A);
    stage.pass(2 * SECOND);
    stage.answer_one(A); // the ping
    assert!(!stage.opened && stage.members() == [replica(A)]);
    stage.suspect.insert(A);
    stage.hung.remove(&A);
    stage.cut(A);
    stage.pass(30 * SECOND);
    assert!(!stage.opened);
    assert!(stage.waits_for().contains("must answer: r1"), "{}", stage.waits_for());
    stage.hung.clear();
    stage.pass(10 * SECOND);
    assert!(stage.opened, "{}", stage.waits_for());
    assert_eq!(stage.members(), [replica(B)], "only it has all that was acknowledged");
}

/// Nothing was acknowledged since: it lacks nothing, and needn't be rebuilt.
#[test]
fn one_that_comes_while_another_is_greeted_anew_is_a_member_again() {
    let mut stage = Stage::recovering(2);
    stage.hung.insert(B);
    stage.settle();
    stage.pass(9 * SECOND);
    stage.hung.insert(A);
    stage.pass(2 * SECOND);
    stage.answer_one(A);
    assert_eq!(stage.members(), [replica(A)]);
    stage.hung.remove(&B);
    stage.cut(A);
    stage.pass(20 * SECOND);
    assert!(stage.opened, "{}", stage.waits_for());
    assert!(stage.members().contains(&replica(B)));
}

/// The members' time had run out when the engine learned who they are: the first that answered opened
/// the volume alone, and the others, with whom nothing was wrong, were removed.
#[test]
fn an_open_gives_members_their_time_from_when_the_arbiter_has_named_them() {
    let mut stage = Stage::new(2);
    stage.arbiter_is_away = true;
    stage.settle();
    stage.pass(11 * SECOND);
    stage.hung.insert(B);
    stage.core.record_read(stage.now, stage.record.clone());
    stage.settle();
    stage.pass(100 * MS);
    assert!(!stage.opened && stage.changes == 0);
    stage.hung.clear();
    stage.pass(9 * SECOND);
    assert!(stage.opened && stage.changes == 0, "{}", stage.waits_for());
}

/// All have lost power, and one is killed when the others are members again: these were taken for
/// sound, and one that wasn't so far left beside them.
#[test]
fn if_all_lost_power_none_leaves_for_it_when_another_is_lost_while_the_volume_opens() {
    let mut stage = Stage::recovering(3);
    stage.suspect = [A, B, C].into();
    stage.hung.insert(C);
    stage.settle();
    stage.answer_one(C); // Hello; the others are told the set, and so is C
    assert!(!stage.opened && stage.mode_of(A) == ReplicaMode::ReadWrite);
    stage.cut(A);
    stage.suspect.remove(&A); // it is a member again
    stage.pass(SECOND);
    stage.hung.clear();
    stage.pass(10 * SECOND);
    assert!(stage.opened, "{}", stage.waits_for());
    assert_eq!(stage.members(), [replica(A), replica(B), replica(C)]);
}

/// It was lost as soon as another was live, greeted anew, and lost again.
#[test]
fn a_member_that_is_not_wanted_any_more_helps_to_open_and_leaves_then() {
    let mut stage = Stage::new(3);
    stage.core.set_replicas(stage.now, &[replica(A), replica(B)]).expect("few");
    stage.settle();
    assert!(stage.opened && stage.changes_to_open == 0);
    stage.pass(SECOND);
    assert_eq!(stage.members(), [replica(A), replica(B)]);
    assert_eq!(stage.changes, 1);
}

/// Rule 8: without it a person sees a volume that won't attach and not why.
#[test]
fn who_is_fenced_says_by_what_so_that_a_rolled_back_record_is_noticed() {
    let mut stage = Stage::new(1);
    let generation = Generation::FIRST.next().next();
    let seen = Fence { generation, session: Session(4) };
    stage.refusing.insert(
        A,
        Refusal::StaleGeneration {
            seen,
            synced_generation: Some(generation),
            synced_set: vec![member(A), member(B)],
        },
    );
    stage.settle();
    let Some(End::Fenced(reason)) = &stage.ended else { panic!("{:?}", stage.ended) };
    for part in ["g3", "g1", "r0, r1", "rolled back"] {
        assert!(reason.contains(part), "{part} is missing in: {reason}");
    }
}

/// Rule 21. With two members left, losing one for a full disk leaves a single copy.
#[test]
fn settling_waits_for_room_while_only_one_other_member_remains() {
    let mut stage = Stage::new(2);
    let sums = |sum| {
        let mut sums = vec![BlockSum::Absent; 256];
        sums[7] = BlockSum::Data { sum, verified: true };
        let contents = Contents { hashes: vec![0; 256], unreadable: Blocks::NONE };
        RegionSums { blocks: sums, contents: Some(contents) }
    };
    stage.marked.insert(Region(0));
    stage.sums = [(A, sums(1)), (B, sums(2))].into();
    stage.refusing.insert(B, Refusal::NoSpace);
    stage.settle();
    stage.pass(20 * SECOND);
    assert_eq!((stage.changes, stage.members().len()), (0, 2));
    assert!(stage.waits_for().contains("r1: its disk is full"), "{}", stage.waits_for());
    stage.refusing.clear();
    stage.sums.insert(B, sums(1));
    stage.pass(2 * SECOND);
    assert_eq!(stage.core.status().unsettled_bytes, 0);
}

/// What would have made room waited for those who waited for it: for ever.
#[test]
fn a_snapshot_is_removed_while_writes_wait_for_room() {
    let mut stage = Stage::open(2);
    let snapshot = stage.start_job(Job::Snapshot { seal: Seal::default() });
    assert_eq!(stage.jobs.get(&snapshot), Some(&Ok(())));
    stage.refusing.insert(B, Refusal::NoSpace);
    let write = stage.write();
    stage.pass(3 * SECOND);
    assert_eq!((stage.done.get(&write), stage.members().len()), (None, 2));
    let removal = stage.start_job(Job::Remove { layer: LayerId(1) });
    assert_eq!(stage.jobs.get(&removal), Some(&Ok(())));
    assert_eq!(stage.joined, 2, "the blocks are given back on both");
    stage.refusing.clear();
    stage.pass(SECOND);
    assert_eq!(stage.done.get(&write), Some(&Ok(())), "it goes on by itself");
    assert_eq!(stage.core.status().full, []);
}

/// Two of three copies left the set for a snapshot, which was reported as made.
#[test]
fn a_snapshot_for_which_one_disk_has_no_room_is_refused_and_all_stay() {
    let mut stage = Stage::open(3);
    stage.refusing = [(B, Refusal::NoSpace), (C, Refusal::NoSpace)].into();
    let snapshot = stage.start_job(Job::Snapshot { seal: Seal::default() });
    let Some(Err(why)) = stage.jobs.get(&snapshot) else { panic!("{:?}", stage.jobs) };
    assert!(why.contains("replica r2: its disk is full; free some"), "{why}");
    assert_eq!((stage.abandoned, stage.chain.layers.len()), (1, 1), "the first had the room");
    assert_eq!((stage.changes, stage.members().len()), (0, 3));
    let write = stage.submit(Operation::Flush);
    assert_eq!(stage.done.get(&write), Some(&Ok(())), "the volume goes on");
    stage.refusing.clear();
    let snapshot = stage.start_job(Job::Snapshot { seal: Seal::default() });
    assert_eq!(stage.jobs.get(&snapshot), Some(&Ok(())));
}

/// Its process has started again: what it had prepared is gone.
#[test]
fn a_member_that_comes_back_takes_the_room_for_a_snapshot_anew() {
    let mut stage = Stage::open(2);
    stage.hung.insert(A);
    let write = stage.write(); // the drain waits for it
    let snapshot = stage.start_job(Job::Snapshot { seal: Seal::default() });
    stage.cut(B);
    stage.pass(500 * MS);
    stage.prepared.clear();
    stage.hung.clear();
    stage.settle();
    assert_eq!(stage.done.get(&write), Some(&Ok(())));
    assert_eq!(stage.jobs.get(&snapshot), Some(&Ok(())));
    assert!(stage.prepared.contains(&B), "{:?}", stage.prepared);
}

/// It waited behind the writes, and all removals behind it.
#[test]
fn a_snapshot_is_refused_while_writes_wait_for_room_and_holds_up_no_removal() {
    let mut stage = Stage::open(2);
    stage.start_job(Job::Snapshot { seal: Seal::default() });
    stage.refusing.insert(B, Refusal::NoSpace);
    let write = stage.write();
    assert_eq!(stage.core.status().full, [replica(B)]);
    let snapshot = stage.start_job(Job::Snapshot { seal: Seal::default() });
    let removal = stage.start_job(Job::Remove { layer: LayerId(1) });
    let Some(Err(why)) = stage.jobs.get(&snapshot) else { panic!("{:?}", stage.jobs) };
    assert!(why.contains("r1: its disk is full") && why.contains("remove"), "{why}");
    assert_eq!(stage.jobs.get(&removal), Some(&Ok(())));
    assert!(!stage.done.contains_key(&write) && stage.members().len() == 2);
}

/// It waited for the writes, which waited for room. Whoever waited behind such a write must not read
/// what one member has of it and another hasn't.
#[test]
fn a_detach_gives_up_what_waits_for_room_and_keeps_the_marks() {
    let mut stage = Stage::open(2);
    stage.refusing.insert(B, Refusal::NoSpace);
    let write = stage.write();
    let range = BlockRange::new(BlockIndex(0), 1);
    let behind = stage.submit(Operation::Read { range });
    let elsewhere = stage.read();
    let flush = stage.submit(Operation::Flush);
    assert_eq!(stage.done.get(&elsewhere), Some(&Ok(())));
    stage.core.detach(stage.now);
    stage.settle();
    for io in [write, behind] {
        assert_eq!(stage.done.get(&io), Some(&Err(Failure::NoSpace)));
    }
    assert_eq!(stage.done.get(&flush), Some(&Ok(())));
    assert_eq!((&stage.ended, stage.goodbyes), (&Some(End::Detached), 0));
    assert_eq!(stage.members().len(), 2);
}

/// Of three members one is full and leaves, then another: the last two stay together and wait.
#[test]
fn full_disks_leave_only_while_two_others_remain() {
    let mut stage = Stage::open(3);
    stage.refusing.insert(C, Refusal::NoSpace);
    let write = stage.write();
    assert_eq!(stage.done.get(&write), Some(&Ok(())));
    assert_eq!(stage.members(), [replica(A), replica(B)]);
    stage.refusing.insert(B, Refusal::NoSpace);
    let write = stage.write();
    stage.pass(5 * SECOND);
    assert_eq!((stage.done.get(&write), stage.members().len()), (None, 2));
    assert!(stage.waits_for().contains("r1: its disk is full"), "{}", stage.waits_for());
}

// ---- rebuilds ----------------------------------------------------------------------------------

/// B was away for long, and comes back to be rebuilt; it hangs as soon as it takes writes.
fn with_a_target_that_hangs() -> Stage {
    let mut stage = Stage::open(2);
    stage.rebuilds = true;
    stage.marked.insert(Region(0));
    let contents = Contents { hashes: vec![0; 256], unreadable: Blocks::NONE };
    let sums = RegionSums { blocks: vec![BlockSum::Absent; 256], contents: Some(contents) };
    stage.sums = [(A, sums.clone()), (B, sums)].into();
    stage.dead.insert(B);
    stage.cut(B);
    stage.pass(3 * SECOND);
    assert_eq!(stage.members(), [replica(A)]);
    stage.dead.clear();
    stage.hung.insert(B);
    stage.pass(300 * MS);
    while stage.mode_of(B) != ReplicaMode::WriteOnly {
        let at = stage.asked.iter().position(|asked| asked.slot == B).expect("it is asked");
        let Asked { slot, link, seq, request } = stage.asked.remove(at).expect("found");
        let reply = stage.reply(slot, &request);
        stage.core.answered(stage.now, slot, link, seq, reply);
        stage.settle();
    }
    stage
}

/// What had been acknowledged without it stayed in the engine's memory: 1.8 GiB within 9 s.
#[test]
fn a_target_that_owes_too_much_is_given_up_and_rebuilt_again_after_a_pause_that_grows() {
    let mut stage = with_a_target_that_hangs();
    let bound = Config::new("v", InstanceId("e1".into()), Vec::new()).backlog_bytes;
    for region in 0..64 {
        let write = stage.submit(Operation::Write {
            range: Region(region).range(),
            edges: [None; 2],
            forced: false,
        });
        assert_eq!(stage.done.get(&write), Some(&Ok(())), "nobody waits for it");
        assert!(stage.peer(B).owed_bytes <= bound, "{} bytes", stage.peer(B).owed_bytes);
    }
    let reason = stage.peer(B).reason.expect("it is said");
    assert!(reason.contains("can't keep up"), "{reason}");
    assert_eq!(stage.mode_of(B), ReplicaMode::Error);
    stage.hung.clear();
    stage.pass(2 * SECOND);
    assert_eq!(stage.members(), [replica(A), replica(B)], "it can keep up now");
}

/// It was said to be rebuilt since "nobody listens": that was so before it came back.
#[test]
fn of_a_target_that_is_here_nothing_is_told_of_why_it_was_away() {
    let stage = with_a_target_that_hangs();
    assert_eq!((stage.mode_of(B), stage.peer(B).reason), (ReplicaMode::WriteOnly, None));
    assert!(!stage.peer(B).is_older, "it was away, and is what it was");
}

/// A journal's block that was written again waited for the target, and so did a snapshot, for 78 s.
#[test]
fn a_write_waits_for_a_target_only_for_a_bounded_time() {
    let mut stage = with_a_target_that_hangs();
    let first = stage.write();
    let again = stage.write();
    stage.pass(2 * SECOND);
    assert_eq!((stage.done.get(&first), stage.done.get(&again)), (Some(&Ok(())), None));
    stage.pass(2 * SECOND);
    assert_eq!(stage.done.get(&again), Some(&Ok(())));
    let job = stage.start_job(Job::Snapshot { seal: Seal::default() });
    stage.pass(4 * SECOND);
    assert_eq!(stage.jobs.get(&job), Some(&Ok(())));
}

// ---- who is slow -------------------------------------------------------------------------------

/// One hanging disk once stalled every second read until the replica was given up.
#[test]
fn a_read_that_takes_long_is_asked_of_another_member_and_keeps_its_range_until_both_answered() {
    let mut stage = Stage::open(2);
    stage.hung.insert(A);
    let reads: Vec<_> = (0..8).map(|_| stage.read()).collect();
    assert!(reads.iter().any(|io| !stage.done.contains_key(io)), "half of them are A's");
    stage.pass(200 * MS);
    assert!(reads.iter().all(|io| stage.done.get(io) == Some(&Ok(()))));
    let range = BlockRange::new(BlockIndex(9), 1);
    let write = stage.submit(Operation::Zero { range, forced: false });
    let sent =
        |stage: &Stage| stage.asked.iter().any(|it| matches!(it.request, Request::Zero { .. }));
    assert!(!sent(&stage), "A is still reading what this write changes");
    stage.hung.clear();
    stage.settle();
    assert_eq!(stage.done.get(&write), Some(&Ok(())));
}

/// Nobody is slower than the others, so nobody is removed, and nothing was said.
#[test]
fn when_all_members_are_slow_people_are_told_whom_writes_wait_for() {
    let mut stage = Stage::open(2);
    stage.hung = [A, B].into();
    stage.write();
    stage.pass(SECOND / 2);
    assert_eq!(stage.waits_for(), "");
    stage.pass(SECOND);
    assert!(stage.waits_for().contains("writes wait for r0, r1"), "{}", stage.waits_for());
    stage.hung.clear();
    stage.pass(SECOND);
    assert_eq!(stage.waits_for(), "");
}

/// Nothing was due any more when the last of them had answered, and what was said stayed.
#[test]
fn that_writes_wait_for_slow_members_is_said_no_longer_than_they_do() {
    let mut stage = Stage::open(2);
    stage.hung = [A, B].into();
    stage.write();
    stage.pass(4 * SECOND);
    stage.hung.clear();
    stage.settle();
    let end = stage.now + SECOND;
    while let Some(at) = stage.core.poll_timeout().filter(|at| *at <= end) {
        stage.now = stage.now.max(at);
        stage.core.handle_timeout(stage.now);
        stage.settle();
    }
    assert_eq!(stage.waits_for(), "");
}

/// Layers of any size are joined; one whose replica is stopped blocked every rebuild for ever.
#[test]
fn a_slow_goodbye_is_no_reason_to_hang_but_a_dead_replica_is() {
    let mut stage = Stage::open(2);
    stage.core.detach(stage.now);
    while let Some(action) = stage.core.poll_action() {
        stage.perform(action);
    }
    // Both flush; then A takes its time for the goodbye, and B is gone.
    let flushes: Vec<_> = stage.asked.drain(..).collect();
    for Asked { slot, link, seq, .. } in flushes {
        stage.core.answered(stage.now, slot, link, seq, Reply::Done);
    }
    stage.hung = [B].into();
    stage.settle();
    assert_eq!(stage.ended, None);
    stage.pass(30 * SECOND);
    assert_eq!(stage.ended, Some(End::Detached));
}

// ---- older copies ------------------------------------------------------------------------------

/// A directory was put back as it was an hour ago, while the volume was detached: it was believed,
/// and reads gave old and new by turns.
#[test]
fn a_member_that_is_an_older_copy_of_itself_leaves_before_the_volume_opens() {
    let mut stage = Stage::new(3);
    let epoch = |begun, agreed| Told { epoch: Epoch { begun, agreed }, ..Told::default() };
    stage.told = [(A, epoch(7, 7)), (B, epoch(12, 12)), (C, epoch(12, 12))].into();
    stage.hung.insert(C);
    stage.settle();
    stage.pass(11 * SECOND);
    assert!(stage.opened, "{}", stage.waits_for());
    assert_eq!(stage.members(), [replica(B)]);
    let peer = &stage.core.status().peers[0];
    let rebuild = peer.rebuild.or(peer.last_rebuild).expect("it is rebuilt");
    assert_eq!(rebuild.since, None, "all of it is compared");
}

/// An engine that dies between the two halves of a round leaves members that are sound and differ.
#[test]
fn a_round_that_was_broken_off_makes_nobody_old() {
    let mut stage = Stage::new(3);
    let epoch = |begun, agreed| Told { epoch: Epoch { begun, agreed }, ..Told::default() };
    stage.told = [(A, epoch(13, 12)), (B, epoch(12, 12)), (C, epoch(13, 11))].into();
    stage.settle();
    assert!(stage.opened, "{}", stage.waits_for());
    assert_eq!(stage.members(), [replica(A), replica(B), replica(C)]);
    for slot in [A, B, C] {
        // Above all that any of them has begun, so that no number is used twice.
        assert_eq!(stage.told[&slot].epoch, Epoch { begun: 14, agreed: 14 });
    }
}

/// The same within a session: its process dies, its directory is replaced, its process comes back.
#[test]
fn a_member_that_comes_back_as_an_older_copy_is_rebuilt() {
    for what in 0..2 {
        let mut stage = Stage::open(2);
        stage.write();
        stage.pass(30 * SECOND);
        let told = stage.told.get_mut(&B).expect("it was greeted");
        let before = told.clone();
        match what {
            0 => told.epoch.begun -= 1,
            _ => told.fence = None,
        }
        stage.cut(B);
        stage.pass(SECOND);
        assert_eq!(stage.members(), [replica(A)], "{what}");
        // And one that is what it was stays.
        let mut stage = Stage::open(2);
        stage.write();
        stage.pass(30 * SECOND);
        assert!(stage.told[&B].epoch.agreed > 1 && before.epoch.begun > 1);
        stage.cut(B);
        stage.pass(SECOND);
        assert_eq!(stage.members(), [replica(A), replica(B)], "{what}");
    }
}

/// It was sound when it left, and isn't what it was when it comes back: what members remember since
/// it left doesn't say what it lacks.
#[test]
fn a_replica_that_left_and_comes_back_as_an_older_copy_is_compared_as_a_whole() {
    for is_older in [false, true] {
        let mut stage = Stage::open(2);
        stage.write();
        stage.pass(30 * SECOND);
        stage.dead.insert(B);
        stage.cut(B);
        stage.write();
        stage.pass(10 * SECOND);
        assert_eq!(stage.members(), [replica(A)]);
        if is_older {
            stage.told.get_mut(&B).expect("it was greeted").epoch.begun -= 1;
        }
        stage.dead.clear();
        stage.hung.clear();
        stage.pass(10 * SECOND);
        let peer = stage.core.status().peers[1].clone();
        let rebuild = peer.rebuild.or(peer.last_rebuild).expect("it is rebuilt");
        assert_eq!(rebuild.since.is_none(), is_older);
    }
}
