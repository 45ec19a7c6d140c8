//! A unix socket between an engine and what it talks to, in which a fault can be made.
//!
//! Bytes are never changed, reordered or lost within a connection: that is what a stream promises.
//! They may be held, and come when their sender has long gone; the connection may be cut anywhere.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// What becomes of the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Weather {
    #[default]
    Fine,
    /// Connections end, and new ones end at once.
    Cut,
    /// Nothing comes through, in neither direction; nobody is told.
    Silent,
    /// Requests come through, answers don't.
    NoAnswers,
    /// Answers come through, requests don't.
    NoRequests,
    /// Each piece arrives so much later.
    Slow(Duration),
    /// Connections end after so many more bytes in one direction: within a message, most likely.
    Brittle(u64),
    /// New connections lead there instead.
    Misrouted(PathBuf),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Requests,
    Answers,
}

impl Weather {
    fn holds(&self, direction: Direction) -> bool {
        match self {
            Self::Silent => true,
            Self::NoAnswers => direction == Direction::Answers,
            Self::NoRequests => direction == Direction::Requests,
            _ => false,
        }
    }
}

/// Dropping it ends the listening; what is in connections still arrives.
pub struct Proxy {
    listening: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Proxy {
    pub fn start(at: &Path, target: &Path, weather: watch::Receiver<Weather>) -> io::Result<Self> {
        let listener = UnixListener::bind(at)?;
        let target = target.to_owned();
        let listening = tokio::task::spawn_local(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::task::spawn_local(connect(client, target.clone(), weather.clone()));
            }
        });
        Ok(Self { listening })
    }
}

async fn connect(client: UnixStream, target: PathBuf, mut weather: watch::Receiver<Weather>) {
    let target = match &*weather.borrow_and_update() {
        Weather::Cut => return,
        Weather::Misrouted(elsewhere) => elsewhere.clone(),
        _ => target,
    };
    let Ok(server) = UnixStream::connect(target).await else { return };
    let (client_reader, client_writer) = client.into_split();
    let (server_reader, server_writer) = server.into_split();
    let cut = Rc::new(CutSwitch::default());
    let pump =
        |direction| Pump { direction, weather: weather.clone(), cut: cut.clone(), passed_bytes: 0 };
    tokio::join!(
        pump(Direction::Requests).run(client_reader, server_writer),
        pump(Direction::Answers).run(server_reader, client_writer),
    );
}

#[derive(Default)]
struct CutSwitch {
    is_cut: Cell<bool>,
    changed: Notify,
}

impl CutSwitch {
    fn cut(&self) {
        self.is_cut.set(true);
        self.changed.notify_waiters();
    }
}

struct Pump {
    direction: Direction,
    weather: watch::Receiver<Weather>,
    cut: Rc<CutSwitch>,
    /// Since the weather became brittle.
    passed_bytes: u64,
}

impl Pump {
    async fn run(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 64 << 10];
        while let Some(length @ 1..) = self.unless_cut(from.read(&mut buffer)).await {
            if !self.pass(&buffer[..length], &mut to).await {
                return self.cut.cut();
            }
        }
        // The reading side of the other direction may still have something to say.
        let _gone = to.shutdown().await;
    }

    /// `None` when it failed, or the connection was cut meanwhile.
    async fn unless_cut(&mut self, work: impl Future<Output = io::Result<usize>>) -> Option<usize> {
        let cut = self.cut.clone();
        let weather = &mut self.weather;
        let is_cut = async {
            loop {
                let changed = cut.changed.notified();
                if cut.is_cut.get() || *weather.borrow_and_update() == Weather::Cut {
                    return cut.cut();
                }
                tokio::select! {
                    () = changed => {}
                    changed = weather.changed() => if changed.is_err() {
                        std::future::pending().await // the weather stays as it is
                    }
                }
            }
        };
        tokio::select! {
            done = work => done.ok(),
            () = is_cut => None,
        }
    }

    /// False when the connection has ended.
    async fn pass(&mut self, bytes: &[u8], to: &mut OwnedWriteHalf) -> bool {
        loop {
            let weather = self.weather.borrow_and_update().clone();
            if self.cut.is_cut.get() {
                return false;
            }
            match weather {
                Weather::Cut => return false,
                Weather::Brittle(limit_bytes) => {
                    let left = limit_bytes.saturating_sub(self.passed_bytes);
                    let part = bytes.len().min(left as usize);
                    self.passed_bytes += part as u64;
                    let _gone = to.write_all(&bytes[..part]).await;
                    if part < bytes.len() {
                        return false;
                    }
                    return true;
                }
                weather if weather.holds(self.direction) => {
                    if self.weather.changed().await.is_err() {
                        return false;
                    }
                    continue;
                }
                Weather::Slow(delay) => tokio::time::sleep(delay).await,
                _ => self.passed_bytes = 0,
            }
            // Bounded by the receiver: one that is stopped takes no more than its buffer.
            let write = async { to.write_all(bytes).await.map(|()| bytes.len()) };
            return self.unless_cut(write).await.is_some();
        }
    }
}
