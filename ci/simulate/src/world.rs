//! One history from a seed: engines (the real core), replicas (the real server and store on
//! simulated disks), the arbiter, a client, an adversary.
//!
//! Promises that nothing but the seed decides what happens. Everything that happens is an event of
//! the schedule, or a task of a replica that an event woke. Safety is asserted while faults run,
//! liveness after they stop.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ankole_replica::admin::ReplicaMode;
use ankole_replica::chain::{ChainInfo, Seal};
use ankole_replica::message::{Reply, Request};
use ankole_replica::payload::{BlockData, Payload};
use ankole_replica::record::{Change, EngineGrant, InstanceId, Member, Record, Refused};
use ankole_replica::replication::{
    self, Action, Config, Core, Destination, End, IoId, Job, JobId, LinkId, Operation, Slot,
    TransferId,
};
use ankole_replica::store::crash::Random;
use ankole_replica::types::{
    BLOCK_BYTES, BlockIndex, BlockRange, Generation, Incarnation, LayerId, ReplicaId,
    VOLUME_UNIT_BYTES,
};

use crate::history::{History, Sector};
use crate::machine::{Block, Machine, SECTORS, Size};
use crate::schedule::{Due, Schedule, Speed};
use crate::thread::{Thread, Work};

mod adversary;
mod arbiter;
mod bounds;
mod checks;
mod client;
mod engines;
mod fault;
mod footprint;
mod network;
mod older;
mod places;
mod readers;
mod stalls;
mod story;

use bounds::Strain;
use client::ClientOp;
use engines::Engine;
use fault::Fault;
use network::{Answered, Link};
use places::{HOT, Places};
use readers::Reads;
pub use story::Story;
use story::{Amid, Cast, Telling};

/// Chance and number, from the seed.
pub struct Rng(Random);

impl Rng {
    fn number(&mut self) -> u64 {
        self.0.number()
    }
    fn below(&mut self, end: u64) -> u64 {
        self.0.below(end)
    }
    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

struct PendingJob {
    engine: u64,
    id: Option<JobId>,
    job: Job,
    start: u64,
    before: ChainInfo,
}

/// How much happened in a history.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub ios: u64,
    pub faults: u64,
    pub events: u64,
    pub checks: u64,
    /// Blocks that readers were shown.
    pub reads: u64,
    /// Of a request, beside a member that nothing disturbed.
    pub longest_wait_us: u64,
    /// Of a replica's thread.
    pub longest_turn_us: u64,
}

pub struct World {
    rng: Rng,
    base: Instant,
    schedule: Rc<Schedule<World>>,
    /// Numbers events: the time of the history, without ties.
    tick: u64,
    /// Counts what engines do: two things of one event have different numbers.
    steps: u64,
    pub trace: u64,
    pub verbose: bool,
    /// Looks at everything after every event: slow, but finds the moment.
    pub pedantic: bool,
    pub tally: Tally,
    places: Places,
    machines: Vec<Machine<World>>,
    /// What replicas have answered and the network hasn't taken yet.
    outbox: Rc<RefCell<Vec<Answered>>>,
    /// What readers have come to.
    reads: Reads,
    /// Their own, so that they change nothing else.
    readers_rng: Rng,
    /// The replicas that the volume should have.
    wanted: BTreeSet<usize>,
    record: Record,
    engines: BTreeMap<u64, Engine>,
    newest: u64,
    links: BTreeMap<u64, Link>,
    next_link: u64,
    history: History,
    faults: bool,
    /// Which kinds of fault this seed has.
    menu: Vec<Fault>,
    /// Faults are seldom: each is over, or dealt with, before the next one.
    is_seldom: bool,
    /// Replicas that are far away for a while.
    slow: BTreeMap<usize, u64>,
    unreachable: BTreeMap<usize, u64>,
    /// Which engine can't reach which replica, until when.
    split: BTreeMap<(u64, usize), u64>,
    /// Engines and replicas are on one machine: a closed socket ends its lease.
    kernel_tells: bool,
    cut_at: u64,
    jobs: bool,
    pending: Option<PendingJob>,
    wants_revert: bool,
    snapshots: BTreeMap<LayerId, BTreeMap<u64, Block>>,
    /// Since which generation, and who has to know before anything is acknowledged without it.
    removed: BTreeMap<usize, (Generation, Vec<usize>)>,
    lost_ops: Vec<ClientOp>,
    undecided: Vec<ClientOp>,
    next_value: u64,
    next_incarnation: u128,
    telling: Option<Telling>,
    /// Replicas whose answers are late, until when.
    late_answers: BTreeMap<usize, u64>,
    /// Changes of the chain are lost on their way to all others.
    changes_reach_only: Option<usize>,
    /// The next such request is the last that this replica's process begins; its engine dies too.
    dies_amid: Option<(usize, Amid)>,
    /// Clients ask for nothing but what the story says.
    is_quiet: bool,
    /// The block that the story is about.
    told_block: u64,
    strain: Strain,
}

const REGION_BLOCKS: u64 = 256;
const MS: u64 = 1000;
/// What a replica that is being rebuilt may owe: more than the sixteen regions that a rebuild has on
/// their way.
const BACKLOG_BYTES: u64 = 17 << 20;

impl World {
    /// `is_read`: readers take part.
    pub fn new(seed: u64, story: Option<Story>, is_read: bool) -> Self {
        let mut rng = Rng(Random::new(seed));
        let schedule = Schedule::new();
        let cast = story.map(Story::cast);
        let count = rng.pick(&[1, 2, 2, 3, 3, 3, 4, 5]);
        let count = cast.as_ref().map_or(count, |cast| cast.machines);
        let places = Places::random(&mut rng, story);
        let size = Size { bytes: places.size_bytes, layers: places.layers };
        let machines: Vec<_> = (0..count)
            .map(|at| {
                let incarnation = Incarnation(at as u128 + 1);
                let seed = rng.number();
                let speed = rng.pick(&Speed::ALL);
                Machine::new(&schedule, seed, replica_id(at), incarnation, size, speed)
            })
            .collect();
        let in_first = 1 + rng.below(count as u64) as usize;
        let in_first = cast.as_ref().map_or(in_first, |cast| cast.members);
        let members = machines.iter().take(in_first).map(|machine| Member {
            replica: machine.id.clone(),
            incarnation: machine.incarnation,
        });
        let in_sync = members.collect();
        let record = Record::first(in_sync);
        let menu: Vec<_> = Fault::ALL.iter().copied().filter(|_| rng.percent(40)).collect();
        let menu = story.map_or(menu, Story::menu);
        let jobs = rng.percent(60) || story.is_some();
        let kernel_tells = rng.percent(50);
        let is_seldom = rng.percent(15);
        let mut world = Self {
            rng,
            base: Instant::now(),
            schedule,
            tick: 0,
            steps: 0,
            trace: seed,
            verbose: false,
            pedantic: false,
            tally: Tally::default(),
            next_incarnation: machines.len() as u128,
            wanted: (0..cast.map_or(count, |Cast { members, .. }| members)).collect(),
            places,
            machines,
            outbox: Rc::default(),
            reads: Reads::default(),
            readers_rng: Rng(Random::new(!seed)),
            record,
            engines: BTreeMap::new(),
            newest: 0,
            links: BTreeMap::new(),
            next_link: 0,
            history: History::default(),
            faults: true,
            menu,
            is_seldom,
            slow: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            split: BTreeMap::new(),
            kernel_tells,
            cut_at: 0,
            jobs,
            pending: None,
            wants_revert: false,
            snapshots: BTreeMap::new(),
            removed: BTreeMap::new(),
            lost_ops: Vec::new(),
            undecided: Vec::new(),
            next_value: 0,
            telling: story.map(Telling::new),
            late_answers: BTreeMap::new(),
            changes_reach_only: None,
            dies_amid: None,
            is_quiet: false,
            told_block: 0,
            strain: Strain::default(),
        };
        world.start_engine(false);
        world.client_step();
        if is_read {
            world.reader_step();
        }
        world.fault_step();
        world.story_step();
        world
    }

    // ---- time ------------------------------------------------------------------------------

    fn now_us(&self) -> u64 {
        self.schedule.now_us()
    }

    /// By an engine's clock.
    fn now(&self, id: u64) -> Instant {
        self.base + self.engines[&id].speed.clock(self.now_us())
    }

    fn after(&mut self, us: u64, what: &'static str, event: impl FnOnce(&mut Self) + 'static) {
        self.schedule.plan(us, Due::Event(what, Box::new(event)));
    }

    fn step(&mut self) {
        let Some(due) = self.schedule.next() else { return };
        self.tick += 1;
        self.tally.events += 1;
        match due {
            Due::Event(what, event) => {
                self.note(what, self.now_us());
                event(self);
            }
            Due::Wake(waker) => {
                self.note("wake", self.now_us());
                waker.wake();
            }
        }
        self.run_machines();
        if self.pedantic {
            self.check_snapshots();
        }
    }

    fn note(&mut self, what: &str, with: u64) {
        for byte in what.bytes().chain(with.to_le_bytes()) {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn log(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>9.3} ms #{}: {}", self.now_us() as f64 / 1000.0, self.tick, text());
        }
    }

    /// Faults for a while, then peace until everything is whole again.
    pub fn run(&mut self) {
        let until = 800 * MS + self.rng.below(2700) * MS;
        while self.now_us() < until {
            self.step();
        }
        self.make_peace();
        let heard = self.now_us() + 1000 * MS; // by then the newest faults have been noticed
        while self.now_us() < heard {
            self.replace_failed();
            self.step();
        }
        let limit = self.now_us() + 60_000 * MS;
        while !self.is_whole() {
            self.replace_failed();
            let newest = &self.engines[&self.newest];
            let lacks = self.what_lacks().unwrap_or_default();
            assert!(self.now_us() < limit, "never whole again: {lacks}\n{:?}", newest.core);
            self.step();
        }
        self.check_all_equal();
    }

    fn make_peace(&mut self) {
        self.faults = false;
        self.log(|| "peace".into());
        for machine in &mut self.machines {
            machine.trouble(|trouble| *trouble = Default::default());
            machine.disk.heal();
            machine.undo_rot();
            machine.doomed &= machine.has_failed();
            machine.hung_until = 0;
            machine.be_slow_until(0);
            machine.thread.crawl_until(0);
            machine.start(self.tick);
        }
        self.slow.clear();
        self.unreachable.clear();
        self.split.clear();
        self.late_answers.clear();
        (self.changes_reach_only, self.dies_amid) = (None, None);
    }

    fn is_whole(&self) -> bool {
        self.what_lacks().is_none()
    }

    /// What has yet to happen until everything is as it should be.
    fn what_lacks(&self) -> Option<String> {
        let engine = &self.engines[&self.newest];
        if !engine.alive || !engine.opened || engine.detaching {
            return Some("no engine serves".into());
        }
        let status = engine.core.status();
        let members: BTreeSet<_> = self.members().into_iter().collect();
        let away = status.peers.iter().find(|peer| peer.wanted && peer.reason.is_some());
        let open = engine.ops.values().filter(|op| !op.done).count();
        // What nobody can read stays marked until it is written anew.
        let marked: Vec<_> =
            self.members().into_iter().filter(|at| self.machines[*at].is_marked()).collect();
        let lacks = [
            (open > 0, format!("{open} requests aren't answered")),
            (
                self.pending.is_some(),
                format!("{:?} isn't done", self.pending.as_ref().map(|it| &it.job)),
            ),
            (self.wants_revert, "a revert hasn't begun".into()),
            (status.unsettled_bytes > 0, "members may differ".into()),
            (!status.waiting.is_empty(), format!("waits for {:?}", status.waiting)),
            (members != self.wanted, format!("members are {members:?}, not {:?}", self.wanted)),
            (
                !marked.is_empty() && status.damage.lost.is_empty(),
                format!("{marked:?} have marked regions"),
            ),
            (away.is_some(), format!("{:?}", away.map(|peer| (&peer.replica, &peer.reason)))),
        ];
        lacks.into_iter().find(|(is_so, _)| *is_so).map(|(_, what)| what)
    }

    /// Whose copy the record means.
    fn members(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|at| self.is_meant(&self.record, *at)).collect()
    }

    fn is_meant(&self, record: &Record, at: usize) -> bool {
        let Machine { id, incarnation, .. } = &self.machines[at];
        let is_it = |it: &Member| it.replica == *id && it.incarnation == *incarnation;
        record.in_sync.iter().any(is_it)
    }

    /// Whether the record names it, be it for a directory that is gone.
    fn is_member(&self, at: usize) -> bool {
        self.record.in_sync.iter().any(|member| member.replica == self.machines[at].id)
    }
}

const _: () = assert!(VOLUME_UNIT_BYTES == 2 * REGION_BLOCKS * BLOCK_BYTES);

fn replica_id(at: usize) -> ReplicaId {
    ReplicaId::from(format!("r{at}").as_str())
}
