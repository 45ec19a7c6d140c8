//! Evidence: what a directory tells about the copy that it holds, if it holds one.
//!
//! Read offline, by the store's own code over an [`Overlay`](overlay::Overlay). Promises that
//! nothing of the directory changes: no fence is raised, no recovery written. A replica that is
//! being served can be looked at too; what is told then is of a moment, and says so.

mod overlay;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tokio::task::LocalSet;

use self::overlay::Overlay;
use crate::record::Member;
use crate::store::file::{Directory, DirectoryOptions};
use crate::store::{
    Contents, Continuity, Glimpse, ReplicaState, Storage, Store, StoreError, StoreOptions,
    VerifyReport, contents, glimpse,
};
use crate::types::{Epoch, Fence, Generation, Incarnation, ReplicaId};

const LOCK: &str = "lock";
/// How often the evidence of a replica that runs is read, should it be changed in the middle.
const ATTEMPTS: usize = 3;

/// What is known of one directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    pub directory: PathBuf,
    /// A process has it open: what is told is of a moment.
    pub held: Option<Holder>,
    #[serde(flatten)]
    pub found: Found,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// As it noted it; another boot or container may have given the number anew.
    pub pid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "found")]
pub enum Found {
    /// There is no directory.
    Missing,
    Empty,
    /// Formatting was broken off: it never was a replica.
    HalfFormatted,
    /// Something else lies here; one of its files.
    Foreign {
        file: String,
    },
    /// The disk, the rights or the metadata don't allow to tell.
    Unreadable {
        why: String,
    },
    Replica(Box<ReplicaEvidence>),
}

/// One copy of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaEvidence {
    pub volume: String,
    pub replica: ReplicaId,
    pub incarnation: Incarnation,
    /// Highest (generation, session) that it has seen. Says nothing about what it holds.
    pub fence: Option<Fence>,
    pub state: ReplicaState,
    /// Why it failed for good, if it did.
    pub failure: Option<String>,
    /// Highest generation in which an engine said "you are in sync".
    pub synced_gen: Option<Generation>,
    /// The in-sync set then.
    pub synced_set: Vec<Member>,
    /// How far it has come together with the others.
    #[serde(default)]
    pub epoch: Epoch,
    /// Nothing if what it holds can't be opened; `problems` say why.
    pub content: Option<Content>,
    pub problems: Vec<String>,
}

/// What a copy holds, without a look at the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// It can't have lost a write that it answered.
    pub continuous: bool,
    /// Why that is known, or not.
    pub continuity: String,
    /// A rebuild was filling it: parts of it hold nothing, or what is older than the rest.
    pub partial: bool,
    /// Regions of 1 MiB in which it may differ from other replicas.
    pub marked_regions: u64,
    /// Blocks whose sums were rebuilt after a crash and compared with nobody's; those of marked
    /// regions that nobody has read since aren't counted.
    pub unverified_blocks: u64,
    /// Of the volume, in bytes.
    pub size_bytes: u64,
    /// What the layers take on the disk.
    pub data_bytes: u64,
    pub layers: usize,
    /// Names, oldest first.
    pub snapshots: Vec<String>,
}

impl Evidence {
    pub fn replica(&self) -> Option<&ReplicaEvidence> {
        match &self.found {
            Found::Replica(replica) => Some(replica),
            _ => None,
        }
    }

    /// Nothing was ever written there, so it may be made anew: no directory, an empty one, half of
    /// a formatting, or a replica that no engine has greeted. Not so what can't be looked at, and
    /// what a process has open.
    pub fn holds_nothing(&self) -> bool {
        let is_new = match &self.found {
            Found::Missing | Found::Empty | Found::HalfFormatted => true,
            Found::Foreign { .. } | Found::Unreadable { .. } => false,
            Found::Replica(replica) => replica.is_unused(),
        };
        is_new && self.held.is_none()
    }
}

impl ReplicaEvidence {
    fn is_unused(&self) -> bool {
        let is_empty = |content: &Content| content.layers == 1 && content.data_bytes == 0;
        let greeted = self.fence.is_some() || self.synced_gen.is_some();
        !greeted && self.state == ReplicaState::New && self.content.as_ref().is_some_and(is_empty)
    }
}

/// Looks at a directory. Blocks; takes as long as reading the index takes.
pub fn inspect(directory: &Path) -> Evidence {
    let evidence = |held, found| Evidence { directory: directory.to_owned(), held, found };
    match fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return evidence(None, unreadable("it isn't a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return evidence(None, Found::Missing);
        }
        Err(error) => return evidence(None, unreadable(error)),
    }
    // Held while it is looked at, so that nobody begins to change it.
    let lock = match try_lock(directory) {
        Ok(lock) => lock,
        Err(error) => return evidence(None, unreadable(format!("look for its lock: {error}"))),
    };
    let held = lock.as_ref().err().copied();
    let storage = overlay(directory);
    let found = match storage.list() {
        Err(error) => unreadable(error),
        Ok(names) => match contents(&names) {
            Contents::Empty => Found::Empty,
            Contents::HalfFormatted if has_data(directory, &names) => {
                unreadable("its metadata is gone, and its layers hold data")
            }
            Contents::HalfFormatted => Found::HalfFormatted,
            Contents::Foreign(file) => Found::Foreign { file },
            Contents::Replica => read_copy(directory, held.is_some()),
        },
    };
    evidence(held, found)
}

/// The newest generation that this replica of this volume has seen, if it is the one that lies in
/// `directory`. Costs one small read.
pub fn newest_generation(
    directory: &Path,
    volume: &str,
    replica: &ReplicaId,
) -> Option<Generation> {
    fence(directory, volume, replica)?.map(|fence| fence.generation)
}

/// What this replica of this volume has seen, if it is the one that lies in `directory`: none, if
/// no engine has greeted it. Nothing at all is told of what can't be read, or is another one.
pub fn fence(directory: &Path, volume: &str, replica: &ReplicaId) -> Option<Option<Fence>> {
    let Glimpse { identity, fence, .. } = glimpse(&overlay(directory)).ok()?;
    let meant = identity.volume == volume && identity.replica == *replica;
    meant.then_some(fence)
}

/// Why a replica that lies in `directory` can't be opened ever again, if its files are damaged or gone
/// in part. Nothing is said of errors of the disk, nor of what another process has open.
pub fn damage(directory: &Path) -> Option<String> {
    let Ok(Ok(_lock)) = try_lock(directory) else { return None };
    let storage = overlay(directory);
    let is_ours = storage.list().is_ok_and(|names| matches!(contents(&names), Contents::Replica));
    let open = async || Store::open(storage, StoreOptions::default()).await.map(drop);
    match on_this_thread(directory, open) {
        Ok(Err(error @ StoreError::Damaged { .. })) => Some(error.to_string()),
        Ok(Err(error @ StoreError::NoReplica { .. })) if is_ours => Some(error.to_string()),
        _ => None,
    }
}

/// Formatting writes nothing into a layer: one with blocks of its own was used, whatever else is gone.
fn has_data(directory: &Path, names: &[String]) -> bool {
    let mut layers = names.iter().filter(|name| name.ends_with(".data"));
    layers.any(|name| match fs::metadata(directory.join(name)) {
        Ok(layer) => layer.blocks() > 0,
        Err(_) => true,
    })
}

fn unreadable(why: impl ToString) -> Found {
    Found::Unreadable { why: why.to_string() }
}

fn overlay(directory: &Path) -> Overlay {
    Overlay::new(directory)
}

/// The lock, if it is free or there is none; else who has it.
fn try_lock(directory: &Path) -> io::Result<Result<Option<Flock<File>>, Holder>> {
    let mut file = match File::open(directory.join(LOCK)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
        Err(error) => return Err(error),
    };
    match Flock::lock(file.try_clone()?, FlockArg::LockSharedNonblock) {
        Ok(lock) => Ok(Ok(Some(lock))),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(Err(Holder { pid: text.trim().parse().ok() }))
        }
        Err((_, errno)) => Err(errno.into()),
    }
}

fn read_copy(directory: &Path, held: bool) -> Found {
    let storage = overlay(directory);
    let Glimpse { identity, fence, membership, failure } = match glimpse(&storage) {
        Ok(glimpse) => glimpse,
        Err(error) => return unreadable(error),
    };
    let members = membership.synced_set.into_iter();
    let members = members.map(|(replica, incarnation)| Member { replica, incarnation });
    let mut problems = Vec::new();
    let mut content = None;
    for _ in 0..if held { ATTEMPTS } else { 1 } {
        problems.clear();
        match read_content(directory, &mut problems) {
            Ok(read) => {
                content = Some(read);
                break;
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
    Found::Replica(Box::new(ReplicaEvidence {
        volume: identity.volume,
        replica: identity.replica,
        incarnation: identity.incarnation,
        fence,
        state: membership.state,
        failure,
        synced_gen: membership.synced_gen,
        synced_set: members.collect(),
        epoch: membership.epoch,
        content,
        problems,
    }))
}

fn read_content(directory: &Path, problems: &mut Vec<String>) -> Result<Content, StoreError> {
    let storage = overlay(directory);
    let open = async || Store::open(storage, StoreOptions::default()).await;
    let store = on_this_thread(directory, open)??;
    let marked_regions = store.marked_regions()?.len() as u64;
    let count = store.count_index()?;
    if count.damaged_pages > 0 {
        problems.push(format!("{} pages of its index are damaged", count.damaged_pages));
    }
    let chain = store.chain();
    let visible = chain.layers.iter().filter(|layer| !layer.removed);
    let names = visible.filter_map(|layer| layer.seal.as_ref()?.name.clone());
    Ok(Content {
        continuous: store.continuous(),
        continuity: continuity(&store, marked_regions),
        partial: store.is_partial(),
        marked_regions,
        unverified_blocks: count.unverified_blocks,
        size_bytes: chain.size_bytes(),
        data_bytes: chain.layers.iter().map(|layer| layer.data_bytes).sum(),
        layers: chain.layers.len(),
        snapshots: names.collect(),
    })
}

fn continuity<S: Storage>(store: &Store<S>, marked_regions: u64) -> String {
    if store.failure().is_some() {
        return "it failed: what its disk holds of the last writes isn't known".into();
    }
    match store.continuity() {
        Continuity::Unbroken => {
            "this machine has run without a break since it became a member".into()
        }
        _ if store.continuous() => {
            "no region is marked: nothing that could be lost was unflushed".into()
        }
        Continuity::Doubtful(why) | Continuity::Lost(why) => {
            format!("{why}: unflushed writes in {marked_regions} marked regions may be lost")
        }
    }
}

/// Reads everything that a replica holds and compares it with its sums, changing nothing. Refused
/// while a process has it open.
pub fn verify(directory: &Path) -> Result<VerifyReport, StoreError> {
    let place = directory.display().to_string();
    let failed = |source| StoreError::Io { doing: "lock", place: place.clone(), source };
    let _lock = match try_lock(directory).map_err(failed)? {
        Ok(lock) => lock,
        Err(Holder { pid }) => return Err(StoreError::Locked { place, pid }),
    };
    let storage = overlay(directory);
    on_this_thread(directory, async || {
        Store::open(storage, StoreOptions::default()).await?.verify().await
    })?
}

/// A person has decided that the copy in `directory` is what the volume is from now on: if it had
/// failed for good, it is taken for one that lost power instead. Nobody may have it open.
pub fn pardon(directory: &Path) -> Result<(), StoreError> {
    let place = directory.display().to_string();
    on_this_thread(directory, async || {
        let opened = Directory::open(directory, &DirectoryOptions::default());
        let opened = opened.map_err(|source| StoreError::Io { doing: "open", place, source })?;
        let store = Store::open(opened, StoreOptions::default()).await?;
        if store.state() == ReplicaState::Failed { store.pardon().await } else { Ok(()) }
    })?
}

/// The store's futures stay on one thread, with a runtime of its own: the caller may be a task of
/// another one.
fn on_this_thread<T>(directory: &Path, work: impl AsyncFnOnce() -> T) -> Result<T, StoreError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| {
        let place = directory.display().to_string();
        StoreError::Io { doing: "make a runtime", place, source }
    })?;
    Ok(LocalSet::new().block_on(&runtime, work()))
}
