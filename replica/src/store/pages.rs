//! The index pages in memory: which exist, and a bounded part of them.
//!
//! Owns reading, changing and writing back pages of the index files, and their logs. Promises that
//! a change of presence is with the kernel before the caller goes on, that sums get there before a
//! page leaves memory, and that a sync covers the logs too. A page that doesn't exist costs no
//! read; one that exists and is gone is damaged, never empty. A page that can't be believed is
//! never cached and never written over.
//!
//! ```text
//! first write of a region ─▶ room for the page and its entry ─▶ the page ─▶ sync ─▶ entry, sync
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::ops::Bound;
use std::rc::Rc;

use roaring::RoaringBitmap;
use tokio::sync::Mutex;

use super::below::{Below, Known, Merged, Moment};
use super::page_log::PageLog;
use super::storage::StorageFile;
use crate::chain::index::{Blocks, PAGE_BYTES, Page, PageError, SECTOR_BYTES};
use crate::mutation::{self, Mutation};
use crate::types::{REGION_BYTES, Region};

/// A page in memory with what it takes to find it.
const ENTRY_BYTES: usize = 1400;
/// What a file system gives at once: the room of two pages.
const ROOM_BYTES: u64 = 4096;
/// Pages that are looked at with one read, at open.
const SEARCH_PAGES: usize = 32;

pub(super) type FileNumber = u32;
type Key = (FileNumber, u64);

pub(super) fn file_bytes(layer_bytes: u64) -> u64 {
    layer_bytes / REGION_BYTES * PAGE_BYTES as u64
}

/// Whether anything but zeroes is in an index from `from_bytes` on.
pub(super) fn holds_any<F: StorageFile>(index: &F, from_bytes: u64) -> io::Result<bool> {
    let end = index.length_bytes()?;
    let mut next = from_bytes;
    while next < end
        && let Some(data) = index.next_data(next)?
    {
        next = next.max(data.start);
        let data_end = data.end.min(end);
        while next < data_end {
            let count = (data_end - next).min((SEARCH_PAGES * PAGE_BYTES) as u64);
            let mut bytes = vec![0; count as usize];
            index.read_at(next, &mut bytes)?;
            if !is_zero(&bytes) {
                return Ok(true);
            }
            next += count;
        }
    }
    Ok(false)
}

pub(super) fn page_offset_bytes(region: Region) -> u64 {
    region.0 * PAGE_BYTES as u64
}

#[derive(Debug)]
pub(super) enum PageFault {
    Io(io::Error),
    Bad(PageError),
    /// Its layer was dropped meanwhile.
    Gone,
}

/// When a changed page goes to the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteBack {
    Unchanged,
    /// Only sums changed: a crash in a marked region may lose them.
    Later,
    Now,
}

pub(super) struct Pages<F> {
    state: RefCell<State<F>>,
    capacity: usize,
    looks: Cell<u64>,
    /// One sync at a time: whoever returns knows that those before have ended too.
    gate: Mutex<()>,
}

struct State<F> {
    indexes: HashMap<FileNumber, Index<F>>,
    /// Files that were written since their last sync.
    unsynced: BTreeSet<FileNumber>,
    entries: HashMap<Key, Entry>,
    below: Below,
    /// Keys in the order in which they are looked at for eviction; those of `below` have no file.
    clock: VecDeque<Key>,
}

/// In keys: all sealed layers together.
const NO_FILE: FileNumber = 0;

/// An index that is being synced, and the pages that its log doesn't know.
struct Syncing<F> {
    file: Rc<F>,
    log: Rc<PageLog<F>>,
    new: Vec<u32>,
}

/// One layer's index.
struct Index<F> {
    file: Rc<F>,
    log: Rc<PageLog<F>>,
    /// Regions that have a page, on the disk or so far in memory.
    pages: RoaringBitmap,
    /// Of these, those that were never written.
    unwritten: RoaringBitmap,
    /// Those whose entry in the log isn't written, in the order in which they came to exist.
    unlogged: Vec<u32>,
    /// How many are in the log, durably.
    logged: u64,
    /// Regions without a page that have the room for one.
    roomy: RoaringBitmap,
}

struct Entry {
    page: Box<Page>,
    dirty: bool,
    used: bool,
}

impl<F: StorageFile> Pages<F> {
    pub(super) fn new(capacity_bytes: usize) -> Self {
        let state = State {
            indexes: HashMap::new(),
            unsynced: BTreeSet::new(),
            entries: HashMap::new(),
            below: Below::new(),
            clock: VecDeque::new(),
        };
        let capacity = (capacity_bytes / ENTRY_BYTES).max(16);
        Self { state: RefCell::new(state), capacity, looks: Cell::new(0), gate: Mutex::new(()) }
    }

    /// `unsynced`: an earlier process may have written to it. `pages`: those that exist; the log
    /// has the first `logged` of them.
    pub(super) fn add_file(
        &self,
        number: FileNumber,
        file: F,
        known: KnownPages<F>,
        unsynced: bool,
    ) {
        let KnownPages { log, logged, found } = known;
        let unsynced = unsynced || !found.is_empty();
        let mut state = self.state.borrow_mut();
        let index = Index {
            file: Rc::new(file),
            log: Rc::new(log),
            logged: logged.len(),
            unlogged: found.iter().collect(),
            pages: logged | found,
            unwritten: RoaringBitmap::new(),
            roomy: RoaringBitmap::new(),
        };
        state.indexes.insert(number, index);
        if unsynced {
            state.unsynced.insert(number);
        }
    }

    /// Its files may be closed while they aren't used.
    pub(super) fn rest(&self, number: FileNumber) {
        if let Some(index) = self.state.borrow().indexes.get(&number) {
            index.file.rest();
            index.log.rest();
        }
    }

    pub(super) fn file(&self, number: FileNumber) -> Rc<F> {
        self.state.borrow().indexes[&number].file.clone()
    }

    /// Drops a file whose layer is gone; what it had in memory isn't written.
    pub(super) fn drop_file(&self, number: FileNumber) {
        let mut state = self.state.borrow_mut();
        state.indexes.remove(&number);
        state.unsynced.remove(&number);
        state.entries.retain(|key, _| key.0 != number);
        state.clock.retain(|key| key.0 != number);
    }

    /// How often somebody looked at a page, or whether there is one.
    pub(super) fn looks(&self) -> u64 {
        self.looks.get()
    }

    fn count_looks(&self, count: usize) {
        self.looks.set(self.looks.get() + count as u64);
    }

    pub(super) fn exists(&self, number: FileNumber, region: Region) -> bool {
        self.count_looks(1);
        self.state.borrow().exists((number, region.0))
    }

    /// The first region from `from` on that has a page.
    pub(super) fn next(&self, number: FileNumber, from: Region) -> Option<Region> {
        self.some(number, from, 1).pop()
    }

    /// The first regions from `from` on that have a page, at most so many, ascending.
    pub(super) fn some(&self, number: FileNumber, from: Region, at_most: usize) -> Vec<Region> {
        let state = self.state.borrow();
        let Some(index) = state.indexes.get(&number) else { return Vec::new() };
        let from = Bound::Included(id(from.0));
        let pages = index.pages.range((from, Bound::Unbounded)).take(at_most);
        let found: Vec<_> = pages.map(|region| Region(region.into())).collect();
        self.count_looks(1 + found.len());
        found
    }

    /// How many pages the log of a file has, durably.
    pub(super) fn logged(&self, number: FileNumber) -> u64 {
        self.state.borrow().indexes.get(&number).map_or(0, |index| index.logged)
    }

    /// Takes the room that a region's first page and its entry in the log need, so that writing
    /// them can't run out of it.
    pub(super) fn make_room(&self, number: FileNumber, region: Region) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        let Some(index) = state.indexes.get_mut(&number) else { return Ok(()) };
        let region_id = id(region.0);
        if index.pages.contains(region_id) || index.roomy.contains(region_id) {
            return Ok(());
        }
        let at = page_offset_bytes(region) / ROOM_BYTES * ROOM_BYTES;
        index.file.allocate(at..at + ROOM_BYTES)?;
        index.log.make_room(index.unlogged.len() as u64 + index.roomy.len() + 1)?;
        index.roomy.insert(region_id);
        Ok(())
    }

    pub(super) fn look<R>(
        &self,
        file: FileNumber,
        region: Region,
        look: impl FnOnce(&Page) -> R,
    ) -> Result<R, PageFault> {
        self.change(file, region, |page| (look(page), WriteBack::Unchanged))
    }

    pub(super) fn change<R>(
        &self,
        file: FileNumber,
        region: Region,
        change: impl FnOnce(&mut Page) -> (R, WriteBack),
    ) -> Result<R, PageFault> {
        self.count_looks(1);
        let mut state = self.state.borrow_mut();
        let key = (file, region.0);
        if !state.entries.contains_key(&key) {
            let (mut page, lost) = state.load(key)?;
            if !lost.is_empty() {
                return Err(PageFault::Bad(PageError::SumsLost(lost)));
            }
            if !state.exists(key) {
                // It comes to exist only by getting a content.
                let (result, write_back) = change(&mut page);
                if write_back != WriteBack::Unchanged && page != Page::EMPTY {
                    state.insert(key, page, self.capacity).map_err(PageFault::Io)?;
                    state.note_change(key, write_back).map_err(PageFault::Io)?;
                }
                return Ok(result);
            }
            state.insert(key, page, self.capacity).map_err(PageFault::Io)?;
        }
        let entry = state.entries.get_mut(&key).expect("it is there now");
        entry.used = true;
        let (result, write_back) = change(&mut entry.page);
        state.note_change(key, write_back).map_err(PageFault::Io)?;
        Ok(result)
    }

    /// The same for a page that won't be needed again soon: it isn't kept.
    pub(super) fn glance<R>(
        &self,
        file: FileNumber,
        region: Region,
        look: impl FnOnce(&Page) -> R,
    ) -> Result<R, PageFault> {
        self.count_looks(1);
        let state = self.state.borrow();
        if let Some(entry) = state.entries.get(&(file, region.0)) {
            return Ok(look(&entry.page));
        }
        let (page, lost) = state.load((file, region.0))?;
        if lost.is_empty() {
            Ok(look(&page))
        } else {
            Err(PageFault::Bad(PageError::SumsLost(lost)))
        }
    }

    /// It can be looked at without a read.
    pub(super) fn is_at_hand(&self, file: FileNumber, region: Region) -> bool {
        self.count_looks(1);
        let state = self.state.borrow();
        let key = (file, region.0);
        state.entries.contains_key(&key) || !state.exists(key)
    }

    pub(super) fn below(&self, region: Region) -> Known {
        self.count_looks(1);
        self.state.borrow_mut().below.known(region)
    }

    pub(super) fn keep_below(&self, region: Region, merged: Rc<Merged>) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.make_place(self.capacity)?;
        if !state.below.keep(region, merged) {
            state.clock.push_back((NO_FILE, region.0));
        }
        Ok(())
    }

    /// Changes when a page of a sealed layer does there, or the path.
    pub(super) fn moment(&self, region: Region) -> Moment {
        self.state.borrow().below.moment(region)
    }

    /// How often layers were changed.
    pub(super) fn paths(&self) -> u64 {
        self.state.borrow().below.paths()
    }

    pub(super) fn knows_regions_below(&self) -> bool {
        self.state.borrow().below.has_regions()
    }

    pub(super) fn set_regions_below(&self, regions: RoaringBitmap) {
        self.state.borrow_mut().below.set_regions(regions);
    }

    pub(super) fn add_regions_to(&self, file: FileNumber, regions: &mut RoaringBitmap) {
        if let Some(index) = self.state.borrow().indexes.get(&file) {
            *regions |= &index.pages;
        }
    }

    /// Layers were changed, none of them on the live path.
    pub(super) fn layers_changed(&self) {
        self.state.borrow_mut().below.layers_changed();
    }

    /// The path is another one. `sealed`: it is the one before under a new head, and that was the
    /// old one.
    pub(super) fn path_changed(&self, head: FileNumber, sealed: Option<FileNumber>) {
        let State { indexes, below, .. } = &mut *self.state.borrow_mut();
        let sealed = sealed.and_then(|file| indexes.get(&file));
        below.path_changed(head, sealed.map(|index| &index.pages));
    }

    /// The page as it is on the disk or in memory, and the blocks whose sums are lost.
    pub(super) fn load_damaged(
        &self,
        file: FileNumber,
        region: Region,
    ) -> Result<(Page, Blocks), PageFault> {
        self.count_looks(1);
        let state = self.state.borrow();
        match state.entries.get(&(file, region.0)) {
            Some(entry) => Ok(((*entry.page).clone(), Blocks::NONE)),
            None => state.load((file, region.0)),
        }
    }

    /// Puts a page that was made anew in place of what is there, and hands it to the kernel.
    pub(super) fn replace(&self, file: FileNumber, region: Region, page: Page) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        let key = (file, region.0);
        match state.entries.get_mut(&key) {
            Some(entry) => *entry.page = page,
            None => state.insert(key, page, self.capacity)?,
        }
        state.note_change(key, WriteBack::Now)
    }

    /// Hands a page's changes to the kernel, if it has any.
    pub(super) fn write_back(&self, file: FileNumber, region: Region) -> io::Result<()> {
        self.state.borrow_mut().write_if_dirty((file, region.0))
    }

    pub(super) fn is_dirty(&self, file: FileNumber, region: Region) -> bool {
        self.state.borrow().entries.get(&(file, region.0)).is_some_and(|entry| entry.dirty)
    }

    pub(super) fn write_back_all(&self) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        let dirty = state.entries.iter().filter(|(_, entry)| entry.dirty);
        let dirty: Vec<Key> = dirty.map(|(&key, _)| key).collect();
        dirty.into_iter().try_for_each(|key| state.write_if_dirty(key))
    }

    /// Syncs every file that was written; then pages that came to exist get into the logs, durably.
    pub(super) async fn sync(&self) -> io::Result<()> {
        let _one_at_a_time = self.gate.lock().await;
        let numbers: Vec<_> = self.state.borrow().unsynced.iter().copied().collect();
        for number in numbers {
            let Some(Syncing { file, log, new }) = self.state.borrow_mut().begin_sync(number)
            else {
                continue;
            };
            let done = async {
                if mutation::is_on(Mutation::LoggedBeforePage) && !new.is_empty() {
                    log.append(&new)?;
                    log.sync().await?;
                }
                file.sync().await?;
                if !new.is_empty() {
                    log.append(&new)?;
                    log.sync().await?;
                }
                Ok(())
            };
            let done: io::Result<()> = done.await;
            self.state.borrow_mut().end_sync(number, new, done.is_ok());
            done?;
        }
        Ok(())
    }
}

/// What the log of a layer and a search of its index have found.
pub(super) struct KnownPages<F> {
    pub(super) log: PageLog<F>,
    pub(super) logged: RoaringBitmap,
    /// Not in the log.
    pub(super) found: RoaringBitmap,
}

impl<F: StorageFile> KnownPages<F> {
    /// What the log alone says.
    pub(super) fn of_log(log: F, number: FileNumber) -> io::Result<Self> {
        let (log, logged) = PageLog::open(log, number)?;
        Ok(Self { log, logged, found: RoaringBitmap::new() })
    }

    /// Looks for pages that the log doesn't know, where the file system has something. Says whether
    /// there were remains of pages that never came to exist: they are zeroes now, and have to be
    /// durably before anything is written there. A torn page of before beside one of later would
    /// bring back bytes that nobody has seen since.
    pub(super) fn search(&mut self, index: &F) -> io::Result<bool> {
        if mutation::is_on(Mutation::NewPagesNotLookedFor) {
            return Ok(false);
        }
        let page_bytes = PAGE_BYTES as u64;
        let end = index.length_bytes()? / page_bytes;
        let (mut next, mut remains) = (0, false);
        while next < end
            && let Some(data) = index.next_data(next * page_bytes)?
        {
            let mut first = (data.start / page_bytes).max(next);
            next = data.end.div_ceil(page_bytes).clamp(first + 1, end.max(first + 1));
            while first < next.min(end) {
                let count = SEARCH_PAGES.min((next.min(end) - first) as usize);
                remains |= self.search_pages(index, first, count)?;
                first += count as u64;
            }
        }
        Ok(remains)
    }

    fn search_pages(&mut self, index: &F, first: u64, count: usize) -> io::Result<bool> {
        let is_known = |region: u64| self.logged.contains(id(region));
        if (first..first + count as u64).all(is_known) {
            return Ok(false);
        }
        let mut bytes = vec![0; count * PAGE_BYTES];
        index.read_at(first * PAGE_BYTES as u64, &mut bytes)?;
        let mut remains = false;
        for (page, region) in bytes.chunks_exact(PAGE_BYTES).zip(first..) {
            if self.logged.contains(id(region)) {
                continue;
            }
            if !is_zero(&page[..SECTOR_BYTES]) {
                self.found.insert(id(region));
            } else if !is_zero(page) {
                index.write_at(region * PAGE_BYTES as u64, &[0; PAGE_BYTES])?;
                remains = true;
            }
        }
        Ok(remains)
    }

    pub(super) fn count(&self) -> u64 {
        self.logged.len() + self.found.len()
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// A region's number in the sets: a volume has fewer of them than that.
fn id(region: u64) -> u32 {
    u32::try_from(region).unwrap_or(u32::MAX)
}

impl<F: StorageFile> State<F> {
    fn exists(&self, (number, region): Key) -> bool {
        self.indexes.get(&number).is_some_and(|index| index.pages.contains(id(region)))
    }

    fn load(&self, (number, region): Key) -> Result<(Page, Blocks), PageFault> {
        let index = self.indexes.get(&number).ok_or(PageFault::Gone)?;
        if !index.pages.contains(id(region)) {
            return Ok((Page::EMPTY, Blocks::NONE));
        }
        let mut bytes = [0; PAGE_BYTES];
        let offset_bytes = page_offset_bytes(Region(region));
        index.file.read_at(offset_bytes, &mut bytes).map_err(PageFault::Io)?;
        if is_zero(&bytes[..SECTOR_BYTES]) {
            if mutation::is_on(Mutation::LostPageIsEmpty) {
                return Ok((Page::EMPTY, Blocks::NONE));
            }
            return Err(PageFault::Bad(PageError::Lost));
        }
        Page::decode(&bytes, number, Region(region)).map_err(PageFault::Bad)
    }

    fn insert(&mut self, key: Key, page: Page, capacity: usize) -> io::Result<()> {
        self.make_place(capacity)?;
        self.entries.insert(key, Entry { page: Box::new(page), dirty: false, used: false });
        self.clock.push_back(key);
        Ok(())
    }

    fn make_place(&mut self, capacity: usize) -> io::Result<()> {
        while self.entries.len() + self.below.len() >= capacity {
            let oldest = self.clock.pop_front().expect("every entry is on the clock");
            if oldest.0 == NO_FILE {
                if !self.below.evict(oldest.1) {
                    self.clock.push_back(oldest);
                }
                continue;
            }
            let entry = self.entries.get_mut(&oldest).expect("the clock knows only entries");
            if std::mem::take(&mut entry.used) {
                self.clock.push_back(oldest);
                continue;
            }
            self.write_if_dirty(oldest)?;
            self.entries.remove(&oldest);
        }
        Ok(())
    }

    fn write_if_dirty(&mut self, key: Key) -> io::Result<()> {
        if self.entries.get(&key).is_some_and(|entry| entry.dirty) {
            self.write(key)
        } else {
            Ok(())
        }
    }

    /// The page in memory was changed: from here on it exists.
    fn note_change(&mut self, key: Key, write_back: WriteBack) -> io::Result<()> {
        if write_back == WriteBack::Unchanged {
            return Ok(());
        }
        let entry = self.entries.get_mut(&key).expect("the caller has it");
        entry.dirty = true;
        self.below.page_changed(key.0, key.1);
        if let Some(index) = self.indexes.get_mut(&key.0)
            && index.pages.insert(id(key.1))
        {
            index.unwritten.insert(id(key.1));
        }
        if write_back == WriteBack::Now { self.write(key) } else { Ok(()) }
    }

    fn write(&mut self, key: Key) -> io::Result<()> {
        let (number, region) = (key.0, Region(key.1));
        let Some(index) = self.indexes.get_mut(&number) else { return Ok(()) };
        let entry = self.entries.get_mut(&key).expect("the caller has it");
        self.unsynced.insert(number);
        index.file.write_at(page_offset_bytes(region), &entry.page.encode(number, region))?;
        entry.dirty = false;
        if index.unwritten.remove(id(region.0)) {
            index.unlogged.push(id(region.0));
            index.roomy.remove(id(region.0));
        }
        Ok(())
    }

    fn begin_sync(&mut self, number: FileNumber) -> Option<Syncing<F>> {
        self.unsynced.remove(&number);
        let index = self.indexes.get_mut(&number)?;
        let new = std::mem::take(&mut index.unlogged);
        Some(Syncing { file: index.file.clone(), log: index.log.clone(), new })
    }

    fn end_sync(&mut self, number: FileNumber, mut new: Vec<u32>, done: bool) {
        let Some(index) = self.indexes.get_mut(&number) else { return };
        if done {
            index.logged += new.len() as u64;
        } else {
            new.append(&mut index.unlogged);
            index.unlogged = new;
            self.unsynced.insert(number);
        }
    }
}
