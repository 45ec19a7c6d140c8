//! The processes of a volume where something runs out.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ankole_replica::listen::Address;
use ankole_replica::reader::ReplicaReader;
use ankole_replica::server::format;
use common::until;

/// A replica's process, killed at the end of its test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With at most so many open files.
fn serve_replica(folder: &Path, open_files: u32) -> Served {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = folder.join("r1");
    let formatting = async { format(&directory, "v1", &"r1".into(), 8 << 20).await.unwrap() };
    tokio::task::LocalSet::new().block_on(&runtime, formatting);
    let script = format!("ulimit -n {open_files}; exec \"$0\" \"$@\"");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_ankole")]);
    command.args(["replica", "serve", "--volume", "v1", "--replica", "r1", "--dir"]);
    command.arg(folder.join("r1")).arg("--listen").arg(format!("unix:{}", socket(folder)));
    command.stdin(Stdio::null()).stderr(File::create(folder.join("log")).unwrap());
    Served(command.spawn().unwrap())
}

fn socket(folder: &Path) -> String {
    folder.join("socket").display().to_string()
}

/// It ended at the first one, and with it the volume's copy.
#[test]
fn a_replica_without_descriptors_lets_clients_wait_and_takes_them_when_there_are_some() {
    let folder = tempfile::tempdir().unwrap();
    let mut replica = serve_replica(folder.path(), 48);
    let mut clients = Vec::new();
    until("it has no descriptors left", || {
        if clients.len() < 60 {
            clients.extend(UnixStream::connect(socket(folder.path())));
        }
        assert!(replica.0.try_wait().unwrap().is_none(), "the replica ended");
        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        log.contains("can't take a client").then_some(())
    });
    clients.clear();
    let address = Address::Unix(socket(folder.path()).into());
    let answer = ReplicaReader::connect(&address, "v1", &"r1".into());
    assert!(answer.is_err_and(|error| error.is_refusal()), "a new one holds nothing to read");
}
