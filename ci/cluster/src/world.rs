//! A history: machines, two managers, users, and what goes wrong, from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ankole_api::Name;
use ankole_api::attachment::TicketKind;
use ankole_api::objects::attachment::Ticket;
use ankole_api::objects::engine::EnginePhase;
use ankole_api::objects::volume::Recorded;
use ankole_api::objects::{
    AttachmentSpec, Condition, EngineSpec, ReplicaSpec, Volume, VolumeAttachment, VolumeSpec,
};
use ankole_api::volume::{Reason, Robustness, State as Shown};
use ankole_replica::record::Member;
use ankole_store::{Selector, State};

use crate::agent::{Agent, Around};
use crate::machine::{Machine, Place, Power};
use crate::manager::Manager;
use crate::random::Random;
use crate::store::Store;

/// Of a history in which things go wrong; then nothing does, and all must come right.
const TROUBLE: Duration = Duration::from_secs(120);
const PEACE: Duration = Duration::from_secs(90);
/// In which nothing is written any more but leases.
const QUIET: Duration = Duration::from_secs(20);
/// Whoever has been heard of for so long has heard what was decided while it wasn't.
const LONG: Duration = Duration::from_secs(15);

pub struct World {
    pub now: Duration,
    pub store: Store,
    pub machines: Vec<Machine>,
    managers: Vec<Manager>,
    /// Pairs of machines that don't hear each other.
    cuts: BTreeSet<(usize, usize)>,
    /// The last acknowledged write of each volume, by its uid.
    pub acknowledged: BTreeMap<String, u64>,
    /// Of volumes whose data was removed, as somebody asked for; by uid.
    pub given_up: BTreeSet<String>,
    /// The store goes back in time, or loses who is in sync: then a person has to choose.
    is_cruel: bool,
    saved: Option<State>,
    /// The store went back: what engines do then is the core's to keep safe (rules 8 to 10b, seen by
    /// ci/simulate); here it matters what becomes of directories.
    pub went_back: bool,
    random: Random,
    pub wrong: Vec<String>,
    pub log: Vec<String>,
}

/// What became of a history.
#[derive(Debug)]
pub struct Ended {
    pub seed: u64,
    pub wrong: Vec<String>,
    pub log: Vec<String>,
    pub acknowledged: u64,
}

pub fn history(seed: u64) -> Ended {
    let mut world = World::new(seed);
    world.pass_time(TROUBLE, true);
    world.make_peace();
    world.pass_time(PEACE, false);
    world.check_all_is_well();
    world.tell_all();
    let before = world.store.writes.clone();
    world.pass_time(QUIET, false);
    for (kind, count) in &world.store.writes {
        let more = count - before.get(kind).copied().unwrap_or(0);
        let is_volume = matches!(*kind, "Lease" | "Node");
        if more > 0 && !is_volume {
            world.wrong.push(format!("{more} write(s) of {kind} while nothing happens"));
        }
    }
    let acknowledged = world.acknowledged.values().sum();
    Ended { seed, wrong: world.wrong, log: world.log, acknowledged }
}

/// A volume that is wanted anywhere, and its engine's machine dies, or hangs: it is attached on another
/// within 30 s, and whole again when the first is back.
pub fn failover(seed: u64, hangs: bool) -> Ended {
    let mut world = World::new(seed);
    let name: Name = "v9".parse().expect("a short name");
    // All machines are known: replicas are on different ones.
    world.pass_time(Duration::from_secs(10), false);
    world.create_with(&name, 3);
    world.want(&name, None);
    world.pass_time(Duration::from_secs(30), false);
    world.check_all_is_well();
    let node =
        |world: &World| world.store.get::<VolumeSpec>(&name).and_then(|volume| volume.status.node);
    let first = node(&world).unwrap_or_default();
    let at = world.machines.iter().position(|machine| machine.name == first);
    let at = at.expect("it was attached there");
    if hangs {
        world.machines[at].state = Power::Hung;
    } else {
        world.machines[at].power_off();
    }
    world.note(&format!("{first} dies"));
    world.pass_time(Duration::from_secs(30), false);
    let volume = world.store.get::<VolumeSpec>(&name).expect("nobody deleted it");
    let is_there = volume.status.state == Some(Shown::Attached);
    if volume.status.node.as_ref() == Some(&first) || !is_there {
        let state = volume.status.state;
        world.wrong.push(format!("{name} of {first}, which died, is {state:?} after 30 s"));
    }
    world.make_peace();
    world.pass_time(Duration::from_secs(60), false);
    world.check_all_is_well();
    world.tell_all();
    let acknowledged = world.acknowledged.values().sum();
    Ended { seed, wrong: world.wrong, log: world.log, acknowledged }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = 3 + random.below(3);
        let machines = (1..=count).map(|number| Machine::new(&format!("n{number}"))).collect();
        let mut world = Self {
            now: Duration::ZERO,
            store: Store::default(),
            machines,
            managers: vec![Manager::default(), Manager::default()],
            cuts: BTreeSet::new(),
            acknowledged: BTreeMap::new(),
            given_up: BTreeSet::new(),
            is_cruel: seed % 4 == 3,
            saved: None,
            went_back: false,
            random,
            wrong: Vec::new(),
            log: Vec::new(),
        };
        for number in 1..=1 + world.random.below(4) {
            world.create(&format!("v{number}"));
        }
        world
    }

    pub fn is_cut(&self, one: usize, other: usize) -> bool {
        self.cuts.contains(&(one.min(other), one.max(other)))
    }

    /// Somebody's turn every few milliseconds, in no order.
    fn pass_time(&mut self, time: Duration, with_trouble: bool) {
        let until = self.now + time;
        while self.now < until && self.wrong.is_empty() {
            self.now += Duration::from_millis(5 + self.random.below(40));
            self.store.clock(self.now.as_secs() as i64);
            if with_trouble && self.random.once_in(80) {
                self.trouble();
            }
            match self.random.below(4) {
                0 => self.manager_turn(),
                1 => self.agent_turn(),
                _ => self.engines_turn(),
            }
        }
    }

    fn manager_turn(&mut self) {
        let which = self.random.below(self.managers.len() as u64) as usize;
        self.managers[which].turn(&mut self.store, self.now, &mut self.log);
    }

    fn agent_turn(&mut self) {
        let count = self.machines.len() as u64;
        let which = self.random.below(count) as usize;
        let is_late = |it: &usize| {
            let agent = self.machines[*it].agent.as_ref();
            agent.is_some_and(|agent| agent.is_late(self.now))
        };
        let which =
            (0..count as usize).find(is_late).filter(|_| self.random.once_in(2)).unwrap_or(which);
        let machine = &mut self.machines[which];
        if machine.state != Power::On || !machine.is_connected {
            return;
        }
        let Some(mut agent) = machine.agent.take() else { return };
        let (mut granted, mut removed) = (Vec::new(), Vec::new());
        agent.turn(&mut Around {
            machine,
            store: &mut self.store,
            random: &mut self.random,
            now: self.now,
            wrong: &mut self.wrong,
            log: &mut self.log,
            granted: &mut granted,
            removed: &mut removed,
        });
        self.given_up.extend(removed);
        self.machines[which].agent = Some(agent);
        // Those that it granted it has started, too.
        self.check_grants(which, &granted);
    }

    fn engines_turn(&mut self) {
        let which = self.random.below(self.machines.len() as u64) as usize;
        if self.machines[which].state != Power::On {
            return;
        }
        for name in self.machines[which].engines.keys().cloned().collect::<Vec<_>>() {
            self.engine_turn(which, &name);
        }
    }

    fn note(&mut self, what: &str) {
        self.log.push(format!("{:?} --- {what}", self.now));
    }

    fn trouble(&mut self) {
        let which = self.random.below(self.machines.len() as u64) as usize;
        let other = self.random.below(self.machines.len() as u64) as usize;
        let name = self.machines[which].name.clone();
        let what = self.random.below(24);
        match what {
            0..=1 => self.machines[which].power_off(),
            2..=5 => self.machines[which].power_on(),
            6 => {
                self.machines[which].state = match self.machines[which].state {
                    Power::On => Power::Hung,
                    other => other,
                }
            }
            7 => self.machines[which].agent = None,
            8..=9 => {
                if self.machines[which].state != Power::Off {
                    self.machines[which].agent.get_or_insert_with(Agent::default);
                }
            }
            10 => self.machines[which].is_connected = false,
            11..=13 => self.machines[which].is_connected = true,
            14 if which != other => drop(self.cuts.insert((which.min(other), which.max(other)))),
            15 => self.cuts.clear(),
            16 => self.kill_a_process(which),
            17 => {
                self.machines[which].is_unmounted =
                    !self.machines[which].is_unmounted && self.machines[which].replicas.is_empty()
            }
            18 => self.damage(which),
            19 => self.users_wish(),
            20 => {
                let manager = self.random.below(self.managers.len() as u64) as usize;
                self.managers[manager] = Manager::default();
            }
            21 if self.is_cruel => self.be_cruel(),
            21 => self.lose_a_status(),
            _ => self.users_wish(),
        }
        self.note(&format!("trouble {what} of {name}"));
    }

    fn kill_a_process(&mut self, which: usize) {
        let machine = &mut self.machines[which];
        if self.random.once_in(2) {
            machine.engines.pop_first();
        } else {
            machine.replicas.pop_first();
        }
    }

    /// Only while another copy is in sync.
    fn damage(&mut self, which: usize) {
        let machine = &self.machines[which];
        let Some((place, directory)) = machine.directories.iter().next() else { return };
        let volume = self.store.get::<VolumeSpec>(&place.volume);
        let record = volume.and_then(|volume| volume.status.record);
        let (place, incarnation) = (place.clone(), directory.incarnation);
        let is_good = |member: &&Member| {
            let place = Place { replica: member.replica.clone(), ..place.clone() };
            let mut found = self.machines.iter().filter_map(|it| it.directories.get(&place));
            found.any(|it| it.incarnation == member.incarnation && !it.damaged)
        };
        let others = record.iter().flat_map(|record| &record.in_sync);
        if others.filter(is_good).any(|it| it.incarnation != incarnation) {
            let machine = &mut self.machines[which];
            machine.directories.get_mut(&place).expect("it was found").damaged = true;
            machine.replicas.remove(&place);
        }
    }

    /// As after a restore of the cluster from a backup of its objects.
    fn lose_a_status(&mut self) {
        let volumes = self.store.list::<VolumeSpec>(&Selector::all());
        let Some(volume) = volumes.first() else { return };
        let name = volume.name().clone();
        match self.random.below(2) {
            0 => self.store.lose_status::<EngineSpec>(&name),
            _ => {
                let replicas = self.store.list::<ReplicaSpec>(&Selector::all());
                if let Some(replica) = replicas.first() {
                    self.store.lose_status::<ReplicaSpec>(replica.name());
                }
            }
        }
    }

    fn be_cruel(&mut self) {
        match (self.random.below(4), self.saved.take()) {
            (0, Some(saved)) => {
                self.note("the store goes back in time");
                self.store.restore(saved);
                self.went_back = true;
            }
            (1, _) => {
                let volumes = self.store.list::<VolumeSpec>(&Selector::all());
                if let Some(volume) = volumes.first() {
                    self.note(&format!("{} loses its status", volume.name()));
                    self.store.lose_status::<VolumeSpec>(volume.name());
                }
            }
            (_, Some(saved)) => self.saved = Some(saved),
            (_, None) => self.saved = Some(self.store.saved()),
        }
    }

    fn create(&mut self, name: &str) {
        let name: Name = name.parse().expect("a short name");
        if self.store.get::<VolumeSpec>(&name).is_none() {
            let replicas = 1 + self.random.below(3) as u8;
            self.create_with(&name, replicas);
        }
    }

    fn create_with(&mut self, name: &Name, replicas: u8) {
        let spec = VolumeSpec {
            size_bytes: 1 << 20,
            replicas,
            frontend: ankole_api::volume::Frontend::Socket,
            transport: ankole_api::volume::Transport::Tcp,
            in_engine: false,
            engine: Default::default(),
            from_backup: None,
        };
        self.store.create(&Volume::new(name.clone(), spec)).expect("there is none");
    }

    fn users_wish(&mut self) {
        let name: Name = format!("v{}", 1 + self.random.below(4)).parse().expect("a short name");
        let Some(volume) = self.store.get::<VolumeSpec>(&name) else {
            return self.create(&name);
        };
        match self.random.below(12) {
            0 => {
                let _ = self.store.delete::<VolumeSpec>(&name);
            }
            1..=3 => drop(self.store.delete::<AttachmentSpec>(&name)),
            4 => {
                let size_bytes = volume.spec.size_bytes + (1 << 20);
                let spec = VolumeSpec { size_bytes, ..volume.spec.clone() };
                let _ = self.store.replace(&Volume { spec, ..volume });
            }
            what => {
                let node = (what > 7).then(|| self.random.pick(&self.machines).name.clone());
                self.want(&name, node);
            }
        }
    }

    fn want(&mut self, name: &Name, node: Option<String>) {
        let ticket = Ticket { kind: TicketKind::User, node, read_only: false };
        let spec = AttachmentSpec { tickets: [("user".to_owned(), ticket)].into() };
        match self.store.get::<AttachmentSpec>(name) {
            Some(it) => drop(self.store.replace(&VolumeAttachment { spec, ..it })),
            None => drop(self.store.create(&VolumeAttachment::new(name.clone(), spec))),
        }
    }

    fn make_peace(&mut self) {
        self.note("peace");
        self.cuts.clear();
        for machine in &mut self.machines {
            machine.power_on();
            machine.is_connected = true;
            machine.is_unmounted = false;
            machine.agent.get_or_insert_with(Agent::default);
        }
    }

    /// Rule 1, as far as it is the planners': an engine that lives on a machine which has been heard
    /// of all the time isn't the other one's predecessor.
    fn check_grants(&mut self, by: usize, granted: &[Name]) {
        for name in granted {
            for (at, machine) in self.machines.iter().enumerate() {
                let runs = machine.state == Power::On && machine.engines.contains_key(name);
                let heard = machine.agent.as_ref().and_then(|it| it.heard_since(self.now));
                let is_heard =
                    machine.is_connected && heard.is_some_and(|since| self.now - since > LONG);
                if runs && at != by && is_heard && !self.went_back {
                    let (there, here) = (&machine.name, &self.machines[by].name);
                    let wrong =
                        format!("an engine of {name} lives on {there}, and {here} grants one");
                    self.wrong.push(wrong);
                }
            }
        }
    }

    /// For who looks for the cause.
    fn tell_all(&mut self) {
        let all = Selector::all();
        for volume in self.store.list::<VolumeSpec>(&all) {
            let status = &volume.status;
            let (record, node) = (&status.record, &status.node);
            self.log.push(format!("volume {}: {record:?} on {node:?}", volume.name()));
        }
        for engine in self.store.list::<EngineSpec>(&all) {
            let (name, spec) = (engine.name(), &engine.spec);
            self.log.push(format!("engine {name}: {spec:?}, {:?}", engine.status));
        }
        for replica in self.store.list::<ReplicaSpec>(&all) {
            let (name, spec) = (replica.name(), &replica.spec);
            self.log.push(format!("replica {name}: {spec:?}, {:?}", replica.status));
        }
        for machine in &self.machines {
            let (name, directories) = (&machine.name, &machine.directories);
            let processes = (&machine.replicas, machine.engines.keys());
            self.log.push(format!("machine {name}: {directories:?}, {processes:?}"));
        }
    }

    fn check_all_is_well(&mut self) {
        for volume in self.store.list::<VolumeSpec>(&Selector::all()) {
            let name = volume.name();
            let wanted = self.store.get::<AttachmentSpec>(name);
            let is_wanted = wanted.is_some_and(|it| !it.spec.tickets.is_empty());
            let state = volume.status.state;
            let needs_a_person = |it: &Condition| {
                use Reason::{NoReplica, RecordLost, RecordRolledBack, ReplicaOccupied};
                matches!(it.reason, NoReplica | RecordLost | RecordRolledBack | ReplicaOccupied)
            };
            if self.is_cruel && volume.status.conditions.iter().any(needs_a_person) {
                continue;
            }
            let mut wrong = |what: &str| {
                let conditions: Vec<_> =
                    volume.status.conditions.iter().map(|it| it.message.clone()).collect();
                self.wrong.push(format!(
                    "{name} {what}: it is {state:?}, {:?}, {conditions:?}",
                    volume.status.robustness
                ));
            };
            if volume.is_ending() {
                wrong("isn't gone");
            } else if !matches!(volume.recorded(), Recorded::As(_)) {
                wrong("has no record");
            } else if is_wanted {
                if state != Some(Shown::Attached) {
                    wrong("isn't attached");
                } else if volume.status.robustness != Some(Robustness::Healthy) && !self.went_back {
                    wrong("isn't healthy");
                }
            } else if state != Some(Shown::Detached) {
                wrong("isn't detached");
            }
        }
        for engine in self.store.list::<EngineSpec>(&Selector::all()) {
            let is_ended = engine.status.phase == Some(EnginePhase::Ended);
            let lives = self.machines.iter().any(|it| it.engines.contains_key(engine.name()));
            if is_ended && lives {
                self.wrong.push(format!("an engine of {} is forgotten", engine.name()));
            }
        }
    }
}
