//! What a directory tells about itself, and that telling changes nothing.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod store;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ankole_replica::inspect::{Evidence, Found, ReplicaEvidence, inspect, pardon, verify};
use ankole_replica::server;
use ankole_replica::store::file::{Directory, DirectoryOptions};
use ankole_replica::store::{Membership, ReplicaState, Store, StoreError, StoreOptions, View};
use ankole_replica::types::{BlockIndex, BlockRange, Fence, Generation, Incarnation, Session};
use proptest::prelude::*;
use store::{Fill, read_fill, run, write_fill};

const SIZE_BYTES: u64 = 4 << 20;

struct Disk {
    folder: tempfile::TempDir,
    incarnation: Incarnation,
}

impl Disk {
    /// A member since generation 5, with some blocks written and not flushed.
    fn of_a_member() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let incarnation =
            run(server::format(folder.path(), "v1", &"r1".into(), SIZE_BYTES)).unwrap();
        let disk = Self { folder, incarnation };
        run(async {
            let store = disk.open().await;
            let fence = Fence { generation: generation(7), session: Session(2) };
            store.set_fence(fence).await.unwrap();
            let synced_set = vec![("r1".into(), incarnation), ("r2".into(), Incarnation(2))];
            let (state, synced_gen) = (ReplicaState::Member, Some(generation(5)));
            store
                .set_membership(Membership { state, synced_gen, synced_set, ..Membership::NEW })
                .await
                .unwrap();
            write_fill(&store, blocks(0, 8), Fill(1)).await.unwrap();
            write_fill(&store, blocks(300, 1), Fill(2)).await.unwrap();
        });
        disk
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn open(&self) -> Store<Directory> {
        let directory = Directory::open(self.path(), &DirectoryOptions::default()).unwrap();
        Store::open(directory, StoreOptions::default()).await.unwrap()
    }

    fn lose_power(&self) {
        run(async { self.open().await.pardon().await }).unwrap(); // forgets the boot
    }

    fn data(&self) -> PathBuf {
        self.path().join("layer-00000001.data")
    }

    /// All there is to know of the files, but for the times of access.
    fn state(&self) -> BTreeMap<String, (u64, i64, Vec<u8>)> {
        let entries = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap());
        let state = entries.map(|entry| {
            let metadata = entry.metadata().unwrap();
            let bytes = fs::read(entry.path()).unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, (metadata.ino(), metadata.mtime_nsec(), bytes))
        });
        state.collect()
    }
}

fn generation(number: u64) -> Generation {
    Generation(number.try_into().unwrap())
}

fn blocks(first: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(first), count)
}

fn replica(evidence: &Evidence) -> &ReplicaEvidence {
    evidence.replica().unwrap_or_else(|| panic!("{evidence:?}"))
}

#[test]
fn a_replica_tells_what_it_knows_and_nothing_of_it_changes() {
    let disk = Disk::of_a_member();
    let before = disk.state();
    let evidence = inspect(disk.path());
    let told = replica(&evidence);
    assert_eq!((told.volume.as_str(), told.incarnation), ("v1", disk.incarnation));
    assert_eq!(told.fence.unwrap().generation, generation(7));
    assert_eq!((told.synced_gen, told.synced_set.len()), (Some(generation(5)), 2));
    let content = told.content.as_ref().unwrap();
    assert!(content.continuous && !content.partial, "{content:?}");
    // All four are one group, which the second region that was written marks.
    assert_eq!((content.marked_regions, content.size_bytes), (4, SIZE_BYTES));
    assert_eq!((evidence.held, told.problems.len()), (None, 0));
    assert_eq!(verify(disk.path()).unwrap().blocks_bad, 0);
    assert_eq!(disk.state(), before);
}

/// After a power cut sums are rebuilt where regions were marked. A look must not do that for good:
/// the replica itself decides when it opens.
#[test]
fn after_a_power_cut_it_is_suspect_and_a_look_repairs_nothing() {
    let disk = Disk::of_a_member();
    disk.lose_power();
    // Data that arrived without its sum.
    let mut bytes = fs::read(disk.data()).unwrap();
    bytes[..4096].fill(9);
    fs::write(disk.data(), bytes).unwrap();
    let before = disk.state();
    let evidence = inspect(disk.path());
    let content = replica(&evidence).content.as_ref().unwrap();
    assert!(!content.continuous && content.continuity.contains("4 marked regions"), "{content:?}");
    let _report = verify(disk.path()).unwrap();
    assert_eq!(disk.state(), before);
}

#[test]
fn a_replica_that_runs_is_seen_with_its_pid_and_not_verified() {
    let disk = Disk::of_a_member();
    run(async {
        let _store = disk.open().await;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let evidence = inspect(disk.path());
                assert_eq!(evidence.held.unwrap().pid, Some(std::process::id()));
                assert!(replica(&evidence).content.is_some());
                assert!(matches!(verify(disk.path()), Err(StoreError::Locked { .. })));
            });
        });
    });
    assert_eq!(inspect(disk.path()).held, None);
}

#[test]
fn what_is_no_replica_is_called_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r1");
    assert_eq!(inspect(&path).found, Found::Missing);
    fs::create_dir(&path).unwrap();
    assert_eq!(inspect(&path).found, Found::Empty);
    for name in ["lock", "replica.meta.new", "layer-00000001.data"] {
        fs::write(path.join(name), "").unwrap();
    }
    assert_eq!(inspect(&path).found, Found::HalfFormatted);
    fs::write(path.join("thesis.txt"), "years").unwrap();
    assert_eq!(inspect(&path).found, Found::Foreign { file: "thesis.txt".into() });
    let file = path.join("thesis.txt");
    assert!(matches!(inspect(&file).found, Found::Unreadable { .. }));
    fs::write(path.join("replica.meta"), "moo").unwrap();
    let Found::Unreadable { why } = inspect(&path).found else { panic!("it isn't readable") };
    assert!(why.contains("replica.meta"), "{why}");
}

/// A lost layer makes a copy useless; who it was and when it was in sync must still be told.
#[test]
fn a_copy_that_can_not_be_opened_still_tells_who_it_was() {
    let disk = Disk::of_a_member();
    fs::remove_file(disk.data()).unwrap();
    let evidence = inspect(disk.path());
    let told = replica(&evidence);
    assert_eq!((told.synced_gen, &told.content), (Some(generation(5)), &None));
    assert!(told.problems[0].contains("layer-00000001.data"), "{told:?}");
}

#[test]
fn a_damaged_page_of_the_index_is_a_problem_of_the_copy() {
    let disk = Disk::of_a_member();
    let index = disk.path().join("layer-00000001.index");
    let mut bytes = fs::read(&index).unwrap();
    bytes[100] ^= 1;
    fs::write(&index, bytes).unwrap();
    let evidence = inspect(disk.path());
    let problems = &replica(&evidence).problems;
    assert!(problems[0].contains("1 pages of its index are damaged"), "{problems:?}");
}

#[test]
fn a_failed_replica_is_told_with_its_reason_and_can_be_pardoned() {
    let disk = Disk::of_a_member();
    run(async { drop(disk.open().await.give_up("the disk caught fire").await) });
    let evidence = inspect(disk.path());
    let told = replica(&evidence);
    assert_eq!((told.state, told.synced_gen), (ReplicaState::Failed, Some(generation(5))));
    assert_eq!(told.failure.as_deref(), Some("the disk caught fire"));
    assert!(!told.content.as_ref().unwrap().continuous);

    pardon(disk.path()).unwrap();
    let evidence = inspect(disk.path());
    let told = replica(&evidence);
    assert_eq!((told.state, &told.failure), (ReplicaState::Member, &None));
    assert!(!told.content.as_ref().unwrap().continuous, "what it lost isn't known");
    run(async {
        let store = disk.open().await;
        write_fill(&store, blocks(9, 1), Fill(3)).await.unwrap();
        assert_eq!(read_fill(&store, View::Top, blocks(0, 8)).await, vec![Fill(1); 8]);
    });
}

#[test]
fn a_flipped_bit_is_found_by_verify() {
    let disk = Disk::of_a_member();
    run(async {
        let store = disk.open().await;
        let regions: Vec<_> = blocks(0, 512).regions().collect();
        store.clear(&regions).await.unwrap();
    });
    let mut bytes = fs::read(disk.data()).unwrap();
    bytes[5000] ^= 1;
    fs::write(disk.data(), bytes).unwrap();
    let report = verify(disk.path()).unwrap();
    assert_eq!((report.blocks_checked, report.blocks_bad), (9, 1));
    assert_eq!(report.bad[0].block, BlockIndex(1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// Whatever a disk did to the metadata: words, never a panic.
    #[test]
    fn garbage_in_the_metadata_is_an_answer(
        file in prop::sample::select(vec!["replica.meta", "chain.meta", "intent", "intent.used"]),
        at in 0_usize..2000,
        bytes in prop::collection::vec(any::<u8>(), 1..200),
    ) {
        let disk = Disk::of_a_member();
        let path = disk.path().join(file);
        let mut content = fs::read(&path).unwrap();
        let at = at.min(content.len());
        let end = (at + bytes.len()).min(content.len());
        content[at..end].copy_from_slice(&bytes[..end - at]);
        fs::write(&path, content).unwrap();
        let evidence = inspect(disk.path());
        let text = serde_json::to_string(&evidence).unwrap();
        prop_assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), evidence);
    }
}

/// What may be formatted: never what an engine has used, nor what can't be looked at. A layer with
/// data whose metadata is gone looked like half of a formatting.
#[test]
fn only_what_was_never_used_holds_nothing() {
    let holds_nothing = |path: &Path| inspect(path).holds_nothing();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v1-r1");
    assert!(holds_nothing(&path), "no directory");
    fs::create_dir(&path).unwrap();
    assert!(holds_nothing(&path), "an empty one");
    run(server::format(&path, "v1", &"r1".into(), SIZE_BYTES)).unwrap();
    assert!(holds_nothing(&path), "a new replica: {:?}", inspect(&path));
    for gone in ["replica.meta", "chain.meta"] {
        fs::remove_file(path.join(gone)).unwrap();
    }
    assert!(holds_nothing(&path), "half of a formatting");
    fs::write(path.join("notes.txt"), "precious").unwrap();
    assert!(!holds_nothing(&path), "something else");
    assert!(!holds_nothing(&path.join("notes.txt").join("v1-r1")), "can't be looked at");

    let used = Disk::of_a_member();
    assert!(!holds_nothing(used.path()));
    for gone in ["replica.meta", "chain.meta"] {
        fs::remove_file(used.path().join(gone)).unwrap();
    }
    assert!(!holds_nothing(used.path()), "only its layers tell that it was used");
}
