//! `ankole demo` as a process: how it ends, and that nothing of it is left.
//!
//! It runs as a user without privileges, also when the tests run as root.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use common::{send, until};
use rustix::process::Signal;

/// nobody
const USER: u32 = 65534;
/// The last line before a replica is killed.
const SNAPSHOT: &str = "take a snapshot";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A folder for temporary files, that of the user who runs the demo.
struct Ground {
    folder: tempfile::TempDir,
    /// With the program: nobody may not enter the build's folder.
    shelf: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        let (folder, shelf) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::set_permissions(shelf.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let ground = Self { folder, shelf };
        let built = env!("CARGO_BIN_EXE_ankole");
        // A link, if it is the same file system: a copy that was just written may count as busy.
        fs::hard_link(built, ground.program())
            .or_else(|_| fs::copy(built, ground.program()).map(drop))
            .unwrap();
        ground.give();
        ground
    }

    fn program(&self) -> PathBuf {
        self.shelf.path().join("ankole")
    }

    fn give(&self) {
        if is_root() {
            std::os::unix::fs::chown(self.path(), Some(USER), Some(USER)).unwrap();
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn demo(&self, options: &[&str]) -> Demo {
        self.run(&[&["--size", "64MiB"], options].concat())
    }

    fn run(&self, options: &[&str]) -> Demo {
        let mut command = Command::new(self.program());
        command.arg("demo").args(options);
        command.env("TMPDIR", self.path()).env("HOME", self.path()).env_remove("XDG_RUNTIME_DIR");
        command.current_dir(self.path());
        if is_root() {
            command.uid(USER).gid(USER);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Demo { child, lines, text: String::new() }
    }

    /// The demo and all that it started: they inherit TMPDIR.
    fn processes(&self) -> Vec<String> {
        let mark = format!("TMPDIR={}", self.path().display());
        let ours = |process: &PathBuf| {
            let environment = fs::read(process.join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let all = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
        let commands = all.filter(ours).map(|process| fs::read(process.join("cmdline")));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace('\0', " ");
        commands.filter_map(|command| command.ok().map(text)).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[track_caller]
    fn assert_nothing_is_left(&self) {
        assert_eq!(self.processes(), Vec::<String>::new());
        assert_eq!(self.files(), Vec::<PathBuf>::new());
    }
}

struct Demo {
    child: Child,
    lines: BufReader<ChildStdout>,
    text: String,
}

impl Demo {
    /// Reads on to the first line that has `part` in it.
    #[track_caller]
    fn until_it_says(&mut self, part: &str) {
        loop {
            let begin = self.text.len();
            let length = self.lines.read_line(&mut self.text).unwrap();
            if length == 0 {
                let mut errors = String::new();
                self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                panic!("it ended without {part:?}:\n{}\n{errors}", self.text);
            }
            if self.text[begin..].contains(part) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// Its status, and what it said on stdout and stderr.
    fn end(mut self) -> (ExitStatus, String, String) {
        let mut errors = String::new();
        self.lines.read_to_string(&mut self.text).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (self.child.wait().unwrap(), std::mem::take(&mut self.text), errors)
    }

    #[track_caller]
    fn ends_well(self) -> String {
        let (status, text, errors) = self.end();
        assert!(status.success(), "{status}\n{text}\n{errors}");
        assert!(text.lines().any(|line| line == "demo: ok"), "{text}");
        text
    }
}

/// A test that failed leaves nothing, either.
impl Drop for Demo {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

/// The main job. Logs of a CI get plain lines: no bars, no escapes.
#[test]
fn a_demo_ends_well_and_leaves_nothing() {
    let ground = Ground::new();
    let text = ground.demo(&[]).ends_well();
    assert!(text.contains("no request of"), "{text}");
    assert!(text.contains("files are what was written"), "{text}");
    assert!(!text.contains(['\x1b', '\r']), "{text:?}");
    ground.assert_nothing_is_left();
}

/// Two share the user's folders, the temporary folder and the search for what a dead one left.
#[test]
fn two_demos_at_once_do_not_disturb_each_other() {
    let ground = Ground::new();
    let demos = [ground.demo(&["--replicas", "2"]), ground.demo(&["--replicas", "1"])];
    for demo in demos {
        demo.ends_well();
    }
    ground.assert_nothing_is_left();
}

#[test]
fn ctrl_c_and_sigterm_in_the_middle_leave_nothing() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let ground = Ground::new();
        let mut demo = ground.demo(&[]);
        demo.until_it_says(SNAPSHOT);
        let processes = ground.processes();
        assert!(processes.len() >= 6, "with standalone, engine, replicas: {processes:#?}");
        demo.signal(signal);
        let (status, text, errors) = demo.end();
        assert_eq!(status.code(), Some(code), "{text}\n{errors}");
        assert!(!text.contains("demo: ok"));
        ground.assert_nothing_is_left();
    }
}

/// SIGKILL gives it no time. Its standalone must hear of it and end everything, the next demo
/// removes the files.
#[test]
fn a_killed_demo_leaves_no_process_and_the_next_one_removes_its_files() {
    let ground = Ground::new();
    let mut demo = ground.demo(&[]);
    demo.until_it_says(SNAPSHOT);
    demo.signal(Signal::KILL);
    assert_eq!(demo.end().0.signal(), Some(9));
    until("the processes of the killed demo end", || ground.processes().is_empty().then_some(()));
    assert_eq!(ground.files().len(), 1);

    let mut next = ground.demo(&[]);
    next.until_it_says("Removed ");
    next.signal(Signal::INT);
    next.end();
    ground.assert_nothing_is_left();
}

#[test]
fn what_is_kept_survives_the_next_demo_and_can_be_used() {
    let ground = Ground::new();
    let text = ground.demo(&["--keep", "--replicas", "1"]).ends_well();
    assert_eq!(ground.processes(), Vec::<String>::new());
    let files = ground.files();
    let sockets = fs::read_to_string(files[0].join("data/run/sockets"));
    assert!(!sockets.is_ok_and(|path| Path::new(path.trim_end()).exists()), "they were served");
    let [root] = files.try_into().unwrap();
    assert!(text.contains(&format!("Kept in {}", root.display())), "{text}");
    let mut next = ground.demo(&[]);
    next.until_it_says("write a tree");
    next.signal(Signal::INT);
    next.end();
    let target = format!("file://{}/backups", root.display());
    let mut list = Command::new(ground.program());
    list.args(["backup", "ls", "--target", &target, "-o", "name"]);
    let urls = String::from_utf8(list.output().unwrap().stdout).unwrap();
    assert_eq!(urls.lines().count(), 2, "a full and an incremental backup: {urls}");
}

#[test]
fn a_size_that_is_too_small_is_refused() {
    let ground = Ground::new();
    let (status, _, errors) = ground.run(&["--size", "62MiB"]).end();
    assert_eq!(status.code(), Some(2));
    assert!(errors.contains("next: use --size 64MiB"), "{errors}");
    ground.assert_nothing_is_left();
}

/// A file system in memory, unmounted on drop.
struct Memory(Ground);

impl Memory {
    fn new(size: &str) -> Option<Self> {
        let memory = Self(Ground::new());
        let path = memory.0.path().to_str().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", path])
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: mounting a tmpfs needs root");
            return None;
        }
        memory.0.give();
        Some(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_disk_that_is_too_small_is_named_with_what_is_needed() {
    let Some(Memory(ground)) = &Memory::new("100m") else { return };
    let (status, _, errors) = ground.demo(&["--dir", ground.path().to_str().unwrap()]).end();
    assert_eq!(status.code(), Some(1));
    let named = errors.contains(ground.path().to_str().unwrap()) && errors.contains("100 MiB free");
    assert!(named && errors.contains("next: "), "{errors}");
    ground.assert_nothing_is_left();
}

/// There was room at the start, and then others took it.
#[test]
fn a_disk_that_fills_up_ends_the_demo_and_leaves_nothing() {
    let Some(Memory(ground)) = &Memory::new("600m") else { return };
    let mut demo = ground.demo(&["--dir", ground.path().to_str().unwrap()]);
    demo.until_it_says("make an ext4");
    let filler = ground.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    let taken = std::io::copy(&mut std::io::repeat(1), &mut file);
    assert!(taken.is_err(), "the disk is full");
    let (status, text, errors) = demo.end();
    assert!(!status.success(), "{text}");
    assert!(errors.contains("is full"), "{text}\n{errors}");
    fs::remove_file(filler).unwrap();
    ground.assert_nothing_is_left();
}
