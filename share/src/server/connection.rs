//! One connection, and the threads that work for it.
//!
//! ```text
//!       ┌──────────── waits to read ◀───────────────┐
//!       ▼                                           │
//!  reads one message ── lets the next read ── does it ── writes the reply
//! ```
//! Whoever has read a message does it itself: no hand-over on the way to the reply. If then nobody waits to
//! read, one more thread is started, up to a limit: so messages are done at the same time when there are
//! several, and a client that floods or doesn't read its replies holds only its own threads.
//!
//! Calls to the client are queued, a few at most, and written by a thread that is there for as long as there
//! are any: nobody else waits for a client that doesn't take them.

use super::arrival::wait_for;
use crate::buffers::{Buffers, Messages, SMALL_BYTES};
use crate::ops::{Export, Origin};
use crate::state::ConnectionId;
use crate::wire::record::{FRAGMENTS_MAX, Fragment, MARK_BYTES, whole};
use crate::wire::rpc::is_reply;
use crate::wire::xdr::Malformed;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

const THREADS_MAX: usize = 16;
/// Each session of the client has one under way at most.
const CALLS_MAX: usize = 64;
const STACK_BYTES: usize = 256 * 1024;
/// How long a message may take to come in once it has begun, or a reply to be taken.
const MESSAGE_TIME: Duration = Duration::from_secs(60);
/// How often a wait looks at the clock; and how long a message may take once it has a large buffer.
const LOOK: Duration = Duration::from_secs(5);

pub struct Connection {
    stream: TcpStream,
    peer: IpAddr,
    export: Arc<Export>,
    reading: Mutex<()>,
    writing: Mutex<()>,
    threads: Mutex<Threads>,
    unused: Condvar,
    closed: AtomicBool,
    id: ConnectionId,
    calls: Mutex<Calls>,
}

/// That wait to be written.
#[derive(Default)]
struct Calls {
    queue: VecDeque<Vec<u8>>,
    are_written: bool,
}

#[derive(Default)]
struct Threads {
    all: usize,
    wait_to_read: usize,
    when_unused: Option<Box<dyn FnOnce() + Send>>,
}

impl Connection {
    pub fn new(stream: TcpStream, export: Arc<Export>) -> io::Result<Arc<Self>> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(LOOK))?;
        let peer = stream.peer_addr()?;
        Ok(Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let call = move |message| {
                if let Some(this) = this.upgrade() {
                    this.call(message);
                }
            };
            Self {
                id: export.connected(Arc::new(call)),
                peer: peer.ip(),
                stream,
                export,
                reading: Mutex::default(),
                writing: Mutex::default(),
                threads: Mutex::default(),
                unused: Condvar::new(),
                closed: AtomicBool::new(false),
                calls: Mutex::default(),
            }
        }))
    }

    /// Starts the first thread. `when_unused` is called when the last one ends.
    pub fn serve(self: Arc<Self>, when_unused: Box<dyn FnOnce() + Send>) {
        self.threads().when_unused = Some(when_unused);
        self.start_thread(Self::work);
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = self.stream.shutdown(Shutdown::Both);
        self.export.disconnected(self.id);
    }

    /// Sends a call to the client, by and by.
    fn call(self: &Arc<Self>, message: Vec<u8>) {
        let mut calls = self.calls();
        if calls.queue.len() >= CALLS_MAX || self.closed.load(Ordering::SeqCst) {
            return;
        }
        calls.queue.push_back(message);
        if !std::mem::replace(&mut calls.are_written, true) {
            self.start_thread(Self::write_calls);
        }
    }

    fn write_calls(self: &Arc<Self>) {
        loop {
            let message = {
                let mut calls = self.calls();
                let Some(message) = calls.queue.pop_front() else {
                    calls.are_written = false;
                    return;
                };
                message
            };
            let marked = [&whole(message.len())[..], &message].concat();
            if let Err(error) = self.write_message(&marked) {
                tracing::debug!(%error, "a connection ends");
                return self.close();
            }
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been read is still answered; the connection ends with the last answer.
    pub fn stop_reading(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    pub fn wait_until_unused(&self) {
        let mut threads = self.threads();
        while threads.all > 0 {
            threads = self.unused.wait(threads).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn is_unused_by(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let threads = self.threads();
        let waited = self.unused.wait_timeout_while(threads, left, |threads| threads.all > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.all == 0
    }

    fn start_thread(self: &Arc<Self>, run: fn(&Arc<Self>)) {
        self.threads().all += 1;
        let member = Member(self.clone());
        let started = std::thread::Builder::new()
            .name("nfs".into())
            .stack_size(STACK_BYTES)
            .spawn(move || run(&member.0));
        if let Err(error) = started {
            // The others go on; the last of them finds nobody to read and closes.
            tracing::warn!(%error, "no thread for a connection");
        }
    }

    fn work(self: &Arc<Self>) {
        // A client on this machine waits for us when its dirty pages are written back. If the kernel counted
        // them against *our* writes, and made us wait, both would wait for each other.
        if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
            tracing::debug!(%error, "a client on this machine may be slow when memory is short");
        }
        let buffers = self.export.buffers();
        let mut messages = Messages::new(buffers);
        loop {
            let reads = self.begin_to_read();
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            match self.read_message(&mut messages.request, buffers) {
                Ok(true) => {}
                Ok(false) => return self.stop_reading(), // others may still have to answer
                Err(error) => {
                    tracing::debug!(%error, "a connection ends");
                    return self.close();
                }
            }
            let is_last = {
                let threads = self.threads();
                threads.wait_to_read == 0 && threads.all < THREADS_MAX
            };
            drop(reads);
            if is_last {
                self.start_thread(Self::work);
            }
            if is_reply(&messages.request) {
                let taken = self.export.called_back(self.id, &messages.request);
                messages.clear_request();
                match taken {
                    Ok(()) => continue,
                    Err(Malformed) => return self.close(),
                }
            }
            let Messages { request, reply, .. } = &mut messages;
            reply.extend([0; MARK_BYTES]);
            let origin = Origin { peer: self.peer, connection: Some(self.id) };
            let answered = self.export.answer_on(origin, Instant::now(), request, reply);
            let mark = whole(reply.len() - MARK_BYTES);
            reply[..MARK_BYTES].copy_from_slice(&mark);
            messages.clear_request();
            let sent = match answered {
                Ok(()) => self.write_message(&messages.reply),
                Err(malformed) => Err(io::Error::new(ErrorKind::InvalidData, malformed)),
            };
            messages.clear_reply();
            if let Err(error) = sent {
                tracing::debug!(%error, "a connection ends");
                return self.close();
            }
        }
    }

    fn begin_to_read(&self) -> MutexGuard<'_, ()> {
        self.threads().wait_to_read += 1;
        let reads = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        self.threads().wait_to_read -= 1;
        reads
    }

    /// False: the client has ended the connection.
    fn read_message(&self, request: &mut Vec<u8>, buffers: &Buffers) -> io::Result<bool> {
        let mut deadline = None;
        for _ in 0..FRAGMENTS_MAX {
            let mut mark = [0; MARK_BYTES];
            if !self.fill(&mut mark, &mut deadline)? {
                return Ok(false);
            }
            let fragment = Fragment::parse(mark, request.len())
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            let size_bytes = request.len() + fragment.size_bytes;
            if size_bytes > SMALL_BYTES && request.capacity() <= SMALL_BYTES {
                while !wait_for(&self.stream, fragment.size_bytes, LOOK)? {
                    wait_longer(ErrorKind::WouldBlock.into(), &mut deadline)?;
                }
                deadline = deadline.min(Some(Instant::now() + LOOK));
                let mut large = buffers.take();
                large.extend_from_slice(request);
                *request = large;
            }
            while request.len() < size_bytes {
                let missing = (size_bytes - request.len()) as u64;
                let read = (&self.stream).take(missing).read_to_end(request);
                match read {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {}
                    Err(error) => wait_longer(error, &mut deadline)?,
                }
            }
            if fragment.is_last {
                return Ok(true);
            }
        }
        Err(io::Error::new(ErrorKind::InvalidData, "a message in too many pieces"))
    }

    /// False: the connection was ended before the first byte. There the client may take its time.
    fn fill(&self, bytes: &mut [u8], deadline: &mut Option<Instant>) -> io::Result<bool> {
        let mut filled = 0;
        while filled < bytes.len() {
            match (&self.stream).read(&mut bytes[filled..]) {
                Ok(0) if deadline.is_none() => return Ok(false),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(more) => {
                    filled += more;
                    deadline.get_or_insert_with(|| Instant::now() + MESSAGE_TIME);
                }
                Err(error) if deadline.is_some() => wait_longer(error, deadline)?,
                Err(error) if is_wait(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn write_message(&self, mut reply: &[u8]) -> io::Result<()> {
        let _writes = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut deadline = None;
        while !reply.is_empty() {
            match (&self.stream).write(reply) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => reply = &reply[written..],
                Err(error) => wait_longer(error, &mut deadline)?,
            }
        }
        Ok(())
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thread's part in its connection; also a thread that panics gives it back.
struct Member(Arc<Connection>);

impl Drop for Member {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a request made its thread panic: its connection is closed");
            self.0.close();
        }
        let mut threads = self.0.threads();
        threads.all -= 1;
        if threads.all == 0 {
            let when_unused = threads.when_unused.take();
            drop(threads);
            self.0.export.disconnected(self.0.id);
            self.0.unused.notify_all();
            if let Some(when_unused) = when_unused {
                when_unused();
            }
        }
    }
}

fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Whether it is but a wait, and not yet too long a one.
fn wait_longer(error: io::Error, deadline: &mut Option<Instant>) -> io::Result<()> {
    let deadline = *deadline.get_or_insert_with(|| Instant::now() + MESSAGE_TIME);
    if is_wait(&error) && Instant::now() < deadline { Ok(()) } else { Err(error) }
}
