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
    BLOCK_BYTES, BlockIndex, BlockRange, Generation, LayerId, ReplicaId, VOLUME_UNIT_BYTES,
};

use super::history::{History, Sector};
use super::model::{Block, Data, Footprint, Replica, Taken};

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
    recover: bool,
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
            recover,
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

    // ---- links -----------------------------------------------------------------------------

    fn connect(&mut self, id: u64, slot: Slot, link: LinkId) {
        let key = self.links.len() as u64;
        let replica = usize::from(slot.0);
        let new = Link {
            engine: id,
            replica,
            link,
            closed: false,
            broken: false,
            last_arrival: 0,
            in_flight: BTreeMap::new(),
        };
        self.links.insert(key, new);
        self.engine(id).links.insert((slot, link), key);
        let wait = self.delay(replica);
        self.after(wait, "connect", move |world| {
            let reachable = world.unreachable.get(&replica).is_none_or(|at| *at < world.now_us);
            if world.replicas[replica].up && reachable {
                world.hear(key, |core, now| core.connected(now, slot, link));
            } else {
                world.break_link(key);
            }
        });
    }

    fn hear(&mut self, key: u64, event: impl FnOnce(&mut Core, Instant)) {
        let link = &self.links[&key];
        if !link.closed {
            self.tell(link.engine, event);
        }
    }

    fn break_link(&mut self, key: u64) {
        let link = self.links.get_mut(&key).expect("links are kept");
        if std::mem::replace(&mut link.broken, true) {
            return;
        }
        let (slot, number) = (Slot(link.replica as u8), link.link);
        let wait = 10 + self.rng.below(3 * MS);
        self.after(wait, "disconnected", move |world| {
            world.hear(key, |core, now| core.disconnected(now, slot, number, "link lost"));
        });
    }

    fn close(&mut self, id: u64, slot: Slot, link: LinkId) {
        let Some(key) = self.engine(id).links.remove(&(slot, link)) else { return };
        let lost = self.rng.percent(50); // else what was sent may still arrive
        let link = self.links.get_mut(&key).expect("links are kept");
        link.closed = true;
        link.broken |= lost;
    }

    fn delay(&mut self, replica: usize) -> u64 {
        let slow = self.slow.get(&replica).is_some_and(|until| *until > self.now_us);
        let base = 20 + self.rng.below(300);
        base + if slow || self.rng.percent(2) { self.rng.below(30 * MS) } else { 0 }
    }

    fn send(
        &mut self,
        id: u64,
        slot: Slot,
        link: LinkId,
        seq: u64,
        request: Request<Payload>,
        into: Option<Destination>,
    ) {
        let key = self.engine(id).links.get(&(slot, link)).copied();
        let key = key.unwrap_or_else(|| panic!("{request:?} is sent on a closed link"));
        let replica = usize::from(slot.0);
        let data = self.payload(id, &request);
        self.log(|| format!("engine {id} sends {slot:?} {request:?} {:.60}", format!("{data:?}")));
        let head = self.replicas[replica].chain.head;
        let wait = self.delay(replica);
        let at = self.links[&key].last_arrival.max(self.now_us + wait - 1) + 1;
        let link = self.links.get_mut(&key).expect("links are kept");
        link.last_arrival = at;
        if let Some(footprint) = Footprint::of(&request, head) {
            let clash = link.in_flight.values().find(|other| footprint.conflicts_with(**other));
            assert!(clash.is_none(), "{request:?} overlaps {clash:?} at {slot:?}");
            link.in_flight.insert(seq, footprint);
        }
        let wait = at - self.now_us;
        self.after(wait, "arrive", move |world| world.arrive(key, seq, request, data, into));
    }

    fn payload(&mut self, id: u64, request: &Request<Payload>) -> Data {
        let whole = |sectors: [Option<u64>; 2]| {
            Some(sectors.map(|it| it.expect("a write goes out when its edges are there")))
        };
        let engine = self.engine(id);
        match request {
            Request::Write { payload: Payload::Of(io), .. } => {
                let cells = engine.ops[io].cells.iter();
                cells.map(|(block, sectors)| (*block, whole(*sectors))).collect()
            }
            Request::Copy { payload: Payload::Transfer(transfer), .. } => {
                engine.transfers.get(transfer).expect("fetched before").clone()
            }
            _ => Data::new(),
        }
    }

    // ---- replicas --------------------------------------------------------------------------

    fn arrive(
        &mut self,
        key: u64,
        seq: u64,
        request: Request<Payload>,
        data: Data,
        into: Option<Destination>,
    ) {
        let link = &self.links[&key];
        let at = link.replica;
        if link.broken {
            return;
        }
        if !self.replicas[at].up {
            return self.break_link(key);
        }
        let is_hello = matches!(request, Request::Hello(_));
        if !is_hello && self.replicas[at].owner != Some(key) {
            let reply = self.replicas[at].stale();
            return self.reply(key, seq, reply, Data::new(), into);
        }
        let ticket = self.scheduled;
        if !is_hello {
            let taken = Taken { link: key, request: request.clone(), data };
            self.replicas[at].taken.insert(ticket, taken);
        }
        let wait =
            5 + self.rng.below(200) + if self.rng.percent(2) { self.rng.below(20 * MS) } else { 0 };
        self.after(wait, "execute", move |world| match request {
            Request::Hello(hello) => world.greet(key, seq, *hello),
            _ => world.execute(key, seq, ticket, into),
        });
    }

    fn greet(&mut self, key: u64, seq: u64, hello: ankole_replica::message::Hello) {
        let link = &self.links[&key];
        let at = link.replica;
        if link.broken || !self.replicas[at].up {
            return;
        }
        let hung_until = self.replicas[at].hung_until;
        if hung_until > self.now_us {
            let wait = hung_until - self.now_us;
            return self.after(wait, "hung", move |world| world.greet(key, seq, hello));
        }
        let fence = hello.claim.expect("engines claim").fence;
        let rng = &mut self.rng;
        let reply = self.replicas[at].greet(fence, || rng.percent(50));
        if let ankole_replica::message::Reply::Welcome(_) = reply {
            self.replicas[at].owner = Some(key);
        }
        self.reply(key, seq, reply, Data::new(), None);
    }

    fn execute(&mut self, key: u64, seq: u64, ticket: u64, into: Option<Destination>) {
        let at = self.links[&key].replica;
        let replica = &mut self.replicas[at];
        if replica.hung_until > self.now_us {
            let wait = replica.hung_until - self.now_us;
            return self.after(wait, "hung", move |world| world.execute(key, seq, ticket, into));
        }
        let Some(taken) = replica.taken.remove(&ticket) else { return };
        if matches!(taken.request, Request::Chain(_))
            && replica.has_unflushed_head()
            && self.record.in_sync.iter().any(|it| it.replica == replica_id(at))
        {
            panic!("replica {at} changes its chain before its head is flushed");
        }
        let (reply, data) = replica.execute(&taken.request, &taken.data);
        self.reply(taken.link, seq, reply, data, into);
    }

    fn reply(
        &mut self,
        key: u64,
        seq: u64,
        reply: ankole_replica::message::Reply<()>,
        data: Data,
        into: Option<Destination>,
    ) {
        let link = &self.links[&key];
        let (id, slot, number) = (link.engine, Slot(link.replica as u8), link.link);
        let wait = self.delay(usize::from(slot.0));
        self.after(wait, "reply", move |world| {
            let link = world.links.get_mut(&key).expect("links are kept");
            link.in_flight.remove(&seq);
            if link.closed || link.broken || !world.engine(id).alive {
                return;
            }
            let engine = world.engine(id);
            match into {
                Some(Destination::Read(io)) => {
                    engine.ops.get_mut(&io).expect("still reading").got = data;
                }
                Some(Destination::Edge(io, block)) => {
                    let op = engine.ops.get_mut(&io).expect("still filling");
                    let sectors = op.cells.get_mut(&block.0).expect("an edge is in the range");
                    for (_, found) in data {
                        for (sector, found) in sectors.iter_mut().zip(found.unwrap_or_default()) {
                            sector.get_or_insert(found);
                        }
                    }
                }
                Some(Destination::Transfer(transfer)) => {
                    engine.transfers.insert(transfer, data);
                }
                None => {}
            }
            world.tell(id, |core, now| core.answered(now, slot, number, seq, reply));
        });
    }

    fn stop_replica(&mut self, at: usize, power: bool, away_us: u64) {
        if !self.replicas[at].up {
            return;
        }
        self.log(|| format!("replica {at} stops, power {power}"));
        let chance = self.rng.pick(&[0, 50, 50, 100]);
        let rng = &mut self.rng;
        if power {
            self.replicas[at].cut_power(|| rng.percent(chance));
        } else {
            self.replicas[at].kill(|| rng.percent(50));
        }
        let keys: Vec<_> = self
            .links
            .iter()
            .filter(|(_, it)| it.replica == at && !it.broken)
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.break_link(key);
        }
        self.after(away_us, "restart", move |world| world.restart_replica(at));
    }

    fn restart_replica(&mut self, at: usize) {
        self.replicas[at].up = true;
    }

    fn members(&self) -> Vec<usize> {
        let named = |at: &usize| self.record.in_sync.iter().any(|it| it.replica == replica_id(*at));
        (0..self.replicas.len()).filter(named).collect()
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

    // ---- the client ------------------------------------------------------------------------

    fn client_step(&mut self) {
        let wait = 100 + self.rng.below(4 * MS);
        self.after(wait, "client", Self::client_step);
        let alive: Vec<_> = self
            .engines
            .iter()
            .filter(|it| it.1.alive && !it.1.detaching)
            .map(|it| *it.0)
            .collect();
        if !self.faults || alive.is_empty() {
            return self.job_step();
        }
        let id = self.rng.pick(&alive);
        let busy = self.engines[&id].ops.values().filter(|op| !op.done).count();
        if busy < 8 && !self.wants_revert && !self.is_reverting() {
            let (operation, cells) = self.random_request();
            self.submit(id, operation, cells);
        }
        self.job_step();
    }

    /// Nobody uses a volume that is being reverted.
    fn is_reverting(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| matches!(pending.job, Job::Revert { .. }))
    }

    fn random_request(&mut self) -> (Operation, BTreeMap<u64, [Option<u64>; 2]>) {
        let first = self.rng.pick(&HOT);
        let count = 1 + self.rng.below(4).min(2 * REGION_BLOCKS - first - 1);
        let range = BlockRange::new(BlockIndex(first), count);
        let forced = self.rng.percent(10);
        let kind = self.rng.below(100);
        if kind < 45 {
            return (Operation::Read { range }, BTreeMap::new());
        } else if kind < 55 {
            return (Operation::Flush, BTreeMap::new());
        } else if kind < 62 {
            return (Operation::Zero { range, forced }, BTreeMap::new());
        }
        let mut cells: BTreeMap<_, _> =
            range.blocks().map(|block| (block.0, [Some(0), Some(0)])).collect();
        let mut edges = [None; 2];
        let last = BlockIndex(range.end().0 - 1);
        if self.rng.percent(40) {
            edges[0] = Some(range.first);
            cells.entry(first).and_modify(|it| it[0] = None);
        }
        if count > 1 && self.rng.percent(40) {
            edges[1] = Some(last);
            cells.entry(last.0).and_modify(|it| it[1] = None);
        }
        (Operation::Write { range, edges, forced }, cells)
    }

    fn submit(&mut self, id: u64, operation: Operation, cells: BTreeMap<u64, [Option<u64>; 2]>) {
        self.next_value += 1;
        self.tick += 1;
        let value = self.next_value;
        let mut op = ClientOp {
            operation,
            cells,
            written: Vec::new(),
            start: self.tick,
            got: Data::new(),
            answered: false,
            done: false,
        };
        if let Operation::Zero { range, .. } = operation {
            op.written = range.blocks().flat_map(|it| [(it.0, 0), (it.0, 1)]).collect();
        }
        if let Operation::Write { range, edges, .. } = operation {
            let last = range.end().0 - 1;
            for (block, sectors) in &mut op.cells {
                let edge = |at: usize, of: u64| edges[at].is_some() && *block == of;
                *sectors =
                    [(!edge(0, range.first.0)).then_some(value), (!edge(1, last)).then_some(value)];
                let new = (0..2).filter(|at| sectors[*at].is_some());
                op.written.extend(new.map(|at| (*block, at)));
            }
        }
        self.begin_writes(&op);
        let now = self.now();
        let engine = self.engine(id);
        let io = engine.core.submit(now, operation);
        engine.ops.insert(io, op);
        self.act(id);
    }

    fn begin_writes(&mut self, op: &ClientOp) {
        let forced = matches!(
            op.operation,
            Operation::Write { forced: true, .. } | Operation::Zero { forced: true, .. }
        );
        for at in &op.written {
            let value = op.cells.get(&at.0).map_or(0, |sectors| sectors[at.1].expect("new"));
            self.history.write_begins(*at, value, op.start, forced);
        }
    }

    /// The answer is with the client.
    fn answer(&mut self, id: u64, io: IoId, fine: bool) {
        let tick = self.tick;
        let is_newest = id == self.newest;
        let Some(op) = self.engine(id).ops.get_mut(&io) else { return };
        op.done = true;
        let op = op.clone();
        for at in &op.written {
            self.history.write_ends(*at, op.start, tick, fine);
        }
        match op.operation {
            Operation::Flush if fine => self.history.flush_ends(op.start),
            // Without leases a late engine may still read what is old.
            Operation::Read { .. } if fine && is_newest => {
                for (block, sectors) in op.got {
                    for (half, value) in sectors.unwrap_or_default().into_iter().enumerate() {
                        self.history.read((block, half), value, op.start, tick);
                    }
                }
            }
            _ => {}
        }
        self.tell(id, |core, now| core.release(now, io));
    }

    fn job_step(&mut self) {
        let id = self.newest;
        let engine = &self.engines[&id];
        let ready = engine.alive && engine.opened && !engine.detaching && self.pending.is_none();
        if !ready {
            return;
        }
        if self.wants_revert {
            if engine.ops.values().all(|op| op.done) {
                self.wants_revert = false;
                if let Some(to) = self.snapshots.keys().next_back().copied() {
                    self.start_job(Job::Revert { to });
                }
            }
            return;
        }
        if !self.faults || !self.jobs || !self.rng.percent(3) {
            return;
        }
        match self.rng.below(10) {
            0..5 => self.start_job(Job::Snapshot { seal: Seal::default() }),
            5..7 => {
                let ids: Vec<_> = self.snapshots.keys().copied().collect();
                if !ids.is_empty() {
                    let layer = self.rng.pick(&ids);
                    self.snapshots.remove(&layer);
                    self.start_job(Job::Remove { layer });
                }
            }
            7..9 => self.wants_revert = !self.snapshots.is_empty(),
            _ => {
                let now_is = engine.core.status().chain.size_bytes();
                let size_bytes = now_is + self.rng.below(2) * VOLUME_UNIT_BYTES;
                self.start_job(Job::Expand { size_bytes });
            }
        }
    }

    fn start_job(&mut self, job: Job) {
        self.log(|| format!("job {job:?}"));
        let (engine, start) = (self.newest, self.tick);
        let before = self.engines[&engine].core.status().chain;
        self.pending = Some(PendingJob { engine, id: None, job: job.clone(), start, before });
        let now = self.now();
        let id = self.engine(engine).core.start_job(now, job);
        self.pending.as_mut().expect("set above").id = Some(id);
        self.act(engine);
    }

    /// A job is over, or was cut short by the engine's end and its successor has opened.
    fn resolve_job(&mut self, id: u64, reported: bool) {
        let Some(pending) = self.pending.take() else { return };
        let chain = self.engines[&id].core.status().chain;
        let from = self.members()[0];
        match pending.job {
            Job::Snapshot { .. } if reported => {
                let sealed = pending.before.head;
                let blocks: BTreeSet<_> = self.history.sectors().iter().map(|at| at.0).collect();
                let shown = |block: u64| (block, self.replicas[from].shown(sealed, block));
                let content: BTreeMap<_, _> = blocks.into_iter().map(shown).collect();
                self.history.snapshot(|at| content[&at.0][at.1], pending.start, self.tick);
                self.snapshots.insert(sealed, content);
                self.check_snapshots();
            }
            Job::Revert { to } if chain.last_op > pending.before.last_op => {
                let content = self.snapshots[&to].clone();
                self.history.reset(|at| content.get(&at.0).map_or(0, |it| it[at.1]));
            }
            _ => assert!(
                !reported
                    || chain.last_op > pending.before.last_op
                    || chain == pending.before
                    || matches!(pending.job, Job::Remove { .. } | Job::Expand { .. }),
                "{:?} was reported and not done",
                pending.job
            ),
        }
    }

    // ---- what must hold --------------------------------------------------------------------

    /// Every member that hasn't lost power since has what is acknowledged.
    fn check_acknowledged(&self, id: u64, io: IoId) {
        if id != self.newest {
            return;
        }
        let op = &self.engines[&id].ops[&io];
        let members = self.members();
        let value = |at: &Sector| op.cells.get(&at.0).map_or(0, |it| it[at.1].expect("filled"));
        let sound = |out: &usize| self.replicas[*out].is_continuous();
        for (out, (generation, survivors)) in self.removed.iter().filter(|it| sound(it.0)) {
            let lacks = |at: &Sector| self.replicas[*out].head_shows(at.0)[at.1] != value(at);
            let durable = |at: &usize| self.replicas[*at].synced >= Some(*generation);
            assert!(
                survivors.iter().all(durable) || !op.written.iter().any(lacks),
                "acknowledged without {out} before {survivors:?} know that it is out"
            );
        }
        for at in members {
            let replica = &self.replicas[at];
            for (block, half) in op.written.iter().filter(|_| replica.is_continuous()) {
                let value = op.cells.get(block).map_or(0, |it| it[*half].expect("filled"));
                let held = replica.head_shows(*block)[*half];
                assert_eq!(held, value, "acknowledged, and member {at} lacks block {block}");
            }
        }
    }

    /// A new member differs from the others in nothing but writes that are under way.
    fn check_added(&self, at: usize) {
        let engine = &self.engines[&self.newest];
        let under_way = |block: u64| {
            engine.ops.values().any(|op| !op.answered && op.written.iter().any(|it| it.0 == block))
        };
        let alike = |other: &usize| {
            let (new, old) = (&self.replicas[at], &self.replicas[*other]);
            old.is_continuous() && new.is_continuous() && old.chain.last_op == new.chain.last_op
        };
        for other in self.members().into_iter().filter(alike) {
            for block in self.history.sectors().iter().map(|it| it.0).filter(|it| !under_way(*it)) {
                let (new, old) = (&self.replicas[at], &self.replicas[other]);
                let (new, old) = (new.head_shows(block), old.head_shows(block));
                assert_eq!(new, old, "added {at} differs from {other} in block {block}");
            }
        }
    }

    fn check_snapshots(&self) {
        let members = self.members();
        for at in members.into_iter().filter(|at| self.replicas[*at].is_continuous()) {
            for (layer, content) in &self.snapshots {
                for (block, expected) in content {
                    let shown = self.replicas[at].shown(*layer, *block);
                    assert_eq!(shown, *expected, "member {at}, {layer}, block {block}");
                }
            }
        }
    }

    fn check_all_equal(&mut self) {
        self.tick += 1;
        self.check_snapshots();
        for at in self.members() {
            for (block, half) in self.history.sectors() {
                let value = self.replicas[at].head_shows(block)[half];
                self.history.read((block, half), value, self.tick, self.tick);
            }
        }
        self.history.check();
        let shown: Vec<_> = self
            .members()
            .into_iter()
            .map(|at| {
                (0..2 * REGION_BLOCKS)
                    .map(|block| self.replicas[at].head_shows(block))
                    .collect::<Vec<_>>()
            })
            .collect();
        assert!(shown.windows(2).all(|pair| pair[0] == pair[1]), "members differ when all is done");
    }

    // ---- the adversary ---------------------------------------------------------------------

    fn fault_step(&mut self) {
        let wait = 2 * MS + self.rng.below(150 * MS);
        self.after(wait, "fault", Self::fault_step);
        if !self.faults || self.menu.is_empty() {
            return;
        }
        let at = self.rng.below(self.replicas.len() as u64) as usize;
        let for_us =
            if self.rng.percent(70) { self.rng.below(30 * MS) } else { self.rng.below(600 * MS) };
        let (now, id) = (self.now_us, self.newest);
        let kind = self.rng.pick(&self.menu.clone());
        self.log(|| format!("fault {kind} at {at} for {for_us} us"));
        match kind {
            0 => self.break_some(|link| link.replica == at),
            1 => self.stop_replica(at, false, for_us),
            2 => self.stop_replica(at, true, for_us),
            3 => {
                for at in 0..self.replicas.len() {
                    let away = self.rng.below(for_us + 1);
                    self.stop_replica(at, true, away);
                }
                if self.rng.percent(50) {
                    self.engine_gone(id, false);
                }
            }
            4 => self.replicas[at].hung_until = now + for_us,
            5 => {
                self.replicas[at].full = true;
                self.after(for_us, "room", move |world| world.replicas[at].full = false);
            }
            6 => {
                let (head, block) = (self.replicas[at].chain.head, self.rng.pick(&HOT));
                self.replicas[at].bad.insert((head, block));
                self.after(for_us, "good", move |world| world.replicas[at].bad.clear());
            }
            7 => {
                let recover = self.rng.percent(80);
                self.engine_gone(id, recover);
            }
            8 => {
                // The volume moves; the old engine lives on where nobody reaches it.
                let cut = self.rng.percent(70);
                self.engine(id).arbiter_cut_until = if cut { now + for_us } else { 0 };
                self.lost_ops.clear();
                self.start_engine(false);
            }
            9 => self.engine(id).arbiter_cut_until = now + for_us,
            10 => {
                self.engine(id).detaching = true;
                self.tell(id, |core, now| core.detach(now));
            }
            11 => {
                self.slow.insert(at, now + for_us);
            }
            12 => self.replicas[at].fail_writes = 1,
            13 => {
                self.unreachable.insert(at, now + for_us);
                self.break_some(|link| link.replica == at);
            }
            _ => self.break_some(|_| true),
        }
    }

    fn break_some(&mut self, which: impl Fn(&Link) -> bool) {
        let keys: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| !link.closed && which(link))
            .map(|it| *it.0)
            .collect();
        for key in keys {
            self.break_link(key);
        }
    }
}

/// Kinds of fault, see `fault_step`.
const FAULTS: u64 = 15;
const _: () = assert!(VOLUME_UNIT_BYTES == 2 * REGION_BLOCKS * BLOCK_BYTES);

fn replica_id(at: usize) -> ReplicaId {
    ReplicaId::from(format!("r{at}").as_str())
}
