//! The arbiter's socket: engines read and change their volume's record here.
//!
//! Owns nothing; the record is part of the volume in the store. Promises that a change is durable
//! before it is answered, and that of two changes from one generation one is refused: the rules
//! are [`Record::after`], and the store's compare-and-swap makes them hold between writers. What
//! may never happen: an answer without a definite outcome behind it. If the outcome isn't known
//! (the store failed in the middle), the connection is closed without one, and the engine asks
//! again.

use std::io;
use std::sync::Arc;

use ankole_blockdev::accept::next_client;
use ankole_blockdev::unix_socket::Listener;
use ankole_replica::record::{Answer, Change, Record, Refused, Request};
use ankole_replica::types::Generation;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::api::volume::Volume;
use crate::store::{Store, StoreError};

/// A record of eight replicas has less than 1 KiB.
const LINE_BYTES_MAX: u64 = 64 << 10;
const CONNECTIONS_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    #[error("volume {volume} has no record")]
    NoRecord { volume: String },
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub fn read(store: &dyn Store, volume: &str) -> Result<Record, ArbiterError> {
    let record = store.read::<Volume>(volume)?.status.record;
    record.ok_or_else(|| ArbiterError::NoRecord { volume: volume.into() })
}

/// Makes the change durable if the record is still at `expected`.
pub fn change(
    store: &dyn Store,
    volume: &str,
    expected: Generation,
    change: &Change,
) -> Result<Record, ArbiterError> {
    store.modify(volume, |object: &mut Volume| {
        let record = object.status.record.as_mut();
        let record = record.ok_or_else(|| ArbiterError::NoRecord { volume: volume.into() })?;
        *record = record.after(expected, change.clone())?;
        Ok(record.clone())
    })
}

pub async fn serve(listener: Listener, store: Arc<dyn Store>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
        let accept = || listener.accept();
        let connection = next_client("the arbiter's socket", accept).await;
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            if let Err(error) = serve_connection(connection, store).await {
                tracing::debug!(%error, "connection to the arbiter ended");
            }
            drop(place);
        });
    }
}

async fn serve_connection(connection: UnixStream, store: Arc<dyn Store>) -> io::Result<()> {
    let (reader, mut writer) = connection.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "half a line, or too long"));
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => {
                let store = Arc::clone(&store);
                tokio::task::spawn_blocking(move || answer(&*store, request))
                    .await
                    .map_err(io::Error::other)?
                    .map_err(io::Error::other)?
            }
            Err(error) => Answer::Error { message: format!("this isn't a request: {error}") },
        };
        let mut text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
        text.push(b'\n');
        writer.write_all(&text).await?;
    }
}

/// The answer, or an error that leaves the outcome open.
fn answer(store: &dyn Store, request: Request) -> Result<Answer, StoreError> {
    let outcome = match request {
        Request::Read { volume } => read(store, &volume),
        Request::Change { change: Change::Grant { .. } | Change::Salvage { .. }, .. } => {
            let message = "only the manager grants and salvages".into();
            return Ok(Answer::Error { message });
        }
        Request::Change { volume, expected, change: wanted } => {
            let outcome = change(store, &volume, expected, &wanted);
            tracing::info!(%volume, %expected, ?wanted, refused = outcome.is_err(), "membership");
            outcome
        }
    };
    match outcome {
        Ok(record) => Ok(Answer::Record(record)),
        Err(ArbiterError::Refused(refused)) => Ok(Answer::Refused(refused)),
        Err(ArbiterError::Store(
            error @ (StoreError::Database(_) | StoreError::Panicked { .. }),
        )) => Err(error),
        Err(error) => Ok(Answer::Error { message: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use ankole_replica::record::{EngineGrant, InstanceId, Member};
    use ankole_replica::types::Incarnation;
    use std::io::{BufRead, Write};

    use super::*;
    use crate::api::volume::VolumeStatus;
    use crate::store::EmbeddedStore;

    struct Arbiter {
        folder: tempfile::TempDir,
        store: Arc<dyn Store>,
    }

    impl Arbiter {
        fn of_volume_v1() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store: Arc<dyn Store> =
                Arc::new(EmbeddedStore::open(&folder.path().join("store")).unwrap());
            let request: crate::api::volume::VolumeRequest =
                serde_json::from_str(r#"{"name": "v1", "sizeBytes": 1}"#).unwrap();
            let members = ["r1", "r2", "r3"].map(member).to_vec();
            let record = Record {
                generation: Generation::FIRST,
                engine: Some(EngineGrant { node: "n".into(), instance: InstanceId("e1".into()) }),
                attach_epoch: 1,
                in_sync: members,
                salvaged: None,
            };
            let status = VolumeStatus { record: Some(record), ..VolumeStatus::default() };
            let spec = request.validate().unwrap();
            store.add(&Volume { name: request.name, uid: "u1".into(), spec, status }).unwrap();
            let socket = folder.path().join("arbiter.sock");
            let serving = Arc::clone(&store);
            let (listening, is_listening) = std::sync::mpsc::channel();
            // It serves until the test process ends.
            std::thread::spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = Listener::bind(&socket).unwrap();
                    listening.send(()).unwrap();
                    serve(listener, serving).await;
                });
            });
            is_listening.recv().unwrap();
            Self { folder, store }
        }

        fn connect(&self) -> std::os::unix::net::UnixStream {
            std::os::unix::net::UnixStream::connect(self.folder.path().join("arbiter.sock"))
                .unwrap()
        }

        fn ask(&self, request: &Request) -> Answer {
            self.say(&serde_json::to_string(request).unwrap())
        }

        fn say(&self, line: &str) -> Answer {
            let mut connection = self.connect();
            writeln!(connection, "{line}").unwrap();
            let mut answer = String::new();
            std::io::BufReader::new(connection).read_line(&mut answer).unwrap();
            serde_json::from_str(&answer).unwrap()
        }
    }

    fn member(replica: &str) -> Member {
        Member { replica: replica.into(), incarnation: Incarnation(1) }
    }

    fn members_change(by: &str, expected: Generation, members: &[&str]) -> Request {
        let in_sync = members.iter().map(|replica| member(replica)).collect();
        let change = Change::Members { by: InstanceId(by.into()), in_sync };
        Request::Change { volume: "v1".into(), expected, change }
    }

    /// Two changes from one generation, both answered "done", would leave the engine with a set
    /// that the record doesn't have: an acknowledged write could be on no member.
    #[test]
    fn of_many_changes_that_race_exactly_one_is_made() {
        let arbiter = Arbiter::of_volume_v1();
        let made = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|i| {
                    let members = if i % 2 == 0 { ["r1", "r2"] } else { ["r1", "r3"] };
                    let request = members_change("e1", Generation::FIRST, &members);
                    let arbiter = &arbiter;
                    scope.spawn(move || arbiter.ask(&request))
                })
                .collect();
            let answers = racers.into_iter().map(|racer| racer.join().unwrap());
            answers.filter(|answer| matches!(answer, Answer::Record(_))).count()
        });
        assert_eq!(made, 1);
        let record = read(&*arbiter.store, "v1").unwrap();
        assert_eq!((record.generation, record.in_sync.len()), (Generation::FIRST.next(), 2));
    }

    #[test]
    fn an_engine_that_was_replaced_changes_nothing() {
        let arbiter = Arbiter::of_volume_v1();
        let late = arbiter.ask(&members_change("e0", Generation::FIRST, &["r2"]));
        assert!(matches!(late, Answer::Refused(Refused::NotTheEngine { .. })));
        assert_eq!(read(&*arbiter.store, "v1").unwrap().in_sync.len(), 3);
    }

    /// An engine that could grant could name itself.
    #[test]
    fn nobody_grants_or_salvages_through_the_socket() {
        let arbiter = Arbiter::of_volume_v1();
        let engine = EngineGrant { node: "n".into(), instance: InstanceId("me".into()) };
        let grant = Change::Grant { engine, attach_epoch: 2 };
        let salvage = Change::Salvage { member: member("r3"), above: Generation::FIRST };
        for change in [grant, salvage] {
            let expected = Generation::FIRST;
            let answer = arbiter.ask(&Request::Change { volume: "v1".into(), expected, change });
            assert!(matches!(answer, Answer::Error { .. }));
        }
        assert_eq!(read(&*arbiter.store, "v1").unwrap().generation, Generation::FIRST);
    }

    #[test]
    fn garbage_is_answered_and_the_next_line_is_served() {
        let arbiter = Arbiter::of_volume_v1();
        assert!(matches!(arbiter.say("{]"), Answer::Error { .. }));
        assert!(matches!(
            arbiter.say(r#"{"request":"read","volume":"nope"}"#),
            Answer::Error { .. }
        ));
        assert!(matches!(arbiter.say(r#"{"request":"read","volume":"v1"}"#), Answer::Record(_)));
    }

    #[test]
    fn a_client_that_never_ends_its_line_is_cut_off() {
        let arbiter = Arbiter::of_volume_v1();
        let mut endless = arbiter.connect();
        let flood = vec![b'x'; 2 * LINE_BYTES_MAX as usize];
        // The arbiter may close while we still write: both ends are fine, an answer isn't.
        let _ = endless.write_all(&flood);
        let mut answer = String::new();
        let _ = std::io::BufReader::new(endless).read_line(&mut answer);
        assert_eq!(answer, "");
        assert!(matches!(arbiter.say(r#"{"request":"read","volume":"v1"}"#), Answer::Record(_)));
    }
}
