//! A volume that a restore writes to, over its NBD socket.
//!
//! The client of the socket lives on a thread of its own; the threads of the restore hand it
//! blocks and wait. Should the engine die, the client connects to its successor and repeats what
//! had no answer.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use ankole_backup::Sink;
use ankole_blockdev::disk::{Buffer, Disk, Durability, Extent};
use ankole_blockdev::nbd::Client;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::LocalSet;

use crate::api::ApiError;

/// For one request with all its repetitions: longer than an engine takes to be replaced and to
/// make its replicas equal.
const PATIENCE: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_millis(200);

pub(super) struct VolumeSink {
    size_bytes: u64,
    /// None only while it is being dropped.
    orders: Option<mpsc::UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

struct Order {
    work: Work,
    done: oneshot::Sender<io::Result<()>>,
}

enum Work {
    Write { offset_bytes: u64, bytes: Vec<u8> },
    Flush,
}

impl VolumeSink {
    /// The volume reads as zeroes everywhere: it was just made.
    pub(super) fn open(socket: &Path, size_bytes: u64) -> Result<Self, ApiError> {
        let failed = |error: io::Error| ApiError::failed(format!("write a volume: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let (orders, queue) = mpsc::unbounded_channel();
        let socket = socket.to_owned();
        let run = move || LocalSet::new().block_on(&runtime, carry_out_all(socket, queue));
        let thread = std::thread::Builder::new().name("restore".into()).spawn(run);
        let thread = thread.map_err(failed)?;
        Ok(Self { size_bytes, orders: Some(orders), thread: Some(thread) })
    }

    fn order(&self, work: Work) -> io::Result<()> {
        let gone = || io::Error::other("the thread that writes has ended");
        let (done, outcome) = oneshot::channel();
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.send(Order { work, done }).map_err(|_| gone())?;
        outcome.blocking_recv().map_err(|_| gone())?
    }
}

impl Drop for VolumeSink {
    fn drop(&mut self) {
        self.orders.take(); // which ends the thread, and with it the connection
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Sink for VolumeSink {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.order(Work::Write { offset_bytes, bytes: bytes.to_vec() })
    }
    fn zero_at(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(()) // a new volume holds nothing; zeroes that are written would take room in its index
    }
    fn finish(&self) -> io::Result<()> {
        self.order(Work::Flush)
    }
}

/// Until nobody can order any more. At most as many run as the restore has threads.
async fn carry_out_all(socket: PathBuf, mut queue: mpsc::UnboundedReceiver<Order>) {
    let volume = Rc::new(Volume { socket, client: RefCell::default(), connecting: Mutex::new(()) });
    while let Some(Order { work, done }) = queue.recv().await {
        let volume = Rc::clone(&volume);
        tokio::task::spawn_local(async move {
            let outcome = tokio::time::timeout(PATIENCE, volume.carry_out(&work)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let _given_up = done.send(outcome);
        });
    }
}

struct Volume {
    socket: PathBuf,
    client: RefCell<Option<Rc<Client>>>,
    connecting: Mutex<()>,
}

impl Volume {
    /// Repeats while there is no engine: what it does is the same when done twice, and an engine's
    /// successor has everything that was answered.
    async fn carry_out(&self, work: &Work) -> io::Result<()> {
        loop {
            let client = match self.client().await {
                Ok(client) => client,
                Err(error) => {
                    tracing::debug!(%error, "no engine to write to yet");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let outcome = match work {
                Work::Write { offset_bytes, bytes } => {
                    let at =
                        Extent { offset_bytes: *offset_bytes, length_bytes: bytes.len() as u64 };
                    let mut buffer = Buffer::zeroed(bytes.len());
                    buffer.copy_from_slice(bytes);
                    client.write(at, buffer, Durability::Volatile).await.map(drop)
                }
                Work::Flush => client.flush().await,
            };
            match outcome {
                Err(error) if is_gone(&error) => self.forget(&client),
                outcome => return outcome,
            }
        }
    }

    async fn client(&self) -> io::Result<Rc<Client>> {
        let _one_at_a_time = self.connecting.lock().await;
        if let Some(client) = &*self.client.borrow() {
            return Ok(Rc::clone(client));
        }
        let client = Client::connect_unix(&self.socket, "").await.map_err(io::Error::other)?;
        let client = Rc::new(client);
        self.client.replace(Some(Rc::clone(&client)));
        Ok(client)
    }

    fn forget(&self, broken: &Rc<Client>) {
        let mut client = self.client.borrow_mut();
        if client.as_ref().is_some_and(|client| Rc::ptr_eq(client, broken)) {
            client.take();
        }
    }
}

/// The engine died, or is ending.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::SHUTDOWN.raw_os_error())
}
