//! The shell: a socket that is listened on, and threads for each connection.

mod arrival;
mod connection;

use crate::ops::Export;
use connection::Connection;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// More are closed as they come.
const CONNECTIONS_MAX: usize = 1024;
/// What was begun has so long to be answered when the server stops.
const STOP_TIME: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_secs(1);

/// An export that is served until it is stopped or dropped.
pub struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    listener: TcpListener,
    /// Written to when it stops: it ends the wait for the next connection. The listening socket itself is
    /// left as it is, since it may be another process's too.
    stopped: OwnedFd,
    export: Arc<Export>,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    stops: AtomicBool,
}

impl Server {
    /// Serves on a socket that listens already: whoever made it may keep it over a restart of this process,
    /// so that no client is refused meanwhile.
    pub fn start(listener: TcpListener, export: Arc<Export>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            listener,
            stopped: eventfd(0, EventfdFlags::CLOEXEC)?,
            export,
            connections: Mutex::default(),
            stops: AtomicBool::new(false),
        });
        let mut server = Self { shared: shared.clone(), threads: Vec::new() };
        let accepts = shared.clone();
        server.spawn("accept", move || accepts.accept())?;
        server.spawn("tick", move || shared.tick())?;
        Ok(server)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(run)?);
        Ok(())
    }

    pub fn export(&self) -> &Export {
        &self.shared.export
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.listener.local_addr()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stops.store(true, Ordering::SeqCst);
        let _ = rustix::io::write(&self.shared.stopped, &1u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
        let connections: Vec<_> = self.shared.connections().values().cloned().collect();
        connections.iter().for_each(|connection| connection.stop_reading());
        let deadline = Instant::now() + STOP_TIME;
        for connection in &connections {
            if !connection.is_unused_by(deadline) {
                connection.close();
            }
        }
        for connection in connections {
            connection.wait_until_unused();
        }
        self.shared.export.stop();
    }
}

impl Shared {
    fn accept(self: &Arc<Self>) {
        for number in 0.. {
            let ready = self.wait_for_a_connection();
            if self.stops.load(Ordering::SeqCst) {
                return;
            }
            let (stream, peer) = match ready.and_then(|()| self.listener.accept()) {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue, // it went away
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    std::thread::park_timeout(Duration::from_millis(100)); // it may be for want of files
                    continue;
                }
            };
            if !self.export.policy().admits(peer.ip()) {
                tracing::warn!(%peer, "refused: it is of no network that is allowed");
                continue;
            }
            if self.connections().len() >= CONNECTIONS_MAX {
                tracing::warn!(%peer, "refused: {CONNECTIONS_MAX} connections are open");
                continue;
            }
            let shared = Arc::downgrade(self);
            let ended = move || {
                if let Some(shared) = shared.upgrade() {
                    shared.connections().remove(&number);
                }
            };
            let connection = Connection::new(stream, self.export.clone());
            let served = connection.map(|connection| {
                self.connections().insert(number, connection.clone());
                connection.serve(Box::new(ended));
            });
            match served {
                Ok(()) => tracing::debug!(%peer, "connected"),
                Err(error) => tracing::warn!(%peer, %error, "a connection can't be served"),
            }
        }
    }

    fn wait_for_a_connection(&self) -> io::Result<()> {
        let mut both =
            [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.stopped, PollFlags::IN)];
        match poll(&mut both, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn tick(&self) {
        while !self.stops.load(Ordering::SeqCst) {
            self.export.tick(Instant::now());
            std::thread::park_timeout(TICK);
        }
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
