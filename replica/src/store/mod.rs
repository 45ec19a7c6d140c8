//! The store of one replica: one directory, an ordered chain of layers.
//!
//! Owns every file of the directory. Promises: what was answered survives a SIGKILL; what was
//! flushed survives a power cut; a byte whose checksum is wrong is never returned; metadata never
//! needs space that wasn't reserved before anything was written. What is there is known without a
//! look at it. May never happen: that a failed sync is tried again.
//!
//! One thread: futures are not `Send`, and must be driven to their end (a dropped one leaves
//! memory sound but may leave a block whose checksum is old). Whoever calls orders overlapping
//! operations; reads may overlap each other. Within a `LocalSet`.
//!
//! ```text
//! write ─▶ room, mark (first write of a region) ─▶ data ─▶ index page (if presence changed) ─▶ answer
//! flush ─▶ sync data ─▶ index pages of changed presence ─▶ sync index ─▶ log of new pages, sync ─▶ answer
//! clear ─▶ sync data ─▶ index pages ─▶ sync index ─▶ unmark (lazily)
//! ```
//!
//! Gates, taken in this order: chain, recovery, flush round, files' own.

mod below;
mod changes;
#[doc(hidden)]
pub mod crash;
mod durable;
mod error;
pub mod file;
mod intent;
mod join;
mod meta;
mod open;
pub(crate) mod open_files;
mod page_log;
mod pages;
mod peek;
mod query;
mod read;
mod rebuild;
mod recover;
mod repair;
mod resolve;
mod rounds;
pub mod storage;
mod two_slots;
mod uring;
mod verify;
mod witness;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};
pub use error::{BadBlock, BlockProblem, ReadError, StoreError};
pub use intent::file_bytes as intent_map_bytes;
pub use join::JoinProgress;
pub use meta::{Identity, Lessee, Membership, ReplicaState};
pub use open::StoreOptions;
pub use peek::{Contents, Glimpse, IndexCount, contents, glimpse};
pub use read::ReadReport;
pub use repair::Replacement;
pub use storage::{Storage, StorageFile};
use tokio::sync::Mutex;
pub use verify::VerifyReport;
pub use witness::Continuity;

pub use crate::chain::index::{BlockSum, Blocks};
use crate::chain::{Chain, ChainError, ChainInfo};
pub use crate::checksum::ZERO_BLOCK_SUM;
use crate::mutation::{self, Mutation};
use crate::regions::RegionPage;
use crate::types::{BlockRange, Epoch, Fence, Generation, LayerId, Region};
use intent::{Intent, IntentError};
use meta::ReplicaMeta;
use pages::{PageFault, Pages};
use rounds::Rounds;
use two_slots::TwoSlots;
use witness::Witness;

/// A read races with a join at most as often as there are joins; this is never reached.
const READ_ATTEMPTS: usize = 8;

/// What is read: the volume as it is, or as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Top,
    /// As seen at a snapshot.
    Layer(LayerId),
    /// What one layer itself has, removed or not; other blocks are zeroes. For a rebuild.
    Own(LayerId),
}

/// One replica's directory, open and locked.
pub struct Store<S: Storage> {
    storage: S,
    meta: TwoSlots<S::File, ReplicaMeta>,
    chain: TwoSlots<S::File, Chain>,
    intent: Intent<S::File>,
    pages: Pages<S::File>,
    layers: RefCell<Layers<S::File>>,
    head_state: HeadState,
    failure: RefCell<Option<String>>,
    continuous: Cell<bool>,
    /// What the witness says.
    continuity: RefCell<Continuity>,
    /// The machine lost what wasn't synced: fresh blocks must prove that their data arrived.
    lost_power: bool,
    /// Regions that were marked when the store was opened, and whose sums weren't looked at yet.
    unrecovered: RefCell<BTreeSet<Region>>,
    /// Changes of the index that an earlier process left to the kernel: a flush covers them too.
    index_of_before: Cell<bool>,
    /// What the next change of the chain needs, and has already.
    prepared: Cell<Option<changes::Prepared>>,
    chain_gate: Mutex<()>,
    recovery_gates: [Mutex<()>; recover::RECOVERIES],
    flushes: Rounds,
    _lock: S::Lock,
}

/// What isn't durable of the head.
#[derive(Default)]
struct HeadState {
    /// Regions with fresh blocks.
    fresh: RefCell<BTreeSet<Region>>,
    /// Fresh blocks that the running flush will make durable, unless they change again.
    flushing: RefCell<BTreeMap<Region, Blocks>>,
    /// Writes that run, per region.
    writing: RefCell<BTreeMap<Region, u32>>,
    /// Regions whose marks are about to go, by the number of the clearing: a write takes them out.
    clearing: RefCell<BTreeMap<Region, u64>>,
    clears: Cell<u64>,
}

struct Layers<F> {
    by_id: BTreeMap<LayerId, Rc<OpenLayer<F>>>,
    /// What decides the content of the volume, head first.
    top: Path<F>,
}

/// Layers that decide what a view shows, newest first.
type Path<F> = Rc<[Rc<OpenLayer<F>>]>;

struct OpenLayer<F> {
    id: LayerId,
    /// Of its files.
    file: pages::FileNumber,
    data: Rc<DataFile<F>>,
    size_bytes: u64,
    has_parent: bool,
    filling: bool,
}

struct DataFile<F> {
    file: F,
    /// Counts changes that have ended; what an earlier process may have left is one.
    changes: Cell<u64>,
    /// The count when the last sync began that succeeded.
    synced: Cell<u64>,
    /// What it takes on the disk, if that was looked at since the last change: chains of a thousand
    /// layers are described often.
    allocated_bytes: Cell<Option<u64>>,
}

impl<F: StorageFile> DataFile<F> {
    fn new(file: F, is_unsynced: bool) -> Self {
        let changes = Cell::new(u64::from(is_unsynced));
        Self { file, changes, synced: Cell::new(0), allocated_bytes: Cell::new(None) }
    }

    /// A sync that begins while this runs promises nothing about it: it is unsynced at the end.
    async fn write(
        &self,
        offset_bytes: u64,
        from: Rc<Buffer>,
        part: Range<usize>,
    ) -> std::io::Result<()> {
        let done = self.file.write(offset_bytes, from, part).await;
        self.note_change();
        done
    }

    async fn punch(&self, range_bytes: Range<u64>) -> std::io::Result<()> {
        let done = self.file.punch(range_bytes).await;
        self.note_change();
        done
    }

    fn note_change(&self) {
        self.changes.set(self.changes.get() + 1);
        self.allocated_bytes.set(None);
    }

    /// While it runs, the file stays unsynced for others.
    async fn sync(&self) -> std::io::Result<()> {
        let changes = self.changes.get();
        self.file.sync().await?;
        self.synced.set(self.synced.get().max(changes));
        Ok(())
    }

    fn is_unsynced(&self) -> bool {
        self.synced.get() < self.changes.get()
    }

    fn allocated_bytes(&self) -> std::io::Result<u64> {
        if let Some(known) = self.allocated_bytes.get() {
            return Ok(known);
        }
        let bytes = self.file.allocated_bytes()?;
        // Writing back may still change what isn't synced.
        self.allocated_bytes.set((!self.is_unsynced()).then_some(bytes));
        Ok(bytes)
    }
}

impl<S: Storage> Store<S> {
    pub fn identity(&self) -> Identity {
        self.meta.get().identity.clone()
    }

    /// For log and error texts: the directory.
    pub fn place(&self) -> String {
        self.storage.place()
    }

    /// How often its index was looked at since it was opened: what requests cost beside the disk.
    pub fn page_looks(&self) -> u64 {
        self.pages.looks()
    }

    pub fn storage(&self) -> &S {
        &self.storage
    }

    pub fn size_bytes(&self) -> u64 {
        self.chain.get().size_bytes()
    }

    /// Highest (generation, session) that was seen.
    pub fn fence(&self) -> Option<Fence> {
        self.meta.get().fence
    }

    pub fn membership(&self) -> Membership {
        self.meta.get().membership.clone()
    }

    /// Nothing that was acknowledged can have been lost: the machine has run without a break
    /// since this replica became a member, or nothing was unflushed.
    pub fn continuous(&self) -> bool {
        self.continuous.get() || mutation::is_on(Mutation::SuspectIsContinuous)
    }

    /// Why the store failed for good, if it did.
    pub fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    pub fn chain(&self) -> ChainInfo {
        let layers = self.layers.borrow();
        self.chain.get().info(|id| {
            let data = layers.by_id.get(&id).map(|layer| layer.data.allocated_bytes());
            data.and_then(Result::ok).unwrap_or(0)
        })
    }

    pub fn head_layer(&self) -> LayerId {
        self.head().id
    }

    /// Durable when it returns. Never goes back: an older fence changes nothing.
    pub async fn set_fence(&self, fence: Fence) -> Result<(), StoreError> {
        self.check_usable()?;
        let change = |meta: &ReplicaMeta| {
            let fence = Some(meta.fence.map_or(fence, |seen| seen.max(fence)));
            ReplicaMeta { fence, ..meta.clone() }
        };
        let done = self.meta.update(change).await;
        self.or_fail("make the fence durable", done).await
    }

    /// To whom a read lease was lent that hasn't been given back.
    pub fn lessee(&self) -> Option<Lessee> {
        let meta = self.meta.get();
        let process = meta.lessee_process.clone();
        meta.lessee.clone().map(|instance| Lessee { instance, process })
    }

    /// Durable when it returns.
    pub async fn set_lessee(&self, lessee: Option<Lessee>) -> Result<(), StoreError> {
        self.check_usable()?;
        let lessee = lessee.filter(|_| !mutation::is_on(Mutation::LesseeForgotten));
        let (lessee, lessee_process) =
            lessee.map_or((None, None), |lessee| (Some(lessee.instance), lessee.process));
        let change = |meta: &ReplicaMeta| ReplicaMeta { lessee, lessee_process, ..meta.clone() };
        let done = self.meta.update(change).await;
        self.or_fail("make the lessee durable", done).await
    }

    /// Durable when it returns. Becoming a member renews the witness; becoming ready ends the
    /// filling of layers, and everything they have is durable.
    pub async fn set_membership(&self, membership: Membership) -> Result<(), StoreError> {
        self.check_usable()?;
        if membership.state == ReplicaState::Ready {
            self.finish_filling().await?;
        }
        let mut witness = self.meta.get().witness.clone();
        // A ready replica holds all that is acknowledged, durably: whatever an earlier power cut
        // took from it doesn't matter any more, even if its first `Advance` never comes.
        let counts = matches!(membership.state, ReplicaState::Ready | ReplicaState::Member);
        let mut doubt = self.meta.get().doubt.clone();
        let is_older = witness.as_ref().is_some_and(Witness::is_of_older_kind);
        let is_renewed = counts && (!self.is_witnessed() || is_older);
        if is_renewed {
            // What a power cut may have taken is decided now, since the new witness says that
            // none did; and what it left is made to stay, since a read may have shown it.
            self.recover_fresh().await?;
            self.flush().await?;
            (witness, doubt) = (self.new_witness(), None);
        }
        let is_witnessed = witness.is_some();
        let change = |meta: &ReplicaMeta| {
            // A round may have begun while this was on its way.
            let mut epoch = meta.membership.epoch.max(membership.epoch);
            if membership.state == ReplicaState::Ready {
                // What it was once told is agreed says nothing of those who are members now.
                epoch.agreed = 0;
            }
            let membership = Membership { epoch, ..membership };
            ReplicaMeta { membership, witness, doubt, ..meta.clone() }
        };
        let done = self.meta.update(change).await;
        self.or_fail("make the membership durable", done).await?;
        if is_renewed && is_witnessed {
            self.continuity.replace(Continuity::Unbroken);
        }
        if counts {
            self.continuous.set(true);
        }
        Ok(())
    }

    /// Durable when it returns. Never goes back.
    pub async fn raise_epoch(&self, epoch: Epoch) -> Result<(), StoreError> {
        self.check_usable()?;
        let change = |meta: &ReplicaMeta| {
            let mut meta = meta.clone();
            meta.membership.epoch = meta.membership.epoch.max(epoch);
            meta
        };
        let done = self.meta.update(change).await;
        self.or_fail("make the epoch durable", done).await
    }

    /// Regions that may differ from other replicas, with the generation of their mark.
    pub fn marked_regions(&self) -> Result<Vec<(Region, Generation)>, StoreError> {
        self.intent.marked().map_err(|error| self.intent_error(error))
    }

    pub fn marked_count(&self) -> u64 {
        self.intent.marked_count()
    }

    /// Which regions are marked, from one on: as many as one message takes.
    pub fn marked_page(&self, from: Region) -> RegionPage {
        self.intent.marked_page(from)
    }

    /// Regions written in a generation after `base`, marked or not: what a replica missed that
    /// was last in sync then. `None`: all that were ever written.
    pub fn regions_since(
        &self,
        base: Option<Generation>,
    ) -> Result<Vec<(Region, Generation)>, StoreError> {
        let base = base.map_or(0, |generation| generation.0.get());
        self.intent.stamped_since(base).map_err(|error| self.intent_error(error))
    }

    /// A part of that, from a region on, in one turn of work; and where to go on.
    pub fn regions_since_from(
        &self,
        base: Option<Generation>,
        from: Region,
    ) -> Result<(Vec<Region>, Option<Region>), StoreError> {
        let base = base.map_or(0, |generation| generation.0.get());
        let stamped = self.intent.stamped_from(base, from);
        stamped.map_err(|error| self.intent_error(error))
    }

    /// Gives every marked region the new generation; durable when it returns.
    pub async fn restamp(&self, generation: Generation) -> Result<(), StoreError> {
        self.check_usable()?;
        let done = self.intent.restamp(generation).await;
        self.or_fail_intent("restamp the marked regions", done).await
    }

    fn head(&self) -> Rc<OpenLayer<S::File>> {
        self.layers.borrow().top[0].clone()
    }

    /// The layers that decide what `view` shows, newest first.
    fn path(&self, view: View) -> Result<Path<S::File>, StoreError> {
        let layers = self.layers.borrow();
        match view {
            View::Top => Ok(layers.top.clone()),
            View::Own(id) => {
                let layer = layers.by_id.get(&id).ok_or(ChainError::NoLayer(id))?;
                Ok([layer.clone()].into())
            }
            View::Layer(id) => {
                let chain = self.chain.get();
                if id != layers.top[0].id {
                    chain.snapshot(id)?;
                }
                Ok(chain.path(id).map(|layer| layers.by_id[&layer.id].clone()).collect())
            }
        }
    }

    fn layer(&self, id: LayerId) -> Result<Rc<OpenLayer<S::File>>, StoreError> {
        let layers = self.layers.borrow();
        Ok(layers.by_id.get(&id).cloned().ok_or(ChainError::NoLayer(id))?)
    }

    fn check_range(&self, layer: &OpenLayer<S::File>, range: BlockRange) -> Result<(), StoreError> {
        let (size_bytes, layer) = (layer.size_bytes, layer.id);
        let end = range.first.0.checked_add(range.count);
        if end.is_none_or(|end| end > size_bytes / BLOCK_BYTES) || range.count == 0 {
            return Err(StoreError::OutOfRange { range, layer, size_bytes });
        }
        Ok(())
    }

    /// An error once the replica has failed for good.
    pub fn check_usable(&self) -> Result<(), StoreError> {
        match &*self.failure.borrow() {
            None => Ok(()),
            Some(reason) => Err(StoreError::Failed { place: self.place(), reason: reason.clone() }),
        }
    }

    /// What the disk holds isn't known any more: from here on nothing is written.
    async fn or_fail<T>(
        &self,
        doing: &'static str,
        done: std::io::Result<T>,
    ) -> Result<T, StoreError> {
        match done {
            Ok(value) => Ok(value),
            Err(error) => Err(self.fail(format!("{doing}: {error}")).await),
        }
    }

    /// For a file system on which room can't be taken before: a write for which there was none has
    /// changed nothing.
    async fn or_fail_unless_full<T>(
        &self,
        doing: &'static str,
        done: std::io::Result<T>,
    ) -> Result<T, StoreError> {
        match done {
            Err(error) if error::is_no_space(&error) => Err(self.io_error(doing, error)),
            other => self.or_fail(doing, other).await,
        }
    }

    async fn or_fail_intent<T>(
        &self,
        doing: &'static str,
        done: Result<T, IntentError>,
    ) -> Result<T, StoreError> {
        match done {
            Ok(value) => Ok(value),
            Err(IntentError::Io(error)) => self.or_fail(doing, Err(error)).await,
            Err(error) => Err(self.intent_error(error)),
        }
    }

    async fn fail(&self, reason: String) -> StoreError {
        let first = self.failure.borrow().is_none();
        if first {
            tracing::error!(place = self.place(), reason, "the replica failed for good");
            *self.failure.borrow_mut() = Some(reason.clone());
            self.continuous.set(false);
            self.continuity.replace(Continuity::Doubtful(reason.clone()));
            let failed = |meta: &ReplicaMeta| {
                let mut meta = meta.clone();
                meta.membership.state = ReplicaState::Failed;
                meta.failure = Some(reason.clone());
                meta
            };
            if let Err(error) = self.meta.update_either(failed).await {
                // The kernel shows it to the next process of this boot all the same.
                tracing::error!(place = self.place(), %error, "the failure can't be made durable");
            }
        }
        StoreError::Failed { place: self.place(), reason }
    }

    /// An I/O error: the disk may have lost more than it told, whatever the witness says. Durable
    /// when it returns; a disk that doesn't even take that has failed.
    async fn doubt(&self, why: &std::io::Error) {
        if error::is_out_of_descriptors(why) {
            return;
        }
        self.continuous.set(false);
        if !self.is_witnessed() {
            return; // it counts for nothing already
        }
        self.continuity.replace(Continuity::Doubtful(why.to_string()));
        let change =
            |meta: &ReplicaMeta| ReplicaMeta { doubt: Some(why.to_string()), ..meta.clone() };
        if let Err(error) = self.meta.update(change).await {
            self.fail(format!("note an error of the disk: {error}")).await;
        }
    }

    fn new_witness(&self) -> Option<Witness> {
        let witness = Witness::of_now(&self.storage);
        if let Err(error) = &witness {
            tracing::warn!(place = self.place(), %error,
                "no witness: after a crash this replica counts as one that lost power");
        }
        witness.ok()
    }

    fn io_error(&self, doing: &'static str, source: std::io::Error) -> StoreError {
        StoreError::Io { doing, place: self.place(), source }
    }

    fn intent_error(&self, error: IntentError) -> StoreError {
        open::intent_error(&self.storage, error)
    }

    /// The page can't be used. Says nothing about others.
    fn page_error(&self, file: pages::FileNumber, region: Region, fault: PageFault) -> StoreError {
        match fault {
            PageFault::Io(error) => self.io_error("read the index", error),
            PageFault::Gone => StoreError::Chain(ChainError::Unsound("a layer is gone".into())),
            PageFault::Bad(problem) => StoreError::Damaged {
                place: self.place(),
                file: meta::index_name(file),
                problem: format!("the page of region {}: {problem}", region.0),
            },
        }
    }
}
