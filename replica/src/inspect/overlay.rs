//! A directory that is only looked at: what the store would write stays in memory.
//!
//! The store's own code opens it, so what is told about a directory is what a replica would find.
//! Promises that no file of the directory is made, changed, renamed or removed, and that the lock is
//! left alone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ankole_blockdev::disk::Buffer;

use crate::store::file::next_data;
use crate::store::open_files::{OpenFile, OpenFiles, open_files_max};
use crate::store::storage::{FileKind, FileSystem, LockError};
use crate::store::{Storage, StorageFile};

/// What is written at once: a page of the index, a sector of the intent map.
const PIECE_BYTES_MAX: usize = 64 << 10;

pub(super) struct Overlay {
    path: PathBuf,
    files: Rc<OpenFiles>,
}

pub(super) struct OverlayFile {
    /// None is below what was made here.
    file: Option<OpenFile>,
    /// By their offset. Whole pages and sectors: none overlaps another in part.
    pieces: RefCell<BTreeMap<u64, Vec<u8>>>,
}

impl Overlay {
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.to_owned(), files: OpenFiles::new(open_files_max()) }
    }
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "it is only looked at")
}

impl Storage for Overlay {
    type File = OverlayFile;
    /// Who inspects has looked for a holder already.
    type Lock = ();

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn lock(&self) -> Result<(), LockError> {
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&self.path)?;
        names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, _name: &str, _kind: FileKind) -> io::Result<OverlayFile> {
        Ok(OverlayFile { file: None, pieces: RefCell::default() })
    }

    fn open(&self, name: &str, _kind: FileKind) -> io::Result<OverlayFile> {
        let mut options = OpenOptions::new();
        options.read(true);
        let file = self.files.open(self.path.join(name), &options, options.clone())?;
        file.rest();
        Ok(OverlayFile { file: Some(file), pieces: RefCell::default() })
    }

    /// Who renames has the file open.
    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Ok(())
    }

    /// A replica would tidy up when it opens.
    fn remove(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    async fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn boot_id(&self) -> io::Result<String> {
        crate::process::boot_id()
    }

    fn file_system(&self) -> io::Result<FileSystem> {
        crate::store::file::file_system(&self.path)
    }
}

impl StorageFile for OverlayFile {
    fn length_bytes(&self) -> io::Result<u64> {
        self.file.as_ref().map_or(Ok(0), |file| Ok(file.get()?.metadata()?.len()))
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.file.as_ref().map_or(Ok(0), |file| Ok(file.get()?.metadata()?.blocks() * 512))
    }

    fn extend(&self, _length_bytes: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn allocate(&self, _range_bytes: Range<u64>) -> io::Result<()> {
        Err(read_only())
    }

    fn next_data(&self, from_bytes: u64) -> io::Result<Option<Range<u64>>> {
        let next = |file: &OpenFile| next_data(&*file.get()?, from_bytes);
        let below = self.file.as_ref().map(next).transpose()?;
        let below = below.flatten();
        let pieces = self.pieces.borrow();
        let piece = pieces.range(from_bytes..).next();
        let piece = piece.map(|(&at, piece)| at..at + piece.len() as u64);
        Ok(match (below, piece) {
            (Some(below), Some(piece)) if piece.start < below.start => Some(piece),
            (below, piece) => below.or(piece),
        })
    }

    /// What lies behind the new end isn't looked at.
    fn truncate(&self, _length_bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn read_at(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        match &self.file {
            Some(file) => file.get()?.read_exact_at(into, offset_bytes)?,
            None => into.fill(0),
        }
        let end = offset_bytes + into.len() as u64;
        let pieces = self.pieces.borrow();
        let near = offset_bytes.saturating_sub(PIECE_BYTES_MAX as u64)..end;
        for (&at, piece) in pieces.range(near) {
            let (from, to) = (at.max(offset_bytes), (at + piece.len() as u64).min(end));
            if from < to {
                let part = &piece[(from - at) as usize..(to - at) as usize];
                into[(from - offset_bytes) as usize..(to - offset_bytes) as usize]
                    .copy_from_slice(part);
            }
        }
        Ok(())
    }

    fn write_at(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
        if from.len() > PIECE_BYTES_MAX {
            return Err(read_only());
        }
        self.pieces.borrow_mut().insert(offset_bytes, from.to_vec());
        Ok(())
    }

    async fn read(&self, offset_bytes: u64, into: Buffer) -> (io::Result<()>, Buffer) {
        let mut into = into;
        (self.read_at(offset_bytes, &mut into), into)
    }

    async fn write(&self, _: u64, _: Rc<Buffer>, _: Range<usize>) -> io::Result<()> {
        Err(read_only())
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    async fn punch(&self, _range_bytes: Range<u64>) -> io::Result<()> {
        Err(read_only())
    }
}
