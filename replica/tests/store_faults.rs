//! Calls that fail, and files that somebody else has had in hand.

mod store;

use ankole_blockdev::disk::Buffer;
use ankole_replica::chain::{ChainChange, ChainOp, Seal};
use ankole_replica::store::crash::{Disk, Faults, Random, Trouble};
use ankole_replica::store::{
    BlockSum, Blocks, Continuity, Membership, ReadError, Replacement, ReplicaState, Storage as _,
    Store, StoreError, StoreOptions, View,
};
use ankole_replica::types::{
    BlockIndex, BlockRange, ChainOpId, Fence, Generation, LayerId, Region, Session,
    VOLUME_UNIT_BYTES,
};
use store::world::{Crash, Op, World, member, open, random_ops};
use store::{Fill, GENERATION, identity, read_fill, run, write_fill};

const RANGE: BlockRange = BlockRange { first: BlockIndex(10), count: 4 };

/// Every kind of operation, twice, in a fixed order.
fn every_operation() -> Vec<Op> {
    let range = |first, count| BlockRange::new(BlockIndex(first), count);
    vec![
        Op::Write { range: range(0, 300), first: 1000 },
        Op::Flush,
        Op::Write { range: range(2, 5), first: 2001 },
        Op::Snapshot,
        Op::Write { range: range(0, 40), first: 3001 },
        Op::Zero(range(250, 20)),
        Op::Clear,
        Op::Snapshot,
        Op::Write { range: range(100, 100), first: 4001 },
        Op::Remove(0),
        Op::Join(0),
        Op::Expand,
        Op::Write { range: range(500, 2), first: 5001 },
        Op::Revert(0),
        Op::Write { range: range(7, 1), first: 6001 },
        Op::Reopen,
        Op::Read(range(0, 400)),
        Op::Write { range: range(3, 3), first: 7001 },
        Op::Flush,
    ]
}

async fn calls_of(ops: &[Op]) -> (u64, u64) {
    let mut world = World::new(1).await;
    world.disk.set_faults(Faults::default());
    for op in ops {
        world.play(op).await.expect("a sound disk");
    }
    (world.disk.calls(), world.disk.syncs())
}

/// The power may go at any sync: what was flushed is there, and a change of the chain is done or
/// was never begun. A kill there loses nothing that was answered.
#[test]
fn a_crash_at_every_sync_leaves_a_chain_from_before_or_after() {
    run(async {
        let ops = every_operation();
        let (_, syncs) = calls_of(&ops).await;
        println!("{syncs} syncs");
        for at in 1..=syncs {
            // One kill, and several power cuts: each loses other sectors.
            for seed in 0..6 {
                let crash = if seed == 0 { Crash::Kill } else { Crash::PowerCut };
                println!("{crash:?} at sync {at}, seed {seed}");
                let mut world = World::new(at).await;
                world.disk.set_faults(Faults { end_at_sync: Some(at), ..Faults::default() });
                for op in &ops {
                    if world.play(op).await.is_err() {
                        break;
                    }
                }
                let world = world.crash(crash, at * 10 + seed).await;
                world.check().await;
                world.finish_joins().await;
                world.check().await;
            }
        }
    });
}

/// Cuts the power at every call of the last operation, several times: each loses other sectors.
async fn cut_power_everywhere_in(ops: &[Op], is_slow: bool) {
    // The order of what runs at once is another one with each seed.
    let seeds = if is_slow { 24 } else { 8 };
    let (last, prepare) = ops.split_last().expect("an operation");
    let mut calls = 0;
    for end in 0.. {
        if end > calls {
            break;
        }
        for seed in 0..seeds {
            println!("end at call {end}, seed {seed}");
            let mut world = World::new(seed).await;
            for op in prepare {
                world.play(op).await.expect("a sound disk");
            }
            world.disk.set_slow(is_slow);
            let end_at_call = Some(end).filter(|&end| end > 0);
            world.disk.set_faults(Faults { end_at_call, ..Faults::default() });
            let done = world.play(last).await;
            if end == 0 {
                done.expect("a sound disk");
                calls = calls.max(world.disk.calls());
            }
            world.disk.set_slow(false);
            let world = world.crash(Crash::PowerCut, end * 1000 + seed).await;
            world.check().await;
            world.finish_joins().await;
            world.check().await;
        }
    }
}

/// A join under the head frees the older copy of a block: had the newer one's presence not been
/// durable, a power cut would leave neither.
#[test]
fn a_join_beside_writes_frees_only_what_is_hidden_for_good() {
    let all = BlockRange::new(BlockIndex(0), 300);
    let ops = [
        Op::Write { range: all, first: 1001 },
        Op::Snapshot,
        Op::Remove(0),
        // Something is hidden already, so that the join has to flush, while others write.
        Op::Write { range: RANGE, first: 2001 },
        Op::JoinBesideWrites { choice: 0, first: 5 },
    ];
    run(cut_power_everywhere_in(&ops, true));
}

/// The page of the layer that stays is written sector by sector: presence before the sums would
/// show moved blocks with the sums of what was there before.
#[test]
fn a_join_that_loses_power_is_finished_later_whichever_files_stay() {
    let range = |first, count| BlockRange::new(BlockIndex(first), count);
    for (older, newer) in [(300, 40), (40, 300)] {
        let ops = [
            Op::Write { range: range(0, older), first: 1001 },
            Op::Snapshot,
            Op::Write { range: range(5, newer), first: 2001 },
            Op::Zero(range(20, 4)),
            Op::Snapshot,
            Op::Remove(0),
            Op::Join(0),
        ];
        run(cut_power_everywhere_in(&ops, false));
    }
}

/// Each call in turn fails once, with a bad disk's error and with a full one's. It must be
/// reported or make no difference; what was answered stays; a full disk fails nothing for good.
#[test]
fn any_single_call_may_fail_without_loss() {
    run(async {
        let ops = every_operation();
        let (calls, _) = calls_of(&ops).await;
        println!("{calls} calls");
        for no_space in [false, true] {
            // Reads of cached metadata are most of the calls: every one of the others, some of these.
            for at in (1..=calls).step_by(if no_space { 1 } else { 3 }) {
                let mut world = World::new(at).await;
                world.disk.set_faults(Faults {
                    fail_call: Some(at),
                    no_space,
                    ..Faults::default()
                });
                let mut failed = None;
                for op in &ops {
                    if let Err(error) = world.play(op).await {
                        failed = Some((op.clone(), error));
                        break;
                    }
                }
                world.disk.set_faults(Faults::default());
                let Some((op, error)) = failed else { continue };
                println!("call {at}, no space: {no_space}: {op:?}: {error}");
                if no_space {
                    assert!(error.is_no_space(), "{op:?} at call {at}: {error}");
                    assert_eq!(world.store.failure(), None, "{op:?} at call {at}");
                    if !matches!(op, Op::Reopen) {
                        world.play(&op).await.expect("there is room again");
                        world.check().await;
                        continue;
                    }
                }
                world.crash(Crash::Kill, at).await.check().await;
            }
        }
    });
}

fn sizes_of(disk: &Disk) -> Vec<(String, usize)> {
    let names = disk.observe(|| disk.list().expect("a sound disk"));
    names.into_iter().map(|name| (name.clone(), disk.bytes_of(&name).len())).collect()
}

/// Room is taken on all replicas before the first one changes its chain: nothing shows it, and if
/// nothing comes of it, it is given back, by whoever is there then.
#[test]
fn what_was_prepared_for_a_change_and_not_used_leaves_nothing() {
    run(async {
        let new_head = LayerId(9);
        let snapshot = ChainChange::Snapshot { seal: Seal::default(), new_head };
        let expansion = ChainChange::Expand { size_bytes: 3 * VOLUME_UNIT_BYTES };
        for change in [snapshot, expansion] {
            let world = World::new(1).await;
            let before = sizes_of(&world.disk);
            let chain = world.store.chain();
            let op = ChainOp { id: ChainOpId(chain.last_op.0 + 1), change };
            world.store.prepare(&op).await.expect("a sound disk");
            assert_ne!(sizes_of(&world.disk), before);
            assert_eq!(world.store.chain(), chain);
            world.store.abandon().await.expect("a sound disk");
            assert_eq!(sizes_of(&world.disk), before);

            world.store.prepare(&op).await.expect("a sound disk");
            let world = world.crash(Crash::Kill, 1).await;
            let left = sizes_of(&world.disk);
            assert_eq!(left, before, "{op:?}");
            world.store.prepare(&op).await.expect("a sound disk");
            world.disk.set_trouble(Trouble { full: true, ..Trouble::default() });
            world.store.apply(&op).await.expect("it needs no more room");
        }
    });
}

/// The kernel counts pages as clean after a failed sync: trying again would say "durable" of bytes
/// that are gone.
#[test]
fn a_failed_sync_fails_the_replica_for_good() {
    run(async {
        let world = World::new(1).await;
        write_fill(&world.store, RANGE, Fill(1)).await.expect("a sound disk");
        world.store.flush().await.expect("a sound disk");
        write_fill(&world.store, RANGE, Fill(2)).await.expect("a sound disk");
        // The only call of a flush of overwritten blocks is the sync of the data.
        world.disk.set_faults(Faults { fail_call: Some(1), ..Faults::default() });
        let first = world.store.flush().await;
        assert!(matches!(first, Err(StoreError::Failed { .. })), "{first:?}");
        let again = world.store.flush().await;
        assert!(matches!(again, Err(StoreError::Failed { .. })), "{again:?}");
        let write = write_fill(&world.store, RANGE, Fill(3)).await;
        assert!(matches!(write, Err(StoreError::Failed { .. })), "{write:?}");
        assert_eq!(read_fill(&world.store, View::Top, RANGE).await, [Fill(2); 4], "reads go on");
        let World { disk, store, .. } = world;
        drop(store);
        let store = open(&disk).await.expect("it opens, to be looked at");
        assert_eq!(store.membership().state, ReplicaState::Failed);
        assert!(!store.continuous());
        assert!(matches!(store.flush().await, Err(StoreError::Failed { .. })));
    });
}

/// P5: one flipped bit anywhere in a block is noticed, named, and costs no other block.
#[test]
fn a_rotten_block_is_never_returned() {
    run(async {
        let world = World::new(1).await;
        write_fill(&world.store, RANGE, Fill(9)).await.expect("a sound disk");
        world.store.flush().await.expect("a sound disk");
        world.store.clear(&[Region(0)]).await.expect("a sound disk");
        let World { disk, store, .. } = world;
        store.close().await.expect("a sound disk");
        disk.damage("layer-00000001.data", 12 * 4096 + 77, &[0xff]);
        let store = open(&disk).await.expect("it opens");
        let (report, _) = store.read(View::Top, RANGE, Buffer::zeroed(4 * 4096)).await;
        let Err(ReadError::BadBlocks(bad)) = report else { panic!("{report:?}") };
        assert_eq!(bad.iter().map(|bad| bad.block).collect::<Vec<_>>(), [BlockIndex(12)]);
        assert_eq!(bad[0].layer, LayerId(1));
        let sound = BlockRange::new(BlockIndex(10), 2);
        assert_eq!(read_fill(&store, View::Top, sound).await, [Fill(9); 2]);
        assert_eq!(store.verify().await.expect("it can be read").blocks_bad, 1);
        let block = |fill: Fill| {
            let mut buffer = Buffer::zeroed(4096);
            fill.put(&mut buffer);
            std::rc::Rc::new(buffer)
        };
        let wrong = store.repair(LayerId(1), BlockIndex(12), block(Fill(8)), GENERATION).await;
        assert!(wrong.is_err(), "these bytes were never written there");
        let repaired = store.repair(LayerId(1), BlockIndex(12), block(Fill(9)), GENERATION).await;
        repaired.expect("a peer has the bytes");
        assert_eq!(read_fill(&store, View::Top, RANGE).await, [Fill(9); 4]);
    });
}

/// In a marked region the sum may be old because of a crash, so the bytes are served, but with a
/// warning: the engine has to compare them with a peer before it believes them.
#[test]
fn a_sum_that_was_rebuilt_after_a_crash_is_reported_as_unverified() {
    run(async {
        let world = World::new(1).await;
        write_fill(&world.store, RANGE, Fill(1)).await.expect("a sound disk");
        world.store.flush().await.expect("a sound disk");
        write_fill(&world.store, BlockRange::new(BlockIndex(11), 1), Fill(2)).await.expect("room");
        let World { disk, store, .. } = world;
        drop(store); // the sum of the overwrite was only in memory
        let store = open(&disk.after_kill()).await.expect("it opens");
        assert!(store.continuous(), "a kill loses nothing");
        let (report, _) = store.read(View::Top, RANGE, Buffer::zeroed(4 * 4096)).await;
        assert_eq!(report.expect("it is served").unverified, [BlockIndex(11)]);
        store.mark_verified(RANGE).await.expect("a sound disk");
        let (report, _) = store.read(View::Top, RANGE, Buffer::zeroed(4 * 4096)).await;
        assert_eq!(report.expect("it is served").unverified, []);
    });
}

/// Rule 14's counterexample: a mark that goes before the index is durable leaves good, flushed
/// data with a sum that says it is bad.
#[test]
fn a_cleared_region_needs_no_mercy_after_a_power_cut() {
    for seed in 0..40 {
        println!("seed {seed}");
        run(async {
            let world = World::new(seed).await;
            for fill in 1..4 {
                write_fill(&world.store, RANGE, Fill(fill)).await.expect("a sound disk");
            }
            world.store.clear(&[Region(0)]).await.expect("a sound disk");
            assert_eq!(world.store.marked_regions().expect("sound"), []);
            let disk = world.disk.after_power_cut(seed);
            let store = open(&disk).await.expect("it opens");
            assert_eq!(read_fill(&store, View::Top, RANGE).await, [Fill(3); 4]);
        });
    }
}

/// Data, index, mark: whichever of the syncs of a clearing is the last, a block has its checksum, and
/// what was flushed is there.
#[test]
fn a_clearing_that_loses_power_anywhere_leaves_a_mark_or_durable_data() {
    let range = |first, count| BlockRange::new(BlockIndex(first), count);
    for is_slow in [false, true] {
        let ops = [
            Op::Write { range: range(0, 300), first: 1001 },
            Op::Flush,
            Op::Write { range: range(250, 20), first: 2001 },
            Op::Zero(range(4, 3)),
            Op::Clear,
        ];
        run(cut_power_everywhere_in(&ops, is_slow));
    }
}

/// The engine promises that no write runs in a region that it clears; a replica doesn't rely on
/// that. Without a mark, a power cut after the write would leave a replica that counts as complete
/// and isn't.
#[test]
fn a_write_that_comes_beside_a_clearing_keeps_its_mark() {
    let first_of = |region: u64| BlockRange::new(BlockIndex(region * 256), 4);
    for seed in 0..150 {
        println!("seed {seed}");
        run(async {
            let mut world = World::new(seed).await;
            world.play(&Op::Expand).await.expect("a sound disk");
            let World { disk, store, .. } = &world;
            for region in 0..2 {
                write_fill(store, first_of(region), Fill(1)).await.expect("a sound disk");
            }
            store.flush().await.expect("a sound disk");
            disk.set_slow(true);
            // With regions 0 and 1 written, the whole group is marked.
            let all: Vec<Region> = (0..4).map(Region).collect();
            let (cleared, zero, one) = tokio::join!(
                store.clear(&all),
                write_fill(store, first_of(0), Fill(2)),
                write_fill(store, first_of(1), Fill(2)),
            );
            cleared.expect("a sound disk");
            zero.expect("a sound disk");
            one.expect("a sound disk");
            let (cleared, two) =
                tokio::join!(store.clear(&all[2..]), write_fill(store, first_of(2), Fill(2)));
            cleared.expect("a sound disk");
            two.expect("a sound disk");
            write_fill(store, first_of(2), Fill(3)).await.expect("a sound disk");
            let after = open(&disk.after_power_cut(seed)).await.expect("it opens");
            let marked = after.marked_regions().expect("sound");
            for (region, newest) in [(0, 2), (1, 2), (2, 3)] {
                let into = Buffer::zeroed(4 * 4096);
                let (report, data) = after.read(View::Top, first_of(region), into).await;
                report.expect("a block has its checksum, or a mark that excuses it");
                let is_new = data.chunks_exact(4096).all(|it| Fill::of(it) == Ok(Fill(newest)));
                let is_marked = marked.iter().any(|(it, _)| *it == Region(region));
                assert!(is_new || is_marked, "region {region} has lost a write and says nothing");
            }
        });
    }
}

/// A page that can't be believed is made anew only from a whole region; one of which a part can be
/// read must not be contradicted; and a block that has another checksum isn't touched.
#[test]
fn a_repair_is_checked_against_what_the_replica_still_knows() {
    run(async {
        let world = World::new(1).await;
        write_fill(&world.store, RANGE, Fill(5)).await.expect("a sound disk");
        world.store.clear(&[Region(0)]).await.expect("a sound disk");
        let World { disk, store, .. } = world;
        store.close().await.expect("a sound disk");
        let good = disk.after_kill();
        let patch = |blocks: Blocks, fill: Fill| {
            let mut data = Buffer::zeroed(4 * 4096);
            data.chunks_exact_mut(4096).for_each(|block| fill.put(block));
            let sum = ankole_replica::checksum::of_block(&data[..4096]);
            let there = |slot: usize| (10..14).contains(&slot);
            let sum = |slot| match there(slot) {
                true => BlockSum::Data { sum, verified: true },
                false => BlockSum::Absent,
            };
            (blocks.slots().map(sum).collect::<Vec<_>>(), std::rc::Rc::new(data))
        };
        let repair = async |store: &Store<Disk>, blocks: Blocks, fill: Fill| {
            let (sums, data) = patch(blocks, fill);
            let by = Replacement { blocks, sums: &sums, data: &data };
            store.repair_region(LayerId(1), Region(0), &by, GENERATION).await
        };
        for damaged_at in [40, 512 + 40] {
            let disk = good.after_kill();
            disk.damage("layer-00000001.index", damaged_at, &[0xff; 8]);
            disk.damage("layer-00000001.data", 12 * 4096, &[0xff; 8]);
            let store = open(&disk).await.expect("it opens");
            let part = Blocks::span(10..14);
            assert!(repair(&store, part, Fill(5)).await.is_err(), "a part isn't enough");
            if damaged_at > 512 {
                let absent = vec![BlockSum::Absent; 256];
                let data = std::rc::Rc::new(Buffer::zeroed(0));
                let by = Replacement { blocks: Blocks::ALL, sums: &absent, data: &data };
                let less = store.repair_region(LayerId(1), Region(0), &by, GENERATION).await;
                assert!(less.is_err(), "it knows that there are blocks");
            }
            repair(&store, Blocks::ALL, Fill(5)).await.expect("a peer has the region");
            assert_eq!(read_fill(&store, View::Top, RANGE).await, [Fill(5); 4]);
            drop(store);
            let store = open(&disk.after_power_cut(damaged_at)).await.expect("it opens");
            assert_eq!(read_fill(&store, View::Top, RANGE).await, [Fill(5); 4]);
            let wrong = repair(&store, Blocks::span(10..14), Fill(6)).await;
            assert!(matches!(wrong, Err(StoreError::NotWritten { .. })), "{wrong:?}");
        }
    });
}

/// What a replica missed is found by stamps, which outlive their marks.
#[test]
fn stamps_tell_what_was_written_since_a_generation() {
    run(async {
        let world = World::new(1).await;
        let store = &world.store;
        let [second, third] = [Generation::FIRST.next(), Generation::FIRST.next().next()];
        write_fill(store, RANGE, Fill(1)).await.expect("a sound disk");
        store.clear(&[Region(0)]).await.expect("a sound disk");
        assert_eq!(store.regions_since(None).expect("sound"), [(Region(0), GENERATION)]);
        assert_eq!(store.regions_since(Some(GENERATION)).expect("sound"), []);
        let other = BlockRange::new(BlockIndex(256), 1);
        store.zero(other, second).await.expect("a sound disk");
        assert_eq!(store.marked_regions().expect("sound"), [], "nothing was there to be zeroed");
        write_fill(store, other, Fill(1)).await.expect("a sound disk");
        store.restamp(third).await.expect("a sound disk");
        assert_eq!(store.marked_regions().expect("sound"), [(Region(1), third)]);
        assert_eq!(store.regions_since(Some(second)).expect("sound"), [(Region(1), third)]);
    });
}

#[test]
fn a_fence_and_a_membership_survive_a_power_cut_and_a_fence_never_falls() {
    run(async {
        let World { disk, store, .. } = World::new(1).await;
        let fence = |generation, session| Fence { generation, session: Session(session) };
        let high = fence(Generation::FIRST.next(), 3);
        store.set_fence(high).await.expect("a sound disk");
        store.set_fence(fence(Generation::FIRST, 9)).await.expect("it is ignored");
        for seed in 0..20 {
            let disk = disk.after_power_cut(seed);
            let store = open(&disk).await.expect("it opens");
            assert_eq!(store.fence(), Some(high));
            assert_eq!(store.membership(), member());
        }
    });
}

async fn small_store() -> Disk {
    let World { disk, store, .. } = World::new(1).await;
    write_fill(&store, RANGE, Fill(5)).await.expect("a sound disk");
    let change = ChainChange::Snapshot { seal: Seal::default(), new_head: LayerId(2) };
    store.apply(&ChainOp { id: ChainOpId(1), change }).await.expect("a sound disk");
    write_fill(&store, RANGE, Fill(6)).await.expect("a sound disk");
    store.clear(&[Region(0)]).await.expect("a sound disk");
    store.close().await.expect("a sound disk");
    disk
}

async fn refusal(disk: &Disk) -> String {
    open(disk).await.err().expect("it must not open").to_string()
}

async fn read_zeroed(store: &Store<Disk>, view: View) -> Vec<u64> {
    let (report, _) = store.read(view, RANGE, Buffer::zeroed(4 * 4096)).await;
    let Err(ReadError::BadBlocks(bad)) = report else { panic!("{report:?}") };
    bad.iter().map(|bad| bad.block.0).collect()
}

/// A write that the disk lost, or an extent that it never converted: the page was taken for a hole
/// then, and one replica of three gave zeroes, or an older layer's bytes, as good data.
#[test]
fn a_page_that_was_durable_and_is_zero_is_damage_and_no_hole() {
    run(async {
        for (index, view, fill) in [
            ("layer-00000001.index", View::Layer(LayerId(1)), Fill(5)),
            ("layer-00000002.index", View::Top, Fill(6)),
        ] {
            let disk = small_store().await;
            disk.damage(index, 0, &[0; 2048]);
            let store = open(&disk).await.expect("it opens");
            assert_eq!(read_zeroed(&store, view).await, [10, 11, 12, 13]);
            assert!(store.verify().await.expect("it can be read").blocks_bad > 0);
            assert_eq!(store.count_index().expect("it can be read").damaged_pages, 1);
            let mut data = Buffer::zeroed(4 * 4096);
            data.chunks_exact_mut(4096).for_each(|block| fill.put(block));
            let sum = ankole_replica::checksum::of_block(&data[..4096]);
            let mut sums = vec![BlockSum::Absent; 256];
            sums[10..14].fill(BlockSum::Data { sum, verified: true });
            let by =
                Replacement { blocks: Blocks::ALL, sums: &sums, data: &std::rc::Rc::new(data) };
            let layer = if fill == Fill(5) { LayerId(1) } else { LayerId(2) };
            store.repair_region(layer, Region(0), &by, GENERATION).await.expect("a peer has it");
            assert_eq!(read_fill(&store, view, RANGE).await, [fill; 4]);
            drop(store);
            let store = open(&disk.after_power_cut(1)).await.expect("it opens");
            assert_eq!(read_fill(&store, view, RANGE).await, [fill; 4]);
        }
    });
}

/// The log of pages may itself be what the disk has lost: then the index is asked, and only if that
/// has lost pages too is there nothing to go by.
#[test]
fn a_log_that_is_cut_short_zeroed_older_or_anothers_is_made_good_from_the_index() {
    run(async {
        let sound = small_store().await;
        let older = {
            let World { disk, .. } = World::new(1).await;
            disk.bytes_of("layer-00000001.pages")
        };
        let other = sound.bytes_of("layer-00000002.pages");
        for number in 1..=2 {
            let name = format!("layer-0000000{number}.pages");
            for case in 0..5 {
                let disk = sound.after_kill();
                match case {
                    0 => disk.truncate(&name, 100),
                    1 => disk.damage(&name, 0, &[0; 512]),
                    2 => disk.put_file(&name, &older),
                    3 if number == 1 => disk.put_file(&name, &other),
                    3 => disk.damage(&name, 20, &[9]),
                    _ => disk.delete(&name),
                }
                println!("{name}, case {case}");
                let store = open(&disk).await.expect("the index has its pages");
                assert_eq!(read_fill(&store, View::Top, RANGE).await, [Fill(6); 4]);
                assert_eq!(read_fill(&store, View::Layer(LayerId(1)), RANGE).await, [Fill(5); 4]);
                store.flush().await.expect("a sound disk");
                drop(store);
                // It is good again: a page that is lost now is missed.
                let index = format!("layer-0000000{number}.index");
                disk.damage(&index, 0, &[0; 2048]);
                let store = open(&disk.after_power_cut(case)).await.expect("it opens");
                let view = if number == 1 { View::Layer(LayerId(1)) } else { View::Top };
                assert_eq!(read_zeroed(&store, view).await, [10, 11, 12, 13]);
                drop(store);
                let disk = sound.after_kill();
                if number == 1 {
                    disk.delete(&name);
                    disk.damage(&index, 0, &[0; 2048]);
                    let error = refusal(&disk).await;
                    assert!(error.contains(&name) && error.contains("damaged"), "{error}");
                }
            }
        }
    });
}

#[test]
fn a_file_that_is_missing_cut_off_or_of_another_version_is_named() {
    run(async {
        for name in [
            "replica.meta",
            "chain.meta",
            "intent",
            "layer-00000001.data",
            "layer-00000001.index",
            "layer-00000002.data",
            "layer-00000002.index",
        ] {
            let disk = small_store().await;
            disk.delete(name);
            let error = refusal(&disk).await;
            assert!(error.contains(name), "{name} is missing: {error}");
            let disk = small_store().await;
            disk.truncate(name, 100);
            let error = refusal(&disk).await;
            assert!(error.contains(name), "{name} is cut off: {error}");
        }
        let disk = small_store().await;
        disk.truncate("intent.used", 100);
        let error = refusal(&disk).await;
        assert!(error.contains("intent.used"), "{error}");
        let disk = small_store().await;
        for slot in [0, 4 << 20] {
            disk.damage("chain.meta", slot + 8, &7u32.to_le_bytes());
        }
        let error = refusal(&disk).await;
        assert!(error.contains("chain.meta") && error.contains("version 7"), "{error}");
    });
}

/// It was "nothing marked", so that a replica that had lost writes counted as complete. A directory
/// of before doesn't know what was used until it is opened.
#[test]
fn a_sector_of_marks_that_turned_to_zero_is_damage_in_a_directory_of_before_too() {
    run(async {
        for is_of_before in [false, true] {
            let disk = small_store().await;
            if is_of_before {
                disk.delete("intent.used");
                drop(open(&disk).await.expect("it opens"));
            }
            let disk = disk.after_power_cut(1);
            disk.damage("intent", 0, &[0; 512]);
            let error = refusal(&disk).await;
            assert!(error.contains("intent") && error.contains("sector 0"), "{error}");
        }
    });
}

/// Bytes that anyone may have written: an error or a working store, never a panic, and never
/// another content than what was written.
#[test]
fn garbage_in_any_file_is_an_error_and_never_a_wrong_byte() {
    run(async {
        let disk = small_store().await;
        for seed in 0..600 {
            let mut random = Random::new(seed);
            let names = [
                "replica.meta",
                "chain.meta",
                "intent",
                "intent.used",
                "layer-00000001.index",
                "layer-00000002.index",
                "layer-00000002.data",
            ];
            let name = names[random.below(names.len() as u64) as usize];
            let disk = disk.after_kill();
            // Mostly where something is, in either slot and in the headers.
            let place = random.below(600) + [0, 0, 64 << 10, 4 << 20][random.below(4) as usize];
            let length = [1, 2, 8, 600][random.below(4) as usize];
            let bytes: Vec<u8> = (0..length).map(|_| random.number() as u8).collect();
            let end = disk.bytes_of(name).len() as u64;
            disk.damage(name, place.min(end.saturating_sub(length)), &bytes);
            println!("seed {seed}: {length} bytes at {place} of {name}");
            let Ok(store) = open(&disk).await else { continue };
            for (view, fill) in [(View::Top, Fill(6)), (View::Layer(LayerId(1)), Fill(5))] {
                let (report, buffer) = store.read(view, RANGE, Buffer::zeroed(4 * 4096)).await;
                if report.is_ok() {
                    let found: Vec<_> = buffer.chunks(4096).map(Fill::of).collect();
                    assert_eq!(found, vec![Ok(fill); 4], "{view:?}");
                }
            }
            let _ = store.verify().await;
            let _ = write_fill(&store, RANGE, Fill(7)).await;
            let _ = store.flush().await;
        }
    });
}

/// A replica that is rebuilt gets its peer's layers under their own ids, block by block.
#[test]
fn a_rebuilt_replica_shows_what_its_peer_shows_in_every_view() {
    for seed in 0..20 {
        println!("seed {seed}");
        run(async {
            let mut world = World::new(seed).await;
            for op in random_ops(seed, 50) {
                world.play(&op).await.expect("a sound disk");
            }
            let peer = &world.store;
            let disk = Disk::new(seed);
            Store::format(disk.clone(), identity(), VOLUME_UNIT_BYTES, LayerId(1))
                .await
                .expect("new");
            let store = Store::open(disk.clone(), StoreOptions::default()).await.expect("new");
            let rebuilding = Membership { state: ReplicaState::Rebuilding, ..member() };
            store.set_membership(rebuilding).await.expect("a sound disk");
            store.adopt_chain(&peer.chain()).await.expect("a sound chain");
            for layer in peer.chain().layers {
                copy_layer(peer, &store, layer.id, layer.size_bytes).await;
            }
            // A snapshot while it is rebuilt: what is sealed can still be filled.
            let next = LayerId(1000);
            let change = ChainChange::Snapshot { seal: Seal::default(), new_head: next };
            let head = store.chain().head;
            let op = ChainOp { id: ChainOpId(1000), change };
            store.apply(&op).await.expect("a sound disk");
            copy_layer(peer, &store, head, VOLUME_UNIT_BYTES).await;
            let ready = ReplicaState::Ready;
            let membership = Membership { state: ready, ..member() };
            store.set_membership(membership).await.expect("a sound disk");
            let data = std::rc::Rc::new(Buffer::zeroed(1 << 20));
            let absent = vec![BlockSum::Absent; 256];
            let all = Blocks::ALL;
            let late = store.copy(head, Region(0), all, &absent, data, GENERATION).await;
            assert!(late.is_err(), "what is ready is sealed");
            drop(store);
            let store = open(&disk.after_power_cut(seed)).await.expect("it opens");
            store::world::check(&store, &world.model).await;
        });
    }
}

async fn copy_layer(from: &Store<Disk>, to: &Store<Disk>, layer: LayerId, size_bytes: u64) {
    for region in 0..size_bytes >> 20 {
        let region = Region(region);
        let sums = from.own_sums(layer, region.range()).await.expect("a sound disk");
        let mut with_data = Blocks::NONE;
        for (slot, sum) in sums.iter().enumerate() {
            with_data.put(slot, matches!(sum, BlockSum::Data { .. }));
        }
        let data = from.read_packed(layer, region, with_data).await.expect("a sound disk");
        let data = std::rc::Rc::new(data);
        to.copy(layer, region, Blocks::ALL, &sums, data, GENERATION).await.expect("a sound disk");
    }
}

/// A flush that runs while a block is being written need not cover it, but the one after it must:
/// the file counted as clean then, and the write that had been answered was lost by a power cut.
#[test]
fn a_flush_covers_a_write_that_ran_during_the_flush_before_it() {
    run(async {
        for seed in 0..200 {
            let disk = Disk::new(seed);
            Store::format(disk.clone(), identity(), VOLUME_UNIT_BYTES, LayerId(1)).await.unwrap();
            let store = Store::open(disk.clone(), StoreOptions::default()).await.unwrap();
            write_fill(&store, RANGE, Fill(1)).await.unwrap();
            store.flush().await.unwrap();
            disk.set_slow(true);
            let (written, flushed) =
                tokio::join!(write_fill(&store, RANGE, Fill(2)), store.flush());
            written.and(flushed).unwrap();
            store.flush().await.unwrap();
            let left = disk.after_power_cut(seed);
            let store = Store::open(left, StoreOptions::default()).await.unwrap();
            let found = read_fill(&store, View::Top, RANGE).await;
            assert_eq!(found, vec![Fill(2); RANGE.count as usize], "seed {seed}");
        }
    });
}

/// A flush that can't read an index page said that all was durable, and forgot the region: the page
/// kept its fresh blocks, and a power cut after an overwrite took what had been flushed.
#[test]
fn a_flush_that_cannot_read_an_index_page_says_so_and_the_next_one_makes_up_for_it() {
    run(async {
        for seed in 0..40 {
            let disk = Disk::new(seed);
            Store::format(disk.clone(), identity(), 32 * VOLUME_UNIT_BYTES, LayerId(1))
                .await
                .unwrap();
            let store = Store::open(disk.clone(), StoreOptions { index_cache_bytes: 0 });
            let store = store.await.unwrap();
            write_fill(&store, RANGE, Fill(1)).await.unwrap();
            for region in 1..60 {
                // So many that the first one's page leaves the memory.
                let elsewhere = BlockRange::new(BlockIndex(region * 256), 1);
                write_fill(&store, elsewhere, Fill(1)).await.unwrap();
            }
            disk.spoil("layer-00000001.index", 0..4);
            let error = store.flush().await.expect_err("a page can't be read").to_string();
            assert!(error.contains("read the index"), "{error}");
            disk.heal();
            store.flush().await.unwrap();
            write_fill(&store, RANGE, Fill(2)).await.unwrap();
            let left = disk.after_power_cut(seed);
            let store = Store::open(left, StoreOptions::default()).await.unwrap();
            let buffer = Buffer::zeroed(RANGE.length_bytes() as usize);
            let (report, left) = store.read(View::Top, RANGE, buffer).await;
            report.expect("it is there");
            for sector in left.chunks_exact(4096).flat_map(Fill::sectors_of) {
                assert!(sector == Fill(1) || sector == Fill(2), "seed {seed}: {sector:?}");
            }
        }
    });
}

/// A member with a block that was written twice and never flushed: only the kernel has it, and its
/// newest checksum is nowhere.
async fn with_unflushed_writes(seed: u64) -> Disk {
    let disk = Disk::new(seed);
    Store::format(disk.clone(), identity(), VOLUME_UNIT_BYTES, LayerId(1))
        .await
        .expect("a new disk");
    let store = Store::open(disk.clone(), StoreOptions::default()).await.expect("just made");
    store.set_membership(member()).await.expect("a sound disk");
    write_fill(&store, RANGE, Fill(1)).await.expect("a sound disk");
    write_fill(&store, RANGE, Fill(2)).await.expect("a sound disk");
    disk
}

/// A witness that was gone counted as power lost: after a mere kill, acknowledged writes became what
/// was there before them, on all replicas. Now doubt costs a replica its place, never its data.
#[test]
fn a_replica_in_doubt_gives_way_to_others_and_keeps_what_it_has() {
    run(async {
        let disk = with_unflushed_writes(1).await;
        disk.hide_mounts(true);
        let disk = disk.after_kill();
        let store = open(&disk).await.expect("it opens");
        assert!(!store.continuous(), "{:?}", store.continuity());
        assert!(matches!(store.continuity(), Continuity::Doubtful(_)));
        assert_eq!(read_fill(&store, View::Top, RANGE).await, [Fill(2); 4]);
        // A member again, it still can't tell one mount from another.
        store.set_membership(member()).await.expect("a sound disk");
        assert!(store.continuous());
        drop(store);
        disk.hide_mounts(false);
        let store = open(&disk.after_kill()).await.expect("it opens");
        assert!(!store.continuous());
        store.set_membership(member()).await.expect("a sound disk");
        assert_eq!(store.continuity(), Continuity::Unbroken);
    });
}

/// Where mounts can't be told apart, a file system that was mounted anew only raises doubt. A block
/// that never arrived was taken for data then: zeroes hid what had been flushed below.
#[test]
fn a_replica_in_doubt_shows_no_zeroes_where_a_block_never_arrived() {
    run(async {
        for (seed, flushes) in (0..40).flat_map(|seed| [(seed, false), (seed, true)]) {
            let disk = Disk::new(seed);
            let formatted =
                Store::format(disk.clone(), identity(), VOLUME_UNIT_BYTES, LayerId(1)).await;
            formatted.expect("a new disk");
            let store = open(&disk).await.expect("just made");
            store.set_membership(member()).await.expect("a sound disk");
            write_fill(&store, RANGE, Fill(1)).await.expect("a sound disk");
            store.flush().await.expect("a sound disk");
            let change = ChainChange::Snapshot { seal: Seal::default(), new_head: LayerId(2) };
            store.apply(&ChainOp { id: ChainOpId(1), change }).await.expect("a sound disk");
            write_fill(&store, RANGE, Fill(2)).await.expect("a sound disk");
            disk.hide_mounts(true);
            let store = open(&disk.after_remount(seed)).await.expect("it opens");
            assert!(matches!(store.continuity(), Continuity::Doubtful(_)), "seed {seed}");
            if flushes {
                store.flush().await.expect("a sound disk"); // before anything is read
            }
            let buffer = Buffer::zeroed(RANGE.length_bytes() as usize);
            let (report, read) = store.read(View::Top, RANGE, buffer).await;
            report.expect("it is told what is there");
            let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
            assert!(!read.chunks_exact(4096).any(is_zero), "seed {seed}, flushed: {flushes}");
        }
    });
}

/// What was lost stays lost: one that was killed before it had looked at all it has, and could tell
/// less afterwards, showed torn blocks in place of what had been flushed below them.
#[test]
fn a_replica_that_has_seen_that_power_was_lost_knows_it_when_it_is_opened_again() {
    run(async {
        let disk = with_unflushed_writes(1).await.after_remount(1);
        drop(open(&disk).await.expect("it opens"));
        disk.hide_mounts(true);
        let store = open(&disk.after_kill()).await.expect("it opens");
        assert!(matches!(store.continuity(), Continuity::Lost(_)), "{:?}", store.continuity());
    });
}

/// A file system that is shut down and mounted again loses what wasn't synced, as in a power cut,
/// and the machine runs on: the replica called itself continuous, and its old block won.
#[test]
fn a_file_system_that_was_mounted_anew_counts_as_a_power_cut() {
    run(async {
        for seed in 0..40 {
            let disk = with_unflushed_writes(seed).await;
            let store = open(&disk.after_remount(seed)).await.expect("it opens");
            assert!(!store.continuous(), "seed {seed}");
            assert!(matches!(store.continuity(), Continuity::Lost(_)), "seed {seed}");
            let buffer = Buffer::zeroed(RANGE.length_bytes() as usize);
            let (report, _) = store.read(View::Top, RANGE, buffer).await;
            report.expect("it is told what is there");
        }
        // A kill within the same mount loses nothing.
        let disk = with_unflushed_writes(1).await;
        let store = open(&disk.after_kill()).await.expect("it opens");
        assert_eq!(store.continuity(), Continuity::Unbroken);
        assert_eq!(read_fill(&store, View::Top, RANGE).await, [Fill(2); 4]);
    });
}

/// An error took the witness away. Now it leaves a mark of its own, durably, and that says why.
#[test]
fn an_error_of_the_disk_is_remembered_until_the_replica_is_in_sync_again() {
    run(async {
        let disk = with_unflushed_writes(3).await;
        let store = open(&disk.after_kill()).await.expect("it opens");
        let disk = store.storage().clone();
        disk.spoil("layer-00000001.data", 80..88);
        let (report, _) =
            store.read(View::Top, RANGE, Buffer::zeroed(RANGE.length_bytes() as usize)).await;
        report.expect_err("it can't be read");
        assert!(!store.continuous());
        disk.heal();
        let disk = disk.after_kill();
        let store = open(&disk).await.expect("it opens");
        assert!(!store.continuous());
        let Continuity::Doubtful(why) = store.continuity() else { panic!("it forgot") };
        assert!(why.contains("error"), "{why}");
        assert_eq!(read_fill(&store, View::Top, RANGE).await, [Fill(2); 4]);
        store.set_membership(member()).await.expect("a sound disk");
        drop(store);
        let store = open(&disk.after_kill()).await.expect("it opens");
        assert_eq!(store.continuity(), Continuity::Unbroken);
    });
}

/// The disk fails in the middle of the word that it has failed: the other slot takes it.
#[test]
fn a_failure_is_remembered_even_if_one_slot_cannot_be_written() {
    run(async {
        for seed in 0..20 {
            let disk = with_unflushed_writes(seed).await;
            let store = open(&disk.after_kill()).await.expect("it opens");
            let disk = store.storage().clone();
            disk.set_trouble(Trouble { failing_syncs: 2, ..Trouble::default() });
            store.flush().await.expect_err("a sync fails");
            drop(store);
            let store = open(&disk.after_power_cut(seed)).await.expect("it opens");
            assert_eq!(store.state(), ReplicaState::Failed, "seed {seed}");
            assert!(!store.continuous(), "seed {seed}");
        }
    });
}

/// The file that says which layers there are went back in time: what it didn't know was removed, and
/// with it the newest data.
#[test]
fn a_chain_that_is_older_than_its_layers_is_damaged_and_nothing_is_removed() {
    run(async {
        let World { disk, store, .. } = World::new(1).await;
        write_fill(&store, RANGE, Fill(5)).await.expect("a sound disk");
        let older = disk.bytes_of("chain.meta");
        let change = ChainChange::Snapshot { seal: Seal::default(), new_head: LayerId(2) };
        store.apply(&ChainOp { id: ChainOpId(1), change }).await.expect("a sound disk");
        drop(store);
        let empty = disk.after_kill();
        write_fill(&open(&disk).await.expect("it opens"), RANGE, Fill(6)).await.expect("sound");
        let disk = disk.after_kill();
        let newer = disk.bytes_of("chain.meta");
        disk.put_file("chain.meta", &older);
        let error = refusal(&disk).await;
        assert!(error.contains("chain.meta") && error.contains("older than layer-0"), "{error}");
        disk.put_file("chain.meta", &newer);
        let store = open(&disk).await.expect("all is there");
        assert_eq!(read_fill(&store, View::Top, RANGE).await, [Fill(6); 4]);
        // A crash in the middle of a snapshot leaves empty files, which nobody misses.
        empty.put_file("chain.meta", &older);
        let store = open(&empty).await.expect("it opens");
        assert_eq!(read_fill(&store, View::Top, RANGE).await, [Fill(5); 4]);
    });
}

/// The same for a volume that has grown: what lay behind the end of before was cut off.
#[test]
fn a_chain_from_before_the_volume_grew_is_damaged_and_nothing_is_cut_off() {
    run(async {
        let World { disk, store, .. } = World::new(1).await;
        let older = disk.bytes_of("chain.meta");
        let end = store.size_bytes();
        let change = ChainChange::Expand { size_bytes: 2 * end };
        store.apply(&ChainOp { id: ChainOpId(1), change }).await.expect("a sound disk");
        let empty = disk.after_kill();
        let grown = BlockRange::new(BlockIndex(end / 4096), 4);
        write_fill(&store, grown, Fill(7)).await.expect("a sound disk");
        drop(store);
        let newer = disk.bytes_of("chain.meta");
        disk.put_file("chain.meta", &older);
        let error = refusal(&disk).await;
        assert!(error.contains("chain.meta") && error.contains("older than layer-0"), "{error}");
        disk.put_file("chain.meta", &newer);
        let store = open(&disk).await.expect("all is there");
        assert_eq!(read_fill(&store, View::Top, grown).await, [Fill(7); 4]);
        // A crash in the middle of the expansion leaves room that nobody misses.
        empty.put_file("chain.meta", &older);
        assert_eq!(open(&empty).await.expect("it opens").size_bytes(), end);
    });
}

/// One slot of the two is enough; without any nothing is made up.
#[test]
fn a_slot_that_turned_to_zero_or_is_another_files_is_not_believed() {
    run(async {
        for (name, slot_bytes) in [("replica.meta", 64 << 10), ("chain.meta", 4 << 20)] {
            for slot in [0, 1] {
                let disk = small_store().await;
                disk.damage(name, slot * slot_bytes, &[0; 4096]);
                let store = open(&disk).await.expect("the other slot is sound");
                assert_eq!(read_fill(&store, View::Top, RANGE).await, [Fill(6); 4]);
                drop(store);
                disk.damage(name, (1 - slot) * slot_bytes, &[0; 4096]);
                let error = refusal(&disk).await;
                assert!(error.contains(name) && error.contains("damaged"), "{error}");
            }
            let disk = small_store().await;
            let other = if name == "chain.meta" { "replica.meta" } else { "chain.meta" };
            let foreign = disk.bytes_of(other)[..4096].to_vec();
            for slot in [0, 1] {
                disk.damage(name, slot * slot_bytes, &foreign);
            }
            let error = refusal(&disk).await;
            assert!(error.contains(name) && error.contains("another magic"), "{error}");
        }
    });
}
