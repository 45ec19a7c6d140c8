//! What operations cost, counted: calls of the disk, not time.

mod store;

use ankole_blockdev::disk::Buffer;
use ankole_replica::chain::{ChainChange, ChainOp, Seal};
use ankole_replica::store::crash::{Disk, Faults};
use ankole_replica::store::{Store, StoreOptions, View};
use ankole_replica::types::{BlockIndex, BlockRange, ChainOpId, LayerId, Region};
use store::{Fill, identity, read_fill, run, write_fill};

const TEBIBYTE: u64 = 1 << 40;

async fn new_store(size_bytes: u64) -> (Disk, Store<Disk>) {
    let disk = Disk::new(1);
    Store::format(disk.clone(), identity(), size_bytes, LayerId(1)).await.expect("a new disk");
    let store = open(&disk).await;
    (disk, store)
}

async fn open(disk: &Disk) -> Store<Disk> {
    Store::open(disk.clone(), StoreOptions::default()).await.expect("it opens")
}

async fn snapshot(store: &Store<Disk>, number: u32) {
    let change = ChainChange::Snapshot { seal: Seal::default(), new_head: LayerId(number + 1) };
    store.apply(&ChainOp { id: ChainOpId(number.into()), change }).await.expect("a sound disk");
}

fn one(block: u64) -> BlockRange {
    BlockRange::new(BlockIndex(block), 1)
}

/// Calls of the disk that `work` makes.
async fn calls<T>(disk: &Disk, work: impl Future<Output = T>) -> (u64, T) {
    disk.set_faults(Faults::default());
    let done = work.await;
    (disk.calls(), done)
}

/// Each layer had its index looked at: 5 ms at 400 snapshots.
#[test]
fn a_hole_is_known_without_a_read_however_many_snapshots_there_are() {
    run(async {
        let (disk, store) = new_store(1 << 30).await;
        for number in 1..=1000 {
            snapshot(&store, number).await;
        }
        let (count, read) = calls(&disk, read_fill(&store, View::Top, one(77))).await;
        assert_eq!((count, read), (0, vec![Fill(0)]));
        let (count, _) = calls(&disk, read_fill(&store, View::Layer(LayerId(500)), one(7))).await;
        assert_eq!(count, 0);
    });
}

/// Each read walked the layers from the newest on, a page each: with 500 snapshots random reads fell
/// to a tenth.
#[test]
fn a_block_is_found_with_one_read_whichever_of_500_layers_has_it() {
    run(async {
        let (disk, store) = new_store(1 << 30).await;
        let range = BlockRange::new(BlockIndex(0), 200);
        write_fill(&store, range, Fill(1)).await.expect("room");
        for number in 1..=500 {
            snapshot(&store, number).await;
            let block = u64::from(number) % 100;
            write_fill(&store, one(block), Fill(u64::from(number) + 1)).await.expect("room");
        }
        let expected = |block: u64| match block {
            0..100 => Fill((if block == 0 { 500 } else { 400 + block }) + 1),
            _ => Fill(1),
        };
        let (first, read) = calls(&disk, read_fill(&store, View::Top, one(150))).await;
        assert_eq!(read, [Fill(1)]);
        assert!(first <= 502, "each layer's page once, and the data: {first}");
        for block in 0..200 {
            let (count, read) = calls(&disk, read_fill(&store, View::Top, one(block))).await;
            assert_eq!((count, read), (1, vec![expected(block)]), "block {block}: the data alone");
        }
        // A snapshot and a write to the region: the new layer is looked at, and it is known again.
        snapshot(&store, 501).await;
        write_fill(&store, one(7), Fill(999)).await.expect("room");
        let (count, read) = calls(&disk, read_fill(&store, View::Top, one(0))).await;
        assert_eq!(read, [expected(0)]);
        assert!(count <= 503, "{count} calls");
        let (count, read) = calls(&disk, read_fill(&store, View::Top, one(7))).await;
        assert_eq!((count, read), (1, vec![Fill(999)]));
        let view = View::Layer(LayerId(250));
        assert_eq!(read_fill(&store, view, one(49)).await, [Fill(250)]);
    });
}

/// A rebuild asks each layer what it has: it looked at every page of the volume, for minutes.
#[test]
fn what_an_empty_layer_of_64_tebibytes_has_is_known_without_a_read() {
    run(async {
        let (disk, store) = new_store(64 * TEBIBYTE).await;
        write_fill(&store, one(1 << 30), Fill(1)).await.expect("room");
        snapshot(&store, 1).await;
        let (count, all) = calls(&disk, store.occupied(LayerId(1), Region(0), 9)).await;
        assert_eq!((count, all.expect("there")), (0, (vec![Region(1 << 22)], None)));
        let (count, all) = calls(&disk, store.occupied(LayerId(2), Region(0), 9)).await;
        assert_eq!((count, all.expect("there")), (0, (vec![], None)));
        // A flush, whose size is that of what is dirty, and two pages: no more was written.
        let (count, report) = calls(&disk, store.verify()).await;
        assert_eq!(report.expect("a sound disk").blocks_checked, 1);
        assert!(count < 5, "{count} calls");
    });
}

/// An incremental backup looked at every region in every layer.
#[test]
fn what_changed_between_snapshots_costs_what_was_written() {
    run(async {
        let (disk, store) = new_store(TEBIBYTE).await;
        for number in 1..=400 {
            write_fill(&store, one(u64::from(number) * 1000), Fill(number.into()))
                .await
                .expect("room");
            snapshot(&store, number).await;
        }
        let (after, upto) = (Some(LayerId(100)), LayerId(400));
        let mut found = Vec::new();
        let mut from = Some(Region(0));
        let mut pages = 0;
        while let Some(region) = from {
            let (count, page) = calls(&disk, store.changed(after, upto, region, 64)).await;
            let (regions, next) = page.expect("a sound disk");
            assert!(count <= 64 + 300, "no more is looked at for one page: {count}");
            assert!(next.is_none_or(|next| next > region));
            found.extend(regions);
            pages += count;
            from = next;
        }
        let expected: Vec<u64> = (101..=400).map(|number| number * 1000).collect();
        let blocks = found
            .iter()
            .flat_map(|(region, blocks)| blocks.slots().map(|slot| region.0 * 256 + slot as u64));
        assert_eq!(blocks.collect::<Vec<_>>(), expected);
        assert!(pages <= 300, "{pages} pages were read of 300 that exist");
    });
}

/// Which pages there are is read from the log; not one of them is.
#[test]
fn a_volume_of_64_tebibytes_with_10_gibibytes_written_is_opened_without_reading_its_index() {
    run(async {
        let (disk, store) = new_store(64 * TEBIBYTE).await;
        for region in 0..10_240 {
            write_fill(&store, one(region * 256), Fill(region + 1)).await.expect("room");
        }
        let regions: Vec<Region> = (0..10_240).map(Region).collect();
        store.clear(&regions).await.expect("a sound disk");
        store.close().await.expect("a sound disk");
        disk.set_faults(Faults::default());
        let store = open(&disk).await;
        let count = disk.calls();
        let intent = 64 * TEBIBYTE / (62 << 20) / 128; // it is read whole
        assert!(count < intent + 100, "{count} calls");
        let first = store.occupied(LayerId(1), Region(0), 9).await.expect("there");
        assert_eq!(first, (regions[..9].to_vec(), Some(Region(9))));
        let rest = store.occupied(LayerId(1), Region(9), u64::MAX).await.expect("there");
        assert_eq!(rest, (regions[9..].to_vec(), None));
        let (report, _) = store.read(View::Top, one(256), Buffer::zeroed(4096)).await;
        assert_eq!(report.expect("it is there").unverified, []);
    });
}

/// The room of a page is taken with the first write of its region; a snapshot takes none.
#[test]
fn an_index_takes_space_by_what_it_holds() {
    run(async {
        let (disk, store) = new_store(64 * TEBIBYTE).await;
        write_fill(&store, one(1 << 33), Fill(1)).await.expect("room");
        store.flush().await.expect("a sound disk");
        disk.set_trouble(ankole_replica::store::crash::Trouble {
            full: true,
            ..Default::default()
        });
        write_fill(&store, one(1 << 33), Fill(2)).await.expect("an overwrite needs no room");
        let refused = write_fill(&store, one(7), Fill(3)).await.expect_err("it needs room");
        assert!(refused.is_no_space(), "{refused}");
        assert_eq!(store.marked_regions().expect("sound").len(), 1, "nothing was changed");
        store.flush().await.expect("it needs no room");
        assert_eq!(store.failure(), None);
        assert_eq!(read_fill(&store, View::Top, one(7)).await, [Fill(0)]);
        disk.set_trouble(Default::default());
        let (few, ()) = calls(&disk, snapshot(&store, 1)).await;
        for number in 2..500 {
            snapshot(&store, number).await;
        }
        let (many, ()) = calls(&disk, snapshot(&store, 500)).await;
        assert!(many <= few, "the 500th costs {many} calls, the first {few}");
    });
}

/// What a change of the chain asks of a disk.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    calls: u64,
    syncs: u64,
    looks: u64,
    written_bytes: u64,
}

/// As an engine does it: take the room, cut, ask what became of it.
async fn cost_of_snapshot(disk: &Disk, store: &Store<Disk>, number: u32) -> Cost {
    write_fill(store, one(7), Fill(number.into())).await.expect("room");
    let seal = Seal { name: Some(format!("snapshot-{number:04}")), ..Seal::default() };
    let change = ChainChange::Snapshot { seal, new_head: LayerId(number + 1) };
    let op = ChainOp { id: ChainOpId(number.into()), change };
    disk.set_faults(Faults::default());
    store.prepare(&op).await.expect("room");
    store.apply(&op).await.expect("a sound disk");
    assert_eq!(store.chain().layers.len(), number as usize + 1);
    let (calls, syncs, looks) = (disk.calls(), disk.syncs(), disk.looks());
    Cost { calls, syncs, looks, written_bytes: disk.written_bytes() }
}

/// All files of the directory were listed, and the size of each layer was asked for.
#[test]
fn creating_snapshot_500_costs_what_the_5th_costs() {
    run(async {
        let (disk, store) = new_store(1 << 30).await;
        for number in 1..5 {
            cost_of_snapshot(&disk, &store, number).await;
        }
        let fifth = cost_of_snapshot(&disk, &store, 5).await;
        for number in 6..500 {
            cost_of_snapshot(&disk, &store, number).await;
        }
        let last = cost_of_snapshot(&disk, &store, 500).await;
        println!("{fifth:?}, {last:?}");
        let counts = |cost: &Cost| (cost.calls, cost.syncs, cost.looks);
        assert_eq!(counts(&last), counts(&fifth));
        // `chain.meta` names all layers, and is written to both of its slots.
        let bytes_per_layer = (last.written_bytes - fifth.written_bytes) / 495;
        assert!(bytes_per_layer < 2 * 256, "{bytes_per_layer} bytes for each layer there is");
    });
}

/// Each file of each layer was synced once more, since an earlier process might not have.
#[test]
fn the_first_flush_syncs_what_may_be_unsynced_and_no_sealed_layer() {
    run(async {
        let (disk, store) = new_store(1 << 30).await;
        for number in 1..=100 {
            write_fill(&store, one(7), Fill(number.into())).await.expect("room");
            snapshot(&store, number).await;
        }
        write_fill(&store, one(7), Fill(1000)).await.expect("room");
        drop(store);
        let disk = disk.after_kill();
        let store = open(&disk).await;
        disk.set_faults(Faults::default());
        store.flush().await.expect("a sound disk");
        assert!(disk.syncs() <= 4, "{} syncs", disk.syncs());
        drop(store);
        let store = open(&disk.after_power_cut(1)).await;
        assert_eq!(read_fill(&store, View::Top, one(7)).await, [Fill(1000)]);
        assert_eq!(read_fill(&store, View::Layer(LayerId(50)), one(7)).await, [Fill(50)]);
    });
}
