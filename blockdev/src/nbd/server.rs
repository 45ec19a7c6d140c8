//! Accepts clients and looks after their connections.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};

use super::connection::{self, ConnectionError};
use super::handshake::{ExportDescription, Negotiated};
use super::listener::Listener;
use super::memory::Pool;
use super::request::Terms;
use super::stream::Stream;
use crate::accept::next_client;
use crate::disk::Disk;

/// A disk under a name.
pub struct Export<D> {
    /// At most 4096 bytes. Clients that give no name get this export too.
    pub name: String,
    pub disk: Rc<D>,
    /// Refuse writes although the disk would take them.
    pub read_only: bool,
    /// How many clients are past their handshake; whoever made the export may look at it.
    pub clients: Rc<Cell<u32>>,
}

impl<D: Disk> Export<D> {
    pub fn new(name: impl Into<String>, disk: Rc<D>) -> Self {
        Self { name: name.into(), disk, read_only: false, clients: Rc::default() }
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only || self.disk.is_read_only()
    }

    /// What a client is told before its handshake has agreed on anything.
    pub(super) fn description(&self) -> ExportDescription<'_> {
        let (size_bytes, is_read_only) = (self.disk.size_bytes(), self.is_read_only());
        ExportDescription { name: &self.name, size_bytes, is_read_only }
    }

    /// For a client that takes part in no handshake.
    pub(crate) fn transmission_flags(&self) -> u16 {
        self.description().transmission_flags(false)
    }

    /// What a request is checked against now: a disk may have grown since the handshake.
    pub(super) fn terms(&self, negotiated: Negotiated) -> Terms {
        let (size_bytes, is_read_only) = (self.disk.size_bytes(), self.is_read_only());
        Terms { size_bytes, is_read_only, negotiated }
    }
}

/// What clients may take of the server. Clients wait where a limit is reached, except where it
/// says otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients at once. One more replaces the oldest that hasn't finished its handshake; if there
    /// is none, it is turned away.
    pub connections_max: usize,
    /// Requests of one client that are begun and whose reply isn't written.
    pub requests_max: usize,
    /// Memory of one client's requests and replies, in bytes. A request that takes more, up to
    /// [`PAYLOAD_BYTES_MAX`](super::PAYLOAD_BYTES_MAX), is alone.
    pub memory_bytes_max: u64,
    /// As much of it, in bytes, as each client can have whatever the others take.
    pub memory_bytes_own: u64,
    /// What all clients together may take beyond that, in bytes; at least the largest request.
    pub memory_bytes_shared: u64,
    /// A client that isn't done with its handshake by then is disconnected.
    pub handshake: Duration,
    /// A client that has begun a request, or has replies to take, and moves no byte for so long
    /// is disconnected (at the latest after twice this). Until then its unread replies keep their
    /// ranges locked.
    pub stall: Duration,
    /// At shutdown, requests in flight get this long. Those that aren't done then are dropped,
    /// and their clients see a broken connection.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            requests_max: 256,
            memory_bytes_max: 16 << 20,
            memory_bytes_own: 1 << 20,
            memory_bytes_shared: 64 << 20,
            handshake: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}

impl Limits {
    fn pool(&self) -> Pool {
        Pool::new(self.memory_bytes_own, self.memory_bytes_shared)
    }
}

/// Serves `export` until `shutdown` is ready, then lets requests in flight finish and closes.
///
/// Runs on one thread and must be called within a [`tokio::task::LocalSet`].
pub async fn serve<D: Disk + 'static>(
    listener: Listener,
    export: Export<D>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let mut clients = Clients::new(export, limits);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = clients.tasks.join_next() => pass_panic_on(ended),
            stream = next_client("the NBD server", || listener.accept()) => {
                clients.admit(stream);
            }
        }
    }
    drop(listener);
    clients.drain().await;
}

/// Serves one client without a handshake: the kernel's, which was told all that one would tell it,
/// and takes simple replies only.
pub(crate) async fn transmit<D: Disk>(
    stream: UnixStream,
    export: &Export<D>,
    limits: &Limits,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ConnectionError> {
    let stopped = std::pin::pin!(async move {
        // An error means that the server is gone, which is a stop too.
        let _ = stop.wait_for(|stop| *stop).await;
    });
    let (stream, negotiated) = (Stream::Unix(stream), Negotiated::default());
    let pool = limits.pool();
    connection::transmit(&stream, export, limits, &pool, negotiated, &[], stopped).await
}

/// The connections of one server.
struct Clients<D> {
    export: Rc<Export<D>>,
    limits: Limits,
    pool: Rc<Pool>,
    tasks: JoinSet<()>,
    /// Those that were in their handshake when last looked at, oldest first.
    newcomers: VecDeque<Newcomer>,
    stop: watch::Sender<bool>,
}

struct Newcomer {
    task: AbortHandle,
    is_established: Rc<Cell<bool>>,
}

impl<D: Disk + 'static> Clients<D> {
    fn new(export: Export<D>, limits: Limits) -> Self {
        Self {
            export: Rc::new(export),
            pool: Rc::new(limits.pool()),
            limits,
            tasks: JoinSet::new(),
            newcomers: VecDeque::new(),
            stop: watch::Sender::new(false),
        }
    }

    fn admit(&mut self, stream: Stream) {
        while let Some(ended) = self.tasks.try_join_next() {
            pass_panic_on(ended);
        }
        self.newcomers
            .retain(|newcomer| !newcomer.task.is_finished() && !newcomer.is_established.get());
        if self.tasks.len() >= self.limits.connections_max {
            let Some(oldest) = self.newcomers.pop_front() else {
                let connections = self.tasks.len();
                tracing::warn!(connections, "too many NBD clients; a new one is turned away");
                return;
            };
            // It is in its handshake, so nothing of it is lost; its task ends soon.
            oldest.task.abort();
        }
        let is_established = Rc::new(Cell::new(false));
        let established = is_established.clone();
        let (export, limits, stop) = (self.export.clone(), self.limits, self.stop.subscribe());
        let pool = self.pool.clone();
        let task = self.tasks.spawn_local(async move {
            match connection::run(&stream, &export, &limits, &pool, &established, stop).await {
                Ok(()) => {}
                Err(ConnectionError::Socket(error)) if is_hang_up(&error) => {
                    tracing::debug!(%error, "NBD client hung up");
                }
                Err(error) => tracing::warn!(%error, "disconnected an NBD client"),
            }
        });
        self.newcomers.push_back(Newcomer { task, is_established });
    }

    async fn drain(mut self) {
        self.stop.send_replace(true);
        let all_done = async {
            while let Some(ended) = self.tasks.join_next().await {
                pass_panic_on(ended);
            }
        };
        if tokio::time::timeout(self.limits.drain, all_done).await.is_err() {
            let connections = self.tasks.len();
            tracing::warn!(connections, "NBD requests didn't finish in time for the shutdown");
        }
    }
}

/// A panic below is a broken invariant of the disk. It must stop the engine and not just one
/// connection, after which the client would come back to a disk in an unknown state.
fn pass_panic_on(ended: Result<(), JoinError>) {
    if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
        std::panic::resume_unwind(panic);
    }
}

/// Clients that die look like this; nobody needs to act.
fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}
