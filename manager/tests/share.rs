//! `ankole share serve` as a process: what it serves, and when it must not.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn share(root: &Path, listen: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ankole"));
    command.args(["share", "serve", "--listen", listen, "--root"]).arg(root);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

struct Share {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Share {
    fn start(root: &Path) -> Self {
        Self::spawn(share(root, "127.0.0.1:0"), root)
    }

    fn spawn(mut command: Command, root: &Path) -> Self {
        let mut process = command.spawn().unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        let mut started = Self { process, said };
        assert_eq!(started.line(), format!("{} is served", root.display()));
        started
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().into()
    }

    fn end(mut self, signal: Signal) -> bool {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
        self.process.wait().unwrap().success()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn is_refused(root: &Path, listen: &str, words: &[&str]) {
    let output = share(root, listen).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "it doesn't say {word:?}: {said}");
    }
}

/// Two used to start, and each granted the locks that the other had granted. That the share's own folder
/// is removed under the first must not let the second in.
#[test]
fn a_directory_that_is_served_is_served_by_no_second_one() {
    let root = tempfile::tempdir().unwrap();
    let first = Share::start(root.path());
    let (path, pid) = (root.path().display().to_string(), first.process.id().to_string());
    is_refused(root.path(), "127.0.0.1:0", &["error: ", &path, &pid, "next: ", "kill"]);
    std::fs::remove_dir_all(root.path().join(".ankole-share")).unwrap();
    is_refused(root.path(), "127.0.0.1:0", &["error: ", &path, &pid, "next: ", "kill"]);
    first.end(Signal::KILL);
    assert!(Share::start(root.path()).end(Signal::TERM));
}

#[test]
fn a_share_that_can_not_start_says_why_and_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    is_refused(root.path(), &address, &["error: listen on", &address, "next: ", "ss -ltnp"]);
    let absent = root.path().join("absent");
    is_refused(&absent, "127.0.0.1:0", &["error: ", "absent", "next: make it: mkdir"]);
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    is_refused(&file, "127.0.0.1:0", &["error: ", "next: name a directory"]);
}
