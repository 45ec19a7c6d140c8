//! A standalone in a folder of its own, and the command line that talks to it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod cluster;
pub mod data;
pub mod mounted;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Long enough for a busy machine; nothing is timed by it.
pub const SOON: Duration = Duration::from_secs(60);

pub struct World {
    folder: tempfile::TempDir,
    launch: fn(&World) -> Command,
    standalone: Option<Child>,
}

/// What the command line said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl World {
    /// `launch` makes the command that runs a standalone on `data()`.
    pub fn new(launch: fn(&World) -> Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut world = Self { folder, launch, standalone: None };
        world.start();
        world
    }

    /// With the real binary.
    pub fn real() -> Self {
        Self::new(Self::launch_real)
    }

    /// With the real binary, in a folder whose path is longer than a socket's may be.
    pub fn at_a_long_path() -> Self {
        let mut world = Self { folder: long_folder(), launch: Self::launch_real, standalone: None };
        world.start();
        world
    }

    fn launch_real(&self) -> Command {
        let mut command = self.ankole();
        command.args(["standalone", "--listen", "127.0.0.1:0"]);
        command
    }

    /// With the real binary, whose replicas lie on another disk.
    pub fn on_disk(disk: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(disk, folder.path().join("disk")).unwrap();
        let launch = |world: &World| {
            let mut command = world.ankole();
            command.args(["standalone", "--listen", "127.0.0.1:0", "--disk"]);
            command.arg(world.path().join("disk"));
            command
        };
        let mut world = Self { folder, launch, standalone: None };
        world.start();
        world
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// The command line, before its arguments.
    pub fn ankole(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ankole"));
        for variable in ["ANKOLE_SERVER", "ANKOLE_DATA", "ANKOLE_TOKEN", "ANKOLE_LOG"] {
            command.env_remove(variable);
        }
        command.env("XDG_RUNTIME_DIR", self.path()).stdin(Stdio::null());
        command.arg("--data").arg(self.data());
        command
    }

    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// With further arguments.
    pub fn start_with(&mut self, args: &[&str]) {
        let mut child = self.launch_one_with(args);
        until("the API is there", || {
            assert!(child.try_wait().unwrap().is_none(), "the standalone ended: see its log");
            self.data()
                .join("run/api.addr")
                .exists()
                .then(|| self.say(&["volume", "ls"]).code == 0)
                .filter(|answered| *answered)
        });
        self.standalone = Some(child);
    }

    /// One that must not start: what it says, and that is no backtrace.
    pub fn is_refused(&self) -> String {
        let Output { status, stderr, .. } = (self.launch)(self).output().unwrap();
        let said = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        said
    }

    /// Without waiting for it.
    pub fn launch_one(&self) -> Child {
        self.launch_one_with(&[])
    }

    fn launch_one_with(&self, args: &[&str]) -> Child {
        let path = self.path().join("standalone.log");
        let log = fs::File::options().append(true).create(true).open(path).unwrap();
        (self.launch)(self).args(args).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("standalone.log")).unwrap_or_default()
    }

    pub fn standalone_pid(&self) -> u32 {
        self.standalone.as_ref().expect("it runs").id()
    }

    pub fn signal(&self, signal: Signal) {
        send(self.standalone_pid(), signal);
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.standalone.take().expect("it runs");
        until("the standalone ends", || child.try_wait().unwrap())
    }

    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::INT);
        self.wait()
    }

    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        assert_eq!(self.wait().signal(), Some(9));
        // What a killed one leaves; the next writes it anew.
        let _ = fs::remove_file(self.data().join("run/api.addr"));
    }

    pub fn say(&self, args: &[&str]) -> Said {
        let Output { status, stdout, stderr } = self.ankole().args(args).output().unwrap();
        Said {
            code: status.code().unwrap_or(-1),
            out: String::from_utf8(stdout).unwrap(),
            err: String::from_utf8(stderr).unwrap(),
        }
    }

    /// Must succeed.
    pub fn well(&self, args: &[&str]) -> String {
        let said = self.say(args);
        assert_eq!(said.code, 0, "{args:?}: {said:?}\n{}", self.log());
        said.out
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.well(&[args, &["-o", "json"]].concat())).unwrap()
    }

    pub fn volume(&self, name: &str) -> Value {
        self.json(&["volume", "show", name])
    }

    /// Pids of the engines and replicas that the pid files name.
    pub fn processes(&self) -> Vec<u32> {
        let files = fs::read_dir(self.data().join("run")).into_iter().flatten();
        let files = files.filter_map(|entry| Some(entry.ok()?.path()));
        let files = files.filter(|path| path.extension().is_some_and(|e| e == "process"));
        let texts = files.filter_map(|path| fs::read_to_string(path).ok());
        texts.filter_map(|text| text.lines().nth(1)?.split(' ').next()?.parse().ok()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.standalone.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for pid in self.processes() {
            if alive(pid) {
                send(pid, Signal::KILL);
            }
        }
        if std::thread::panicking() {
            eprintln!("--- log of the standalone ---\n{}", self.log());
        }
    }
}

fn long_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix(&"d".repeat(120)).tempdir().unwrap()
}

pub fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

/// A zombie isn't: its parent may be somebody else.
pub fn alive(pid: u32) -> bool {
    state_of(pid).is_some_and(|state| state != 'Z')
}

/// As in `/proc/PID/stat`.
pub fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The store of a standalone that has ended, for as long as `work` takes.
pub fn with_store<T>(world: &World, work: impl AsyncFnOnce(&dyn ankole_store::Store) -> T) -> T {
    let store = ankole_store::EmbeddedStore::open(&world.data().join("ankole.redb")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work(&store))
}

pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Those below the folder that have this extension.
pub fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let has_it = |path: &PathBuf| path.extension().is_some_and(|it| it == extension);
    let below = folders.iter().flat_map(|folder| self::files(folder, extension));
    below.chain(files.into_iter().filter(has_it)).collect()
}
