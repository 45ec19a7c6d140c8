//! A volume that is much larger than memory. Alone in its program, since it measures it.

mod store;

use std::path::Path;

use ankole_replica::store::file::{Directory, DirectoryOptions, is_volatile};
use ankole_replica::store::{Store, StoreOptions, View};
use ankole_replica::types::{BlockIndex, BlockRange, LayerId};
use store::{Fill, identity, read_fill, run, skip, write_fill};

/// With room for 1 500 pages of the index.
async fn open(path: &Path) -> Store<Directory> {
    let directory = Directory::open(path, &DirectoryOptions::default()).expect("it is there");
    let options = StoreOptions { index_cache_bytes: 2 << 20 };
    Store::open(directory, options).await.expect("it opens")
}

fn rss_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = text.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("two numbers");
    pages * 4096
}

/// A large volume must cost neither a scan when it is opened nor memory for all of its index: in
/// the first sketch each TiB took 2 GiB.
#[test]
fn a_volume_of_a_tebibyte_is_opened_and_used_in_bounded_memory() {
    const TEBIBYTE: u64 = 1 << 40;
    const STRIDE: u64 = 25_600 - 1; // blocks: each in a group of its own, or with one other
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        if is_volatile(dir.path()).expect("it is there") {
            return skip("its index would take 2 GiB of memory: the temporary folder is a tmpfs");
        }
        let directory = Directory::open(dir.path(), &DirectoryOptions::default()).expect("there");
        Store::format(directory, identity(), TEBIBYTE, LayerId(1)).await.expect("2 GiB are free");
        let before = rss_bytes();
        let grown = || rss_bytes().saturating_sub(before);
        let start = std::time::Instant::now();
        let store = open(dir.path()).await;
        println!("opened in {:?}, {} KiB more", start.elapsed(), (grown()) >> 10);
        assert!(grown() < 24 << 20, "an intent map of 8 MiB, and little else");
        // Each block in another region: 10 000 pages pass through the cache.
        for index in 0..10_000 {
            let block = BlockRange::new(BlockIndex(index * STRIDE % (TEBIBYTE / 4096)), 1);
            write_fill(&store, block, Fill(index + 1)).await.expect("there is room");
        }
        store.flush().await.expect("the disk works");
        let used = grown();
        println!("after 10 000 blocks in as many regions: {} MiB more", used >> 20);
        assert!(used < 40 << 20, "2 MiB of pages, some 30 MiB of buffers; all pages are 14 MiB");
        drop(store);
        let store = open(dir.path()).await;
        for index in (0..10_000).step_by(997) {
            let block = BlockRange::new(BlockIndex(index * STRIDE % (TEBIBYTE / 4096)), 1);
            assert_eq!(read_fill(&store, View::Top, block).await, [Fill(index + 1)]);
        }
    });
}
