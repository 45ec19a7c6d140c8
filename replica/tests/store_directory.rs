//! The store on a real directory, with io_uring, with a pool of threads, direct and buffered.

mod store;

use ankole_replica::chain::{ChainChange, ChainOp, Seal};
use ankole_replica::store::file::{Directory, DirectoryOptions};
use ankole_replica::store::{Store, StoreError, StoreOptions, View};
use ankole_replica::types::{BlockIndex, BlockRange, ChainOpId, LayerId};
use store::{Fill, GENERATION, identity, read_fill, run, write_fill};

const SIZE: u64 = 8 << 20;

fn ways() -> Vec<DirectoryOptions> {
    let each = [(true, true), (true, false), (false, true), (false, false)];
    each.map(|(uring, direct)| DirectoryOptions { uring, direct, ..Default::default() }).into()
}

async fn open(path: &std::path::Path, options: &DirectoryOptions) -> Store<Directory> {
    let directory = Directory::open(path, options).expect("the directory is there");
    Store::open(directory, StoreOptions::default()).await.expect("it opens")
}

async fn format(path: &std::path::Path) -> Result<(), StoreError> {
    let directory = Directory::open(path, &DirectoryOptions::default()).expect("it is there");
    Store::format(directory, identity(), SIZE, LayerId(1)).await
}

/// The first thing a replica is for, by every way to the disk that a machine may leave us.
#[test]
fn what_was_written_is_read_after_the_store_was_closed_and_opened() {
    for options in ways() {
        run(async {
            let dir = tempfile::tempdir().expect("a directory");
            format(dir.path()).await.expect("it is empty");
            let store = open(dir.path(), &options).await;
            println!("{options:?}: {:?}", store.storage().data_path());
            let range = BlockRange::new(BlockIndex(250), 20);
            write_fill(&store, range, Fill(7)).await.expect("there is room");
            store.flush().await.expect("the disk works");
            store.close().await.expect("the disk works");
            let store = open(dir.path(), &options).await;
            assert_eq!(read_fill(&store, View::Top, range).await, vec![Fill(7); 20]);
            let before = BlockRange::new(BlockIndex(249), 1);
            assert_eq!(read_fill(&store, View::Top, before).await, [Fill(0)]);
        });
    }
}

#[test]
fn a_snapshot_keeps_its_bytes_while_the_head_is_written() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        format(dir.path()).await.expect("it is empty");
        let store = open(dir.path(), &DirectoryOptions::default()).await;
        let range = BlockRange::new(BlockIndex(0), 8);
        write_fill(&store, range, Fill(1)).await.expect("there is room");
        let change = ChainChange::Snapshot { seal: Seal::default(), new_head: LayerId(2) };
        let snapshot = ChainOp { id: ChainOpId(1), change };
        store.apply(&snapshot).await.expect("it is allowed");
        store.apply(&snapshot).await.expect("repeating does nothing");
        write_fill(&store, BlockRange::new(BlockIndex(2), 3), Fill(2)).await.expect("room");
        store.zero(BlockRange::new(BlockIndex(6), 1), GENERATION).await.expect("it works");
        let top = [1, 1, 2, 2, 2, 1, 0, 1].map(Fill);
        assert_eq!(read_fill(&store, View::Top, range).await, top);
        assert_eq!(read_fill(&store, View::Layer(LayerId(1)), range).await, [Fill(1); 8]);
        drop(store);
        let store = open(dir.path(), &DirectoryOptions::default()).await;
        assert_eq!(read_fill(&store, View::Top, range).await, top);
    });
}

#[test]
fn a_directory_that_is_in_use_or_isnt_empty_is_refused_with_what_is_in_the_way() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("thesis.txt"), "years of work").expect("writable");
        let error = format(dir.path()).await.expect_err("it isn't empty").to_string();
        assert!(error.contains("thesis.txt"), "{error}");
        std::fs::remove_file(dir.path().join("thesis.txt")).expect("it is there");
        format(dir.path()).await.expect("it is empty");
        let error = format(dir.path()).await.expect_err("it has a replica").to_string();
        assert!(error.contains("vol-1") && error.contains("r1"), "{error}");
        let _first = open(dir.path(), &DirectoryOptions::default()).await;
        let second =
            Directory::open(dir.path(), &DirectoryOptions::default()).expect("it is there");
        let error = Store::open(second, StoreOptions::default()).await.err().expect("it is locked");
        let pid = std::process::id().to_string();
        assert!(error.to_string().contains(&pid), "{error}");
    });
}
