//! For those who judge a replica instead of using it: what the metadata alone says, and the one
//! change that a person may make of it.

use super::meta::{CHAIN, REPLICA, ReplicaMeta, UNFINISHED_FILE, is_ours};
use super::open::open_slots;
use super::pages::PageFault;
use super::storage::Storage;
use super::{Continuity, Identity, Membership, ReplicaState, Store, StoreError};
use crate::types::{Fence, Region};

/// What `replica.meta` says, whether the rest can be opened or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glimpse {
    pub identity: Identity,
    pub fence: Option<Fence>,
    pub membership: Membership,
    pub failure: Option<String>,
}

/// What the names of the files in a directory tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    Empty,
    /// Formatting was broken off: it never was a replica.
    HalfFormatted,
    /// Something else; one of its files.
    Foreign(String),
    Replica,
}

pub fn contents(names: &[String]) -> Contents {
    let has = |file: &str| names.iter().any(|name| name == file);
    if has(REPLICA.file) {
        return Contents::Replica;
    }
    let mut others = names.iter().filter(|name| *name != "lost+found").peekable();
    if others.peek().is_none() {
        return Contents::Empty;
    }
    match others.find(|name| !is_ours(name)) {
        Some(name) => Contents::Foreign(name.clone()),
        None if has(UNFINISHED_FILE) || !has(CHAIN.file) => Contents::HalfFormatted,
        None => Contents::Replica, // which has lost its `replica.meta`: reading it says so
    }
}

/// Reads `replica.meta` and nothing else. Needs no lock: of its two slots one is always whole.
pub fn glimpse<S: Storage>(storage: &S) -> Result<Glimpse, StoreError> {
    let meta = open_slots::<S, ReplicaMeta>(storage, REPLICA)?;
    let ReplicaMeta { identity, fence, membership, failure, .. } = (*meta.get()).clone();
    Ok(Glimpse { identity, fence, membership, failure })
}

/// Blocks whose sums nobody has compared, as far as the index knows without reading data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexCount {
    pub unverified_blocks: u64,
    /// Index pages that can't be believed.
    pub damaged_pages: u64,
}

impl<S: Storage> Store<S> {
    /// What became of the writes that were answered before it was opened.
    pub fn continuity(&self) -> Continuity {
        self.continuity.borrow().clone()
    }

    /// The machine has run without a break since this replica became a member.
    pub(super) fn is_witnessed(&self) -> bool {
        *self.continuity.borrow() == Continuity::Unbroken
    }

    /// A rebuild was filling it: parts of it hold nothing, or what is older than the rest.
    pub fn is_partial(&self) -> bool {
        self.state() == ReplicaState::Rebuilding
            || self.chain.get().layers().iter().any(|layer| layer.filling)
    }

    /// Looks at every page that exists.
    pub fn count_index(&self) -> Result<IndexCount, StoreError> {
        let mut count = IndexCount::default();
        for layer in self.layers.borrow().by_id.values() {
            let mut next = Region(0);
            while let Some(region) = self.pages.next(layer.file, next) {
                next = region.next();
                match self.pages.load_damaged(layer.file, region) {
                    Ok((page, lost)) => {
                        let unverified = page.unverified() & page.present();
                        count.unverified_blocks += (unverified | lost).count();
                    }
                    Err(PageFault::Gone) => {}
                    Err(PageFault::Bad(_)) => count.damaged_pages += 1,
                    Err(fault) => return Err(self.page_error(layer.file, region, fault)),
                }
            }
        }
        Ok(count)
    }

    /// A person has decided to trust what this replica has, although it failed: takes that word
    /// back, durably. It is suspect from then on, as after a power cut.
    pub async fn pardon(&self) -> Result<(), StoreError> {
        self.continuous.set(false);
        self.continuity.replace(Continuity::Lost("a person trusts it after a failure".into()));
        let change = |meta: &ReplicaMeta| {
            let mut meta =
                ReplicaMeta { witness: None, doubt: None, failure: None, ..meta.clone() };
            meta.membership.state = ReplicaState::Member;
            meta
        };
        let done = self.meta.update(change).await;
        done.map_err(|error| self.io_error("make the pardon durable", error))?;
        *self.failure.borrow_mut() = None;
        Ok(())
    }
}
