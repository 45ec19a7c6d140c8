//! The client: many requests at once over NBD, each answer checked by the oracle.
//!
//! Does what a kernel does when the engine goes away: waits for the next one and asks again what
//! wasn't answered. A write that is asked again gets a new number, which makes the check sharper: the
//! first one has happened before the new engine served, or never will (rule 22 allows for both).
//! An answer that is an error is a violation: whatever dies, the client only waits (P7).

pub mod request;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ankole_blockdev::disk::{Allocation, Buffer, Disk, Durability, Extent, SECTOR_BYTES};
use ankole_blockdev::nbd::Client;
use anyhow::{anyhow, ensure};
use tokio::sync::watch;

use self::request::{Request, sectors};
use crate::oracle::{EngineNumber, Moment, Oracle};
use crate::random::Random;
use crate::sector::{Nonsense, Number, SECTOR, decode_all, encode};
use crate::world::{Route, VOLUME};

/// Requests under way at once.
const WORKERS: usize = 8;
const CONNECT_AGAIN: Duration = Duration::from_millis(5);
/// What an engine wrote to its socket before its successor served is read by then.
const LATE_ANSWERS: Duration = Duration::from_millis(20);
/// Bytes of one request when everything is read.
const READ_ALL_BYTES: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Resting,
    /// Leaves room for rebuilds.
    Gentle,
    Full,
}

/// What was done since the last time it was asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub requests: u64,
    pub again: u64,
    pub bytes: u64,
    /// The longest wait of one request for its answer.
    pub longest: Duration,
}

#[derive(Clone)]
pub struct Load(Rc<Shared>);

struct Shared {
    volume: u64,
    oracle: Rc<RefCell<Oracle>>,
    route: watch::Receiver<Route>,
    connection: watch::Sender<Option<Rc<Connection>>>,
    /// The one before it, which may still be served by an engine that was stopped.
    older: RefCell<Option<Rc<Connection>>>,
    pace: watch::Sender<Pace>,
    busy: Cell<usize>,
    /// Requests without an answer, by their moment.
    under_way: RefCell<BTreeMap<Moment, (EngineNumber, Request)>>,
    next_number: Cell<u64>,
    done: Cell<Done>,
    failure: RefCell<Option<anyhow::Error>>,
}

/// To one engine.
struct Connection {
    engine: EngineNumber,
    client: Client,
    is_lost: Cell<bool>,
}

enum Answer {
    Fine,
    /// The engine went away: it may have been done or not.
    None,
}

impl Load {
    /// Starts the client's tasks, which rest until they are told otherwise.
    pub fn start(
        volume: u64,
        oracle: Rc<RefCell<Oracle>>,
        route: watch::Receiver<Route>,
        random: &mut Random,
    ) -> Self {
        let load = Self(Rc::new(Shared {
            volume,
            oracle,
            route,
            connection: watch::Sender::default(),
            older: RefCell::default(),
            pace: watch::Sender::new(Pace::Resting),
            busy: Cell::new(0),
            under_way: RefCell::default(),
            next_number: Cell::new(1),
            done: Cell::default(),
            failure: RefCell::default(),
        }));
        tokio::task::spawn_local(load.clone().keep_connected());
        for _ in 0..WORKERS {
            tokio::task::spawn_local(load.clone().work(Random::new(random.next())));
        }
        load
    }

    pub fn set_pace(&self, pace: Pace) {
        self.0.pace.send_replace(pace);
    }

    /// Whether no request is under way; after it was told to rest.
    pub fn is_idle(&self) -> bool {
        self.0.busy.get() == 0
    }

    /// What waits for an answer, in words.
    pub fn waiting(&self) -> String {
        let under_way = self.0.under_way.borrow();
        let lines: Vec<_> = under_way
            .iter()
            .map(|(began, (engine, request))| {
                format!("  at {}: engine {engine}: {request:?}", began.0)
            })
            .collect();
        let connected = self.connection().map_or(0, |connection| connection.engine);
        format!(
            "{} of the client's tasks wait; it is connected to engine {connected}; under way:\n{}",
            self.0.busy.get(),
            lines.join("\n")
        )
    }

    pub fn take_done(&self) -> Done {
        self.0.done.take()
    }

    /// The first thing that was wrong, if something was.
    pub fn check(&self) -> anyhow::Result<()> {
        self.0.failure.borrow_mut().take().map_or(Ok(()), Err)
    }

    fn connection(&self) -> Option<Rc<Connection>> {
        self.0.connection.borrow().clone()
    }

    /// Reads the whole volume over a connection of its own, and tells the oracle.
    pub async fn read_all(&self, pieces_at_once: usize) -> anyhow::Result<()> {
        let route = self.0.route.borrow().clone();
        let client = Client::connect_unix(&route.socket, VOLUME).await?;
        let connection = Connection { engine: route.engine, client, is_lost: Cell::new(false) };
        let size_bytes = connection.client.size_bytes();
        let known = self.0.oracle.borrow().sectors() * SECTOR_BYTES;
        ensure!(size_bytes == known, "the volume has {size_bytes} bytes, not {known}");
        let (load, connection) = (self.clone(), Rc::new(connection));
        let next = Rc::new(Cell::new(0));
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..pieces_at_once {
            let (load, connection, next) = (load.clone(), connection.clone(), next.clone());
            readers.spawn_local(async move {
                while next.get() < size_bytes {
                    let offset_bytes = next.get();
                    let length_bytes = READ_ALL_BYTES.min(size_bytes - offset_bytes);
                    next.set(offset_bytes + length_bytes);
                    let at = Extent { offset_bytes, length_bytes };
                    match load.ask(&connection, Request::Read(at)).await? {
                        Answer::Fine => {}
                        Answer::None => {
                            return Err(anyhow!("the engine went away while it was read"));
                        }
                    }
                }
                Ok(())
            });
        }
        while let Some(read) = readers.join_next().await {
            read??;
        }
        Ok(())
    }

    fn fail(&self, error: anyhow::Error) {
        self.0.failure.borrow_mut().get_or_insert(error);
        self.set_pace(Pace::Resting);
    }

    fn new_number(&self) -> Number {
        let number = self.0.next_number.get();
        self.0.next_number.set(number + 1);
        Number(number)
    }

    /// An engine whose successor serves goes on: it must neither acknowledge a write nor return what
    /// is no longer there.
    pub fn probe_older(&self, engine: EngineNumber) {
        let Some(older) = self.0.older.borrow().clone().filter(|it| it.engine == engine) else {
            return; // its successor doesn't serve yet, so it may answer
        };
        for place in 0..4 {
            let at = Extent { offset_bytes: place << 20, length_bytes: 64 << 10 };
            let (load, older) = (self.clone(), older.clone());
            tokio::task::spawn_local(async move {
                if let Err(error) = load.ask(&older, Request::Read(at)).await {
                    load.fail(error);
                }
                // Unknown to the oracle: it never is.
                let content = load.content(at, load.new_number());
                if older.client.write(at, content, Durability::Volatile).await.is_ok() {
                    load.fail(anyhow!(
                        "engine {engine} acknowledged a write after it had a successor"
                    ));
                }
            });
        }
    }

    // ---- connections -----------------------------------------------------------------------

    /// Connects to each new engine when it serves, and leaves the older one then.
    async fn keep_connected(self) {
        let mut route = self.0.route.clone();
        loop {
            let wanted = route.borrow_and_update().clone();
            let present = self.connection();
            let is_there =
                present.is_some_and(|it| it.engine == wanted.engine && !it.is_lost.get());
            if !is_there && wanted.engine > 0 {
                match Client::connect_unix(&wanted.socket, VOLUME).await {
                    Ok(client) => self.connected(wanted.engine, client).await,
                    Err(_) => tokio::time::sleep(CONNECT_AGAIN).await,
                }
                continue;
            }
            tokio::select! {
                changed = route.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(CONNECT_AGAIN) => {}
            }
        }
    }

    async fn connected(&self, engine: EngineNumber, client: Client) {
        tokio::time::sleep(LATE_ANSWERS).await;
        let sectors = client.size_bytes() / SECTOR_BYTES;
        {
            let mut oracle = self.0.oracle.borrow_mut();
            oracle.succeeds(engine);
            oracle.grow(sectors);
            oracle.note(format!("the client is connected to engine {engine}"));
        }
        let connection = Connection { engine, client, is_lost: Cell::new(false) };
        let older = self.0.connection.send_replace(Some(Rc::new(connection)));
        self.0.older.replace(older);
    }

    async fn usable_connection(&self) -> Rc<Connection> {
        let mut connections = self.0.connection.subscribe();
        loop {
            let present = connections.borrow_and_update().clone();
            if let Some(connection) = present.filter(|it| !it.is_lost.get()) {
                return connection;
            }
            if connections.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    // ---- requests --------------------------------------------------------------------------

    async fn work(self, mut random: Random) {
        let mut pace = self.0.pace.subscribe();
        loop {
            let now = *pace.borrow_and_update();
            match now {
                Pace::Resting => {
                    if pace.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Pace::Gentle => tokio::time::sleep(Duration::from_millis(10)).await,
                Pace::Full => tokio::time::sleep(Duration::from_micros(random.below(2000))).await,
            }
            self.0.busy.set(self.0.busy.get() + 1);
            self.until_answered(&mut random).await;
            self.0.busy.set(self.0.busy.get() - 1);
        }
    }

    async fn until_answered(&self, random: &mut Random) {
        let began = Instant::now();
        let connection = self.usable_connection().await;
        let request = Request::random(random, connection.client.size_bytes());
        let mut next = Some(connection);
        let mut again = 0;
        loop {
            let connection = match next.take() {
                Some(connection) => connection,
                None => self.usable_connection().await,
            };
            match self.unless_succeeded(connection, request).await {
                Ok(Answer::Fine) => break,
                Ok(Answer::None) => again += 1,
                Err(error) => return self.fail(error),
            }
        }
        let mut done = self.0.done.get();
        done.requests += 1;
        done.again += again;
        done.longest = done.longest.max(began.elapsed());
        self.0.done.set(done);
    }

    /// Asks; when a newer engine serves before there is an answer, nobody waits for it any more,
    /// but it is still looked at if it comes.
    async fn unless_succeeded(
        &self,
        connection: Rc<Connection>,
        request: Request,
    ) -> anyhow::Result<Answer> {
        let mut connections = self.0.connection.subscribe();
        let engine = connection.engine;
        let load = self.clone();
        let mut asking = tokio::task::spawn_local(async move {
            let answer = load.ask(&connection, request).await;
            if let Err(error) = &answer {
                load.fail(anyhow!("{error:#}"));
            }
            answer
        });
        loop {
            tokio::select! {
                answer = &mut asking => return answer?,
                _changed = connections.changed() => {
                    let newest = connections.borrow_and_update().as_ref().map(|it| it.engine);
                    if newest > Some(engine) {
                        return Ok(Answer::None);
                    }
                }
            }
        }
    }

    /// One request to one engine; tells the oracle of it and of its answer.
    async fn ask(&self, connection: &Connection, request: Request) -> anyhow::Result<Answer> {
        let Connection { engine, client, .. } = connection;
        let oracle = &self.0.oracle;
        let began = oracle.borrow_mut().now();
        self.0.under_way.borrow_mut().insert(began, (*engine, request));
        let number = match request {
            Request::Write(..) => self.new_number(),
            _ => Number::ZEROES,
        };
        let write = oracle.borrow_mut().write_begins(*engine, request.changes(), number);
        let mut seen: Vec<(Extent, Option<Buffer>)> = Vec::new();
        let done = match request {
            Request::Write(at, durability) => {
                client.write(at, self.content(at, number), durability).await.map(drop)
            }
            Request::Zeroes(at, durability) => client.write_zeroes(at, durability).await.map(drop),
            Request::Trim(at) => client.trim(at).await.map(drop),
            Request::Flush => client.flush().await,
            Request::Read(at) => {
                let into = Buffer::zeroed(at.length_bytes as usize);
                let (done, data) = client.read(at, into).await;
                seen.push((at, Some(data)));
                done.map(drop)
            }
            Request::Map(at) => client.extents(at).await.map(|runs| {
                let zeroes = runs.into_iter().filter(|(_, kind)| *kind == Allocation::Zero);
                seen.extend(zeroes.map(|(run, _)| (run, None)));
            }),
        };
        self.0.under_way.borrow_mut().remove(&began);
        match done {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ESHUTDOWN) => {
                connection.is_lost.set(true);
                return Ok(Answer::None);
            }
            Err(error) => {
                return Err(anyhow!("engine {engine} answered {request:?} with an error: {error}"));
            }
        }
        let mut oracle = oracle.borrow_mut();
        oracle.write_answered(write);
        for (at, data) in seen {
            let first = sectors(at).start;
            let numbers = match data {
                Some(data) => decode_all(self.0.volume, first, &data)
                    .map_err(|(sector, nonsense)| self.nonsense(*engine, sector, nonsense))?,
                None => vec![Number::ZEROES; sectors(at).count()],
            };
            oracle.read(*engine, began, first, &numbers);
        }
        let mut done = self.0.done.get();
        done.bytes += request.changes().count() as u64 * SECTOR_BYTES;
        self.0.done.set(done);
        Ok(Answer::Fine)
    }

    fn nonsense(&self, engine: EngineNumber, sector: u64, nonsense: Nonsense) -> anyhow::Error {
        anyhow!("engine {engine} returned for sector {sector}: {nonsense}")
    }

    fn content(&self, at: Extent, number: Number) -> Buffer {
        let mut buffer = Buffer::zeroed(at.length_bytes as usize);
        for (sector, bytes) in sectors(at).zip(buffer.chunks_exact_mut(SECTOR)) {
            encode(self.0.volume, sector, number, bytes);
        }
        buffer
    }
}
