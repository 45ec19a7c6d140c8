//! The log beside a layer's index: which regions have a page there.
//!
//! Owns the file `layer-NNNNNNNN.pages`. Promises that a region gets into it only after its page is
//! durable; so a page that the log knows and that reads as zeroes was lost by the disk, and is no
//! hole. After a crash the last entries may be missing: the next opening finds those pages in the
//! index. An entry never goes: a page that exists does so as long as its file.
//!
//! ```text
//! sector of 512 bytes, little-endian; the last one is written again until it is full
//! │ 0 magic "ANKPAGES" │ 8 file u32 │ 12 sector u32 │ 16 count u32 │ 20 count × region u32 │ … │ 508 crc32c
//! ```

use std::cell::{Cell, RefCell};
use std::io;

use roaring::RoaringBitmap;

use super::pages::FileNumber;
use super::storage::StorageFile;

const SECTOR_BYTES: usize = 512;
const MAGIC: [u8; 8] = *b"ANKPAGES";
const ENTRIES_AT: usize = 20;
const CHECK_AT: usize = SECTOR_BYTES - 4;
/// Regions of one sector.
const ENTRIES: usize = (CHECK_AT - ENTRIES_AT) / 4;
/// Read and written at once.
const PIECE_BYTES: usize = 64 << 10;
/// Room is taken in steps of a file system's block.
const ROOM_BYTES: u64 = 4096;

pub(super) struct PageLog<F> {
    file: F,
    number: FileNumber,
    /// Before the last one.
    full_sectors: Cell<u64>,
    last: RefCell<Vec<u32>>,
    room_bytes: Cell<u64>,
}

impl<F: StorageFile> PageLog<F> {
    /// Reads it up to the first sector that isn't what was written; what follows is written anew.
    pub(super) fn open(file: F, number: FileNumber) -> io::Result<(Self, RoaringBitmap)> {
        let mut regions = RoaringBitmap::new();
        let (mut full_sectors, mut last) = (0, Vec::new());
        let length = file.length_bytes()? / SECTOR_BYTES as u64 * SECTOR_BYTES as u64;
        'pieces: for at in (0..length).step_by(PIECE_BYTES) {
            let mut piece = vec![0; PIECE_BYTES.min((length - at) as usize)];
            file.read_at(at, &mut piece)?;
            for sector in piece.chunks_exact(SECTOR_BYTES) {
                if last.len() == ENTRIES {
                    full_sectors += 1;
                    last.clear();
                }
                match decode(sector, number, full_sectors) {
                    Some(entries) => last = entries,
                    None => break 'pieces,
                }
                regions.extend(&last);
                if last.len() < ENTRIES {
                    break 'pieces;
                }
            }
        }
        let (full_sectors, last) = (Cell::new(full_sectors), RefCell::new(last));
        Ok((Self { file, number, full_sectors, last, room_bytes: Cell::new(0) }, regions))
    }

    /// Takes the room for so many more entries.
    pub(super) fn make_room(&self, more: u64) -> io::Result<()> {
        let sectors = self.full_sectors.get() + 1 + more.div_ceil(ENTRIES as u64);
        let wanted = (sectors * SECTOR_BYTES as u64).next_multiple_of(ROOM_BYTES);
        if wanted > self.room_bytes.get() {
            self.file.allocate(self.room_bytes.get()..wanted)?;
            self.room_bytes.set(wanted);
        }
        Ok(())
    }

    /// Their pages are durable. It is itself once the file is synced.
    pub(super) fn append(&self, regions: &[u32]) -> io::Result<()> {
        let mut last = self.last.borrow_mut();
        let first = self.full_sectors.get();
        let entries: Vec<u32> = last.iter().chain(regions).copied().collect();
        let sectors = entries.chunks(ENTRIES).zip(first..);
        let bytes: Vec<u8> =
            sectors.flat_map(|(entries, sector)| encode(entries, self.number, sector)).collect();
        for (piece, index) in bytes.chunks(PIECE_BYTES).zip(0..) {
            let at = first * SECTOR_BYTES as u64 + index * PIECE_BYTES as u64;
            self.file.write_at(at, piece)?;
        }
        let full = entries.len().saturating_sub(1) / ENTRIES;
        self.full_sectors.set(first + full as u64);
        *last = entries[full * ENTRIES..].to_vec();
        Ok(())
    }

    pub(super) fn rest(&self) {
        self.file.rest();
    }

    pub(super) async fn sync(&self) -> io::Result<()> {
        self.file.sync().await
    }
}

fn encode(entries: &[u32], number: FileNumber, sector: u64) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&number.to_le_bytes());
    bytes[12..16].copy_from_slice(&(sector as u32).to_le_bytes());
    bytes[16..20].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    for (place, entry) in bytes[ENTRIES_AT..CHECK_AT].chunks_exact_mut(4).zip(entries) {
        place.copy_from_slice(&entry.to_le_bytes());
    }
    let check = crc32c::crc32c(&bytes[..CHECK_AT]);
    bytes[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// `None`: it isn't this sector of this log.
fn decode(bytes: &[u8], number: FileNumber, sector: u64) -> Option<Vec<u32>> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let count = word(16) as usize;
    let is_it = bytes[..8] == MAGIC
        && word(CHECK_AT) == crc32c::crc32c(&bytes[..CHECK_AT])
        && (word(8), word(12)) == (number, sector as u32)
        && count <= ENTRIES;
    is_it.then(|| (0..count).map(|index| word(ENTRIES_AT + index * 4)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::crash::Disk;
    use crate::store::storage::{FileKind, Storage};

    fn open(disk: &Disk) -> (PageLog<<Disk as Storage>::File>, Vec<u32>) {
        let file = disk.open("log", FileKind::Metadata).expect("it is there");
        let (log, regions) = PageLog::open(file, 7).expect("a sound disk");
        (log, regions.into_iter().collect())
    }

    #[test]
    fn what_was_appended_is_read_whatever_the_steps() {
        for step in [1, 3, ENTRIES, ENTRIES + 1, 40 * ENTRIES] {
            let disk = Disk::new(1);
            disk.put_file("log", &[]);
            let regions: Vec<u32> = (0..50 * ENTRIES as u32).map(|region| region * 3).collect();
            for (count, part) in regions.chunks(step).enumerate() {
                let (log, read) = open(&disk);
                assert_eq!(read, regions[..(count * step).min(regions.len())]);
                log.make_room(part.len() as u64).expect("room");
                log.append(part).expect("a sound disk");
                log.append(&[]).expect("nothing to do");
            }
            assert_eq!(open(&disk).1, regions);
        }
    }

    /// Zeroed, torn, of another layer or another place: what follows can't be believed to belong
    /// here, and what is appended takes its place.
    #[test]
    fn a_sector_that_isnt_what_was_written_ends_the_log() {
        let disk = Disk::new(1);
        disk.put_file("log", &[]);
        let regions: Vec<u32> = (0..3 * ENTRIES as u32).collect();
        open(&disk).0.append(&regions).expect("a sound disk");
        let foreign = encode(&regions[..5], 8, 1);
        let misplaced = encode(&regions[..5], 7, 2);
        for bytes in [&[0; SECTOR_BYTES][..], &[1], &foreign, &misplaced] {
            let disk = disk.after_kill();
            disk.damage("log", SECTOR_BYTES as u64, bytes);
            let (log, read) = open(&disk);
            assert_eq!(read, regions[..ENTRIES]);
            log.append(&regions[ENTRIES..]).expect("a sound disk");
            assert_eq!(open(&disk).1, regions);
        }
    }
}
