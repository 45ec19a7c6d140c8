//! What the tests of the NBD frontend share.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use ankole_blockdev::disk::Disk;
use ankole_blockdev::nbd::{Export, Limits, Listener, TcpExposure, serve};
use tempfile::TempDir;
use tokio::sync::oneshot;

pub(crate) const MIB: u64 = 1 << 20;

/// Tools that tests run, with the Debian package that has them.
const TOOLS: &[(&str, &str)] = &[
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("fio", "fio"),
];

/// Whether all of `tools` are installed. If one isn't, the test says so and should return; with
/// `ANKOLE_TEST_REQUIRE_TOOLS=1` it fails instead.
pub(crate) fn has_tools(tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_missing =
        |tool: &&&str| !std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    let Some(missing) = tools.iter().find(is_missing) else { return true };
    let (_, package) = TOOLS.iter().find(|(tool, _)| tool == missing).expect("listed in TOOLS");
    let message = format!("SKIPPED: {missing} (Debian package {package})");
    assert!(
        std::env::var_os("ANKOLE_TEST_REQUIRE_TOOLS").is_none_or(|set| set != "1"),
        "{message}"
    );
    eprintln!("{message}");
    false
}

/// Runs a tool to its end; fails the test, with what the tool said, if the tool fails.
pub(crate) fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).output().expect("the tool was found before");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// A server on a thread of its own, stopped when this is dropped.
pub(crate) struct Served {
    folder: TempDir,
    pub(crate) uri: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Setup {
    pub(crate) read_only: bool,
    pub(crate) tcp: bool,
    pub(crate) limits: Limits,
}

impl Served {
    /// Serves the disk that `make` builds on the server's thread, under the name `disk`.
    pub(crate) fn new<D: Disk + 'static>(make: impl FnOnce() -> D + Send + 'static) -> Self {
        Self::with(Setup::default(), make)
    }

    pub(crate) fn with<D: Disk + 'static>(
        setup: Setup,
        make: impl FnOnce() -> D + Send + 'static,
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let socket = socket_in(&folder);
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell_uri, uri) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            local(async move {
                let listener = match setup.tcp {
                    false => Listener::bind_unix(socket).await.unwrap(),
                    true => {
                        let any_port = "127.0.0.1:0".parse().unwrap();
                        Listener::bind_tcp(any_port, TcpExposure::LoopbackOnly).await.unwrap()
                    }
                };
                tell_uri.send(listener.uri()).unwrap();
                let export = Export {
                    name: "disk".into(),
                    disk: Rc::new(make()),
                    read_only: setup.read_only,
                    clients: Rc::default(),
                };
                serve(listener, export, setup.limits, async { drop(stopped.await) }).await;
            });
        });
        let uri = uri.recv().expect("the server says where it listens");
        Self { folder, uri, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(&self.folder)
    }

    /// A path for a file of this test.
    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().expect("only taken here").join();
        if !std::thread::panicking() {
            ended.expect("the server doesn't panic, whatever clients do");
        }
    }
}

fn socket_in(folder: &TempDir) -> PathBuf {
    folder.path().join("nbd.sock")
}

/// Runs a test on one thread, as servers and clients want it.
pub(crate) fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// A seed for this run: `ANKOLE_TEST_SEED` or a new one. It is printed, and a failing test shows it.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("ANKOLE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64
    });
    eprintln!("ANKOLE_TEST_SEED={seed}");
    seed
}

/// SplitMix64: small, and good enough to choose test inputs.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words.flatten().take(length).collect()
    }
}

/// A file with runs of random data and of holes.
pub(crate) fn write_sparse_image(path: &Path, size_bytes: u64, random: &mut Random) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size_bytes).unwrap();
    let mut offset = 0;
    while offset < size_bytes {
        let length = (random.below(64) + 1) * 4096;
        let length = length.min(size_bytes - offset);
        if random.below(2) == 0 {
            file.write_all_at(&random.bytes(length as usize), offset).unwrap();
        }
        offset += length;
    }
}
