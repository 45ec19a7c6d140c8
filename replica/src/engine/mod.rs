//! The engine's process: the loop around the replication core, and a [`Disk`] for the frontends.
//!
//! Owns the sockets, the clock and the bulk data; decides nothing. Every event is handed to the
//! core at once and the actions that come out are carried out at once, on one thread: thin tasks
//! only move messages. What may never happen: an answer after the core said `End(Fenced)`.
//!
//! ```text
//! frontend ─▶ Engine (Disk) ─┐                    ┌─▶ link: socket, or a replica in this process
//! timer ─────────────────────┼─▶ core ─▶ actions ─┼─▶ arbiter
//! links, arbiter ────────────┘                    └─▶ completions ─▶ frontend
//! ```

mod admin;
mod arbiter;
mod complaints;
mod damage_log;
mod disk;
mod link;
mod requests;
mod watchers;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::{error, info, warn};

pub use self::admin::{Done, serve_admin};
pub use self::arbiter::{Arbiter, ArbiterError, MemoryArbiter, SocketArbiter};
use self::complaints::Complaints;
use self::damage_log::DamageLog;
use self::link::{Link, LocalReplicas};
use self::requests::Requests;
use crate::admin::RequestCounts;
use crate::listen::Address;
use crate::message::Reply;
use crate::payload::Payload;
use crate::record::Change;
use crate::replication::{
    Action, Config, Core, Destination, End, Job, JobId, LinkId, Slot, TransferId,
};
use crate::server;
use crate::store::StoreError;
use crate::types::{Generation, ReplicaId};

/// Pause before the arbiter is asked again.
const ARBITER_RETRY: Duration = Duration::from_millis(200);
/// The clock is looked at this often when nothing is due earlier.
const TICK: Duration = Duration::from_secs(1);

/// Requests that wait for room on a full disk may hold up the end of the frontend for so long.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// A volume's engine; cheap to clone, bound to its thread.
#[derive(Clone)]
pub struct Engine(Rc<Shared>);

/// What a frontend is asked.
pub enum FrontendRequest {
    /// To let go of the volume. The answer is the reason, if something is in the way.
    Close(oneshot::Sender<Result<(), String>>),
    /// To leave the device to the next engine.
    HandOver(oneshot::Sender<Result<(), String>>),
    /// Who uses the volume's device, in words.
    Users(oneshot::Sender<Vec<String>>),
}

struct Shared {
    state: RefCell<State>,
    arbiter: Box<dyn Arbiter>,
    local: LocalReplicas,
    /// Wakes the timer: something may be due earlier than it thinks.
    sooner: Notify,
    /// When the timer looks again.
    awake_at: Cell<Instant>,
    size_bytes: watch::Sender<u64>,
    is_read_only: Cell<bool>,
    end: watch::Sender<Option<End>>,
    /// Something that watchers want to know at once may have changed.
    news: watch::Sender<()>,
    endpoint: RefCell<Option<String>>,
    frontend: RefCell<Option<mpsc::Sender<FrontendRequest>>>,
    clients: RefCell<Box<dyn Fn() -> u32>>,
    counts: Cell<RequestCounts>,
    volume: String,
}

struct State {
    core: Core,
    /// In the order of their slots.
    addresses: BTreeMap<ReplicaId, Address>,
    slots: Vec<ReplicaId>,
    links: HashMap<LinkId, Link>,
    requests: Requests,
    /// Blocks on their way from one replica to others, from the request for them on.
    transfers: HashMap<TransferId, Option<Rc<Payload>>>,
    jobs: HashMap<JobId, oneshot::Sender<Result<(), String>>>,
    complaints: Complaints,
    damage_log: DamageLog,
}

fn replicas_at(
    addresses: &BTreeMap<ReplicaId, Address>,
    is_there: impl Fn(&Address) -> bool,
) -> Vec<ReplicaId> {
    let there = addresses.iter().filter(|(_, address)| is_there(address));
    there.map(|(replica, _)| replica.clone()).collect()
}

impl Engine {
    /// Starts to open the volume. Within a `LocalSet`.
    pub fn start(
        config: Config,
        addresses: BTreeMap<ReplicaId, Address>,
        arbiter: Box<dyn Arbiter>,
    ) -> Self {
        let in_process: Vec<_> = replicas_at(&addresses, |at| matches!(at, Address::Directory(_)));
        let local = if in_process.is_empty() {
            replicas_at(&addresses, |at| matches!(at, Address::Unix(_)))
        } else {
            in_process
        };
        let config = Config { local, process: Some(std::process::id()), ..config };
        let slots = config.replicas.clone();
        let volume = config.volume.clone();
        let state = State {
            core: Core::new(Instant::now(), config),
            addresses,
            slots,
            links: HashMap::new(),
            requests: Requests::default(),
            transfers: HashMap::new(),
            jobs: HashMap::new(),
            complaints: Complaints::default(),
            damage_log: DamageLog::default(),
        };
        let engine = Self(Rc::new(Shared {
            state: RefCell::new(state),
            arbiter,
            local: LocalReplicas::default(),
            sooner: Notify::new(),
            awake_at: Cell::new(Instant::now()),
            size_bytes: watch::Sender::new(0),
            is_read_only: Cell::new(false),
            end: watch::Sender::new(None),
            news: watch::Sender::new(()),
            endpoint: RefCell::new(None),
            frontend: RefCell::new(None),
            clients: RefCell::new(Box::new(|| 0)),
            counts: Cell::new(RequestCounts::default()),
            volume,
        }));
        engine.with(|_, _| ());
        tokio::task::spawn_local(engine.clone().keep_time());
        engine
    }

    /// Returns when the volume can be used, or the engine ended before that.
    pub async fn opened(&self) -> Result<(), End> {
        let (mut size, mut end) = (self.0.size_bytes.subscribe(), self.0.end.subscribe());
        tokio::select! {
            _ = size.wait_for(|size_bytes| *size_bytes > 0) => Ok(()),
            ended = end.wait_for(Option::is_some) => {
                Err(ended.ok().and_then(|end| end.clone()).unwrap_or(End::Detached))
            }
        }
    }

    /// Returns when the engine's process has to end.
    pub async fn ended(&self) -> End {
        let mut end = self.0.end.subscribe();
        let ended = end.wait_for(Option::is_some).await;
        ended.ok().and_then(|end| end.clone()).unwrap_or(End::Detached)
    }

    /// Asks for a clean end; see [`ended`](Self::ended).
    pub fn detach(&self) {
        self.with(|state, now| state.core.detach(now));
    }

    /// Lets readers such as backups reach a replica inside this process, until the engine ends.
    pub async fn serve_local(&self, directory: &Path, address: &Address) -> io::Result<()> {
        let replica = self.0.local.open(directory).await.map_err(io::Error::other)?;
        let engine = self.clone();
        server::serve(replica, address, async move { drop(engine.ended().await) }).await
    }

    /// Closes the replicas inside this process, after the end.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.0.local.close().await
    }

    /// Frontends that are opened from now on refuse what writes; the engine's own jobs go on.
    pub fn show_read_only(&self) {
        self.0.is_read_only.set(true);
    }

    /// What `volume show` calls the endpoint, once there is one.
    pub fn set_endpoint(&self, endpoint: String) {
        self.0.endpoint.replace(Some(endpoint));
        self.tell_news();
    }

    /// Where to ask the frontend to close before a detach.
    pub fn set_frontend(&self, frontend: mpsc::Sender<FrontendRequest>) {
        self.0.frontend.replace(Some(frontend));
    }

    /// Asks the frontend, if there is one, to let go of the volume. The reason if it can't.
    pub async fn close_frontend(&self) -> Result<(), String> {
        self.despite_full_disks(self.ask_frontend(FrontendRequest::Close)).await
    }

    /// The same, but its device stays for the next engine.
    pub async fn leave_frontend(&self) -> Result<(), String> {
        self.despite_full_disks(self.ask_frontend(FrontendRequest::HandOver)).await
    }

    /// A frontend ends when its requests have, and those that wait for room on a full disk don't end
    /// by themselves: when it hasn't ended for a while, the core gives them up.
    async fn despite_full_disks(
        &self,
        frontend: impl Future<Output = Result<(), String>>,
    ) -> Result<(), String> {
        let mut frontend = std::pin::pin!(frontend);
        loop {
            tokio::select! {
                done = &mut frontend => return done,
                () = tokio::time::sleep(CLOSE_PATIENCE) => {
                    if !self.0.state.borrow().core.status().full.is_empty() {
                        warn!(volume = self.0.volume, "writes that wait for room get an error");
                        self.detach();
                    }
                }
            }
        }
    }

    async fn ask_frontend(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<(), String>>) -> FrontendRequest,
    ) -> Result<(), String> {
        let Some(frontend) = self.0.frontend.borrow().clone() else { return Ok(()) };
        let (done, answered) = oneshot::channel();
        if frontend.send(request(done)).await.is_err() {
            return Ok(()); // it has gone already
        }
        answered.await.unwrap_or(Ok(()))
    }

    /// Who uses the volume, but for its own jobs: in words.
    pub async fn users(&self) -> Vec<String> {
        let clients = (self.0.clients.borrow())();
        let clients = (clients > 0).then(|| format!("{clients} client(s) of its socket"));
        let mut users = Vec::from_iter(clients);
        let frontend = self.0.frontend.borrow().clone();
        if let Some(frontend) = frontend {
            let (answer, answered) = oneshot::channel();
            if frontend.send(FrontendRequest::Users(answer)).await.is_ok() {
                users.extend(answered.await.unwrap_or_default());
            }
        }
        users
    }

    /// Returns when the volume has another size than when this was called.
    pub async fn grown(&self) -> u64 {
        let mut size = self.0.size_bytes.subscribe();
        match size.changed().await {
            Ok(()) => *size.borrow(),
            Err(_) => std::future::pending().await,
        }
    }

    /// How to learn how many clients the frontend's socket has.
    pub fn count_clients(&self, count: impl Fn() -> u32 + 'static) {
        *self.0.clients.borrow_mut() = Box::new(count);
    }

    pub fn size_bytes(&self) -> u64 {
        *self.0.size_bytes.borrow()
    }

    /// Changes the chain; returns when all members have done it.
    async fn run_job(&self, job: Job) -> Result<(), String> {
        let (done, result) = oneshot::channel();
        self.with(|state, now| {
            let id = state.core.start_job(now, job);
            state.jobs.insert(id, done);
        });
        result.await.unwrap_or_else(|_| Err("the engine ended".into()))
    }

    // ---- the loop --------------------------------------------------------------------------

    /// Hands an event to the core and carries out what comes of it.
    fn with<T>(&self, event: impl FnOnce(&mut State, Instant) -> T) -> T {
        let mut state = self.0.state.borrow_mut();
        let result = event(&mut state, Instant::now());
        while let Some(action) = state.core.poll_action() {
            self.perform(&mut state, action);
        }
        let next_step = state.core.next_rebuild_step();
        if state.core.take_sooner() || next_step.is_some_and(|due| due < self.0.awake_at.get()) {
            self.0.sooner.notify_one();
        }
        result
    }

    fn perform(&self, state: &mut State, action: Action) {
        match action {
            Action::Connect { slot, link } => self.connect(state, slot, link),
            Action::Disconnect { slot, link } => {
                let name = state.slots.get(usize::from(slot.0));
                let peers = state.core.status().peers;
                let reason = peers.into_iter().find(|peer| Some(&peer.replica) == name);
                let reason = reason.and_then(|peer| peer.reason).unwrap_or_default();
                if let Some(name) = name
                    && state.complaints.is_new(Instant::now(), name, &reason)
                {
                    warn!(volume = self.0.volume, replica = %name, reason, "replica left");
                }
                state.links.remove(&link);
                self.tell_news();
            }
            Action::Send { link, seq, request, into, .. } => {
                if let Some(Destination::Transfer(transfer)) = into {
                    state.transfers.insert(transfer, None);
                }
                let request = state.with_data(request);
                if let (Some(link), Some(request)) = (state.links.get_mut(&link), request) {
                    link.send(seq, request, into);
                }
            }
            Action::Complete { io, result } => state.requests.complete(io, result),
            Action::Retire { io } => state.requests.retire(io),
            Action::RetireTransfer { transfer } => {
                state.transfers.remove(&transfer);
            }
            Action::ReadRecord => {
                tokio::task::spawn_local(self.clone().read_record());
            }
            Action::Change { expected, change } => {
                tokio::task::spawn_local(self.clone().change_record(expected, change));
            }
            Action::Opened { size_bytes } => {
                info!(volume = self.0.volume, size_bytes, "volume open");
                self.0.size_bytes.send_replace(size_bytes);
                self.tell_news();
            }
            Action::JobDone { job, result } => {
                self.tell_news();
                if let Some(asker) = state.jobs.remove(&job) {
                    let _gone = asker.send(result);
                }
            }
            Action::Damage { damaged, news } => {
                state.damage_log.tell(Instant::now(), &self.0.volume, &damaged, &news);
            }
            Action::End(end) => {
                info!(volume = self.0.volume, ?end, "engine ends");
                state.links.clear();
                if end == End::Detached {
                    state.requests.shut_down();
                }
                self.0.end.send_replace(Some(end));
            }
        }
    }

    async fn keep_time(self) {
        loop {
            let due = self.0.state.borrow().core.poll_timeout();
            let latest = Instant::now() + TICK;
            let at = due.map_or(latest, |due| due.min(latest));
            self.0.awake_at.set(at);
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => {}
                () = self.0.sooner.notified() => continue,
            }
            self.with(|state, now| {
                state.core.handle_timeout(now);
                state.damage_log.tell_left_out(now, &self.0.volume);
            });
            if self.0.end.borrow().is_some() {
                return;
            }
        }
    }

    // ---- links -----------------------------------------------------------------------------

    fn connect(&self, state: &mut State, slot: Slot, link: LinkId) {
        let replica = &state.slots[usize::from(slot.0)];
        let Some(address) = state.addresses.get(replica).cloned() else {
            return; // no longer wanted; the core times it out
        };
        let engine = self.clone();
        state.links.insert(link, Link::connecting(engine, slot, link, address));
    }

    /// A link's task has connected it.
    fn link_connected(&self, slot: Slot, link: LinkId) {
        self.with(|state, now| state.core.connected(now, slot, link));
        self.tell_news();
    }

    fn link_lost(&self, slot: Slot, link: LinkId, reason: &str) {
        self.with(|state, now| state.core.disconnected(now, slot, link, reason));
    }

    fn link_answered(&self, slot: Slot, link: LinkId, seq: u64, reply: Reply<Rc<Payload>>) {
        self.with(|state, now| {
            let Some(entry) = state.links.get_mut(&link) else { return };
            let into = entry.destination(seq);
            match state.take_data(into, reply) {
                Some(reply) => state.core.answered(now, slot, link, seq, reply),
                None => {
                    let reason = "its answer carried data that doesn't fit the request";
                    state.core.disconnected(now, slot, link, reason);
                }
            }
        });
    }

    // ---- the arbiter -----------------------------------------------------------------------

    async fn read_record(self) {
        loop {
            match self.0.arbiter.read(&self.0.volume).await {
                Ok(record) => {
                    return self.with(|state, now| state.core.record_read(now, record));
                }
                Err(error) => warn!(volume = self.0.volume, %error, "the arbiter doesn't answer"),
            }
            tokio::time::sleep(ARBITER_RETRY).await;
        }
    }

    /// Rule 6: repeats until there is a definite answer.
    async fn change_record(self, expected: Generation, change: Change) {
        loop {
            match self.0.arbiter.change(&self.0.volume, expected, &change).await {
                Ok(answer) => {
                    self.with(|state, now| state.core.change_answered(now, answer));
                    return self.tell_news();
                }
                Err(error) => error!(volume = self.0.volume, %error,
                    "the arbiter must record a change of the in-sync set; writes may wait"),
            }
            tokio::time::sleep(ARBITER_RETRY).await;
        }
    }
}
