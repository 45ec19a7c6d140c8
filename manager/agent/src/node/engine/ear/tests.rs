//! Engines of other versions, and such as hang.

use std::path::Path;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::*;

/// Longer than anything takes; nothing is timed by it.
const SOON: Duration = Duration::from_secs(60);

const ALIVE: &str = r#"{"answer":"alive"}"#;
const UNKNOWN: &str = r#"{"answer":"error","kind":"invalid","message":"not an admin request"}"#;

fn status(size_bytes: u64) -> String {
    serde_json::json!({
        "answer": "status", "volume": "v1", "instance": "0", "generation": 1,
        "sizeBytes": size_bytes, "endpoint": "/dev/ublkb0", "replicas": [], "unsettledBytes": 0,
        "waiting": [], "clients": 0, "snapshots": [], "headBytes": 0, "headParent": null,
        "requests": {"reads": 0, "readBytes": 0, "writes": 0, "writtenBytes": 0, "flushes": 0,
                     "failed": 0},
    })
    .to_string()
}

struct Asked(BufReader<UnixStream>, String);

impl Asked {
    async fn next(engine: &UnixListener) -> Self {
        let mut connection = BufReader::new(engine.accept().await.unwrap().0);
        let mut line = String::new();
        connection.read_line(&mut line).await.unwrap();
        Self(connection, line)
    }

    async fn say(&mut self, line: &str) {
        self.0.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }
}

async fn until(ear: &mut Ear, is_so: impl Fn(&Heard) -> bool) {
    let heard = timeout(SOON, ear.heard.wait_for(is_so)).await;
    drop(heard.expect("it is heard soon").unwrap());
}

fn has_size(bytes: u64) -> impl Fn(&Heard) -> bool {
    move |heard| heard.said.as_ref().is_some_and(|said| said.size_bytes == bytes)
}

fn ear(folder: &Path) -> (Ear, PathBuf) {
    let socket = folder.join("admin");
    (Ear::open(1, socket.clone()), socket)
}

/// It was adopted from the agent before, and is never upgraded as long as it is attached.
#[tokio::test]
async fn an_engine_that_does_not_know_how_to_be_watched_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ear, socket) = ear(folder.path());
    until(&mut ear, |heard| heard.unreachable.is_some()).await;
    let listener = UnixListener::bind(socket).unwrap();
    let engine = tokio::spawn(async move {
        for size_bytes in [0, 1, 2] {
            let mut asked = Asked::next(&listener).await;
            let (request, answer) = match size_bytes {
                0 => ("watch", UNKNOWN.to_owned()),
                _ => ("status", status(size_bytes)),
            };
            assert!(asked.1.contains(request), "{}", asked.1);
            asked.say(&answer).await;
        }
    });
    until(&mut ear, has_size(1)).await;
    assert!(ear.heard().silent.is_none() && ear.heard().unreachable.is_none());
    until(&mut ear, has_size(2)).await;
    engine.await.unwrap();
    until(&mut ear, |heard| heard.unreachable.is_some() && heard.silent.is_some()).await;
    assert!(has_size(2)(&ear.heard()), "what it said last is kept");
}

/// Each look at the volume waited a second for it.
#[tokio::test]
async fn an_engine_that_hangs_is_silent_until_it_speaks_again() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("admin")).unwrap();
    let (mut ear, _) = ear(folder.path());
    let mut watched = Asked::next(&listener).await;
    watched.say(&status(1)).await;
    until(&mut ear, has_size(1)).await;
    until(&mut ear, |heard| heard.silent.is_some_and(|since| since.elapsed() >= SILENCE)).await;
    watched.say(ALIVE).await;
    until(&mut ear, |heard| heard.silent.is_none()).await;
    watched.say(&status(2)).await;
    until(&mut ear, has_size(2)).await;
}

#[tokio::test]
async fn a_connection_that_ends_is_made_anew_and_garbage_is_no_word() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("admin")).unwrap();
    let (mut ear, _) = ear(folder.path());
    let mut first = Asked::next(&listener).await;
    first.say(&status(1)).await;
    first.say("moo").await;
    until(&mut ear, |heard| heard.silent.is_some()).await;
    let mut second = Asked::next(&listener).await;
    second.say(&status(2)).await;
    until(&mut ear, has_size(2)).await;
    assert!(ear.heard().silent.is_none());
}
