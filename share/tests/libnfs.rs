//! The tools of libnfs, which speak 4.0 and no other version of NFSv4; skipped where they aren't installed.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use ankole_share::ops::Export;
use ankole_share::server::Server;
use ankole_share::tree::local::{LocalTree, Options};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--help").output().is_ok()
}

#[test]
fn libnfs_copies_files_in_and_out_and_lists_them() {
    if !["nfs-ls", "nfs-cp"].into_iter().all(is_there) {
        eprintln!("SKIPPED: nfs-ls and nfs-cp aren't there: the package libnfs-utils");
        return;
    }
    let (root, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let tree = LocalTree::open(root.path(), Options::default()).unwrap();
    let export = Export::new(Box::new(tree), Instant::now(), 1, Duration::from_secs(20));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let _server = Server::start(listener, Arc::new(export)).unwrap();
    let url = |name: &str| format!("nfs://127.0.0.1/{name}?version=4&nfsport={port}");
    let path = |of: &Path| of.to_str().unwrap().to_owned();

    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let (here, back) = (outside.path().join("here"), outside.path().join("back"));
    // libnfs 4.0.0 can't put a larger write into a message.
    std::fs::write(&here, &data[..3000]).unwrap();
    std::fs::create_dir(root.path().join("folder")).unwrap();
    std::fs::write(root.path().join("folder/large"), &data).unwrap();
    run("nfs-cp", &[&path(&here), &url("folder/small")]);
    assert!(std::fs::read(root.path().join("folder/small")).unwrap() == data[..3000]);
    let list = run("nfs-ls", &[&url("folder")]);
    assert!(list.contains("3000000") && list.contains("small"), "{list}");
    run("nfs-cp", &[&url("folder/large"), &path(&back)]);
    assert!(std::fs::read(&back).unwrap() == data);
}
