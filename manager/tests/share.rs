//! `ankole share serve` as a process: what it serves, and when it must not.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn share() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ankole"));
    command.args(["share", "serve"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

struct Share {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Share {
    fn start(root: &Path) -> Self {
        let mut command = share();
        command.args(["--listen", "127.0.0.1:0", "--root"]).arg(root);
        Self::spawn(command, root)
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
    is_refused_with(&["--listen", listen, "--root", root.to_str().unwrap()], words);
}

fn is_refused_with(args: &[&str], words: &[&str]) {
    let output = share().args(args).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
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

/// Linux waits three seconds after a connection that was refused: one that comes while the share restarts,
/// killed or ended by a signal, must be queued.
#[test]
fn a_socket_that_is_handed_in_outlives_the_share() {
    let root = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let command = || {
        let mut command = Command::new("sh");
        let program = env!("CARGO_BIN_EXE_ankole");
        command.env("LISTEN_FDS", "1").args(["-c", HAND_IN, program]).arg(root.path());
        command.stdin(OwnedFd::from(socket.try_clone().unwrap()));
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        command
    };
    for signal in [Signal::KILL, Signal::TERM, Signal::TERM] {
        let early = TcpStream::connect(address).unwrap();
        let mut share = Share::spawn(command(), root.path());
        assert!(share.line().contains(&format!("port={}", address.port())));
        is_answered(early);
        assert_eq!(share.end(signal), signal == Signal::TERM);
    }
}

const HAND_IN: &str =
    r#"LISTEN_PID=$$; export LISTEN_PID; exec "$0" share serve --root "$1" 3<&0 0</dev/null"#;

/// A call of the procedure that does nothing, as any RPC client can send it.
fn is_answered(mut connection: TcpStream) {
    let call: [u32; 11] = [0x8000_0028, 7, 0, 2, 100_003, 4, 0, 0, 0, 0, 0];
    connection.write_all(&call.map(u32::to_be_bytes).concat()).unwrap();
    let mut reply = [0; 28];
    connection.read_exact(&mut reply).unwrap();
    assert_eq!(reply[4..8], 7u32.to_be_bytes());
}

/// How often each operation was done and how long it took is logged when it is asked for.
#[test]
fn a_share_tells_its_figures_at_a_signal() {
    let root = tempfile::tempdir().unwrap();
    let mut command = share();
    command.args(["--listen", "127.0.0.1:0", "--root"]).arg(root.path());
    let mut share = Share::spawn(command, root.path());
    let line = share.line();
    let port = line.split("port=").nth(1).unwrap().split_once(' ').unwrap().0;
    asks_for_the_root(TcpStream::connect(format!("127.0.0.1:{port}")).unwrap());
    let mut log = BufReader::new(share.process.stderr.take().unwrap()).lines();
    kill_process(Pid::from_child(&share.process), Signal::USR1).unwrap();
    let told = log.find(|line| line.as_ref().unwrap().contains("PutRootFh")).unwrap().unwrap();
    assert!(told.contains("count=1 failed=1"), "{told}");
    share.end(Signal::TERM);
}

/// Outside of a session, which is refused.
fn asks_for_the_root(mut connection: TcpStream) {
    let call: [u32; 15] = [0x8000_0038, 7, 0, 2, 100_003, 4, 1, 0, 0, 0, 0, 0, 1, 1, 24];
    connection.write_all(&call.map(u32::to_be_bytes).concat()).unwrap();
    connection.read_exact(&mut [0; 28]).unwrap();
}

#[test]
fn a_share_that_can_not_start_says_why_and_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    is_refused(root.path(), &address, &["error: listen on", &address, "next: ", "ss -ltnp"]);
    is_refused_with(&["--root", "/"], &["error: no address", "next: --listen"]);
    let absent = root.path().join("absent");
    is_refused(&absent, "127.0.0.1:0", &["error: ", "absent", "next: make it: mkdir"]);
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    is_refused(&file, "127.0.0.1:0", &["error: ", "next: name a directory"]);
}
