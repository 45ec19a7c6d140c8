//! Who watches an engine is told what changes, and that it lives.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use ankole_replica::admin::{Answer, EngineStatus, ErrorKind, Request};
use ankole_replica::engine::{Engine, MemoryArbiter, serve_admin};
use ankole_replica::listen::Address;
use ankole_replica::record::{EngineGrant, InstanceId, Member, Record};
use ankole_replica::replication::Config;
use ankole_replica::server::format;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::task::LocalSet;

/// Longer than anything takes; nothing is timed by it.
const SOON: Duration = Duration::from_secs(60);

/// An engine with one replica in its process.
async fn start(folder: &Path) -> (Engine, PathBuf) {
    let directory = folder.join("r1");
    let incarnation = format(&directory, "v1", &"r1".into(), 8 << 20).await.unwrap();
    let instance = InstanceId("0".into());
    let member = Member { replica: "r1".into(), incarnation };
    let mut record = Record::first(vec![member]);
    record.engine = Some(EngineGrant { node: "n1".into(), instance: instance.clone() });
    let config = Config::new("v1", instance, vec!["r1".into()]);
    let addresses = BTreeMap::from([("r1".into(), Address::Directory(directory))]);
    let arbiter = Box::new(MemoryArbiter(Rc::new(RefCell::new(record))));
    let engine = Engine::start(config, addresses, arbiter);
    let (serving, socket) = (engine.clone(), folder.join("admin"));
    let path = socket.clone();
    tokio::task::spawn_local(async move { serve_admin(serving, &path).await });
    (engine, socket)
}

struct Watcher(Lines<BufReader<UnixStream>>);

impl Watcher {
    async fn new(socket: &Path) -> Self {
        let mut stream = loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await, // it isn't there yet
            }
        };
        let mut line = serde_json::to_vec(&Request::Watch).unwrap();
        line.push(b'\n');
        stream.write_all(&line).await.unwrap();
        Self(BufReader::new(stream).lines())
    }

    async fn next(&mut self) -> Option<Answer> {
        let line = tokio::time::timeout(SOON, self.0.next_line()).await.unwrap();
        line.ok().flatten().map(|line| serde_json::from_str(&line).unwrap())
    }

    async fn until(&mut self, is_so: impl Fn(&EngineStatus) -> bool) {
        loop {
            match self.next().await.unwrap() {
                Answer::Status(status) if is_so(&status) => return,
                Answer::Status(_) | Answer::Alive => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

/// Its agent asked once a second, and heard of an endpoint so late.
#[test]
fn what_changes_is_told_without_asking_and_that_nothing_does_too() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (engine, socket) = start(folder.path()).await;
        let mut watcher = Watcher::new(&socket).await;
        engine.opened().await.unwrap();
        watcher.until(|status| status.size_bytes == 8 << 20 && status.endpoint.is_none()).await;
        engine.set_endpoint("nbd+unix:///v1".into());
        watcher.until(|status| status.endpoint.is_some()).await;
        engine.snapshot("s1".into(), BTreeMap::new()).await.unwrap();
        watcher.until(|status| status.snapshots.len() == 1).await;
        while watcher.next().await.unwrap() != Answer::Alive {}
        engine.expand(16 << 20).await.unwrap();
        watcher.until(|status| status.size_bytes == 16 << 20).await;
    });
}

#[test]
fn there_is_a_last_watcher_and_a_place_that_is_left_is_free() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (_engine, socket) = start(folder.path()).await;
        let mut watchers = Vec::new();
        let refused = loop {
            assert!(watchers.len() < 100, "there is no limit");
            let mut watcher = Watcher::new(&socket).await;
            match watcher.next().await.unwrap() {
                Answer::Status(_) => watchers.push(watcher),
                Answer::Error { kind, message } => break (kind, message),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused.0, ErrorKind::Conflict);
        assert!(refused.1.contains("watch volume v1 already"), "{}", refused.1);
        watchers.pop();
        loop {
            if let Answer::Status(_) = Watcher::new(&socket).await.next().await.unwrap() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await; // it is seen at the next word
        }
    });
}
