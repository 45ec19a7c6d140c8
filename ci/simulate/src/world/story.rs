//! Stories: what the execution needs that a rule prevents, told step by step where chance alone
//! would need hundreds of seeds. All else is chance as ever: when, how long, what clients do
//! meanwhile. Each is told with all rules kept too, and nothing may go wrong then.

use std::ops::Range;

use ankole_replica::admin::ReplicaMode;
use ankole_replica::mutation::Mutation;

use ankole_replica::types::{REGION_BYTES, Region};

use super::client::Shape;
use super::*;

/// A story; its name says what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Story {
    TwoEnginesCompete,
    AnswersComeLate,
    ReplicaForgetsItsLessee,
    WritesHang,
    AMemberHangs,
    ATargetHangs,
    BlocksOfTheHeadAreUnreadable,
    HeadRotsWhileItsReplicaIsDown,
    HeadRotsAndTheEngineLivesOn,
    APageIsLost,
    OnlyTheTargetHasIt,
    AMarkGoesWhileAMemberIsAway,
    ReturnedMemberHadNothingToCopy,
    OnlyTheAbsentHasTheCut,
    ACutIsInterrupted,
    AFlushIsInterrupted,
    LayersAreJoined,
    SuspectIsThereAndSoundIsNot,
    WhoWelcomedLosesPower,
    AnEngineIsLateToAsk,
    DisksAreFull,
    DisksAreFullAtACut,
    VolumeIsHuge,
}

/// Steps of a story, told in a circle.
enum Step {
    /// Goes on when it is so, and begins anew when it isn't for long.
    Until(fn(&World) -> bool),
    Do(fn(&mut World)),
    PauseUs(Range<u64>),
}

use Step::{Do, PauseUs, Until};
use Story::*;

/// How far the story has got.
pub(super) struct Telling {
    pub(super) story: Story,
    step: usize,
    /// Since when it waits.
    since_us: u64,
}

impl Telling {
    pub(super) fn new(story: Story) -> Self {
        Self { story, step: 0, since_us: 0 }
    }
}

/// How many machines there are, and how many of them are in the set at first.
pub(super) struct Cast {
    pub(super) machines: usize,
    pub(super) members: usize,
}

impl Story {
    pub const ALL: &[Self] = &[
        TwoEnginesCompete,
        AnswersComeLate,
        ReplicaForgetsItsLessee,
        WritesHang,
        AMemberHangs,
        ATargetHangs,
        BlocksOfTheHeadAreUnreadable,
        HeadRotsWhileItsReplicaIsDown,
        HeadRotsAndTheEngineLivesOn,
        APageIsLost,
        OnlyTheTargetHasIt,
        AMarkGoesWhileAMemberIsAway,
        ReturnedMemberHadNothingToCopy,
        OnlyTheAbsentHasTheCut,
        ACutIsInterrupted,
        AFlushIsInterrupted,
        LayersAreJoined,
        SuspectIsThereAndSoundIsNot,
        WhoWelcomedLosesPower,
        AnEngineIsLateToAsk,
        DisksAreFull,
        DisksAreFullAtACut,
        VolumeIsHuge,
    ];

    /// With a rule broken every other seed tells the story of its counterexample; without, every
    /// fourth tells some story.
    pub(crate) fn of(seed: u64, mutation: Option<Mutation>) -> Option<Self> {
        match mutation {
            Some(mutation) => Self::against(mutation).filter(|_| seed.is_multiple_of(2)),
            None if seed.is_multiple_of(4) => {
                Self::ALL.get((seed / 4 % Self::ALL.len() as u64) as usize).copied()
            }
            None => None,
        }
    }

    fn against(mutation: Mutation) -> Option<Self> {
        Some(match mutation {
            Mutation::RenewLeaseAtAnswer => AnswersComeLate,
            Mutation::LesseeForgotten => ReplicaForgetsItsLessee,
            Mutation::LenderIsSilent => return None,
            Mutation::SilentMemberKept => AMemberHangs,
            Mutation::BacklogUnbounded => ATargetHangs,
            mutation if mutation.rule() == "9" => TwoEnginesCompete,
            Mutation::OldIoNotAwaited => WritesHang,
            Mutation::RepairWithoutLock => BlocksOfTheHeadAreUnreadable,
            Mutation::UnverifiedWins => HeadRotsWhileItsReplicaIsDown,
            Mutation::AnotherProcessNotCompared => HeadRotsAndTheEngineLivesOn,
            Mutation::LostPageIsEmpty => APageIsLost,
            Mutation::UngrantedEngineOpens => AnEngineIsLateToAsk,
            Mutation::RebuildIgnoresTargetsMarks => OnlyTheTargetHasIt,
            Mutation::StampsGoWithMarks => AMarkGoesWhileAMemberIsAway,
            Mutation::TargetNotMarked => ReturnedMemberHadNothingToCopy,
            Mutation::AnyCutAdopted => OnlyTheAbsentHasTheCut,
            Mutation::SlotsBelievedUnsynced | Mutation::ChainsNotEqualized => ACutIsInterrupted,
            Mutation::EarlierIndexUnsynced => AFlushIsInterrupted,
            mutation if mutation.rule() == "join" => LayersAreJoined,
            Mutation::OpenWithoutMissing => SuspectIsThereAndSoundIsNot,
            Mutation::OpenWithoutPing | Mutation::OpenByWhatIsLeft => WhoWelcomedLosesPower,
            Mutation::FullMemberLeaves => DisksAreFull,
            Mutation::ChangeWithoutRoom => DisksAreFullAtACut,
            mutation if mutation.rule() == "cost" => VolumeIsHuge,
            _ => return None,
        })
    }

    pub(super) fn cast(self) -> Cast {
        match self {
            AnswersComeLate
            | ReplicaForgetsItsLessee
            | SuspectIsThereAndSoundIsNot
            | WhoWelcomedLosesPower => Cast { machines: 2, members: 2 },
            AFlushIsInterrupted => Cast { machines: 1, members: 1 },
            _ => Cast { machines: 3, members: 3 },
        }
    }

    /// What else may go wrong.
    pub(super) fn menu(self) -> Vec<Fault> {
        match self {
            TwoEnginesCompete => {
                vec![Fault::VolumeMoves, Fault::FarAway, Fault::VolumeSplits, Fault::VolumeSplits]
            }
            BlocksOfTheHeadAreUnreadable => {
                let [unreadable, slow] = [Fault::BlockUnreadable, Fault::DiskSlow];
                vec![unreadable, unreadable, unreadable, Fault::FarAway, slow]
            }
            VolumeIsHuge => {
                vec![Fault::Killed, Fault::EngineDies, Fault::MadeAnew, Fault::OthersWanted]
            }
            _ => Vec::new(),
        }
    }

    fn steps(self) -> &'static [Step] {
        match self {
            TwoEnginesCompete | BlocksOfTheHeadAreUnreadable | VolumeIsHuge => &[],
            AnswersComeLate => &[
                Until(World::is_calm),
                Do(|world| world.answer_late(0, 100 * MS)),
                PauseUs(0..60 * MS),
                Do(|world| world.part_from(0)),
                PauseUs(300 * MS..400 * MS),
            ],
            ReplicaForgetsItsLessee => &[
                Until(World::is_calm),
                PauseUs(0..30 * MS),
                Do(|world| {
                    world.part_from(0);
                    world.silence(0);
                    world.stop_replica(0, false, 100);
                }),
                PauseUs(300 * MS..400 * MS),
            ],
            WritesHang => &[
                Until(World::is_calm),
                Do(|world| world.let_writes_hang(150 * MS)),
                PauseUs(MS..20 * MS),
                Do(|world| world.engine_gone(world.newest, true)),
                PauseUs(100 * MS..200 * MS),
            ],
            AMemberHangs => &[
                Until(World::is_calm),
                PauseUs(0..20 * MS),
                Do(|world| world.hang(1, 1500 * MS)),
                PauseUs(1600 * MS..1700 * MS),
            ],
            ATargetHangs => &[
                Until(World::is_calm),
                Do(World::expand_for_a_lot),
                Until(World::is_calm),
                Do(|world| world.want(2, false)),
                Until(|world| !world.is_member(2)),
                PauseUs(5 * MS..20 * MS),
                Do(|world| world.want(2, true)),
                Until(|world| world.is_being_rebuilt(2)),
                Do(|world| {
                    world.hang(2, 100 * MS);
                    world.write_a_lot();
                }),
                PauseUs(100 * MS..200 * MS),
                Until(World::is_calm),
                PauseUs(4000 * MS..4001 * MS), // once is enough: it is dear
            ],
            HeadRotsWhileItsReplicaIsDown => &[
                Until(World::is_calm),
                PauseUs(0..20 * MS),
                Do(|world| {
                    world.rot_the_marked();
                    world.engine_gone(world.newest, true); // its successor settles
                }),
                PauseUs(60 * MS..100 * MS),
                Until(World::is_calm),
                Do(|world| world.machines[0].undo_rot()),
            ],
            HeadRotsAndTheEngineLivesOn => &[
                Until(World::is_calm),
                PauseUs(0..20 * MS),
                Do(World::rot_the_marked),
                PauseUs(60 * MS..100 * MS), // it is back, and compared
                Until(World::is_calm),
                Do(|world| world.want_only(&[0])),
                Until(|world| !world.is_member(1) && !world.is_member(2)),
                PauseUs(20 * MS..60 * MS),
                Do(|world| world.want_only(&[0, 1, 2])),
                Until(World::is_calm),
                Do(|world| world.machines[0].undo_rot()),
            ],
            APageIsLost => &[
                Until(World::is_calm),
                PauseUs(0..40 * MS),
                Do(World::lose_a_page),
                PauseUs(60 * MS..100 * MS),
                Until(World::is_calm),
                Do(|world| world.machines[0].undo_rot()),
            ],
            AnEngineIsLateToAsk => &[
                Until(World::is_calm),
                Do(|world| {
                    world.move_volume();
                    let until = world.now_us() + 5 * MS;
                    world.engine(world.newest).arbiter_cut_until = until;
                }),
                PauseUs(0..5 * MS),
                Do(World::move_volume),
                PauseUs(100 * MS..200 * MS),
            ],
            OnlyTheTargetHasIt => &[
                Do(|world| world.is_quiet = true),
                Until(World::is_calm),
                Do(|world| world.submit_one(Single::Flush)),
                PauseUs(60 * MS..100 * MS), // no member has it marked
                Do(|world| {
                    world.deafen(&[0, 1]);
                    world.write_somewhere_cold();
                }),
                PauseUs(MS..5 * MS),
                Do(|world| {
                    world.engine_gone(world.newest, false);
                    world.stop_replica(2, false, 450 * MS);
                }),
                Until(|world| !world.is_member(2)),
                Until(World::is_calm),
                Do(|world| world.is_quiet = false),
                PauseUs(0..60 * MS),
            ],
            AMarkGoesWhileAMemberIsAway => &[
                Do(|world| world.is_quiet = true),
                Until(World::is_calm),
                Do(|world| world.want(2, false)),
                Until(|world| !world.is_member(2)),
                Do(World::write_somewhere_cold),
                Until(World::is_calm),
                Do(|world| world.submit_one(Single::Flush)),
                PauseUs(60 * MS..100 * MS), // its mark goes
                Do(|world| world.want(2, true)),
                Until(|world| world.is_member(2)),
                Do(|world| world.is_quiet = false),
                PauseUs(0..60 * MS),
            ],
            ReturnedMemberHadNothingToCopy => &[
                Do(|world| world.is_quiet = true),
                Until(World::is_calm),
                Do(|world| world.want(2, false)),
                Until(|world| !world.is_member(2)),
                Do(World::write_somewhere_cold),
                Until(World::is_calm),
                Do(|world| world.submit_one(Single::Flush)),
                PauseUs(60 * MS..100 * MS), // its mark goes
                Do(|world| world.stop_replica(1, false, 800 * MS)),
                Until(|world| !world.is_member(1)),
                Do(World::zero_what_was_written),
                PauseUs(60 * MS..100 * MS),
                Do(|world| world.want(2, true)),
                Until(|world| world.is_member(2)),
                Do(|world| world.want(0, false)),
                Until(|world| !world.is_member(0)),
                Until(World::is_calm),
                Do(|world| world.want(0, true)),
            ],
            OnlyTheAbsentHasTheCut => &[
                Until(World::is_calm),
                Do(|world| {
                    world.changes_reach_only = Some(2);
                    world.start_job(Job::Snapshot { seal: Seal::default() });
                }),
                Until(|world| world.is_ahead(2)),
                Do(|world| {
                    world.stop_replica(2, false, 450 * MS);
                    world.engine_gone(world.newest, true);
                    world.changes_reach_only = None;
                }),
                Until(|world| !world.is_member(2)),
                PauseUs(0..20 * MS),
                Do(World::snapshot_if_idle),
                Until(World::is_calm),
            ],
            ACutIsInterrupted => &[
                Until(World::is_calm),
                Do(World::snapshot_if_idle),
                PauseUs(5 * MS..10 * MS),
                Until(World::is_calm),
                Do(World::die_amid_a_change),
                PauseUs(20 * MS..30 * MS),
                Until(World::is_calm),
                Do(|world| world.submit_one(Single::Flush)),
                PauseUs(2 * MS..5 * MS),
                Do(World::inspect),
            ],
            AFlushIsInterrupted => &[
                Until(World::is_calm),
                Do(World::snapshot_if_idle),
                Until(World::is_calm),
                PauseUs(2 * MS..10 * MS),
                Do(|world| {
                    world.is_quiet = true;
                    world.dies_amid = Some((0, Amid::Flush));
                    world.submit_one(Single::Flush);
                }),
                PauseUs(5 * MS..10 * MS),
                Until(World::is_calm),
                Do(|world| world.submit_one(Single::Flush)),
                PauseUs(3 * MS..5 * MS),
                Do(|world| {
                    world.inspect();
                    world.is_quiet = false;
                }),
            ],
            LayersAreJoined => &[
                Until(World::is_calm),
                Do(World::snapshot_if_idle),
                Until(World::is_calm),
                PauseUs(2 * MS..20 * MS),
                Do(World::snapshot_if_idle),
                Until(World::is_calm),
                PauseUs(0..20 * MS),
                Do(World::remove_if_idle),
                Until(World::is_joining),
                PauseUs(0..3 * MS),
                Do(World::inspect),
                Do(World::all_lose_power),
                PauseUs(60 * MS..70 * MS),
            ],
            SuspectIsThereAndSoundIsNot => &[
                Until(World::is_calm),
                PauseUs(0..20 * MS),
                Do(|world| {
                    world.stop_replica(1, false, 600 * MS);
                    world.stop_replica(0, true, MS);
                    world.engine_gone(world.newest, true);
                }),
                PauseUs(700 * MS..800 * MS),
            ],
            WhoWelcomedLosesPower => &[
                Until(World::is_calm),
                PauseUs(0..20 * MS),
                Do(|world| {
                    world.hide_from_the_next(0, 600 * MS);
                    world.engine_gone(world.newest, true);
                }),
                Until(|world| world.is_greeted_to_open(1)),
                PauseUs(0..70 * MS), // the next one waits 50 ms for who is silent
                Do(|world| world.stop_replica(1, true, MS)),
                PauseUs(700 * MS..800 * MS),
            ],
            DisksAreFull => &[
                Until(World::is_calm),
                Do(|world| world.fill_disks(&[0, 1], true)),
                PauseUs(20 * MS..200 * MS),
                Do(|world| world.fill_disks(&[0, 1], false)),
                PauseUs(1200 * MS..1300 * MS),
            ],
            DisksAreFullAtACut => &[
                Do(|world| world.is_quiet = true), // nobody knows yet
                Until(World::is_calm),
                PauseUs(5 * MS..20 * MS),
                Do(|world| {
                    world.fill_disks(&[0, 1], true);
                    world.snapshot_if_idle();
                }),
                PauseUs(20 * MS..100 * MS),
                Do(|world| {
                    world.fill_disks(&[0, 1], false);
                    world.is_quiet = false;
                }),
                PauseUs(300 * MS..400 * MS),
            ],
        }
    }
}

const A_LOT_BYTES: u64 = BACKLOG_BYTES + 5 * REGION_BYTES;

/// What a replica dies in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amid {
    Change,
    Flush,
}

/// A request that a story makes.
pub(super) enum Single {
    Write(u64),
    Zero(u64),
    Flush,
}

impl World {
    /// How often a client's step asks for a change of the chain.
    pub(super) fn job_percent(&self) -> u64 {
        match self.telling.as_ref().map(|telling| telling.story) {
            None
            | Some(
                TwoEnginesCompete | BlocksOfTheHeadAreUnreadable | DisksAreFull | VolumeIsHuge,
            ) => 3,
            Some(_) => 0, // it says itself when
        }
    }

    pub(super) fn story_step(&mut self) {
        const PATIENCE_US: u64 = 1500 * MS;
        let now_us = self.now_us();
        let Some(telling) = &mut self.telling else { return };
        let steps = telling.story.steps();
        if !self.faults || steps.is_empty() {
            return;
        }
        let at = telling.step % steps.len();
        let go_on = |telling: &mut Telling| {
            telling.step = at + 1;
            telling.since_us = now_us;
        };
        let mut wait = 0;
        match &steps[at] {
            PauseUs(range) => {
                go_on(telling);
                wait = range.start + self.rng.below(range.end - range.start);
            }
            Do(act) => {
                go_on(telling);
                let story = telling.story;
                self.tally.faults += 1;
                self.log(|| format!("{story:?}: step {at}"));
                act(self);
            }
            Until(is_so) => {
                let late = now_us - telling.since_us > PATIENCE_US;
                let is_so = is_so(self);
                let telling = self.telling.as_mut().expect("it is told");
                if is_so {
                    go_on(telling);
                } else if late {
                    (telling.step, telling.since_us) = (0, now_us);
                }
                wait = 100 + self.rng.below(500);
            }
        }
        self.after(wait, "story", Self::story_step);
    }

    /// All is as it should be but for requests that are under way.
    fn is_calm(&self) -> bool {
        let engine = &self.engines[&self.newest];
        if !engine.alive || !engine.opened || engine.detaching || self.pending.is_some() {
            return false;
        }
        let status = engine.core.status();
        let members: BTreeSet<_> = self.members().into_iter().collect();
        members == self.wanted
            && status.unsettled_bytes == 0
            && status.peers.iter().all(|peer| !peer.wanted || peer.reason.is_none())
            && self.wanted.iter().all(|at| self.machines[*at].is_up())
    }

    fn is_ahead(&self, at: usize) -> bool {
        let last_op = |at: usize| self.machines[at].look(|store| store.chain().last_op);
        self.members().into_iter().any(|other| last_op(other) < last_op(at))
    }

    /// Answers of a replica are on their way for long.
    fn answer_late(&mut self, at: usize, for_us: u64) {
        self.late_answers.insert(at, self.now_us() + for_us);
    }

    /// What the newest engine sends to these doesn't arrive any more; nobody is told.
    fn deafen(&mut self, replicas: &[usize]) {
        let newest = self.newest;
        let links = self.links.values_mut();
        links
            .filter(|link| link.engine == newest && replicas.contains(&link.replica))
            .for_each(|link| link.deaf = true);
    }

    /// What passes between an engine that isn't the newest and this replica is lost both ways.
    fn silence(&mut self, at: usize) {
        let newest = self.newest;
        let links = self.links.values_mut();
        let old = links.filter(|link| link.engine != newest && link.replica == at);
        old.for_each(|link| link.broken = true);
    }

    /// The volume moves. A replica hears only the new engine, and all others only the old one.
    fn part_from(&mut self, at: usize) {
        let (old, until) = (self.newest, self.now_us() + 300 * MS);
        self.deafen(&[at]);
        self.split.insert((old, at), until);
        let others = (0..self.machines.len()).filter(|it| *it != at);
        self.split.extend(others.map(|other| ((old + 1, other), until)));
        self.engine(old).arbiter_cut_until = until;
        self.lost_ops.clear();
        self.start_engine(false);
    }

    /// The engine that comes next can't reach this replica.
    fn hide_from_the_next(&mut self, at: usize, for_us: u64) {
        self.split.insert((self.newest + 1, at), self.now_us() + for_us);
    }

    /// It has answered an engine that opens.
    fn is_greeted_to_open(&self, at: usize) -> bool {
        let newest = &self.engines[&self.newest];
        !newest.opened && self.machines[at].welcomed_engine == Some(self.newest)
    }

    fn hang(&mut self, at: usize, for_us: u64) {
        self.disturb(at, for_us);
        self.machines[at].hung_until = self.now_us() + for_us;
        self.after(for_us, "goes on", |_| ());
    }

    fn is_being_rebuilt(&self, at: usize) -> bool {
        let peers = self.engines[&self.newest].core.status().peers;
        let is_it = |peer: &replication::PeerStatus| peer.replica == self.machines[at].id;
        peers.iter().any(|peer| is_it(peer) && peer.mode == ReplicaMode::WriteOnly)
    }

    fn expand_for_a_lot(&mut self) {
        if self.pending.is_none() {
            self.start_job(Job::Expand { size_bytes: self.places.size_bytes + A_LOT_BYTES });
        }
    }

    /// More than a replica that is being rebuilt may owe, where nobody writes else.
    fn write_a_lot(&mut self) {
        let id = self.newest;
        let first = Region(self.places.size_bytes / REGION_BYTES);
        for region in (first.0..).map(Region).take((A_LOT_BYTES / REGION_BYTES) as usize) {
            let range = region.range();
            let operation = Operation::Write { range, edges: [None, None], forced: false };
            if self.engines[&id].alive {
                self.submit(id, Shape::whole(operation));
            }
        }
    }

    fn let_writes_hang(&mut self, for_us: u64) {
        let until = self.now_us() + for_us;
        self.machines.iter().for_each(|machine| machine.let_writes_hang_until(until));
    }

    /// Replica 0 is killed, and what it has of a marked region of the head rots before it is back.
    /// The others have the block as it was written.
    fn rot_the_marked(&mut self) {
        let (head, marked) = self.machines[0].look(|store| {
            let marked = store.marked_regions().unwrap_or_default();
            (store.layer_files(store.chain().head), marked)
        });
        let Ok((data, _)) = head else { return };
        let away_us = MS + self.rng.below(5 * MS);
        self.stop_replica(0, false, away_us);
        let (nth, bit) = (self.rng.number(), self.rng.below(8 * 512) as usize);
        let is_marked = |sector: u64| {
            let region = BlockIndex(sector / SECTORS as u64).region();
            marked.iter().any(|(marked, _)| *marked == region)
        };
        self.machines[0].rot(&data, nth, bit, is_marked);
    }

    /// Replica 0 is killed, and a page of its head's index, durable for long, is gone when it is back.
    fn lose_a_page(&mut self) {
        let (head, marked) = self.machines[0].look(|store| {
            let marked = store.marked_regions().unwrap_or_default();
            (store.layer_files(store.chain().head), marked)
        });
        let Ok((_, index)) = head else { return };
        let away_us = MS + self.rng.below(5 * MS);
        self.stop_replica(0, false, away_us);
        let nth = self.rng.number();
        let is_settled = |region: Region| marked.iter().all(|(marked, _)| *marked != region);
        self.machines[0].lose_page(&index, nth, is_settled);
    }

    /// The volume moves, and nobody stops the engine before.
    fn move_volume(&mut self) {
        self.lost_ops.clear();
        self.start_engine(false);
    }

    fn want_only(&mut self, replicas: &[usize]) {
        self.wanted = replicas.iter().copied().collect();
        self.tell_wanted(self.newest);
    }

    fn write_somewhere_cold(&mut self) {
        let block = self.rng.pick(&self.places.cold);
        self.told_block = block;
        self.submit_one(Single::Write(block));
    }

    fn zero_what_was_written(&mut self) {
        self.submit_one(Single::Zero(self.told_block));
    }

    fn submit_one(&mut self, request: Single) {
        let one = |block| BlockRange::new(BlockIndex(block), 1);
        let operation = match request {
            Single::Write(block) => {
                Operation::Write { range: one(block), edges: [None, None], forced: false }
            }
            Single::Zero(block) => Operation::Zero { range: one(block), forced: false },
            Single::Flush => Operation::Flush,
        };
        let id = self.newest;
        if self.engines[&id].alive {
            self.submit(id, Shape::whole(operation));
        }
    }

    fn want(&mut self, at: usize, is_wanted: bool) {
        if is_wanted {
            self.wanted.insert(at);
        } else {
            self.wanted.remove(&at);
        }
        self.tell_wanted(self.newest);
    }

    fn snapshot_if_idle(&mut self) {
        let engine = &self.engines[&self.newest];
        if engine.alive && engine.opened && !engine.detaching && self.pending.is_none() {
            self.start_job(Job::Snapshot { seal: Seal::default() });
        }
    }

    fn remove_if_idle(&mut self) {
        let engine = &self.engines[&self.newest];
        let is_idle = engine.alive && engine.opened && self.pending.is_none();
        let ids: Vec<_> = self.snapshots.keys().copied().collect();
        if is_idle && !ids.is_empty() {
            let layer = self.rng.pick(&ids);
            self.snapshots.remove(&layer);
            self.start_job(Job::Remove { layer });
        }
    }

    fn is_joining(&self) -> bool {
        let removed = |machine: &Machine<Self>| {
            machine.look(|store| store.chain().layers.iter().any(|layer| layer.removed))
        };
        self.pending.is_none() && self.machines.iter().any(removed)
    }

    fn all_lose_power(&mut self) {
        for at in 0..self.machines.len() {
            self.stop_replica(at, true, 500);
        }
        self.engine_gone(self.newest, true);
    }

    fn die_amid_a_change(&mut self) {
        self.dies_amid = Some((2, Amid::Change));
        self.wants_revert = !self.snapshots.is_empty() && self.rng.percent(50);
        if !self.wants_revert {
            self.snapshot_if_idle();
        }
    }

    fn fill_disks(&mut self, replicas: &[usize], full: bool) {
        for at in replicas {
            self.machines[*at].trouble(|trouble| trouble.full = full);
        }
    }
}
