//! The arbiter's socket: this node's engines read and change their volume's record here.
//!
//! ```text
//! engine ─▶ socket ─▶ thread "arbiter" ─▶ a few threads ─▶ Records (the store)
//!                     whose process? a whole line in time?
//! ```
//! Owns a thread and queues that nobody else waits in, since a membership change holds up all writes
//! of a volume; the records are kept elsewhere. Promises that a change is durable before it is
//! answered, and that only the process which the supervisor knows as the volume's engine makes one.
//! What may never happen: an answer without a definite outcome behind it. If the outcome isn't known
//! (the store failed in the middle), the connection is closed without one, and the engine asks
//! again.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use ankole_blockdev::accept::next_client;
use ankole_blockdev::unix_socket::Listener;
use ankole_replica::record::{Answer, Change, InstanceId, Record, Refused, Request};
use ankole_replica::types::Generation;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::layout::may_use;
use super::supervisor::{ProcessName, Supervisor};

/// A record of eight replicas has less than 1 KiB.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// The store takes one change at a time; the others are for reading.
const RECORD_THREADS: usize = 4;

/// What clients may take of it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Further ones wait in the socket's queue.
    pub connections: usize,
    /// For a whole request, and for taking its answer. An engine gives up after this, too.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 256, patience: Duration::from_secs(5) }
    }
}

/// Where records are kept; calls may block. Of two changes from one generation it refuses one: the
/// rules are [`Record::after`].
pub trait Records: Send + Sync {
    fn read(&self, volume: &str) -> Result<Record, Failure>;
    /// Durable when it returns.
    fn change(
        &self,
        volume: &str,
        expected: Generation,
        change: &Change,
    ) -> Result<Record, Failure>;
}

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nothing was changed.
    #[error("{0}")]
    Impossible(String),
    /// Whether anything was changed isn't known.
    #[error(transparent)]
    Unclear(Box<dyn std::error::Error + Send + Sync>),
}

/// Serves on a thread of its own, until the process ends. What is returned ends if the thread does.
pub fn start(
    socket: &Path,
    records: Arc<dyn Records>,
    supervisor: Arc<dyn Supervisor>,
    limits: Limits,
) -> io::Result<oneshot::Receiver<Infallible>> {
    let socket = socket.to_owned();
    let (begun, has_begun) = mpsc::channel();
    let (alive, ended) = oneshot::channel();
    thread::Builder::new().name("arbiter".into()).spawn(move || {
        let _alive: oneshot::Sender<Infallible> = alive;
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().max_blocking_threads(RECORD_THREADS).thread_name("arbiter-records");
        let listening = runtime.build().and_then(|runtime| {
            let listener = runtime.block_on(async { Listener::bind(&socket) })?;
            Ok((runtime, listener))
        });
        match listening {
            Ok((runtime, listener)) => {
                let _ = begun.send(Ok(()));
                let arbiter = Arc::new(Arbiter { records, supervisor, limits });
                runtime.block_on(arbiter.serve(listener));
            }
            Err(error) => drop(begun.send(Err(error))),
        }
    })?;
    has_begun.recv().unwrap_or_else(|_| Err(io::Error::other("its thread ended")))?;
    Ok(ended)
}

struct Arbiter {
    records: Arc<dyn Records>,
    supervisor: Arc<dyn Supervisor>,
    limits: Limits,
}

impl Arbiter {
    async fn serve(self: Arc<Self>, listener: Listener) {
        let places = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
            let accept = || listener.accept();
            let connection = next_client("the arbiter's socket", accept).await;
            let arbiter = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(error) = arbiter.serve_connection(connection).await {
                    tracing::debug!(%error, "connection to the arbiter ended");
                }
                drop(place);
            });
        }
    }

    async fn serve_connection(self: Arc<Self>, connection: UnixStream) -> io::Result<()> {
        let peer = connection.peer_cred()?;
        if !may_use(peer.uid()) {
            tracing::warn!(uid = peer.uid(), "refused on the arbiter's socket");
            return Ok(());
        }
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        let patience = self.limits.patience;
        let (reader, mut writer) = connection.into_split();
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut limited = (&mut reader).take(LINE_BYTES_MAX);
            timeout(patience, limited.read_until(b'\n', &mut line)).await??;
            if line.is_empty() {
                return Ok(());
            }
            if line.last() != Some(&b'\n') {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "half a line, or too long"));
            }
            let answer = match serde_json::from_slice(&line) {
                Ok(request) => {
                    let arbiter = Arc::clone(&self);
                    tokio::task::spawn_blocking(move || arbiter.answer(pid, request))
                        .await
                        .map_err(io::Error::other)?
                        .map_err(io::Error::other)?
                }
                Err(error) => Answer::Error { message: format!("this isn't a request: {error}") },
            };
            let mut text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
            text.push(b'\n');
            timeout(patience, writer.write_all(&text)).await??;
        }
    }

    /// The answer, or an error that leaves the outcome open.
    fn answer(
        &self,
        pid: Option<u32>,
        request: Request,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let outcome = match request {
            Request::Read { volume } => self.records.read(&volume),
            Request::Change { change: Change::Grant { .. } | Change::Salvage { .. }, .. } => {
                Err(Failure::Impossible("only the manager grants and salvages".into()))
            }
            Request::Change { volume, expected, change: Change::Members { by, in_sync } } => {
                let outcome = match self.is_engine(pid, &volume) {
                    true => {
                        let change = Change::Members { by, in_sync: in_sync.clone() };
                        self.records.change(&volume, expected, &change)
                    }
                    false => self.refuse(pid, &volume, &by),
                };
                let refused = outcome.as_ref().err().map(ToString::to_string);
                tracing::info!(%volume, %expected, ?in_sync, refused, "membership");
                outcome
            }
        };
        match outcome {
            Ok(record) => Ok(Answer::Record(record)),
            Err(Failure::Refused(refused)) => Ok(Answer::Refused(refused)),
            Err(Failure::Impossible(message)) => Ok(Answer::Error { message }),
            Err(Failure::Unclear(error)) => {
                tracing::error!(error, "the store of the records fails: the engine asks again");
                Err(error)
            }
        }
    }

    /// Where the supervisor can't tell who is the engine, whoever may connect may be it.
    fn is_engine(&self, pid: Option<u32>, volume: &str) -> bool {
        let Ok(volume) = volume.parse() else { return false };
        let name = ProcessName::engine(&volume);
        match self.supervisor.pid(&name) {
            Some(engine) => pid == Some(engine),
            None => self.supervisor.doubt(&name).is_some(),
        }
    }

    /// An engine that was replaced hears that it was, and ends.
    fn refuse(&self, pid: Option<u32>, volume: &str, by: &InstanceId) -> Result<Record, Failure> {
        let record = self.records.read(volume)?;
        match &record.engine {
            Some(granted) if granted.instance == *by => {
                let who = pid.map_or("it".into(), |pid| format!("process {pid}"));
                let why = format!("{who} isn't the engine of volume {volume}: nothing was changed");
                tracing::warn!("{why}");
                Err(Failure::Impossible(why))
            }
            _ => Err(Refused::NotTheEngine { record }.into()),
        }
    }
}

#[cfg(test)]
mod tests;
