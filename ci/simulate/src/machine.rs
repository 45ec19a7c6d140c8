//! One machine with a disk, on which the real replica runs: its process comes and goes, the disk
//! stays, unless somebody makes the directory anew.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};
use ankole_replica::server::{Clock, Replica};
use ankole_replica::store::crash::{Call, Disk, Pace, Random, Trouble};
use ankole_replica::store::{Identity, ReplicaState, Store, StoreOptions, View};
use ankole_replica::types::{BlockIndex, BlockRange, Incarnation, LayerId, ReplicaId};

use crate::schedule::Schedule;
use crate::tasks::{Tasks, at_once};

pub const SECTOR_BYTES: u64 = 512;
pub const SECTORS: usize = (BLOCK_BYTES / SECTOR_BYTES) as usize;

/// What the sectors of a block hold: each is filled with one number.
pub type Block = [u64; SECTORS];

pub struct Machine<W> {
    pub id: ReplicaId,
    pub incarnation: Incarnation,
    pub disk: Disk,
    pub process: Option<Process>,
    /// When the process began, in the world's ticks.
    pub started: u64,
    /// Stopped, as by `SIGSTOP`.
    pub hung_until: u64,
    /// It has said since it was last made equal to the others that it may have lost writes.
    pub lossy: bool,
    /// The same when it was greeted last.
    pub greeted_lossy: bool,
    pace: Rc<DiskPace<W>>,
    clock: Clock,
}

pub struct Process {
    pub tasks: Tasks,
    pub replica: Rc<Replica<Disk>>,
}

/// How long its disk takes.
struct DiskPace<W> {
    schedule: Rc<Schedule<W>>,
    random: RefCell<Random>,
    slow_until: Cell<u64>,
}

impl<W: 'static> Pace for DiskPace<W> {
    fn wait(&self, call: Call) -> Pin<Box<dyn Future<Output = ()>>> {
        let mut random = self.random.borrow_mut();
        let usual = match call {
            Call::Read | Call::Punch => 5 + random.below(60),
            Call::Write => 5 + random.below(100),
            Call::Sync => 30 + random.below(600),
        };
        let slow = self.slow_until.get() > self.schedule.now_us() || random.below(200) == 0;
        let more = if slow { random.below(20_000) } else { 0 };
        Box::pin(self.schedule.sleep(usual + more))
    }
}

impl<W: 'static> Machine<W> {
    /// A machine with a new directory, whose process runs.
    pub fn new(
        schedule: &Rc<Schedule<W>>,
        seed: u64,
        id: ReplicaId,
        incarnation: Incarnation,
        size_bytes: u64,
    ) -> Self {
        let random = RefCell::new(Random::new(seed));
        let pace = DiskPace { schedule: schedule.clone(), random, slow_until: Cell::new(0) };
        let (base, of) = (Instant::now(), schedule.clone());
        let clock: Clock = Rc::new(move || base + Duration::from_micros(of.now_us()));
        let mut machine = Self {
            id,
            incarnation,
            disk: Disk::new(seed),
            process: None,
            started: 0,
            hung_until: 0,
            lossy: false,
            greeted_lossy: false,
            pace: Rc::new(pace),
            clock,
        };
        machine.format(seed, incarnation, size_bytes);
        machine.start(0);
        machine
    }

    /// Its process is gone, and the directory is made anew.
    pub fn format(&mut self, seed: u64, incarnation: Incarnation, size_bytes: u64) {
        self.process = None;
        self.disk = Disk::new(seed);
        self.disk.set_pace(self.pace.clone());
        self.incarnation = incarnation;
        (self.lossy, self.greeted_lossy) = (false, false);
        let identity = Identity { volume: "v".into(), replica: self.id.clone(), incarnation };
        let disk = self.disk.clone();
        let format = Store::format(disk.clone(), identity, size_bytes, LayerId(1));
        let done = disk.observe(|| at_once(format)).expect("nothing takes time");
        done.expect("an empty directory can be formatted");
    }

    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    pub fn start(&mut self, tick: u64) {
        if self.process.is_some() {
            return;
        }
        let store = open(&self.disk);
        let replica = Replica::new(store, self.clock.clone());
        self.process = Some(Process { tasks: Tasks::new(), replica });
        self.started = tick;
    }

    /// `power`: the seed that decides what the disk has lost, if the machine lost its power.
    pub fn stop(&mut self, power: Option<u64>) {
        let Some(process) = self.process.take() else { return };
        self.disk = match power {
            None => self.disk.after_kill(),
            Some(seed) => self.disk.after_power_cut(seed),
        };
        self.hung_until = 0;
        drop(process); // what it still does goes to the disk that isn't there any more
    }

    pub fn be_slow_until(&self, at_us: u64) {
        self.pace.slow_until.set(at_us);
    }

    pub fn trouble(&self, change: impl FnOnce(&mut Trouble)) {
        let mut trouble = self.disk.trouble();
        change(&mut trouble);
        self.disk.set_trouble(trouble);
    }

    pub fn has_failed(&self) -> bool {
        self.look(|store| store.failure().is_some() || store.state() == ReplicaState::Failed)
    }

    /// Looks at what the replica has, without its noticing.
    pub fn look<T>(&self, look: impl FnOnce(&Store<Disk>) -> T) -> T {
        if let Some(process) = &self.process {
            return self.disk.observe(|| look(process.replica.store()));
        }
        let copy = self.disk.after_kill();
        let store = open(&copy);
        copy.observe(|| look(&store))
    }
}

fn open(disk: &Disk) -> Store<Disk> {
    let opened = disk.observe(|| at_once(Store::open(disk.clone(), StoreOptions::default())));
    let opened = opened.expect("nothing takes time");
    opened.unwrap_or_else(|error| panic!("a directory can't be opened after a crash: {error}"))
}

/// What `view` shows of a block; `None` if it can't be told now.
pub fn shown(store: &Store<Disk>, view: View, block: u64) -> Option<Block> {
    let range = BlockRange::new(BlockIndex(block), 1);
    let buffer = Buffer::zeroed(BLOCK_BYTES as usize);
    let (read, buffer) = at_once(store.read(view, range, buffer))?;
    read.ok()?;
    Some(numbers(&buffer))
}

/// The numbers with which the sectors of one block are filled.
pub fn numbers(block: &[u8]) -> Block {
    let mut numbers = [0; SECTORS];
    for (number, sector) in numbers.iter_mut().zip(block.chunks_exact(SECTOR_BYTES as usize)) {
        let first: [u8; 8] = sector[..8].try_into().expect("8 bytes");
        assert!(sector.chunks_exact(8).all(|word| word == first), "a sector is torn");
        *number = u64::from_le_bytes(first);
    }
    numbers
}

/// Fills a sector with its number.
pub fn fill(sector: &mut [u8], number: u64) {
    sector.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
}
