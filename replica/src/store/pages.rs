//! The index pages in memory: a bounded part of them.
//!
//! Owns reading, changing and writing back pages of the index files. Promises that a change of
//! presence is with the kernel before the caller goes on, and that sums get there before a page
//! leaves memory. A page that can't be believed is never cached and never written over.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::rc::Rc;

use tokio::sync::Mutex;

use super::storage::StorageFile;
use crate::chain::index::{Blocks, PAGE_BYTES, Page, PageError};
use crate::types::{REGION_BYTES, Region};

/// A page in memory with what it takes to find it.
const ENTRY_BYTES: usize = 1400;

pub(super) type FileNumber = u32;
type Key = (FileNumber, u64);

pub(super) fn file_bytes(layer_bytes: u64) -> u64 {
    layer_bytes / REGION_BYTES * PAGE_BYTES as u64
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
    /// One sync at a time: whoever returns knows that those before have ended too.
    gate: Mutex<()>,
}

struct State<F> {
    files: HashMap<FileNumber, Rc<F>>,
    /// Files that were written since their last sync.
    unsynced: BTreeSet<FileNumber>,
    entries: HashMap<Key, Entry>,
    /// Keys in the order in which they are looked at for eviction.
    clock: VecDeque<Key>,
}

struct Entry {
    page: Box<Page>,
    dirty: bool,
    used: bool,
}

impl<F: StorageFile> Pages<F> {
    pub(super) fn new(capacity_bytes: usize) -> Self {
        let state = State {
            files: HashMap::new(),
            unsynced: BTreeSet::new(),
            entries: HashMap::new(),
            clock: VecDeque::new(),
        };
        let capacity = (capacity_bytes / ENTRY_BYTES).max(16);
        Self { state: RefCell::new(state), capacity, gate: Mutex::new(()) }
    }

    /// `unsynced`: an earlier process may have written to it.
    pub(super) fn add_file(&self, number: FileNumber, file: F, unsynced: bool) {
        let mut state = self.state.borrow_mut();
        state.files.insert(number, Rc::new(file));
        if unsynced {
            state.unsynced.insert(number);
        }
    }

    pub(super) fn file(&self, number: FileNumber) -> Rc<F> {
        self.state.borrow().files[&number].clone()
    }

    /// Drops a file whose layer is gone; what it had in memory isn't written.
    pub(super) fn drop_file(&self, number: FileNumber) {
        let mut state = self.state.borrow_mut();
        state.files.remove(&number);
        state.unsynced.remove(&number);
        state.entries.retain(|key, _| key.0 != number);
        state.clock.retain(|key| key.0 != number);
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
        let mut state = self.state.borrow_mut();
        let key = (file, region.0);
        if !state.entries.contains_key(&key) {
            let (page, lost) = state.load(key)?;
            if !lost.is_empty() {
                return Err(PageFault::Bad(PageError::SumsLost(lost)));
            }
            state.insert(key, page, self.capacity).map_err(PageFault::Io)?;
        }
        let entry = state.entries.get_mut(&key).expect("it is there now");
        entry.used = true;
        let (result, write_back) = change(&mut entry.page);
        match write_back {
            WriteBack::Unchanged => {}
            WriteBack::Later => entry.dirty = true,
            WriteBack::Now => state.write(key).map_err(PageFault::Io)?,
        }
        Ok(result)
    }

    /// The page as it is on the disk or in memory, and the blocks whose sums are lost.
    pub(super) fn load_damaged(
        &self,
        file: FileNumber,
        region: Region,
    ) -> Result<(Page, Blocks), PageFault> {
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
        state.write(key)
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

    /// Syncs every file that was written.
    pub(super) async fn sync(&self) -> io::Result<()> {
        let _one_at_a_time = self.gate.lock().await;
        let unsynced: Vec<(FileNumber, Rc<F>)> = {
            let mut state = self.state.borrow_mut();
            let numbers = std::mem::take(&mut state.unsynced);
            numbers.into_iter().filter_map(|n| Some((n, state.files.get(&n)?.clone()))).collect()
        };
        for (number, file) in unsynced {
            if let Err(error) = file.sync().await {
                self.state.borrow_mut().unsynced.insert(number);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl<F: StorageFile> State<F> {
    fn load(&self, (number, region): Key) -> Result<(Page, Blocks), PageFault> {
        let mut bytes = [0; PAGE_BYTES];
        let offset_bytes = page_offset_bytes(Region(region));
        let file = self.files.get(&number).ok_or(PageFault::Gone)?;
        file.read_at(offset_bytes, &mut bytes).map_err(PageFault::Io)?;
        Page::decode(&bytes, number, Region(region)).map_err(PageFault::Bad)
    }

    fn insert(&mut self, key: Key, page: Page, capacity: usize) -> io::Result<()> {
        while self.entries.len() >= capacity {
            let oldest = self.clock.pop_front().expect("every entry is on the clock");
            let entry = self.entries.get_mut(&oldest).expect("the clock knows only entries");
            if std::mem::take(&mut entry.used) {
                self.clock.push_back(oldest);
                continue;
            }
            self.write_if_dirty(oldest)?;
            self.entries.remove(&oldest);
        }
        self.entries.insert(key, Entry { page: Box::new(page), dirty: false, used: false });
        self.clock.push_back(key);
        Ok(())
    }

    fn write_if_dirty(&mut self, key: Key) -> io::Result<()> {
        if self.entries.get(&key).is_some_and(|entry| entry.dirty) {
            self.write(key)
        } else {
            Ok(())
        }
    }

    fn write(&mut self, key: Key) -> io::Result<()> {
        let (number, region) = (key.0, Region(key.1));
        let Some(file) = self.files.get(&number) else { return Ok(()) };
        let entry = self.entries.get_mut(&key).expect("the caller has it");
        self.unsynced.insert(number);
        entry.dirty = true; // until it is written
        file.write_at(page_offset_bytes(region), &entry.page.encode(number, region))?;
        entry.dirty = false;
        Ok(())
    }
}
