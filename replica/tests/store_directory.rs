//! The store on a real directory, with io_uring, with a pool of threads, direct and buffered.

mod store;

use ankole_replica::chain::{ChainChange, ChainOp, Seal};
use ankole_replica::store::file::{Directory, DirectoryOptions, file_system};
use ankole_replica::store::{JoinProgress, Storage, Store, StoreError, StoreOptions, View};
use ankole_replica::types::{BlockIndex, BlockRange, ChainOpId, LayerId, Region};
use store::{Fill, GENERATION, identity, read_fill, run, skip, write_fill};

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

/// A disk's folder that existed was 0755 and a replica's files 0644: every user of the machine could
/// read all volumes.
#[test]
fn only_the_owner_reads_what_is_in_a_volume() {
    use std::os::unix::fs::PermissionsExt;
    let set = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        format(dir.path()).await.expect("it is empty");
        let files = || std::fs::read_dir(dir.path()).expect("it is there");
        for file in files() {
            set(&file.expect("it is there").path(), 0o644); // as an earlier version left them
        }
        set(dir.path(), 0o755);
        let store = open(dir.path(), &DirectoryOptions::default()).await;
        let change = ChainChange::Snapshot { seal: Seal::default(), new_head: LayerId(2) };
        store.apply(&ChainOp { id: ChainOpId(1), change }).await.expect("there is room");
        let mode = |metadata: std::fs::Metadata| metadata.permissions().mode() & 0o777;
        assert_eq!(mode(dir.path().metadata().expect("it is there")), 0o700);
        for file in files().map(|file| file.expect("it is there")) {
            let mode = mode(file.metadata().expect("it is there"));
            assert_eq!(mode, 0o600, "{}", file.path().display());
        }
    });
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
        let taken = |name: &str| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(dir.path().join(name)).expect("it is there").blocks()
        };
        for name in ["layer-00000002.data", "layer-00000002.index", "layer-00000002.pages"] {
            assert_eq!(taken(name), 0, "a new layer takes no space: {name}");
        }
        write_fill(&store, BlockRange::new(BlockIndex(2), 3), Fill(2)).await.expect("room");
        store.zero(BlockRange::new(BlockIndex(6), 1), GENERATION).await.expect("it works");
        let top = [1, 1, 2, 2, 2, 1, 0, 1].map(Fill);
        assert_eq!(read_fill(&store, View::Top, range).await, top);
        assert_eq!(read_fill(&store, View::Layer(LayerId(1)), range).await, [Fill(1); 8]);
        drop(store);
        let store = open(dir.path(), &DirectoryOptions::default()).await;
        assert_eq!(read_fill(&store, View::Top, range).await, top);
        assert_eq!(read_fill(&store, View::Layer(LayerId(1)), range).await, [Fill(1); 8]);
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

/// Whoever looked at a volume made its replica look at the file of each snapshot, each time.
#[test]
fn what_a_layer_takes_is_looked_up_again_only_when_it_has_changed() {
    run(async {
        let dir = tempfile::tempdir().expect("a directory");
        format(dir.path()).await.expect("it is empty");
        let store = open(dir.path(), &DirectoryOptions::default()).await;
        write_fill(&store, BlockRange::new(BlockIndex(0), 64), Fill(1)).await.expect("room");
        let change = ChainChange::Snapshot { seal: Seal::default(), new_head: LayerId(2) };
        store.apply(&ChainOp { id: ChainOpId(1), change }).await.expect("a snapshot");
        let sizes = || store.chain().layers.iter().map(|it| it.data_bytes).collect::<Vec<_>>();
        let before = sizes();
        assert!(before[0] >= 64 * 4096 && before[1] == 0, "{before:?}");
        // Behind its back, so that it shows who looks.
        let file = dir.path().join("layer-00000001.data");
        let file = std::fs::File::options().write(true).open(file).expect("the snapshot's data");
        file.set_len(0).expect("writable");
        write_fill(&store, BlockRange::new(BlockIndex(64), 64), Fill(2)).await.expect("room");
        let after = sizes();
        assert_eq!(after[0], before[0]);
        assert!(after[1] >= 64 * 4096, "{after:?}");
    });
}

/// Where files take no time to be synced, if there is such a place.
fn quick_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// Descriptors of this process for files of a directory.
fn open_files_of(path: &std::path::Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").expect("proc");
    let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    targets.filter(|target| target.starts_with(path)).count()
}

/// Each layer held three files: a thousand snapshots were more than most processes may have.
#[test]
fn a_thousand_layers_are_written_read_joined_and_opened_with_few_files_open() {
    const LAYERS: u32 = 1000;
    const OPEN_FILES: usize = 40;
    run(async {
        let dir = quick_directory();
        let options = DirectoryOptions { open_files_max: OPEN_FILES, ..Default::default() };
        let few = |when: &str| {
            let count = open_files_of(dir.path());
            // Those of a head that is being made come on top, and the directory itself.
            assert!(count <= OPEN_FILES + 4, "{count} files are open {when}");
        };
        format(dir.path()).await.expect("it is empty");
        let mut store = open(dir.path(), &options).await;
        let block = |number: u32| BlockRange::new(BlockIndex(u64::from(number)), 1);
        for number in 1..=LAYERS {
            write_fill(&store, block(number), Fill(number.into())).await.expect("room");
            let change =
                ChainChange::Snapshot { seal: Seal::default(), new_head: LayerId(number + 1) };
            let op = ChainOp { id: ChainOpId(number.into()), change };
            store.apply(&op).await.expect("a snapshot");
            few("after a snapshot");
        }
        for _ in 0..2 {
            let all = BlockRange::new(BlockIndex(1), u64::from(LAYERS));
            let expected: Vec<Fill> = (1..=LAYERS).map(|number| Fill(number.into())).collect();
            assert_eq!(read_fill(&store, View::Top, all).await, expected);
            few("after reading through all layers");
            for number in (1..LAYERS).step_by(7) {
                let view = View::Layer(LayerId(number));
                let seen = read_fill(&store, view, BlockRange::new(BlockIndex(number.into()), 2));
                assert_eq!(seen.await, [Fill(number.into()), Fill(0)]);
            }
            few("after reading snapshots");
            drop(store);
            store = open(dir.path(), &options).await;
            few("after opening");
        }
        for (id, number) in (LAYERS + 1..).map(u64::from).map(ChainOpId).zip([10, 500, 501]) {
            let change = ChainChange::Remove { layer: LayerId(number) };
            store.apply(&ChainOp { id, change }).await.expect("a snapshot");
            store.join(LayerId(number)).await.expect("room");
            let view = View::Layer(LayerId(number + 1));
            let seen = read_fill(&store, view, block(number)).await;
            assert_eq!(seen, [Fill(number.into())]);
        }
        few("after joins");
        store.close().await.expect("the disk works");
    });
}

/// A file system of its own, of 32 MiB.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let disk = Self(tempfile::tempdir().expect("a directory"));
        let mounted = nix::mount::mount(
            Some("ankole-test"),
            disk.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some("size=32m"),
        );
        mounted.map_err(|errno| skip(&format!("mounting a small tmpfs: {errno}"))).ok()?;
        Some(disk)
    }

    fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A full disk stops new blocks and nothing else: the room of metadata was taken before, what is
/// there can be overwritten, flushed and freed, and then writing goes on. A snapshot needs no room.
#[test]
fn requires_root_a_full_disk_stops_only_what_needs_space() {
    let Some(dir) = SmallDisk::mount() else { return };
    run(async {
        let directory = Directory::open(dir.path(), &DirectoryOptions::default()).expect("there");
        Store::format(directory, identity(), 64 << 20, LayerId(1)).await.expect("room");
        let store = open(dir.path(), &DirectoryOptions::default()).await;
        let place = |index: u64| BlockRange::new(BlockIndex(index * 64), 64);
        let mut full_at = 0;
        while write_fill(&store, place(full_at), Fill(full_at + 1)).await.is_ok() {
            full_at += 1;
        }
        println!("full after {} KiB", full_at * 256);
        assert!(full_at > 20, "there was room for more");
        let error = write_fill(&store, place(full_at), Fill(1)).await.expect_err("it is full");
        assert!(error.is_no_space() && error.to_string().contains("make room"), "{error}");
        let one = BlockRange::new(BlockIndex(3), 1);
        write_fill(&store, one, Fill(99)).await.expect("an overwrite needs no room");
        store.flush().await.expect("metadata was reserved");
        store.restamp(GENERATION.next()).await.expect("metadata was reserved");
        let regions: Vec<_> = (0..64).map(Region).collect();
        store.clear(&regions).await.expect("metadata was reserved");
        assert_eq!(store.failure(), None);
        store.zero(place(1), GENERATION).await.expect("a discard needs no room");
        write_fill(&store, place(full_at), Fill(7)).await.expect("there is room again");
        while write_fill(&store, place(full_at), Fill(8)).await.is_ok() {
            full_at += 1;
        }
        let change = ChainChange::Snapshot { seal: Seal::default(), new_head: LayerId(2) };
        let snapshot = ChainOp { id: ChainOpId(1), change };
        store.apply(&snapshot).await.expect("a snapshot needs no room");
        assert_eq!(store.failure(), None);
        assert_eq!(read_fill(&store, View::Top, place(2)).await, vec![Fill(3); 64]);
    });
}

/// A join copied until the disk was full, began again every ten seconds, and never ended: the layer
/// of a removed snapshot hides nothing, and is larger than what is free.
#[test]
fn requires_root_a_removed_snapshot_is_joined_on_a_disk_with_next_to_no_room() {
    // Either layer may be the larger one.
    for blocks in [[1500, 3000], [3000, 1500]] {
        let Some(dir) = SmallDisk::mount() else { return };
        run(async {
            let directory =
                Directory::open(dir.path(), &DirectoryOptions::default()).expect("there");
            Store::format(directory, identity(), 64 << 20, LayerId(1)).await.expect("room");
            let store = open(dir.path(), &DirectoryOptions::default()).await;
            let mut first = 0;
            for (count, id) in blocks.into_iter().zip(1..) {
                // Runs of many lengths, and a gap in each: no block of one layer hides the other's.
                let range = BlockRange::new(BlockIndex(first), count);
                write_fill(&store, range, Fill(id)).await.expect("room");
                first += count + 7;
                let change = ChainChange::Snapshot {
                    seal: Seal::default(),
                    new_head: LayerId(id as u32 + 1),
                };
                store.apply(&ChainOp { id: ChainOpId(id), change }).await.expect("a snapshot");
            }
            let seen = async |store: &Store<Directory>| {
                let ranges = [(0, blocks[0]), (blocks[0] + 7, blocks[1])];
                for ((first, count), fill) in ranges.into_iter().zip(1..) {
                    let range = BlockRange::new(BlockIndex(first), count);
                    let expected = vec![Fill(fill); count as usize];
                    assert_eq!(read_fill(store, View::Layer(LayerId(2)), range).await, expected);
                }
            };
            let mut at = 8192;
            while write_fill(&store, BlockRange::new(BlockIndex(at), 16), Fill(9)).await.is_ok() {
                at += 16;
            }
            let free_bytes = || store.storage().free_bytes().expect("told").expect("told");
            println!("{} blocks in the head, {} bytes are free", at - 8192, free_bytes());
            assert!(free_bytes() < 128 << 10);
            // For pages of regions that the child does not have, and some blocks.
            store.zero(BlockRange::new(BlockIndex(8192), 16), GENERATION).await.expect("it frees");
            let remove = ChainChange::Remove { layer: LayerId(1) };
            store.apply(&ChainOp { id: ChainOpId(3), change: remove }).await.expect("it is there");
            let before = free_bytes();
            let joined = store.join(LayerId(1)).await.expect("there is enough room");
            assert_eq!(joined, JoinProgress::Joined);
            assert!(free_bytes() + (64 << 10) >= before, "it took what it gave back");
            seen(&store).await;
            store.close().await.expect("the disk works");
            let store = open(dir.path(), &DirectoryOptions::default()).await;
            seen(&store).await;
            assert_eq!(store.verify().await.expect("it can be read").blocks_bad, 0);
        });
    }
}

fn succeeds(folder: &std::path::Path, program: &str, arguments: &[&str]) -> bool {
    let mut command = std::process::Command::new(program);
    let done = command.args(arguments).current_dir(folder).output();
    done.is_ok_and(|done| done.status.success())
}

/// What it tried out needed room: it went through the page cache for as long as it lived.
#[test]
fn requires_root_a_replica_that_starts_on_a_full_disk_goes_past_the_page_cache_all_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = std::fs::File::create(dir.path().join("image"));
    image.and_then(|image| image.set_len(16 << 20)).expect("room");
    let here = dir.path().join("here");
    std::fs::create_dir(&here).expect("room");
    let run_there = |program, arguments: &[&str]| succeeds(dir.path(), program, arguments);
    if !run_there("mke2fs", &["-q", "-F", "-t", "ext4", "image"])
        || !run_there("mount", &["-o", "loop", "image", "here"])
    {
        return skip("mounting an image");
    }
    let path = || run(async { Directory::open(&here, &DirectoryOptions::default()) });
    let before = path().expect("it is there").data_path();
    let ballast = std::fs::File::create(here.join("ballast")).expect("room");
    while std::io::Write::write_all(&mut &ballast, &[7; 4096]).is_ok() {}
    let full = path().expect("it is there").data_path();
    drop(ballast);
    assert!(run_there("umount", &["here"]));
    assert_eq!((full, before.direct), (before, true));
}

/// What tells a file system that was mounted anew from one that a container sees elsewhere, or a
/// process that was merely killed.
#[test]
fn requires_root_only_unmounting_makes_another_file_system_of_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("here")).and(std::fs::create_dir(at("there"))).expect("room");
    let image = std::fs::File::create(at("image")).and_then(|image| image.set_len(16 << 20));
    image.expect("room");
    let run = |program: &str, arguments: &[&str]| succeeds(dir.path(), program, arguments);
    let mount = || run("mount", &["-o", "loop", "image", "here"]);
    if !run("mke2fs", &["-q", "-F", "-t", "ext4", "image"]) || !mount() {
        return skip("mounting an image");
    }
    let first = file_system(&at("here")).expect("it is there");
    assert!(run("mount", &["--bind", "here", "there"]));
    let bound = file_system(&at("there")).expect("it is there");
    assert!(run("umount", &["there"]) && run("umount", &["here"]) && mount());
    let second = file_system(&at("here")).expect("it is there");
    assert!(run("umount", &["here"]));
    assert_eq!((first, first.superblock.is_some()), (bound, true));
    assert_ne!(first.superblock, second.superblock);
}
