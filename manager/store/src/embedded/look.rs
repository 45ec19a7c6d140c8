//! A file that redb may write and repair as it likes, without a byte of it being changed: what is
//! written stays in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

const PAGE_BYTES: u64 = 4096;

#[derive(Debug)]
pub struct Look {
    file: File,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    length_bytes: u64,
    /// The file's bytes count up to here; what lies behind is zero.
    of_file_bytes: u64,
    /// By their number, each whole.
    written: BTreeMap<u64, Box<[u8]>>,
}

impl Look {
    pub fn new(file: File) -> io::Result<Self> {
        let length_bytes = file.metadata()?.len();
        let seen = Seen { length_bytes, of_file_bytes: length_bytes, written: BTreeMap::new() };
        Ok(Self { file, seen: Mutex::new(seen) })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Zeroes behind its end.
    fn read_file(&self, seen: &Seen, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = seen.of_file_bytes.saturating_sub(offset).min(out.len() as u64);
        let (of_file, behind) = out.split_at_mut(usize::try_from(there).expect("of a slice"));
        behind.fill(0);
        self.file.read_exact_at(of_file, offset)
    }
}

/// The parts of a range that lie in one page each: page, where in it, where in the range.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let in_page = usize::try_from(at % PAGE_BYTES).expect("of a page");
        let size = (PAGE_BYTES as usize - in_page).min(length - done);
        let range = done..done + size;
        done += size;
        (size > 0).then_some((at / PAGE_BYTES, in_page, range))
    })
}

impl StorageBackend for Look {
    fn len(&self) -> io::Result<u64> {
        Ok(self.seen().length_bytes)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let seen = self.seen();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > seen.length_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_file(&seen, offset, out)?;
        if seen.written.is_empty() {
            return Ok(());
        }
        for (page, at, range) in parts(offset, out.len()) {
            if let Some(bytes) = seen.written.get(&page) {
                let size = range.len();
                out[range].copy_from_slice(&bytes[at..at + size]);
            }
        }
        Ok(())
    }

    fn set_len(&self, length_bytes: u64) -> io::Result<()> {
        let mut seen = self.seen();
        seen.length_bytes = length_bytes;
        seen.of_file_bytes = seen.of_file_bytes.min(length_bytes);
        seen.written.split_off(&length_bytes.div_ceil(PAGE_BYTES));
        let in_last = usize::try_from(length_bytes % PAGE_BYTES).expect("of a page");
        if in_last > 0
            && let Some(last) = seen.written.get_mut(&(length_bytes / PAGE_BYTES))
        {
            last[in_last..].fill(0);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut seen = self.seen();
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > seen.length_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (page, at, range) in parts(offset, data.len()) {
            if !seen.written.contains_key(&page) {
                let mut bytes = vec![0; PAGE_BYTES as usize];
                self.read_file(&seen, page * PAGE_BYTES, &mut bytes)?;
                seen.written.insert(page, bytes.into());
            }
            let bytes = seen.written.get_mut(&page).expect("it is there by now");
            bytes[at..at + range.len()].copy_from_slice(&data[range]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, Vec<u8>),
        SetLength(u64),
        Read(u64, usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..20_000_u64, prop::collection::vec(any::<u8>(), 0..9000))
                .prop_map(|(offset, data)| Op::Write(offset, data)),
            (0..20_000_u64).prop_map(Op::SetLength),
            (0..20_000_u64, 0..9000_usize).prop_map(|(offset, length)| Op::Read(offset, length)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_reads_like_a_copy_and_the_file_stays(
            before in prop::collection::vec(any::<u8>(), 0..12_000),
            ops in prop::collection::vec(op(), 0..20),
        ) {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&before).unwrap();
            let look = Look::new(file.reopen().unwrap()).unwrap();
            let copy = InMemoryBackend::new();
            copy.set_len(before.len() as u64).unwrap();
            copy.write(0, &before).unwrap();
            for op in ops {
                match op {
                    Op::Write(offset, data) => {
                        let (is, wanted) = (look.write(offset, &data), copy.write(offset, &data));
                        prop_assert_eq!(is.is_ok(), wanted.is_ok());
                    }
                    Op::SetLength(length) => {
                        look.set_len(length).unwrap();
                        copy.set_len(length).unwrap();
                    }
                    Op::Read(offset, length) => {
                        let (mut is, mut wanted) = (vec![1; length], vec![1; length]);
                        let read = (look.read(offset, &mut is), copy.read(offset, &mut wanted));
                        prop_assert_eq!(read.0.is_ok(), read.1.is_ok());
                        prop_assert!(read.0.is_err() || is == wanted);
                    }
                }
                prop_assert_eq!(look.len().unwrap(), copy.len().unwrap());
            }
            prop_assert_eq!(std::fs::read(file.path()).unwrap(), before);
        }
    }
}
