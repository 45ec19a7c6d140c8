//! One machine with a disk, on which the real replica runs: its process comes and goes, the disk
//! stays, unless somebody makes the directory anew.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};
use ankole_replica::chain::index::PAGE_BYTES;
use ankole_replica::chain::{ChainInfo, LayerInfo, Seal};
use ankole_replica::server::{Clock, Replica};
use ankole_replica::store::crash::{Call, Disk, Pace, Random, Trouble};
use ankole_replica::store::{
    Continuity, Identity, Membership, ReplicaState, Store, StoreError, StoreOptions, View,
};
use ankole_replica::types::{
    BlockIndex, BlockRange, ChainOpId, Fence, Generation, Incarnation, LayerId, Region, ReplicaId,
};

use crate::schedule::{Schedule, Speed};
use crate::tasks::{Tasks, at_once};
use crate::thread::{OnThread, Thread, Work};

/// How long a replica's read lease lasts: many round trips, and less than the open waits.
const LEASE: Duration = Duration::from_millis(120);

pub const SECTOR_BYTES: u64 = 512;
pub const SECTORS: usize = (BLOCK_BYTES / SECTOR_BYTES) as usize;

/// What the sectors of a block hold: each is filled with one number.
pub type Block = [u64; SECTORS];

pub struct Machine<W> {
    pub id: ReplicaId,
    pub incarnation: Incarnation,
    pub disk: Disk,
    pub process: Option<Process>,
    /// The one on which its process runs.
    pub thread: Rc<Thread<W>>,
    /// When the process began, in the world's ticks.
    pub started: u64,
    /// Stopped, as by `SIGSTOP`.
    pub hung_until: u64,
    /// It has said since it was last made equal to the others that it may have lost writes, and not
    /// only because nobody could tell.
    pub lossy: bool,
    /// That, or in doubt when it was greeted last.
    pub greeted_lossy: bool,
    /// The engine that made it a member again although it was: whatever it says to that one later, it
    /// was.
    pub accepted_lossy_by: Option<u64>,
    /// What it has promised: the highest fence that it welcomed, the newest set that it took note of.
    pub welcomed: Option<Fence>,
    /// The newest engine that it welcomed.
    pub welcomed_engine: Option<u64>,
    pub synced: Option<Generation>,
    /// What was changed behind the replica's back.
    pub rotten: Option<Rot>,
    /// A copy of its directory, of which incarnation it was.
    pub saved: Option<(Incarnation, Disk)>,
    /// Its directory is an older copy of itself, and hasn't been rebuilt since.
    pub is_rolled_back: bool,
    /// It is about to fail for good, or its directory was made anew.
    pub doomed: bool,
    pace: Rc<DiskPace<W>>,
    clock: Clock,
}

pub struct Process {
    pub tasks: Tasks,
    pub replica: Rc<Replica<Disk>>,
}

pub enum Rot {
    /// What a sector has become, and which of its bits flipped.
    Bit(Box<[u8; SECTOR_BYTES as usize]>, usize),
    /// A part of a file has turned to zero; it was this.
    Lost { file: String, offset_bytes: u64, bytes: Vec<u8> },
}

/// How a replica's process ends; a seed decides what the disk has lost.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    Kill,
    PowerCut(u64),
    /// Its file system is shut down and mounted again, while the machine runs on.
    Remount(u64),
}

/// How long its disk takes.
struct DiskPace<W> {
    schedule: Rc<Schedule<W>>,
    thread: Rc<Thread<W>>,
    random: RefCell<Random>,
    slow_until: Cell<u64>,
    /// Until then many writes take long, and nothing else does.
    writes_hang_until: Cell<u64>,
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
        let hangs = call == Call::Write
            && self.writes_hang_until.get() > self.schedule.now_us()
            && random.below(2) == 0;
        let more = match (hangs, slow) {
            (true, _) => random.below(100_000),
            (false, true) => random.below(20_000),
            (false, false) => 0,
        };
        Box::pin(self.schedule.sleep(self.thread.ahead_us() + usual + more))
    }
}

impl<W: 'static> Machine<W> {
    /// A machine with a new directory, whose process runs.
    pub fn new(
        schedule: &Rc<Schedule<W>>,
        seed: u64,
        id: ReplicaId,
        incarnation: Incarnation,
        size: Size,
        speed: Speed,
    ) -> Self {
        let thread = Thread::new(schedule);
        let random = RefCell::new(Random::new(seed));
        let pace = DiskPace {
            schedule: schedule.clone(),
            thread: thread.clone(),
            random,
            slow_until: Cell::new(0),
            writes_hang_until: Cell::new(0),
        };
        let (base, of) = (Instant::now(), thread.clone());
        let clock: Clock = Rc::new(move || base + speed.clock(of.now_us()));
        let mut machine = Self {
            id,
            incarnation,
            disk: Disk::new(seed),
            process: None,
            thread,
            started: 0,
            hung_until: 0,
            lossy: false,
            greeted_lossy: false,
            accepted_lossy_by: None,
            welcomed: None,
            welcomed_engine: None,
            synced: None,
            rotten: None,
            saved: None,
            is_rolled_back: false,
            doomed: false,
            pace: Rc::new(pace),
            clock,
        };
        machine.format(seed, incarnation, size);
        machine.start(0);
        machine
    }

    /// Its process is gone, and the directory is made anew.
    pub fn format(&mut self, seed: u64, incarnation: Incarnation, size: Size) {
        self.process = None;
        self.disk = Disk::new(seed);
        self.disk.set_pace(self.pace.clone());
        self.incarnation = incarnation;
        (self.lossy, self.greeted_lossy) = (false, false);
        (self.welcomed, self.synced, self.rotten) = (None, None, None);
        self.welcomed_engine = None;
        self.is_rolled_back = false;
        let identity = Identity { volume: "v".into(), replica: self.id.clone(), incarnation };
        let made = self.disk.observe(|| at_once(make_directory(&self.disk, identity, size)));
        made.expect("nothing takes time").expect("an empty directory can be formatted");
    }

    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    pub fn start(&mut self, tick: u64) {
        if self.process.is_some() {
            return;
        }
        let before = self.disk.work();
        let store = open(&self.disk);
        self.thread.restart();
        self.thread.spend(work_of(&self.disk, &store) - Work::of_disk(before));
        assert!(store.fence() >= self.welcomed, "{} has forgotten whom it welcomed (I4)", self.id);
        let synced = store.membership().synced_gen;
        assert!(synced >= self.synced, "{} has forgotten that it was in sync (I4)", self.id);
        let replica = Replica::lending(store, self.clock.clone(), LEASE);
        self.process = Some(Process { tasks: Tasks::new(), replica });
        self.started = tick;
    }

    /// Its process begins to do something, if there is one.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let Some(process) = &self.process else { return };
        let (disk, replica) = (self.disk.clone(), process.replica.clone());
        let work: Rc<dyn Fn() -> Work> = Rc::new(move || work_of(&disk, replica.store()));
        let (thread, task) = (self.thread.clone(), Box::pin(task));
        process.tasks.spawn(OnThread { thread, work, task });
    }

    pub fn stop(&mut self, how: Stop) {
        let Some(process) = self.process.take() else { return };
        self.disk = match how {
            Stop::Kill => self.disk.after_kill(),
            Stop::PowerCut(seed) => self.disk.after_power_cut(seed),
            Stop::Remount(seed) => {
                let remounted = self.disk.after_remount(seed);
                let shows = open(&remounted.after_kill());
                // If nobody can tell, that is a limit that the rules state: it isn't asked of them here.
                let tells = !matches!(shows.continuity(), Continuity::Doubtful(_));
                if tells { remounted } else { self.disk.after_power_cut(seed) }
            }
        };
        self.hung_until = 0;
        drop(process); // what it still does goes to the disk that isn't there any more
    }

    /// Whether it would say so, too, if it could tell one mount from another.
    pub fn has_lost(&self) -> bool {
        let copy = self.disk.after_kill();
        copy.hide_mounts(false);
        let store = open(&copy);
        !copy.observe(|| store.continuous())
    }

    pub fn be_slow_until(&self, at_us: u64) {
        self.pace.slow_until.set(at_us);
    }

    pub fn let_writes_hang_until(&self, at_us: u64) {
        self.pace.writes_hang_until.set(at_us);
    }

    pub fn trouble(&self, change: impl FnOnce(&mut Trouble)) {
        let mut trouble = self.disk.trouble();
        change(&mut trouble);
        self.disk.set_trouble(trouble);
    }

    pub fn has_failed(&self) -> bool {
        self.look(|store| store.failure().is_some() || store.state() == ReplicaState::Failed)
    }

    /// What the replica would have after a power cut, now.
    pub fn look_after_power_cut<T>(&self, seed: u64, look: impl FnOnce(&Store<Disk>) -> T) -> T {
        let copy = self.disk.after_power_cut(seed);
        let store = open(&copy);
        copy.observe(|| look(&store))
    }

    /// One bit of one of these sectors of a file flips. `false`: there is none.
    pub fn rot(&mut self, file: &str, nth: u64, bit: usize, of: impl Fn(u64) -> bool) -> bool {
        let mut sectors = self.disk.sectors_of(file);
        sectors.retain(|sector| of(*sector));
        if sectors.is_empty() || self.rotten.is_some() {
            return false;
        }
        let sector = sectors[(nth % sectors.len() as u64) as usize];
        let rotten = self.disk.rot(file, sector, bit);
        self.rotten = rotten.map(|bytes| Rot::Bit(Box::new(bytes), bit));
        rotten.is_some()
    }

    /// The disk has lost one of these pages of an index: it reads as zeroes. `false`: there is none.
    pub fn lose_page(&mut self, file: &str, nth: u64, of: impl Fn(Region) -> bool) -> bool {
        let sectors = PAGE_BYTES as u64 / SECTOR_BYTES;
        let pages = self.disk.sectors_of(file).into_iter().map(|sector| sector / sectors);
        let pages: BTreeSet<u64> = pages.filter(|page| of(Region(*page))).collect();
        if pages.is_empty() || self.rotten.is_some() {
            return false;
        }
        let page = pages.iter().nth((nth % pages.len() as u64) as usize).expect("one of them");
        let offset_bytes = page * PAGE_BYTES as u64;
        let bytes = self.part_of(file, offset_bytes);
        self.disk.damage(file, offset_bytes, &[0; PAGE_BYTES]);
        self.rotten = Some(Rot::Lost { file: file.into(), offset_bytes, bytes });
        true
    }

    fn part_of(&self, file: &str, offset_bytes: u64) -> Vec<u8> {
        self.disk.part_of(file, offset_bytes, PAGE_BYTES)
    }

    /// What has rotted, and was neither written nor repaired since, is as it was.
    pub fn undo_rot(&mut self) {
        match self.rotten.take() {
            Some(Rot::Bit(bytes, bit)) => self.disk.undo_rot(&bytes, bit),
            Some(Rot::Lost { file, offset_bytes, bytes }) => {
                let is_there = !self.disk.sectors_of(&file).is_empty();
                if is_there && self.part_of(&file, offset_bytes).iter().all(|byte| *byte == 0) {
                    self.disk.damage(&file, offset_bytes, &bytes);
                }
            }
            None => {}
        }
    }

    /// Whether it may differ from the others after a crash.
    pub fn is_marked(&self) -> bool {
        self.look(|store| store.marked_regions().map_or(true, |marked| !marked.is_empty()))
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

/// What its volume is at first.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub bytes: u64,
    pub layers: u32,
}

/// All layers are empty.
async fn make_directory(disk: &Disk, identity: Identity, size: Size) -> Result<(), StoreError> {
    Store::format(disk.clone(), identity, size.bytes, LayerId(1)).await?;
    if size.layers == 1 {
        return Ok(());
    }
    let seal = Seal { generation: Some(Generation::FIRST), ..Seal::default() };
    let layer = |number: u32| LayerInfo {
        id: LayerId(number),
        parent: (number > 1).then(|| LayerId(number - 1)),
        seal: (number < size.layers).then(|| seal.clone()),
        removed: false,
        size_bytes: size.bytes,
        data_bytes: 0,
    };
    let layers = (1..=size.layers).map(layer).collect();
    let chain =
        ChainInfo { layers, head: LayerId(size.layers), last_op: ChainOpId(size.layers.into()) };
    let store = Store::open(disk.clone(), StoreOptions::default()).await?;
    store.adopt_chain(&chain).await?;
    let filled = Membership { state: ReplicaState::Ready, ..Membership::NEW };
    store.set_membership(filled).await?;
    store.set_membership(Membership::NEW).await?;
    store.close().await
}

/// What the process that has this store open has done, and who looked meanwhile.
fn work_of(disk: &Disk, store: &Store<Disk>) -> Work {
    Work { looks: store.page_looks(), ..Work::of_disk(disk.work()) }
}

pub fn open(disk: &Disk) -> Store<Disk> {
    let opened = disk.observe(|| at_once(Store::open(disk.clone(), StoreOptions::default())));
    let opened = opened.expect("nothing takes time");
    opened.unwrap_or_else(|error| panic!("a directory can't be opened after a crash: {error}"))
}

/// What `view` shows of a block; `None` if it can't be told now, or not at all.
pub fn shown(store: &Store<Disk>, view: View, block: u64) -> Option<Block> {
    look_at(store, view, block)?.ok()
}

/// The same with the reason why the block is bad.
pub fn look_at(store: &Store<Disk>, view: View, block: u64) -> Option<Result<Block, String>> {
    let range = BlockRange::new(BlockIndex(block), 1);
    let buffer = Buffer::zeroed(BLOCK_BYTES as usize);
    let (read, buffer) = at_once(store.read(view, range, buffer))?;
    Some(match read {
        // Rot in a region that was marked gets a fresh sum, and is shown to nobody.
        Ok(report) if !report.unverified.is_empty() && is_torn(&buffer) => {
            Err("a sector is torn, and known to be doubtful".into())
        }
        Ok(_) => Ok(numbers(&buffer)),
        Err(error) => Err(error.to_string()),
    })
}

/// The numbers with which the sectors of one block are filled.
pub fn numbers(block: &[u8]) -> Block {
    assert!(!is_torn(block), "a sector is torn");
    let mut numbers = [0; SECTORS];
    for (number, sector) in numbers.iter_mut().zip(block.chunks_exact(SECTOR_BYTES as usize)) {
        *number = number_of(sector);
    }
    numbers
}

/// Whether a sector isn't what somebody wrote.
fn is_torn(block: &[u8]) -> bool {
    block.chunks_exact(SECTOR_BYTES as usize).any(|sector| {
        let mut whole = [0; SECTOR_BYTES as usize];
        fill(&mut whole, number_of(sector));
        sector != whole
    })
}

fn number_of(sector: &[u8]) -> u64 {
    u64::from_le_bytes(sector[..8].try_into().expect("8 bytes"))
}

/// Fills a sector with its number; 0 makes it zero, as one that was never written.
///
/// It ends with its own CRC32C, as blocks of some filesystems do. So all blocks that are written
/// whole have the same CRC32C, and nobody who compares only those finds out how replicas differ.
pub fn fill(sector: &mut [u8], number: u64) {
    sector.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
    if number != 0 {
        let (body, end) = sector.split_at_mut(sector.len() - 4);
        end.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    }
}
