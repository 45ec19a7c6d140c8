use super::*;
use crate::sector::fill;

const RUN: u64 = 5;
const FIRST: Extent = Extent { offset_bytes: 0, length_bytes: SECTOR_BYTES };

fn history() -> History {
    History::new(RUN, 4096, Clock::default())
}

impl History {
    fn written(&mut self, durability: Durability) -> WriteId {
        let id = self.ask_write(FIRST, durability, false);
        self.answer_write(id);
        id
    }

    fn flushed(&mut self) {
        let id = self.ask_flush();
        self.answer_flush(id);
    }

    fn zeroed(&mut self) {
        let id = self.ask_write(FIRST, Durability::Volatile, true);
        self.answer_write(id);
    }
}

fn bytes_of(id: Option<WriteId>) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR_BYTES as usize];
    if let Some(id) = id {
        fill(RUN, 0, id, &mut bytes);
    }
    bytes
}

/// Whether the first sector may hold that write, or zeroes, after a cut of everything now.
fn may_show(history: &History, id: Option<WriteId>) -> bool {
    may_show_at(history, history.now(), Floor::Flushed, &View::Volume, id)
}

fn may_show_at(
    history: &History,
    at: Moment,
    floor: Floor,
    view: &View,
    id: Option<WriteId>,
) -> bool {
    history.after_cut(at, floor).check(view, 0, &bytes_of(id)).is_empty()
}

#[test]
fn what_was_flushed_must_be_there_and_what_was_not_may_be() {
    let mut history = history();
    assert!(may_show(&history, None));
    let first = history.written(Durability::Volatile);
    assert!(may_show(&history, None) && may_show(&history, Some(first)));
    history.flushed();
    assert!(!may_show(&history, None) && may_show(&history, Some(first)));
    let second = history.written(Durability::Volatile);
    assert!(may_show(&history, Some(first)) && may_show(&history, Some(second)));
    history.flushed();
    assert!(!may_show(&history, Some(first)) && may_show(&history, Some(second)));
}

/// A flush covers what was answered before it was asked for, and nothing that came while it ran.
#[test]
fn a_flush_covers_only_what_was_answered_before_it() {
    let mut history = history();
    let running = history.ask_write(FIRST, Durability::Volatile, false);
    let flush = history.ask_flush();
    history.answer_write(running);
    history.answer_flush(flush);
    assert!(may_show(&history, None), "the write was answered too late for the flush");
    history.flushed();
    assert!(!may_show(&history, None));
}

#[test]
fn a_forced_write_needs_no_flush() {
    let mut history = history();
    let forced = history.written(Durability::ForcedUnitAccess);
    assert!(!may_show(&history, None) && may_show(&history, Some(forced)));
}

#[test]
fn a_flush_without_an_answer_covers_nothing() {
    let mut history = history();
    let write = history.written(Durability::Volatile);
    history.ask_flush();
    assert!(may_show(&history, None) && may_show(&history, Some(write)));
}

/// The cut came before the answer, so the answer doesn't count, and later writes can't be there.
#[test]
fn what_happened_after_the_cut_is_not_known() {
    let mut history = history();
    let first = history.written(Durability::Volatile);
    let cut = history.now();
    history.flushed();
    let later = history.written(Durability::Volatile);
    let shows = |id| may_show_at(&history, cut, Floor::Flushed, &View::Volume, id);
    assert!(shows(None) && shows(Some(first)));
    assert!(!shows(Some(later)), "a write from the future");
}

/// Two writes were in flight at once: nobody was told which one came last.
#[test]
fn of_writes_that_overlap_in_time_either_may_be_the_last() {
    let mut history = history();
    let one = history.ask_write(FIRST, Durability::Volatile, false);
    let two = history.ask_write(FIRST, Durability::Volatile, false);
    history.answer_write(two);
    history.answer_write(one);
    history.flushed();
    assert!(may_show(&history, Some(one)) && may_show(&history, Some(two)));
    assert!(!may_show(&history, None));
}

#[test]
fn zeroes_are_a_write_like_any_other() {
    let mut history = history();
    let first = history.written(Durability::Volatile);
    history.flushed();
    history.zeroed();
    assert!(may_show(&history, None) && may_show(&history, Some(first)));
    history.flushed();
    assert!(may_show(&history, None), "they were flushed");
    assert!(!may_show(&history, Some(first)), "what was zeroed came back");
}

/// P3: while one machine runs on, nothing that was answered is lost.
#[test]
fn if_a_replica_lives_on_all_that_was_answered_is_there() {
    let mut history = history();
    let first = history.written(Durability::Volatile);
    let asked = history.ask_write(FIRST, Durability::Volatile, false);
    let cut = history.now();
    let shows = |id| may_show_at(&history, cut, Floor::Answered, &View::Volume, id);
    assert!(!shows(None));
    assert!(shows(Some(first)) && shows(Some(asked)), "what wasn't answered may be either");
}

#[test]
fn a_snapshot_shows_what_was_answered_before_it_and_nothing_later() {
    let mut history = history();
    let before = history.written(Durability::Volatile);
    let id = history.ask_snapshot("s");
    history.answer_snapshot(id);
    let after = history.written(Durability::Volatile);
    let view = View::Snapshot("s".into());
    let at = history.now();
    let shows = |id| may_show_at(&history, at, Floor::Flushed, &view, id);
    assert!(shows(Some(before)));
    assert!(!shows(None) && !shows(Some(after)));
    let expectation = history.after_cut(history.now(), Floor::Flushed);
    assert_eq!(expectation.missing(&[]).collect::<Vec<_>>(), ["s"]);
    assert_eq!(expectation.missing(&["s".into()]).count(), 0);
    history.ask_removal(id);
    let expectation = history.after_cut(history.now(), Floor::Flushed);
    assert_eq!(expectation.missing(&[]).count(), 0, "somebody is removing it");
    assert!(expectation.knows("s") && !expectation.knows("t"));
}

#[test]
fn a_snapshot_that_was_not_reported_may_be_missing() {
    let mut history = history();
    history.ask_snapshot("s");
    assert_eq!(history.after_cut(history.now(), Floor::Flushed).missing(&[]).count(), 0);
}

#[test]
fn a_read_never_shows_what_was_overwritten_before_it_began() {
    let mut history = history();
    let first = history.written(Durability::Volatile);
    let asked = history.now();
    let second = history.ask_write(FIRST, Durability::Volatile, false);
    let check = |id| history.check_read(asked, FIRST, &bytes_of(id)).is_empty();
    assert!(!check(None));
    assert!(check(Some(first)) && check(Some(second)));
    assert!(!check(Some(WriteId(9))));
}

#[test]
fn bytes_that_nobody_wrote_are_always_wrong() {
    let history = history();
    let found = history.after_cut(history.now(), Floor::Flushed).check(&View::Volume, 0, &[1; 512]);
    assert_eq!(found.len(), 1);
    assert!(found[0].to_string().contains("nobody wrote"), "{}", found[0]);
}
