//! The file under redb, with room reserved for it.
//!
//! redb makes its file longer long before it writes there, so the file is sparse. What is allocated
//! reaches [`RESERVE_BYTES`] beyond the last byte that was ever written: on a full disk that many changes
//! can still be written, such as those of in-sync sets, on which users' writes wait. While less is
//! reserved the disk *lacks room*, and nothing is to be made that only takes more.
//!
//! Nothing is reserved by a file system that writes elsewhere each time (btrfs).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use redb::StorageBackend;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

pub const RESERVE_BYTES: u64 = 8 << 20;

/// What is known of the disk, whoever has the file open.
#[derive(Debug, Default)]
pub struct Health {
    /// There is less than the reserve.
    lacks_room: AtomicBool,
    /// What was written may be lost, though it can be read: the page cache forgets after telling once.
    sync_failed: AtomicBool,
}

impl Health {
    pub fn lacks_room(&self) -> bool {
        self.lacks_room.load(Ordering::SeqCst)
    }

    pub fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::SeqCst)
    }

    pub fn sync_has_failed(&self) {
        self.sync_failed.store(true, Ordering::SeqCst);
    }

    /// All was written anew.
    pub fn is_written_anew(&self) {
        self.sync_failed.store(false, Ordering::SeqCst);
    }
}

/// Held by one program at a time.
#[derive(Debug)]
pub struct DiskFile(Arc<Disk>);

#[derive(Debug)]
pub struct Disk {
    file: File,
    pub health: Arc<Health>,
    room: Mutex<Room>,
}

#[derive(Debug)]
struct Room {
    /// Where what was written ends.
    written_bytes: u64,
    /// All before is allocated.
    allocated_bytes: u64,
}

impl DiskFile {
    /// [`io::ErrorKind::WouldBlock`] if another program has it open.
    pub fn new(file: File, health: Arc<Health>) -> io::Result<Self> {
        file.try_lock()?;
        let room = Room { written_bytes: end_of_data(&file)?, allocated_bytes: 0 };
        let disk = Disk { file, health, room: Mutex::new(room) };
        disk.reserve();
        Ok(Self(Arc::new(disk)))
    }

    /// For as long as redb has it open.
    pub fn disk(&self) -> Weak<Disk> {
        Arc::downgrade(&self.0)
    }
}

impl Disk {
    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries it again if there was too little.
    pub fn reserve(&self) {
        let mut room = self.room();
        let wanted = room.written_bytes + RESERVE_BYTES;
        if room.allocated_bytes >= wanted {
            self.health.lacks_room.store(false, Ordering::SeqCst);
            return;
        }
        let (start, length) = (room.allocated_bytes, wanted - room.allocated_bytes);
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, start, length) {
            // A file system that can't reserve isn't one without room.
            Ok(()) | Err(Errno::OPNOTSUPP) => {
                room.allocated_bytes = wanted;
                if self.health.lacks_room.swap(false, Ordering::SeqCst) {
                    tracing::info!("the store's disk has room again");
                }
            }
            Err(error) => {
                if !self.health.lacks_room.swap(true, Ordering::SeqCst) {
                    tracing::error!(
                        error = %io::Error::from(error),
                        "the store's disk has no room: nothing can be created; what was reserved \
                         serves changes of what is there; free some"
                    );
                }
            }
        }
    }
}

/// Holes at its end don't count.
fn end_of_data(file: &File) -> io::Result<u64> {
    let mut end = 0;
    loop {
        match seek(file, SeekFrom::Data(end)) {
            Ok(start) => end = seek(file, SeekFrom::Hole(start))?,
            Err(Errno::NXIO) => return Ok(end),
            // One that doesn't know holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(file.metadata()?.len()),
            Err(error) => return Err(error.into()),
        }
    }
}

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.file.read_exact_at(out, offset)
    }

    fn set_len(&self, length_bytes: u64) -> io::Result<()> {
        let is_shorter = length_bytes < self.len()?;
        self.0.file.set_len(length_bytes)?;
        if is_shorter {
            // All that lies behind was given back, the reserve with it.
            let mut room = self.0.room();
            room.written_bytes = room.written_bytes.min(length_bytes);
            room.allocated_bytes = room.allocated_bytes.min(length_bytes);
            drop(room);
            self.0.reserve();
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.reserve();
        self.0.file.sync_data().inspect_err(|_| self.0.health.sync_has_failed())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.file.write_all_at(data, offset)?;
        let mut room = self.0.room();
        room.written_bytes = room.written_bytes.max(offset + data.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn disk() -> DiskFile {
        DiskFile::new(tempfile::tempfile().unwrap(), Arc::default()).unwrap()
    }

    fn allocated_bytes(disk: &DiskFile) -> u64 {
        disk.0.file.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn room_is_kept_behind_what_was_written_and_the_length_is_redbs() {
        let disk = disk();
        disk.set_len(64 << 20).unwrap();
        disk.write(3 << 20, &[1; 4096]).unwrap();
        disk.sync_data().unwrap();
        assert_eq!(disk.len().unwrap(), 64 << 20);
        let is = allocated_bytes(&disk);
        let wanted = (3 << 20) + 4096 + RESERVE_BYTES;
        assert!((wanted..wanted + (1 << 20)).contains(&is), "{is}");
        assert!(!disk.0.health.lacks_room());
        for length in [32 << 20, 1 << 20] {
            disk.set_len(length).unwrap();
            let wanted = length.min(3 << 20) + RESERVE_BYTES;
            assert!(allocated_bytes(&disk) >= wanted, "also when it gets shorter: {length}");
        }
    }

    #[test]
    fn a_file_that_is_opened_again_has_its_reserve_behind_its_data() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        file.as_file().write_all_at(&[1; 4096], 1 << 20).unwrap();
        let disk = DiskFile::new(file.reopen().unwrap(), Arc::default()).unwrap();
        let is = allocated_bytes(&disk);
        assert!((RESERVE_BYTES..RESERVE_BYTES + (4 << 20)).contains(&is), "{is}");
        let second = DiskFile::new(file.reopen().unwrap(), Arc::default());
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
