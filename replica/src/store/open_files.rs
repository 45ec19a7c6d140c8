//! Which files of a directory are open: a bounded number, whatever the length of the chain.
//!
//! Owns their descriptors. A file that *rests* may be closed and is opened again when it is used;
//! others stay open. Promises that a file of which something isn't synced is never closed: the
//! kernel tells an error of writing back to those who had it open then. A resting file that is
//! removed can be read as long as somebody has it, as any open file can.
//!
//! ```text
//!           rests, and all is synced, and others want to be open
//! open ───────────────────────────────────────────────────────────▶ closed
//!   ◀──────────────────────────── used ──────────────────────────────
//! ```

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::resource::{Resource, getrlimit};
use slab::Slab;

use super::error::is_out_of_descriptors;

/// Those of some 1 300 layers: what is opened again for each read costs as much as the read.
const OPEN_FILES: u64 = 4096;

/// Half of what this process may have, for the rest is for its clients.
pub(crate) fn open_files_max() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(OPEN_FILES, |(soft, _)| soft);
    (limit / 2).min(OPEN_FILES) as usize
}

pub(crate) struct OpenFiles {
    max: usize,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    files: Slab<Entry>,
    open: usize,
    /// Where the search for one that can be closed goes on.
    hand: usize,
}

struct Entry {
    path: PathBuf,
    options: OpenOptions,
    file: Option<Rc<File>>,
    rests: bool,
    /// Changed since the last sync that began, through this descriptor.
    unsynced: bool,
    /// Changes and syncs that run.
    busy: u32,
    /// Since the hand came by.
    used: bool,
}

impl Entry {
    fn may_be_closed(&self) -> bool {
        self.rests && self.file.is_some() && !self.unsynced && self.busy == 0
    }
}

/// One file, open or closed.
pub(crate) struct OpenFile {
    files: Rc<OpenFiles>,
    key: usize,
}

/// Something that has to end before the file may be closed.
pub(crate) struct Running<'a> {
    file: &'a OpenFile,
    leaves_unsynced: bool,
}

impl Running<'_> {
    pub(crate) fn succeeded(mut self) {
        self.leaves_unsynced = false;
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.file.with(|entry| {
            entry.busy -= 1;
            entry.unsynced |= self.leaves_unsynced;
        });
    }
}

impl OpenFiles {
    pub(crate) fn new(max: usize) -> Rc<Self> {
        Rc::new(Self { max, state: RefCell::default() })
    }

    /// `again`: how it is opened once it was closed.
    pub(crate) fn open(
        self: &Rc<Self>,
        path: PathBuf,
        options: &OpenOptions,
        again: OpenOptions,
    ) -> io::Result<OpenFile> {
        let mut state = self.state.borrow_mut();
        let file = Some(Rc::new(state.open(&path, options, self.max)?));
        let (rests, unsynced, busy, used) = (false, false, 0, true);
        let entry = Entry { path, options: again, file, rests, unsynced, busy, used };
        let key = state.files.insert(entry);
        Ok(OpenFile { files: self.clone(), key })
    }

    /// A file is about to go by this name, and stays for those who have it.
    pub(crate) fn keep_removed(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        let named = state.files.iter().filter(|(_, entry)| entry.path == path);
        let keys: Vec<usize> = named.map(|(key, _)| key).collect();
        for key in keys {
            state.reopen(key, self.max)?;
            state.files[key].rests = false;
        }
        Ok(())
    }
}

impl State {
    /// Makes a place for it first. Where descriptors have run out all the same, others give theirs.
    fn open(&mut self, path: &Path, options: &OpenOptions, max: usize) -> io::Result<File> {
        while self.open >= max && self.close_one() {}
        loop {
            match options.open(path) {
                Err(error) if is_out_of_descriptors(&error) && self.close_one() => {}
                Err(error) => return Err(error),
                Ok(file) => {
                    self.open += 1;
                    return Ok(file);
                }
            }
        }
    }

    fn reopen(&mut self, key: usize, max: usize) -> io::Result<Rc<File>> {
        self.files[key].used = true;
        if let Some(file) = &self.files[key].file {
            return Ok(file.clone());
        }
        let (path, options) = (self.files[key].path.clone(), self.files[key].options.clone());
        let file = Rc::new(self.open(&path, &options, max)?);
        self.files[key].file = Some(file.clone());
        Ok(file)
    }

    /// Of those that can be closed, one that wasn't used lately.
    fn close_one(&mut self) -> bool {
        // Twice around: the first time all may have been used.
        for _ in 0..2 * self.files.capacity() {
            self.hand = (self.hand + 1) % self.files.capacity();
            let Some(entry) = self.files.get_mut(self.hand) else { continue };
            if entry.may_be_closed() && !std::mem::take(&mut entry.used) {
                entry.file = None;
                self.open -= 1;
                return true;
            }
        }
        false
    }
}

impl OpenFile {
    fn with<R>(&self, work: impl FnOnce(&mut Entry) -> R) -> R {
        work(&mut self.files.state.borrow_mut().files[self.key])
    }

    /// Its descriptor, which stays open as long as the answer lives.
    pub(crate) fn get(&self) -> io::Result<Rc<File>> {
        self.files.state.borrow_mut().reopen(self.key, self.files.max)
    }

    /// It may be closed while nothing of it is unsynced. Whoever had it open before has left nothing
    /// that isn't durable and has to be.
    pub(crate) fn rest(&self) {
        self.with(|entry| entry.rests = true);
    }

    /// To be held while something of it changes.
    pub(crate) fn change(&self) -> Running<'_> {
        self.with(|entry| entry.busy += 1);
        Running { file: self, leaves_unsynced: true }
    }

    /// To be held while it is synced, and told when that has succeeded. What changes meanwhile isn't
    /// covered.
    pub(crate) fn sync(&self) -> Running<'_> {
        self.with(|entry| {
            entry.busy += 1;
            entry.unsynced = false;
        });
        Running { file: self, leaves_unsynced: true }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let mut state = self.files.state.borrow_mut();
        let entry = state.files.remove(self.key);
        state.open -= usize::from(entry.file.is_some());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    struct Scene {
        dir: tempfile::TempDir,
        files: Rc<OpenFiles>,
    }

    impl Scene {
        fn new(max: usize) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            Self { dir, files: OpenFiles::new(max) }
        }

        fn file(&self, name: &str) -> OpenFile {
            let path = self.dir.path().join(name);
            let mut again = OpenOptions::new();
            again.read(true).write(true);
            let mut options = again.clone();
            self.files.open(path, options.create(true), again).expect("room")
        }

        /// Uses so many other files that whoever may be closed is.
        fn crowd(&self) {
            let others =
                (0..3 * self.files.max).map(|number| self.file(&format!("other-{number}")));
            let others: Vec<OpenFile> = others.inspect(OpenFile::rest).collect();
            assert!(others.iter().any(is_open));
        }
    }

    fn is_open(file: &OpenFile) -> bool {
        file.with(|entry| entry.file.is_some())
    }

    #[test]
    fn what_rests_is_closed_for_others_and_opened_again_when_it_is_used() {
        let scene = Scene::new(3);
        let files: Vec<OpenFile> =
            (0..20).map(|number| scene.file(&number.to_string())).inspect(OpenFile::rest).collect();
        assert_eq!(files.iter().filter(|file| is_open(file)).count(), 3);
        for (file, byte) in files.iter().zip(0..) {
            let running = file.change();
            file.get().expect("it opens").write_all_at(&[byte], 0).expect("room");
            drop(running);
            file.sync().succeeded();
        }
        for (file, byte) in files.iter().zip(0..) {
            let mut read = [99];
            file.get().expect("it opens").read_exact_at(&mut read, 0).expect("it was written");
            assert_eq!(read, [byte]);
        }
        assert_eq!(scene.files.state.borrow().open, 3);
        drop(files);
        assert_eq!(scene.files.state.borrow().open, 0);
    }

    /// A kernel that can't write it back says so to those who had it open then. Whoever opens it
    /// later is told that all is well.
    #[test]
    fn what_isnt_synced_stays_open_whatever_happens_meanwhile() {
        let scene = Scene::new(2);
        let file = scene.file("written");
        scene.crowd();
        assert!(is_open(&file), "it doesn't rest");
        file.rest();
        let change = file.change();
        scene.crowd();
        assert!(is_open(&file), "it is being written");
        drop(change);
        scene.crowd();
        assert!(is_open(&file), "it was written");
        let sync = file.sync();
        scene.crowd();
        assert!(is_open(&file), "it is being synced");
        drop(sync);
        scene.crowd();
        assert!(is_open(&file), "the sync failed");
        let (sync, change) = (file.sync(), file.change());
        drop(change);
        sync.succeeded();
        scene.crowd();
        assert!(is_open(&file), "it was written since the sync began");
        file.sync().succeeded();
        scene.crowd();
        assert!(!is_open(&file), "nothing is left to be told");
    }

    /// A join removes the files of a layer that somebody is reading.
    #[test]
    fn a_removed_file_that_somebody_has_can_be_read_to_the_end() {
        let scene = Scene::new(2);
        let path = scene.dir.path().join("removed");
        let file = scene.file("removed");
        std::fs::write(&path, "bytes").expect("room");
        file.rest();
        scene.crowd();
        assert!(!is_open(&file));
        scene.files.keep_removed(&path).expect("it opens");
        std::fs::remove_file(&path).expect("it is there");
        scene.crowd();
        let mut read = [0; 5];
        file.get().expect("it is open").read_exact_at(&mut read, 0).expect("it is there");
        assert_eq!(&read, b"bytes");
    }
}
