//! Why a process ended, as its log has it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use ankole_plan::node::facts::LastWords;

/// Of a log's end; an error with its next step is two lines, a panic with its backtrace some 4 KiB.
const TAIL_BYTES: u64 = 16 << 10;
/// Of what is shown of a line.
const LINE_CHARACTERS_MAX: usize = 500;

/// Of the process whose part of the log begins at `from_bytes`. None if it said nothing of an error,
/// as when it was killed.
pub fn last_words(log: &Path, from_bytes: u64) -> Option<LastWords> {
    find(&tail(log, from_bytes).ok()?)
}

fn tail(log: &Path, from_bytes: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length_bytes = file.metadata()?.len();
    // A shorter one was begun anew since.
    let from_bytes = if from_bytes > length_bytes { 0 } else { from_bytes };
    file.seek(SeekFrom::Start(from_bytes.max(length_bytes.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The error that a role ends with, or else what a panic or a failed allocation says, the last line of
/// the log that is an error, or the last one that is no line of a log: who can't be run at all is told of
/// by others.
fn find(text: &str) -> Option<LastWords> {
    let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last = |what: &str| lines.iter().rposition(|line| line.starts_with(what));
    if let Some(at) = last("error: ") {
        let next = lines.get(at + 1).and_then(|line| line.strip_prefix("next: "));
        return Some(words(&lines[at]["error: ".len()..], next));
    }
    if let Some(at) = last("thread '") {
        let what = lines.get(at + 1).unwrap_or(&lines[at]);
        return Some(words(&format!("it panicked: {what}"), None));
    }
    if let Some(at) = last("memory allocation of ") {
        return Some(words(lines[at], None));
    }
    let logged = lines.iter().rev().find_map(|line| logged_error(line));
    let foreign =
        || lines.iter().rev().find(|line| !line.starts_with(|c: char| c.is_ascii_digit()));
    logged.or_else(|| foreign().copied()).map(|line| words(line, None))
}

/// `2026-11-30T13:52:54.4Z ERROR ankole_replica::server: text` without what is before the text.
fn logged_error(line: &str) -> Option<&str> {
    let (time, text) = line.split_once(" ERROR ")?;
    let is_time = time.starts_with(|c: char| c.is_ascii_digit()) && !time.contains(' ');
    let text = text.split_once(": ").map_or(text, |(_target, text)| text);
    is_time.then_some(text)
}

fn words(error: &str, next: Option<&str>) -> LastWords {
    let short = |text: &str| text.chars().take(LINE_CHARACTERS_MAX).collect();
    LastWords { error: short(error), next: next.map(short) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn said(text: &str) -> Option<(String, Option<String>)> {
        find(text).map(|words| (words.error, words.next))
    }

    #[test]
    fn the_error_that_a_role_ends_with_is_its_last_word() {
        let log = "2026-11-30T13:52:54.438639Z  INFO ankole_replica::server: serves\n\
                   2026-11-30T13:52:55.438639Z ERROR ankole_replica::server: the disk failed: EIO\n";
        assert_eq!(said(log), Some(("the disk failed: EIO".into(), None)));
        let ended = format!("{log}error: serve replica r1: it is in use\nnext: stop it\n");
        let words = ("serve replica r1: it is in use".into(), Some("stop it".into()));
        assert_eq!(said(&ended), Some(words));
    }

    #[test]
    fn a_panic_a_want_of_memory_and_a_program_that_can_not_run_are_told() {
        let panic = "\nthread 'main' (12) panicked at src/x.rs:1:2:\nno such thing\n\
                     stack backtrace:\n   0: rust_begin_unwind\n";
        assert_eq!(said(panic), Some(("it panicked: no such thing".into(), None)));
        let memory = "memory allocation of 64 bytes failed\nnote: run with a backtrace\n";
        assert_eq!(said(memory).unwrap().0, "memory allocation of 64 bytes failed");
        let loader = "ankole: error while loading shared libraries: libc.so.6\n";
        assert_eq!(said(loader).unwrap().0, loader.trim_end());
    }

    #[test]
    fn a_process_that_was_killed_says_nothing() {
        assert_eq!(said(""), None);
        assert_eq!(said("2026-11-30T13:52:54.438639Z  INFO ankole: ready error: no\n"), None);
    }

    /// The log goes on over restarts: what an earlier process ended with isn't the last one's.
    #[test]
    fn only_the_part_of_the_process_itself_is_read() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        log.write_all(b"error: an earlier one\n").unwrap();
        let from_bytes = log.as_file().metadata().unwrap().len();
        assert_eq!(last_words(log.path(), from_bytes), None);
        log.write_all(&vec![b'x'; 40 << 10]).unwrap();
        log.write_all("\nerror: \u{1f980} ".as_bytes()).unwrap();
        log.write_all(&vec![b'y'; 12 << 10]).unwrap();
        let words = last_words(log.path(), from_bytes).unwrap();
        assert!(words.error.starts_with("\u{1f980} yyy"), "{words:?}");
        assert_eq!(words.error.chars().count(), LINE_CHARACTERS_MAX);
        // Begun anew by whoever rotates logs.
        assert_eq!(last_words(log.path(), 1 << 30), Some(words));
    }
}
