//! A sparse disk in memory: simple enough to be right by reading it.
//!
//! It holds the blocks that were written and not since cleared whole; what it says about extents is
//! therefore exact. Nothing survives the process, so flush has nothing to do.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;

use super::{Allocation, BLOCK_BYTES, Buffer, Disk, Durability, Extent, Hold};

const BLOCK: usize = BLOCK_BYTES as usize;

/// See the module.
pub struct MemoryDisk {
    size_bytes: Cell<u64>,
    /// Blocks that hold data, by their index. Absent ones read as zeroes.
    blocks: RefCell<BTreeMap<u64, Box<[u8; BLOCK]>>>,
}

impl MemoryDisk {
    pub fn new(size_bytes: u64) -> Self {
        Self { size_bytes: Cell::new(size_bytes), blocks: RefCell::default() }
    }

    /// Memory that the data takes.
    pub fn allocated_bytes(&self) -> u64 {
        self.blocks.borrow().len() as u64 * BLOCK_BYTES
    }

    fn clear(&self, at: Extent) {
        let mut blocks = self.blocks.borrow_mut();
        for piece in pieces(at) {
            if piece.length == BLOCK {
                blocks.remove(&piece.block);
            } else if let Some(block) = blocks.get_mut(&piece.block) {
                block[piece.start..piece.start + piece.length].fill(0);
            }
        }
    }
}

/// The part of an extent that lies in one block.
struct Piece {
    block: u64,
    /// Where it starts within the block.
    start: usize,
    length: usize,
}

fn pieces(at: Extent) -> impl Iterator<Item = Piece> {
    (at.offset_bytes / BLOCK_BYTES..at.end_bytes().div_ceil(BLOCK_BYTES)).map(move |block| {
        let first = block * BLOCK_BYTES;
        let start = at.offset_bytes.saturating_sub(first) as usize;
        let end = (at.end_bytes() - first).min(BLOCK_BYTES) as usize;
        Piece { block, start, length: end - start }
    })
}

impl Disk for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.get()
    }

    async fn read(&self, at: Extent, mut into: Buffer) -> (io::Result<Hold>, Buffer) {
        let blocks = self.blocks.borrow();
        let mut rest: &mut [u8] = &mut into;
        for piece in pieces(at) {
            let (here, after) = rest.split_at_mut(piece.length);
            match blocks.get(&piece.block) {
                Some(block) => here.copy_from_slice(&block[piece.start..][..piece.length]),
                None => here.fill(0),
            }
            rest = after;
        }
        (Ok(Hold::none()), into)
    }

    async fn write(&self, at: Extent, from: Buffer, _: Durability) -> io::Result<Hold> {
        let mut blocks = self.blocks.borrow_mut();
        let mut rest: &[u8] = &from;
        for piece in pieces(at) {
            let (here, after) = rest.split_at(piece.length);
            let block = blocks.entry(piece.block).or_insert_with(|| Box::new([0; BLOCK]));
            block[piece.start..][..piece.length].copy_from_slice(here);
            rest = after;
        }
        Ok(Hold::none())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn trim(&self, at: Extent) -> io::Result<Hold> {
        let start = at.offset_bytes.next_multiple_of(BLOCK_BYTES);
        let end = at.end_bytes() / BLOCK_BYTES * BLOCK_BYTES;
        if start < end {
            self.clear(Extent { offset_bytes: start, length_bytes: end - start });
        }
        Ok(Hold::none())
    }

    async fn write_zeroes(&self, at: Extent, _: Durability) -> io::Result<Hold> {
        self.clear(at);
        Ok(Hold::none())
    }

    async fn extents(&self, at: Extent) -> io::Result<Vec<(Extent, Allocation)>> {
        let blocks = self.blocks.borrow();
        let mut runs: Vec<(Extent, Allocation)> = Vec::new();
        let mut push = |start: u64, end: u64, allocation| match runs.last_mut() {
            _ if start >= end => {}
            Some((last, same)) if *same == allocation => last.length_bytes += end - start,
            _ => runs.push((Extent { offset_bytes: start, length_bytes: end - start }, allocation)),
        };
        let mut covered = at.offset_bytes;
        let indexes = at.offset_bytes / BLOCK_BYTES..at.end_bytes().div_ceil(BLOCK_BYTES);
        for (&index, _) in blocks.range(indexes) {
            let start = (index * BLOCK_BYTES).max(at.offset_bytes);
            let end = ((index + 1) * BLOCK_BYTES).min(at.end_bytes());
            push(covered, start, Allocation::Zero);
            push(start, end, Allocation::Data);
            covered = end;
        }
        push(covered, at.end_bytes(), Allocation::Zero);
        Ok(runs)
    }

    async fn resize(&self, size_bytes: u64) -> io::Result<()> {
        if size_bytes < self.size_bytes.get() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.size_bytes.set(size_bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait<T>(done: impl Future<Output = T>) -> T {
        let mut done = std::pin::pin!(done);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match done.as_mut().poll(&mut cx) {
            std::task::Poll::Ready(value) => value,
            std::task::Poll::Pending => panic!("memory never waits"),
        }
    }

    fn at(offset_bytes: u64, length_bytes: u64) -> Extent {
        Extent { offset_bytes, length_bytes }
    }

    /// Its extents are the truth that tests compare with.
    #[test]
    fn it_holds_what_was_written_and_forgets_what_was_cleared_whole() {
        let disk = MemoryDisk::new(1 << 20);
        let data = Buffer::copy_of(&[1; 1024]);
        drop(wait(disk.write(at(8192 - 512, 1024), data, Durability::Volatile)).unwrap());
        assert_eq!(disk.allocated_bytes(), 8192);
        let runs = wait(disk.extents(at(512, 1 << 16))).unwrap();
        let expected = [
            (at(512, 4096 - 512), Allocation::Zero),
            (at(4096, 8192), Allocation::Data),
            (at(12288, (1 << 16) + 512 - 12288), Allocation::Zero),
        ];
        assert_eq!(runs, expected);
        drop(wait(disk.trim(at(4096 + 512, 8192 - 512))).unwrap());
        assert_eq!(disk.allocated_bytes(), 4096, "only whole blocks are trimmed");
        let (_, data) = wait(disk.read(at(7168, 2048), Buffer::copy_of(&[7; 2048])));
        assert_eq!(data[..512], [0; 512]);
        assert_eq!(data[512..1024], [1; 512]);
        assert_eq!(data[1024..], [0; 1024]);
    }

    #[test]
    fn it_grows_and_never_shrinks() {
        let disk = MemoryDisk::new(8192);
        wait(disk.resize(16384)).unwrap();
        assert_eq!(wait(disk.resize(8192)).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(disk.size_bytes(), 16384);
    }
}
