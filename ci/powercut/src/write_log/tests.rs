use super::*;

const FILE: FileId = FileId(0);

/// A directory with one empty file `a`, and its log.
fn beginning() -> (Files, WriteLog) {
    let file = FileImage { length_bytes: 4096, sectors: BTreeMap::new() };
    (Files([("a".to_owned(), file)].into()), WriteLog::new(Clock::default()))
}

impl WriteLog {
    fn did(&self, call: Call) {
        let running = self.begin(call);
        self.end(running);
    }
}

fn write(byte: u8) -> Call {
    Call::Write { file: FILE, offset_bytes: 0, bytes: Arc::new([byte; 1024]) }
}

/// What many cuts now leave: the first bytes of both sectors, or nothing if `name` isn't there.
fn outcomes(files: &Files, log: &WriteLog, at: Moment, name: &str) -> BTreeSet<Option<[u8; 2]>> {
    let cut = |seed| {
        let left = log.after_power_cut(files, at, &mut Random::new(seed));
        let image = left.0.get(name)?;
        let first = |sector| image.sectors.get(&sector).map_or(0, |bytes| bytes[0]);
        Some([first(0), first(1)])
    };
    (0..500).map(cut).collect()
}

#[test]
fn what_was_synced_stays_and_each_sector_since_then_is_one_of_its_versions() {
    let (files, log) = beginning();
    log.did(write(1));
    log.did(Call::Sync { file: FILE });
    log.did(write(2));
    log.did(write(3));
    let found = outcomes(&files, &log, log.clock.now(), "a");
    let all = [1, 2, 3].into_iter().flat_map(|one| [1, 2, 3].map(|two| Some([one, two])));
    assert_eq!(found, all.collect());
}

/// The kernel may have looked at the page before the write came.
#[test]
fn a_sync_does_not_cover_a_write_that_was_running_when_it_began() {
    let (files, log) = beginning();
    let running = log.begin(write(1));
    let sync = log.begin(Call::Sync { file: FILE });
    log.end(running);
    log.end(sync);
    assert!(outcomes(&files, &log, log.clock.now(), "a").contains(&Some([0, 0])));
}

#[test]
fn a_sync_that_has_not_returned_promises_nothing() {
    let (files, log) = beginning();
    log.did(write(1));
    let sync = log.begin(Call::Sync { file: FILE });
    let at = log.clock.now();
    log.end(sync);
    assert!(outcomes(&files, &log, at, "a").contains(&Some([0, 0])), "cut before it returned");
    assert_eq!(outcomes(&files, &log, log.clock.now(), "a"), [Some([1, 1])].into());
}

#[test]
fn what_came_after_the_cut_never_happened() {
    let (files, log) = beginning();
    let at = log.clock.now();
    log.did(write(1));
    log.did(Call::Sync { file: FILE });
    assert_eq!(outcomes(&files, &log, at, "a"), [Some([0, 0])].into());
}

#[test]
fn a_new_name_may_be_lost_until_the_directory_is_synced_whatever_its_file_did() {
    let (files, log) = beginning();
    log.did(Call::Create { name: "b".into(), file: FileId(1) });
    log.did(Call::Sync { file: FileId(1) });
    log.did(Call::Remove { name: "a".into() });
    let now = || log.clock.now();
    assert!(outcomes(&files, &log, now(), "b").contains(&None));
    assert!(outcomes(&files, &log, now(), "a").contains(&Some([0, 0])), "a removal may be lost");
    log.did(Call::SyncDir);
    assert_eq!(outcomes(&files, &log, now(), "b"), [Some([0, 0])].into());
    assert_eq!(outcomes(&files, &log, now(), "a"), [None].into());
}

#[test]
fn a_killed_process_loses_nothing_that_was_done() {
    let (files, log) = beginning();
    log.did(write(1));
    log.did(Call::Rename { from: "a".into(), to: "b".into() });
    let left = log.after_kill(&files, log.clock.now(), &mut Random::new(1));
    assert_eq!(left.0.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(left.0["b"].sectors[&1][..], [1; SECTOR]);
}

#[test]
fn a_directory_is_written_as_it_was_read() {
    let place = tempfile::tempdir().expect("a directory");
    let (files, log) = beginning();
    log.did(write(7));
    log.did(Call::Punch { file: FILE, offset_bytes: 0, length_bytes: 512 });
    let left = log.after_kill(&files, log.clock.now(), &mut Random::new(1));
    left.write(&place.path().join("d")).expect("write");
    assert_eq!(Files::read(&place.path().join("d")).expect("read"), left);
}
