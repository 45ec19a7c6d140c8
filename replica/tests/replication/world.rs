//! One history from a seed: engines (the real core), replicas, the arbiter, a client, an adversary.
//!
//! Promises that nothing but the seed decides what happens. Events lie in a queue by virtual time;
//! each is a closure over the world. Safety is asserted while faults run, liveness after they stop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ankole_replica::arbiter::{Change, EngineGrant, InstanceId, Member, Record, Refused};
use ankole_replica::chain::{ChainInfo, Seal};
use ankole_replica::message::Request;
use ankole_replica::replication::{
    Action, Config, Core, Destination, End, IoId, Job, JobId, LinkId, Operation, Payload, Slot,
    TransferId,
};
use ankole_replica::types::{
    BLOCK_BYTES, BlockIndex, BlockRange, Generation, LayerId, Region, ReplicaId, VOLUME_UNIT_BYTES,
};

use super::history::{History, Sector};
use super::model::{Block, Data, Footprint, Replica, Taken};

mod adversary;
mod checks;
mod client;
mod network;

use adversary::FAULTS;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// A request of the client, and its buffer.
#[derive(Clone)]
struct ClientOp {
    operation: Operation,
    /// What each sector becomes; `None` is filled from the block's present content.
    cells: BTreeMap<u64, [Option<u64>; 2]>,
    written: Vec<Sector>,
    start: u64,
    got: Data,
    answered: bool,
    done: bool,
}

struct Link {
    engine: u64,
    replica: usize,
    link: LinkId,
    /// The engine has closed it: it hears nothing of it any more.
    closed: bool,
    /// Nothing passes any more.
    broken: bool,
    last_arrival: u64,
    in_flight: BTreeMap<u64, Footprint>,
}

struct Engine {
    core: Core,
    alive: bool,
    opened: bool,
    detaching: bool,
    links: BTreeMap<(Slot, LinkId), u64>,
    ops: BTreeMap<IoId, ClientOp>,
    transfers: BTreeMap<TransferId, Data>,
    /// The question to the arbiter that waits for an answer.
    asking: u64,
    arbiter_cut_until: u64,
    timer: Option<u64>,
}

struct PendingJob {
    engine: u64,
    id: Option<JobId>,
    job: Job,
    start: u64,
    before: ChainInfo,
}

type Event = Box<dyn FnOnce(&mut World)>;

pub struct World {
    rng: Rng,
    base: Instant,
    now_us: u64,
    /// Numbers events: the time of the history, without ties.
    tick: u64,
    queue: BTreeMap<(u64, u64), (&'static str, Event)>,
    scheduled: u64,
    pub trace: u64,
    pub verbose: bool,
    replicas: Vec<Replica>,
    record: Record,
    engines: BTreeMap<u64, Engine>,
    newest: u64,
    links: BTreeMap<u64, Link>,
    history: History,
    faults: bool,
    /// Which kinds of fault this seed has.
    menu: Vec<u64>,
    /// Replicas that are far away for a while.
    slow: BTreeMap<usize, u64>,
    unreachable: BTreeMap<usize, u64>,
    jobs: bool,
    pending: Option<PendingJob>,
    wants_revert: bool,
    snapshots: BTreeMap<LayerId, BTreeMap<u64, Block>>,
    /// Since which generation, and who has to know before anything is acknowledged without it.
    removed: BTreeMap<usize, (Generation, Vec<usize>)>,
    lost_ops: Vec<ClientOp>,
    undecided: Vec<ClientOp>,
    next_value: u64,
}

const REGION_BLOCKS: u64 = 256;
/// Where clients write: around the borders of regions.
const HOT: [u64; 8] = [0, 1, 3, 254, 255, 256, 258, 510];
const MS: u64 = 1000;

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let count = rng.pick(&[1, 2, 2, 3, 3, 3, 4]);
        let replicas: Vec<_> =
            (0..count).map(|at| Replica::new(at + 1, VOLUME_UNIT_BYTES)).collect();
        let in_first = 1 + rng.below(count as u64) as usize;
        let members = replicas.iter().enumerate().take(in_first).map(|(at, replica)| Member {
            replica: replica_id(at),
            incarnation: replica.incarnation,
        });
        let in_sync = members.collect();
        let record =
            Record { generation: Generation::FIRST, engine: None, attach_epoch: 0, in_sync };
        let menu = (0..FAULTS).filter(|_| rng.percent(40)).collect();
        let jobs = rng.percent(60);
        let mut world = Self {
            rng,
            base: Instant::now(),
            now_us: 0,
            tick: 0,
            queue: BTreeMap::new(),
            scheduled: 0,
            trace: seed,
            verbose: false,
            replicas,
            record,
            engines: BTreeMap::new(),
            newest: 0,
            links: BTreeMap::new(),
            history: History::default(),
            faults: true,
            menu,
            slow: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            jobs,
            pending: None,
            wants_revert: false,
            snapshots: BTreeMap::new(),
            removed: BTreeMap::new(),
            lost_ops: Vec::new(),
            undecided: Vec::new(),
            next_value: 0,
        };
        world.start_engine(false);
        world.client_step();
        world.fault_step();
        world
    }

    // ---- time ------------------------------------------------------------------------------

    fn now(&self) -> Instant {
        self.base + Duration::from_micros(self.now_us)
    }

    fn after(&mut self, us: u64, what: &'static str, event: impl FnOnce(&mut Self) + 'static) {
        self.scheduled += 1;
        self.queue.insert((self.now_us + us, self.scheduled), (what, Box::new(event)));
    }

    fn step(&mut self) {
        let Some(((at, _), (what, event))) = self.queue.pop_first() else { return };
        self.now_us = at;
        self.tick += 1;
        self.note(what, at);
        event(self);
    }

    fn note(&mut self, what: &str, with: u64) {
        for byte in what.bytes().chain(with.to_le_bytes()) {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn log(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>9.3} ms #{}: {}", self.now_us as f64 / 1000.0, self.tick, text());
        }
    }

    /// Faults for a while, then peace until everything is whole again.
    pub fn run(&mut self) {
        let until = 500 * MS + self.rng.below(2500) * MS;
        while self.now_us < until {
            self.step();
        }
        self.faults = false;
        self.log(|| "peace".into());
        for at in 0..self.replicas.len() {
            let replica = &mut self.replicas[at];
            (replica.full, replica.hung_until, replica.fail_writes) = (false, 0, 0);
            replica.bad.clear();
            self.restart_replica(at);
        }
        self.slow.clear();
        self.unreachable.clear();
        let heard = self.now_us + 1000 * MS; // by then the newest faults have been noticed
        while self.now_us < heard {
            self.step();
        }
        let limit = self.now_us + 60_000 * MS;
        while !self.is_whole() {
            let newest = &self.engines[&self.newest];
            assert!(self.now_us < limit, "never whole again: {:?}", newest.core);
            self.step();
        }
        self.check_all_equal();
    }

    fn is_whole(&self) -> bool {
        let engine = &self.engines[&self.newest];
        let status = engine.core.status();
        engine.alive
            && engine.opened
            && !engine.detaching
            && engine.ops.values().all(|op| op.done)
            && self.pending.is_none()
            && !self.wants_revert
            && status.unsettled_bytes == 0
            && status.waiting.is_empty()
            && self.record.in_sync.len() == self.replicas.len()
            && status.peers.iter().all(|peer| peer.reason.is_none())
            && self.replicas.iter().all(|replica| !replica.is_marked())
    }

    // ---- engines ---------------------------------------------------------------------------

    fn start_engine(&mut self, recover: bool) {
        self.newest += 1;
        let id = self.newest;
        let instance = InstanceId(format!("e{id}"));
        let engine = EngineGrant { node: format!("n{id}"), instance: instance.clone() };
        let attach_epoch = self.record.attach_epoch + u64::from(!recover);
        let grant = Change::Grant { engine, attach_epoch };
        self.record = self.record.after(self.record.generation, grant).expect("nobody disputes it");
        let ids: Vec<_> = (0..self.replicas.len()).map(replica_id).collect();
        let mut config = Config::new("v", instance, ids);
        // An engine that lives on elsewhere has a client that waits.
        config.recover = recover || self.engines.values().any(|engine| engine.alive);
        config.open_timeout = Duration::from_millis(300);
        config.replica_timeout = Duration::from_millis(200);
        config.reconnect_after = Duration::from_millis(5);
        config.clear_after = Duration::from_millis(20);
        config.marked_regions = 1;
        let core = Core::new(self.now(), config);
        self.log(|| format!("engine {id} starts, recover {recover}"));
        let engine = Engine {
            core,
            alive: true,
            opened: false,
            detaching: false,
            links: BTreeMap::new(),
            ops: BTreeMap::new(),
            transfers: BTreeMap::new(),
            asking: 0,
            arbiter_cut_until: 0,
            timer: None,
        };
        self.engines.insert(id, engine);
        self.act(id);
        for op in std::mem::take(&mut self.lost_ops) {
            if recover {
                self.submit(id, op.operation, op.cells); // with new values: one more write
            }
        }
    }

    fn engine(&mut self, id: u64) -> &mut Engine {
        self.engines.get_mut(&id).expect("engines are never forgotten")
    }

    /// Tells the core something, then does what it wants.
    fn tell(&mut self, id: u64, event: impl FnOnce(&mut Core, Instant)) {
        let now = self.now();
        let engine = self.engine(id);
        if engine.alive {
            event(&mut engine.core, now);
            self.act(id);
        }
    }

    fn act(&mut self, id: u64) {
        while self.engine(id).alive
            && let Some(action) = self.engine(id).core.poll_action()
        {
            self.carry_out(id, action);
        }
        let base = self.base;
        let engine = self.engine(id);
        let due = engine.core.poll_timeout().filter(|_| engine.alive);
        let due = due.map(|at| at.saturating_duration_since(base).as_micros() as u64);
        if due != engine.timer {
            engine.timer = due;
            if let Some(at) = due {
                let wait = at.saturating_sub(self.now_us).max(1);
                self.after(wait, "timer", move |world| {
                    if world.engine(id).timer == Some(at) {
                        world.engine(id).timer = None;
                        world.tell(id, |core, now| core.handle_timeout(now));
                    }
                });
            }
        }
    }

    fn carry_out(&mut self, id: u64, action: Action) {
        match action {
            Action::Connect { slot, link } => self.connect(id, slot, link),
            Action::Disconnect { slot, link } => {
                self.log(|| {
                    format!(
                        "engine {id} disconnects {slot:?}: {:?}",
                        self.engines[&id].core.status().peers[usize::from(slot.0)].reason
                    )
                });
                self.close(id, slot, link);
            }
            Action::Send { slot, link, seq, request, into } => {
                self.send(id, slot, link, seq, request, into);
            }
            Action::Complete { io, result } => {
                if result.is_ok() {
                    self.check_acknowledged(id, io);
                }
                self.engine(id).ops.get_mut(&io).expect("submitted").answered = true;
                let wait = 5 + self.rng.below(400);
                self.after(wait, "answer", move |world| world.answer(id, io, result.is_ok()));
            }
            Action::Retire { io } => {
                let op = self.engine(id).ops.get(&io).expect("submitted");
                assert!(op.done, "a request is retired before its answer was handed over");
                self.engine(id).ops.remove(&io);
            }
            Action::RetireTransfer { transfer } => {
                self.engine(id).transfers.remove(&transfer);
            }
            Action::ReadRecord => self.ask(id, None),
            Action::Change { expected, change } => self.ask(id, Some((expected, change))),
            Action::Opened { .. } => self.opened(id),
            Action::JobDone { job, result } => {
                if self.pending.as_ref().is_some_and(|it| it.id == Some(job) && it.engine == id) {
                    self.log(|| format!("job done: {result:?}"));
                    self.resolve_job(id, result.is_ok());
                }
            }
            Action::End(end) => {
                self.log(|| format!("engine {id} ends: {end:?}"));
                let fenced = matches!(end, End::Fenced(_));
                assert!(!(fenced && id == self.newest), "nobody is newer: {end:?}");
                let recover = end != End::Detached && self.rng.percent(80);
                self.engine_gone(id, recover);
            }
        }
    }

    /// The process is gone; if it was the newest, its agent starts another one.
    fn engine_gone(&mut self, id: u64, recover: bool) {
        let engine = self.engine(id);
        if !engine.alive {
            return;
        }
        engine.alive = false;
        let ops = std::mem::take(&mut engine.ops);
        let links: Vec<_> = engine.links.keys().copied().collect();
        for (slot, link) in links {
            self.close(id, slot, link);
        }
        let open: Vec<_> = ops.into_values().filter(|op| !op.done).collect();
        self.undecided.extend(open.iter().cloned());
        if id == self.newest {
            self.lost_ops.extend(open.into_iter().filter(|_| recover));
            let wait = MS + self.rng.below(50 * MS);
            self.after(wait, "start engine", move |world| {
                if world.newest == id {
                    world.start_engine(recover);
                }
            });
        }
    }

    fn opened(&mut self, id: u64) {
        if std::mem::replace(&mut self.engine(id).opened, true) {
            return; // only its size has changed
        }
        self.check_cut(id);
        if id != self.newest {
            return;
        }
        let now = self.tick;
        let mut old = std::mem::take(&mut self.undecided);
        let others = self.engines.iter().filter(|(other, _)| **other != id);
        old.extend(others.flat_map(|(_, it)| it.ops.values().filter(|op| !op.done).cloned()));
        for op in old {
            op.written.iter().for_each(|at| self.history.write_ends(*at, op.start, now, false));
        }
        if self.pending.is_some() {
            self.resolve_job(id, false);
        }
    }

    /// If the members have lost what wasn't flushed, all of them have.
    fn check_cut(&mut self, id: u64) {
        let members = self.members();
        let lost = members.iter().filter(|at| self.replicas[**at].greeted_lossy).count();
        self.log(|| format!("engine {id} serves with {members:?}, {lost} lost power"));
        assert!(lost == 0 || lost == members.len(), "a suspect member stays beside a sound one");
        if lost == 0 {
            return;
        }
        for at in &members {
            let replica = &mut self.replicas[*at];
            replica.greeted_lossy = false;
            replica.lost_writes &= !replica.is_continuous();
        }
        self.history.cut();
        // What is still under way belongs to the time after the cut.
        let engines = self.engines.values().filter(|engine| engine.alive);
        let open: Vec<_> =
            engines.flat_map(|it| it.ops.values().filter(|op| !op.done)).cloned().collect();
        open.iter().for_each(|op| self.begin_writes(op));
    }

    // ---- the arbiter -----------------------------------------------------------------------

    /// The shell asks again and again until there is a definite answer.
    fn ask(&mut self, id: u64, change: Option<(Generation, Change)>) {
        self.engine(id).asking += 1;
        let number = self.engine(id).asking;
        self.ask_once(id, number, change);
    }

    fn ask_once(&mut self, id: u64, number: u64, change: Option<(Generation, Change)>) {
        let wait = 50 + self.rng.below(2 * MS);
        self.after(wait, "arbiter", move |world| {
            if !world.engine(id).alive || world.engine(id).asking != number {
                return;
            }
            if world.engine(id).arbiter_cut_until < world.now_us {
                let answer = world.arbitrate(change.clone());
                if !(world.faults && world.rng.percent(10)) {
                    let wait = 50 + world.rng.below(2 * MS);
                    return world.after(wait, "arbiter answers", move |world| {
                        world.tell(id, |core, now| match change {
                            Some(_) => core.change_answered(now, answer),
                            None => core.record_read(now, answer.expect("reads aren't refused")),
                        });
                    });
                }
                if world.rng.percent(30) {
                    let late = change.clone();
                    let wait = world.rng.below(50 * MS);
                    world.after(wait, "late duplicate", move |world| {
                        let _ = world.arbitrate(late);
                    });
                }
            }
            let wait = MS + world.rng.below(20 * MS);
            world.after(wait, "ask again", move |world| world.ask_once(id, number, change));
        });
    }

    fn arbitrate(&mut self, change: Option<(Generation, Change)>) -> Result<Record, Refused> {
        let Some((expected, change)) = change else { return Ok(self.record.clone()) };
        let after = self.record.after(expected, change)?;
        let before = std::mem::replace(&mut self.record, after);
        self.log(|| format!("record {:?}", self.members()));
        let members = self.members();
        for at in 0..self.replicas.len() {
            let was = before.in_sync.iter().any(|it| it.replica == replica_id(at));
            match (was, members.contains(&at)) {
                (false, true) => {
                    self.removed.remove(&at);
                    self.check_added(at);
                }
                (true, false) => {
                    self.removed.values_mut().for_each(|(_, it)| it.retain(|it| *it != at));
                    self.removed.insert(at, (self.record.generation, members.clone()));
                }
                _ => {}
            }
        }
        Ok(self.record.clone())
    }
}

const _: () = assert!(VOLUME_UNIT_BYTES == 2 * REGION_BLOCKS * BLOCK_BYTES);

fn replica_id(at: usize) -> ReplicaId {
    ReplicaId::from(format!("r{at}").as_str())
}
