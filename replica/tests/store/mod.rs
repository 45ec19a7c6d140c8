//! What the tests of the store share.

#![allow(dead_code, reason = "each test program uses its part")]

use std::future::Future;
use std::rc::Rc;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};
use ankole_replica::store::{Identity, Storage, Store, StoreError, View};
use ankole_replica::types::{BlockRange, Generation, Incarnation};

pub(crate) const GENERATION: Generation = Generation::FIRST;
const BLOCK: usize = BLOCK_BYTES as usize;

/// Runs a test's future where the store can live.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime starts");
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

pub(crate) fn identity() -> Identity {
    Identity { volume: "vol-1".into(), replica: "r1".into(), incarnation: Incarnation(7) }
}

/// A block's content as a number: 0 is zeroes, others fill the block with bytes that depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Fill(pub(crate) u64);

impl Fill {
    pub(crate) fn put(self, block: &mut [u8]) {
        for (index, word) in block.chunks_exact_mut(8).enumerate() {
            let value = if self.0 == 0 { 0 } else { self.0 << 16 | index as u64 };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// What a whole block holds; `Err` if it is no fill, such as a mixture of two.
    pub(crate) fn of(block: &[u8]) -> Result<Self, Vec<u64>> {
        let word = |index: usize| {
            u64::from_le_bytes(block[index * 8..][..8].try_into().expect("eight bytes"))
        };
        let fill = Self(word(0) >> 16);
        let mut expected = vec![0; BLOCK];
        fill.put(&mut expected);
        if block == expected {
            return Ok(fill);
        }
        Err((0..8).map(|sector| word(sector * 64) >> 16).collect())
    }
}

impl Fill {
    /// What each sector of a block holds.
    pub(crate) fn sectors_of(block: &[u8]) -> [Self; 8] {
        std::array::from_fn(|sector| {
            let bytes = &block[sector * 512..][..512];
            let first = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
            let fill = Self(first >> 16);
            for (index, word) in bytes.chunks_exact(8).enumerate() {
                let place = (sector * 64 + index) as u64;
                let expected = if fill.0 == 0 { 0 } else { fill.0 << 16 | place };
                let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
                assert_eq!(word, expected, "a sector of no fill");
            }
            fill
        })
    }
}

pub(crate) async fn write_fills<S: Storage>(
    store: &Store<S>,
    range: BlockRange,
    fill: impl Fn(u64) -> Fill,
) -> Result<(), StoreError> {
    let mut buffer = Buffer::zeroed(range.length_bytes() as usize);
    for (index, block) in buffer.chunks_exact_mut(BLOCK).enumerate() {
        fill(index as u64).put(block);
    }
    let sums: Vec<u32> =
        buffer.chunks_exact(BLOCK).map(ankole_replica::checksum::of_block).collect();
    store.write(range, Rc::new(buffer), 0, &sums, GENERATION).await
}

pub(crate) async fn write_fill<S: Storage>(
    store: &Store<S>,
    range: BlockRange,
    fill: Fill,
) -> Result<(), StoreError> {
    write_fills(store, range, |_| fill).await
}

pub(crate) async fn read_fill<S: Storage>(
    store: &Store<S>,
    view: View,
    range: BlockRange,
) -> Vec<Fill> {
    let buffer = Buffer::zeroed(range.length_bytes() as usize);
    let (report, buffer) = store.read(view, range, buffer).await;
    let report = report.unwrap_or_else(|error| panic!("reading {range}: {error}"));
    assert_eq!(report.sums.len() as u64, range.count);
    buffer.chunks_exact(BLOCK).map(|block| Fill::of(block).expect("whole blocks")).collect()
}

pub(crate) mod world;

/// Says that a test wasn't run, or fails where nothing may be left out.
pub(crate) fn skip(why: &str) {
    let required = std::env::var_os("ANKOLE_TEST_REQUIRE_TOOLS").is_some_and(|set| set == "1");
    assert!(!required, "nothing may be skipped here: {why}");
    println!("SKIPPED: {why}");
}
