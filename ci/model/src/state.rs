//! One state of the world: the arbiter's record, two engines, three replicas, and what clients know.
//!
//! ```text
//! engine 0 (older) ─┐  views[0]        ┌─ record: in_record of each replica, engine, generation
//!                   ├───▶ replica × 3 ─┤
//! engine 1 (newer) ─┘  views[1]        └─ value, durable, suspect, …
//! ```
//! What an engine and a replica know of each other lies with the replica (`View`), so that replicas
//! can be exchanged by exchanging entries of one array.
//!
//! Generations and sessions aren't counted. A newer engine's are higher than an older one's, and of
//! one engine's sessions only "the present one" and "an earlier one" differ; so any number of them
//! are finitely many states. For the same reason an engine that is gone, with nothing left of it
//! anywhere, gives its place to its successor: the search covers any number of engines, two at a time.

use crate::history::History;
use crate::values::{Value, Values};

pub const REPLICAS: usize = 3;
pub const ENGINES: usize = 2;
pub const OLDER: usize = 0;
pub const NEWER: usize = 1;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct State {
    /// The engine that the arbiter's record names.
    pub named: u8,
    /// The record's generation; only counted where stamps are (`Bounds::deltas`).
    pub generation: u8,
    pub engines: [Engine; ENGINES],
    pub replicas: [Replica; REPLICAS],
    pub client: Client,
    pub broken: Option<Property>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Engine {
    pub phase: Phase,
    /// The write under way, 0 if none: the range lock admits one.
    pub write: Value,
    pub change: Change,
    /// The arbiter has applied the change, and the engine doesn't know.
    pub applied: bool,
    /// The members have been made equal since the volume was opened.
    pub settled: bool,
    /// It took a missing answer for a no (only without rule 6).
    pub gave_up: bool,
    pub generation: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Phase {
    #[default]
    Unborn,
    Opening,
    Serving,
    /// Crashed, or ended since it was fenced.
    Gone,
}

/// A change of the in-sync set (the states of the core's `membership.rs`; pings are answered in the
/// step that proposes).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Change {
    #[default]
    Steady,
    Swapping,
    Advancing,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Replica {
    pub in_record: bool,
    /// The directory was formatted since the record took its incarnation.
    pub foreign: bool,
    /// What a read returns.
    pub value: Value,
    /// What a power cut leaves.
    pub durable: Value,
    /// It lost power since it became a member.
    pub suspect: bool,
    /// It has answered the newer engine.
    pub fenced: bool,
    /// It was restarted after it lent a lease, and forgot (only without that rule).
    pub forgot: bool,
    /// The highest generation in which it was told that it is in sync.
    pub synced: u8,
    /// The block's region in the write-intent map.
    pub marked: bool,
    pub stamp: u8,
    pub views: [View; ENGINES],
}

/// One engine and one replica.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct View {
    /// They have a session, the replica's newest.
    pub link: bool,
    /// In the set that the engine knows for sure.
    pub member: bool,
    /// In the set that the engine asked the arbiter for.
    pub proposed: bool,
    /// Has made the engine's present set durable.
    pub advanced: bool,
    /// The directory was formatted since the engine took over its incarnation.
    pub outdated: bool,
    /// The engine holds its read lease.
    pub lease: bool,
    pub write: Delivery,
    pub rebuild: Rebuild,
    /// Writes of broken sessions that the replica would still do: in a socket's buffer, or submitted.
    pub old_writes: Values,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Delivery {
    #[default]
    NotSent,
    Sent,
    Confirmed,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Rebuild {
    #[default]
    No,
    Greeted,
    Copied,
    Ready,
}

/// What clients sent and were told, and what follows from it for the replicas.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Client {
    pub history: History,
    /// A read: the engine that does it, and the value it was sent by a replica.
    pub read: Option<(u8, Value)>,
    /// What a continuous member may hold: the newest acknowledged write, and newer ones (I1).
    pub current: Values,
    /// What may be left by a power cut: the newest flushed write, and newer ones (I2).
    pub durable: Values,
}

impl Default for Client {
    fn default() -> Self {
        let start = Values::only(0);
        Self { history: History::default(), read: None, current: start, durable: start }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Property {
    /// P3, I6: the block is a linearizable register, but for the power loss of all members.
    Linearizable,
    /// I1: each continuous member of the record holds the newest acknowledged write, or a newer one.
    MembersHoldAcknowledged,
    /// I2, P1: what is durable on a member is not older than what was flushed.
    MembersKeepFlushed,
    /// I9: the record names a member.
    SomebodyIsInSync,
    /// I9: at each removal a continuous member that stays has answered since the failure.
    SomebodyAnswered,
    /// P4, I5: no acknowledgement after a member answered a newer engine.
    Fenced,
    /// I4: a replica confirms to one session at a time.
    OneSession,
    /// P7: no request ends in an error because an engine was replaced.
    NoErrors,
}

impl Property {
    /// In the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Linearizable,
        Self::MembersHoldAcknowledged,
        Self::MembersKeepFlushed,
        Self::SomebodyIsInSync,
        Self::SomebodyAnswered,
        Self::Fenced,
        Self::OneSession,
        Self::NoErrors,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Linearizable => "P3: reads are linearizable",
            Self::MembersHoldAcknowledged => "I1: members hold what was acknowledged",
            Self::MembersKeepFlushed => "I2: members keep what was flushed",
            Self::SomebodyIsInSync => "I9: the in-sync set is never empty",
            Self::SomebodyAnswered => "I9: a member that stays has answered",
            Self::Fenced => "P4: a fenced engine acknowledges nothing",
            Self::OneSession => "I4: a replica confirms to one session",
            Self::NoErrors => "P7: no errors from a fenced engine",
        }
    }
}

impl State {
    pub fn view(&self, engine: usize, replica: usize) -> &View {
        &self.replicas[replica].views[engine]
    }

    pub fn view_mut(&mut self, engine: usize, replica: usize) -> &mut View {
        &mut self.replicas[replica].views[engine]
    }

    pub fn all(&self, engine: usize, holds: impl Fn(&Replica, &View) -> bool) -> bool {
        self.replicas.iter().all(|replica| holds(replica, &replica.views[engine]))
    }

    pub fn any(&self, engine: usize, holds: impl Fn(&Replica, &View) -> bool) -> bool {
        self.replicas.iter().any(|replica| holds(replica, &replica.views[engine]))
    }

    pub fn is_alive(&self, engine: usize) -> bool {
        matches!(self.engines[engine].phase, Phase::Opening | Phase::Serving)
    }

    /// Whether clients may still learn something through this engine that its successor must keep.
    pub fn decides(&self, engine: usize) -> bool {
        engine == NEWER || !self.engines[NEWER].settled
    }

    /// The session is over for both; what it had sent may still be done until the next `Hello`.
    pub fn unlink(&mut self, engine: usize, replica: usize) {
        let write = self.engines[engine].write;
        let view = self.view_mut(engine, replica);
        view.link = false;
        view.rebuild = Rebuild::No;
        if view.write == Delivery::Sent {
            view.write = Delivery::NotSent;
            view.old_writes.add(write);
        }
    }

    /// The engine crashed, or learned that it is fenced.
    pub fn end(&mut self, engine: usize) {
        for replica in 0..REPLICAS {
            self.unlink(engine, replica);
        }
        self.engines[engine].phase = Phase::Gone;
        if matches!(self.client.read, Some((by, _)) if usize::from(by) == engine) {
            self.client.read = None;
            self.client.history.abandon_read();
        }
    }

    /// The same state without what can't matter any more.
    pub fn tidy(mut self, deltas: bool, successions: bool) -> Self {
        for engine in 0..ENGINES {
            self.tidy_engine(engine);
        }
        let successor = self.engines[NEWER].phase;
        let forgotten = self.engines[OLDER].phase == Phase::Gone
            && self.all(OLDER, |_, view| *view == View::default())
            && self.client.read.is_none_or(|(by, _)| usize::from(by) == NEWER);
        if successions
            && successor != Phase::Unborn
            && forgotten
            && usize::from(self.named) == NEWER
        {
            self.promote_successor();
        }
        if deltas {
            self.rank_generations();
        } else {
            for replica in &mut self.replicas {
                if !replica.in_record && !replica.views.iter().any(|view| view.matters()) {
                    (replica.value, replica.durable, replica.suspect) = (0, 0, false);
                }
            }
        }
        self
    }

    fn tidy_engine(&mut self, index: usize) {
        let engine = &mut self.engines[index];
        let named = usize::from(self.named) == index;
        if engine.phase == Phase::Gone {
            // Only a change that is still under way to the arbiter can do something.
            if !named || engine.applied {
                (engine.change, engine.gave_up) = (Change::Steady, false);
            }
            if engine.change == Change::Advancing {
                engine.change = Change::Steady;
            }
            (engine.write, engine.generation, engine.applied) = (0, 0, false);
        }
        let engine = *engine;
        for replica in &mut self.replicas {
            let view = &mut replica.views[index];
            if engine.phase == Phase::Gone {
                (view.link, view.member, view.lease, view.rebuild) =
                    (false, false, false, Rebuild::No);
            }
            if engine.change != Change::Swapping && !engine.gave_up {
                view.proposed = false;
            }
            if engine.change != Change::Advancing {
                view.advanced = false;
            }
            if !view.member && !view.proposed {
                view.outdated = false;
            }
            if engine.write == 0 {
                view.write = Delivery::NotSent;
            }
        }
    }

    fn promote_successor(&mut self) {
        self.engines = [self.engines[NEWER], Engine::default()];
        self.named = 0;
        for replica in &mut self.replicas {
            replica.views = [replica.views[NEWER], View::default()];
            replica.fenced = false;
        }
        if let Some((by, _)) = &mut self.client.read {
            *by = 0;
        }
    }

    /// All that is ever asked of generations is whether a stamp is newer than a base (`synced`). So
    /// two are told apart only if a base lies between them.
    fn rank_generations(&mut self) {
        let own = [self.generation, self.engines[OLDER].generation, self.engines[NEWER].generation];
        let is_in = |generation: u8, of: fn(&Replica) -> u8| {
            own.contains(&generation)
                || self.replicas.iter().any(|replica| of(replica) == generation)
        };
        let (mut ranks, mut rank, mut base_before) = ([0; 16], 1, false);
        for generation in 1..ranks.len() as u8 {
            if base_before && is_in(generation, |replica| replica.stamp) {
                (rank, base_before) = (rank + 1, false);
            }
            base_before |= is_in(generation, |replica| replica.synced);
            ranks[usize::from(generation)] = rank; // 0 stays: it means "never"
        }
        let to_rank = |generation: &mut u8| *generation = ranks[usize::from(*generation)];
        to_rank(&mut self.generation);
        self.engines.iter_mut().for_each(|engine| to_rank(&mut engine.generation));
        for replica in &mut self.replicas {
            to_rank(&mut replica.synced);
            to_rank(&mut replica.stamp);
        }
    }
}

impl View {
    fn matters(&self) -> bool {
        self.member || self.proposed || self.rebuild >= Rebuild::Copied
    }
}
