//! A replica as others see it: who may talk to it, and what becomes of each request.
//!
//! Owns the sessions. Promises that once a newer session was welcomed, nothing that an older one
//! had submitted touches the disk any more (rule 2), that an older one never comes back, and that
//! no other engine counts on a read lease any more (rule 9). The same code serves a socket and, for
//! a replica inside the engine's process, the engine directly.
//!
//! ```text
//! socket ─▶ Conversation ─▶ Session ─▶ Replica ─▶ Store
//! engine ─▶ Conversation ─▶ (role, fence, what runs)
//! ```

mod connection;

use std::cell::{Cell, RefCell};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Notify};
use tracing::{info, warn};

pub use self::connection::serve;
use crate::lease::{LEASE, Lender};
use crate::message::{Advance, Claim, Hello, Refusal, Reply, Request, Role, Welcome};
use crate::mutation::{self, Mutation};
use crate::payload::Payload;
use crate::process::ProcessIdentity;
use crate::record::Member;
use crate::service;
use crate::store::file::{Directory, DirectoryOptions};
use crate::store::{
    Identity, Lessee, Membership, ReplicaState, Storage, Store, StoreError, StoreOptions,
};
use crate::types::{Generation, Incarnation, LayerId, ReplicaId};

/// What time it is. Asked for, so that a simulation can say it.
pub type Clock = Rc<dyn Fn() -> Instant>;

/// One replica, open.
pub struct Replica<S: Storage = Directory> {
    pub(crate) store: Store<S>,
    pub(crate) clock: Clock,
    /// Whose requests are carried out.
    engine: RefCell<Option<Rc<Session>>>,
    /// Older ones of which something may still run.
    ending: RefCell<Vec<Rc<Session>>>,
    /// What writes are stamped with.
    pub(crate) generation: Cell<Generation>,
    /// One `Hello` or `Advance` at a time.
    greeting: Mutex<()>,
    /// One page of one list at a time.
    pub(crate) listing: Mutex<()>,
    pub(crate) lender: Lender,
    /// How often all layers were dropped to be filled anew: what readers saw before is gone.
    adoptions: Cell<u64>,
}

/// What one `Hello` opened.
pub(crate) struct Session {
    role: Role,
    claim: Option<Claim>,
    /// Of the replica, when the session began.
    adoptions: u64,
    over: Cell<bool>,
    ended: Notify,
    running: Cell<usize>,
    idle: Notify,
}

impl Session {
    fn end(&self) {
        self.over.set(true);
        self.ended.notify_one();
    }

    async fn until_idle(&self) {
        while self.running.get() > 0 {
            self.idle.notified().await;
        }
    }
}

/// Counts a request as running until dropped.
struct Running(Rc<Session>);

impl Running {
    fn begin(session: &Rc<Session>) -> Self {
        session.running.set(session.running.get() + 1);
        Self(session.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        if self.0.running.get() == 0 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Replica {
    /// Opens the replica in `dir`, which nobody else may have open.
    pub async fn open(dir: &Path) -> Result<Rc<Self>, StoreError> {
        let directory = Directory::open(dir, &DirectoryOptions::default()).map_err(|source| {
            StoreError::Io { doing: "open", place: dir.display().to_string(), source }
        })?;
        let path = directory.data_path();
        let store = Store::open(directory, StoreOptions::default()).await?;
        let identity = store.identity();
        info!(volume = identity.volume, replica = %identity.replica, dir = %dir.display(),
            io_uring = path.uring, direct = path.direct, "replica opened");
        Ok(Self::new(store, Rc::new(Instant::now)))
    }
}

impl<S: Storage> Replica<S> {
    /// A replica over a store that is open.
    pub fn new(store: Store<S>, clock: Clock) -> Rc<Self> {
        Self::lending(store, clock, LEASE)
    }

    /// The same with another length of the read lease.
    pub fn lending(store: Store<S>, clock: Clock, lease: Duration) -> Rc<Self> {
        let generation = store.fence().map_or(Generation::FIRST, |fence| fence.generation);
        // One whose process ended on this machine doesn't count on anything any more.
        let ended = |lessee: &Lessee| lessee.process.as_ref().is_some_and(ProcessIdentity::is_gone);
        let lessee = store.lessee().filter(|lessee| !ended(lessee));
        let lender = Lender::after_start(clock(), lease, lessee.map(|lessee| lessee.instance));
        Rc::new(Self {
            store,
            clock,
            lender,
            engine: RefCell::new(None),
            ending: RefCell::default(),
            generation: Cell::new(generation),
            greeting: Mutex::new(()),
            listing: Mutex::new(()),
            adoptions: Cell::new(0),
        })
    }

    pub fn store(&self) -> &Store<S> {
        &self.store
    }

    /// Whether this directory is the copy that the caller means.
    pub fn check_identity(&self, volume: &str, replica: &ReplicaId) -> Result<(), Refusal> {
        let identity = self.store.identity();
        if identity.volume == volume && identity.replica == *replica {
            return Ok(());
        }
        let found = format!("replica {} of volume {}", identity.replica, identity.volume);
        let expected = format!("replica {replica} of volume {volume}");
        Err(Refusal::WrongIdentity { found, expected })
    }

    /// Ends what runs and closes the store: a restart finds everything durable.
    pub async fn close(self: Rc<Self>) -> Result<(), StoreError> {
        let engine = self.engine.borrow_mut().take();
        if let Some(session) = engine {
            session.end();
            session.until_idle().await;
        }
        match Rc::try_unwrap(self) {
            Ok(replica) => replica.store.close().await,
            Err(_) => Ok(()), // something takes very long: the process ends like a killed one
        }
    }

    async fn hello(
        self: &Rc<Self>,
        hello: &Hello,
        peer: Peer,
    ) -> Result<(Rc<Session>, Welcome), Refusal> {
        self.check_identity(&hello.volume, &hello.replica)?;
        let identity = self.store.identity();
        let seen = self.store.fence();
        let session = Rc::new(Session {
            role: hello.role,
            claim: hello.claim.clone(),
            adoptions: self.adoptions.get(),
            over: Cell::new(false),
            ended: Notify::new(),
            running: Cell::new(0),
            idle: Notify::new(),
        });
        match &hello.claim {
            Some(claim) if hello.role != Role::Reader => self.claim(claim, &session, peer).await?,
            None if hello.role == Role::Reader => self.refuse_to_show_half()?,
            _ => {
                let message = "an engine claims, a reader doesn't".into();
                return Err(Refusal::Invalid { message });
            }
        }
        let membership = self.store.membership();
        let welcome = Welcome {
            incarnation: identity.incarnation,
            size_bytes: self.store.size_bytes(),
            continuous: self.store.continuous(),
            synced_generation: membership.synced_gen,
            seen,
            epoch: membership.epoch,
            departed: membership.departed,
            marked_regions: self.store.marked_count(),
            unrecovered_regions: self.store.unrecovered_count(),
            chain: self.store.chain(),
            lease_ms: self.lender.length().as_millis() as u32,
        };
        Ok((session, welcome))
    }

    /// While a rebuild fills the layers, what they lack would read as zeroes.
    fn refuse_to_show_half(&self) -> Result<(), Refusal> {
        match self.store.membership().state {
            ReplicaState::Ready | ReplicaState::Member => Ok(()),
            ReplicaState::New | ReplicaState::Rebuilding | ReplicaState::Failed => {
                Err(Refusal::Invalid { message: "it has no whole copy to be read".into() })
            }
        }
    }

    /// Before the layers are dropped: ends what readers have begun, see [`Conversation::handle`].
    pub(crate) fn adopts(&self) {
        self.adoptions.set(self.adoptions.get() + 1);
    }

    /// Rule 2: durable, then older ones end, then the answer.
    async fn claim(&self, claim: &Claim, session: &Rc<Session>, peer: Peer) -> Result<(), Refusal> {
        let identity = self.store.identity();
        let other = claim.incarnation.is_some_and(|it| it != identity.incarnation);
        if other && !mutation::is_on(Mutation::WrongIncarnationAccepted) {
            let found = format!("incarnation {}", identity.incarnation);
            let expected = claim.incarnation.map(|expected| format!("incarnation {expected}"));
            return Err(Refusal::WrongIdentity { found, expected: expected.unwrap_or_default() });
        }
        {
            let _one_at_a_time = self.greeting.lock().await;
            let old_is_fine = mutation::is_on(Mutation::OldSessionAccepted);
            if self.store.fence().is_some_and(|seen| claim.fence <= seen && !old_is_fine) {
                return Err(self.stale());
            }
            self.store.set_fence(claim.fence).await.map_err(|error| refusal(&error))?;
            if let Some(older) = self.engine.replace(Some(session.clone())) {
                older.end();
                self.ending.borrow_mut().push(older);
            }
        }
        // Without the lock, since what runs may be an `Advance` that waits for it.
        let ending = self.ending.borrow().clone();
        for older in ending {
            if mutation::is_on(Mutation::OldIoNotAwaited) {
                break;
            }
            older.until_idle().await;
        }
        self.ending.borrow_mut().retain(|older| older.running.get() > 0);
        self.lend(claim, session, peer).await?;
        self.generation.set(claim.fence.generation);
        info!(generation = %claim.fence.generation, session = claim.fence.session.0,
            instance = claim.instance.0, "engine welcomed");
        Ok(())
    }

    /// Rule 9: not while the lease of another engine runs, which nobody can renew any more.
    async fn lend(&self, claim: &Claim, session: &Session, peer: Peer) -> Result<(), Refusal> {
        let _one_at_a_time = self.greeting.lock().await;
        if session.over.get() {
            return Err(self.stale());
        }
        if let Some(left) = self.lender.busy((self.clock)(), &claim.instance) {
            return Err(Refusal::LeaseBusy { ms: left.as_millis() as u32 + 1 });
        }
        // An engine that holds the replica in its own process dies with it.
        let lessee = (peer != Peer::SameProcess).then(|| Lessee {
            instance: claim.instance.clone(),
            process: peer.process_of(claim).and_then(ProcessIdentity::of),
        });
        if self.store.lessee() != lessee {
            let durable = self.store.set_lessee(lessee).await;
            durable.map_err(|error| refusal(&error))?;
        }
        self.lender.lend((self.clock)(), &claim.instance, claim.fence);
        Ok(())
    }

    /// The engine said goodbye: its successor needn't wait, even if this replica restarts before.
    async fn end_lease(&self, session: &Session) {
        let _one_at_a_time = self.greeting.lock().await;
        if let Some(claim) = &session.claim
            && self.lender.end(claim.fence)
            && let Err(error) = self.store.set_lessee(None).await
        {
            warn!(%error, "the next engine has to wait for the lease of the last one");
        }
    }

    /// Rule 8: why a session is refused, with what a person needs if nobody newer was granted.
    fn stale(&self) -> Refusal {
        let Some(seen) = self.store.fence() else {
            return Refusal::Invalid { message: "the session is over".into() };
        };
        let Membership { synced_gen, synced_set, .. } = self.store.membership();
        let member = |(replica, incarnation)| Member { replica, incarnation };
        let synced_set = synced_set.into_iter().map(member).collect();
        Refusal::StaleGeneration { seen, synced_generation: synced_gen, synced_set }
    }

    /// The engine told this replica that it is in sync.
    async fn advance(&self, session: &Session, advance: &Advance) -> Result<(), Refusal> {
        let _one_at_a_time = self.greeting.lock().await;
        let Some(mut fence) = self.store.fence() else {
            return Err(Refusal::Invalid { message: "Advance before Hello".into() });
        };
        if session.over.get() {
            return Err(self.stale()); // it waited too long
        }
        if advance.generation < fence.generation {
            return Ok(()); // overtaken by a later one of the same engine, which says more
        }
        fence.generation = advance.generation;
        let membership = Membership {
            state: ReplicaState::Member,
            synced_gen: Some(advance.generation),
            synced_set: advance
                .in_sync
                .iter()
                .map(|member| (member.replica.clone(), member.incarnation))
                .collect(),
            departed: advance.departed.clone(),
            epoch: self.store.membership().epoch,
        };
        let store = &self.store;
        let done = async {
            store.set_fence(fence).await?;
            if !mutation::is_on(Mutation::NoRestamping) {
                store.restamp(advance.generation).await?;
            }
            store.set_membership(membership).await
        };
        done.await.map_err(|error| refusal(&error))?;
        self.generation.set(advance.generation);
        Ok(())
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// On another machine, or behind a proxy.
    Unknown,
    /// The kernel names the process.
    Process(u32),
    /// The engine has opened the replica itself.
    SameProcess,
}

impl Peer {
    /// The engine's process, if it is the one at the other end and not a proxy.
    fn process_of(self, claim: &Claim) -> Option<u32> {
        match self {
            Self::Process(process) => claim.process.filter(|claimed| *claimed == process),
            Self::Unknown | Self::SameProcess => None,
        }
    }
}

/// One connection's view of a replica.
pub struct Conversation<S: Storage = Directory> {
    replica: Rc<Replica<S>>,
    session: RefCell<Option<Rc<Session>>>,
    greeted: Notify,
    peer: Peer,
}

impl<S: Storage> Conversation<S> {
    pub fn new(replica: Rc<Replica<S>>) -> Rc<Self> {
        Self::with(replica, Peer::Unknown)
    }

    pub fn with(replica: Rc<Replica<S>>, peer: Peer) -> Rc<Self> {
        Rc::new(Self { replica, session: RefCell::new(None), greeted: Notify::new(), peer })
    }

    /// The other end has closed the connection. An engine gives a lease up before it closes its
    /// end, so that the lease ends if this really was the engine's own end: a dead engine's
    /// successor needn't wait. A proxy's end says nothing.
    pub fn closed_by_peer(&self) {
        let session = self.session.borrow();
        if let Some(Session { claim: Some(claim), .. }) = session.as_deref()
            && self.peer.process_of(claim).is_some()
        {
            self.replica.lender.end(claim.fence);
        }
    }

    /// Whether an engine was welcomed here: others are readers, or haven't said who they are.
    fn is_engines(&self) -> bool {
        self.session.borrow().as_ref().is_some_and(|session| session.role != Role::Reader)
    }

    /// Until a newer session has taken this one's place.
    async fn superseded(&self) {
        loop {
            let session = self.session.borrow().clone();
            match session {
                Some(session) if session.over.get() => return,
                Some(session) => session.ended.notified().await,
                None => self.greeted.notified().await,
            }
        }
    }

    /// Carries a request out. Must be driven to its end: a dropped future may leave a write that
    /// no session waits for.
    pub async fn handle(&self, request: Request<Rc<Payload>>) -> Reply<Rc<Payload>> {
        if let Request::Hello(hello) = &request {
            return match self.replica.hello(hello, self.peer).await {
                Ok((session, welcome)) => {
                    self.session.replace(Some(session));
                    self.greeted.notify_one();
                    Reply::Welcome(Box::new(welcome))
                }
                Err(refused) => Reply::Refused(refused),
            };
        }
        let Some(session) = self.session.borrow().clone() else {
            return Reply::Refused(Refusal::Invalid { message: "Hello comes first".into() });
        };
        if session.over.get() {
            return Reply::Refused(self.replica.stale());
        }
        if session.role == Role::Reader && !is_for_readers(&request) {
            return Reply::Refused(Refusal::Invalid { message: "a reader only reads".into() });
        }
        let _running = Running::begin(&session);
        if let Some(claim) = &session.claim {
            self.replica.lender.renew((self.replica.clock)(), claim.fence);
        }
        let is_goodbye = matches!(request, Request::Bye);
        if let Request::Advance(advance) = &request {
            let advanced = self.replica.advance(&session, advance).await;
            return advanced.map_or_else(Reply::Refused, |()| Reply::Done);
        }
        let reply = service::carry_out(&self.replica, request).await;
        if is_goodbye && reply.is_ok() {
            self.replica.end_lease(&session).await;
        }
        // A rebuild that began meanwhile, or earlier, has emptied the layers.
        if session.role == Role::Reader && session.adoptions != self.replica.adoptions.get() {
            let message = "it is being rebuilt, and has nothing to show until then".into();
            return Reply::Refused(Refusal::Invalid { message });
        }
        reply.unwrap_or_else(Reply::Refused)
    }
}

fn is_for_readers<P>(request: &Request<P>) -> bool {
    matches!(
        request,
        Request::ReadSnapshot { .. }
            | Request::DescribeChain
            | Request::Changed { .. }
            | Request::Ping
    )
}

/// What a store's error means for the engine.
pub(crate) fn refusal(error: &StoreError) -> Refusal {
    let message = error.to_string();
    match error {
        StoreError::Failed { .. } => Refusal::Failed { message },
        StoreError::Chain(_) | StoreError::OutOfRange { .. } => Refusal::Invalid { message },
        error if error.is_no_space() => Refusal::NoSpace,
        error if error.is_too_large() => Refusal::Invalid { message },
        _ => Refusal::Io { message },
    }
}

/// Makes an empty directory a replica's, as a member of a volume that is all zero. The directory is
/// made if it isn't there.
pub async fn format(
    dir: &Path,
    volume: &str,
    replica: &ReplicaId,
    size_bytes: u64,
) -> Result<Incarnation, StoreError> {
    let failed =
        |doing| move |source| StoreError::Io { doing, place: dir.display().to_string(), source };
    let mut private = std::fs::DirBuilder::new();
    let made = private.recursive(true).mode(0o700).create(dir);
    made.map_err(failed("create the directory"))?;
    let mut random = [0; 16];
    let filled = getrandom::fill(&mut random).map_err(std::io::Error::from);
    filled.map_err(failed("get random bytes"))?;
    let incarnation = Incarnation(u128::from_le_bytes(random));
    let identity = Identity { volume: volume.into(), replica: replica.clone(), incarnation };
    let directory = Directory::open(dir, &DirectoryOptions::default()).map_err(failed("open"))?;
    Store::format(directory, identity, size_bytes, LayerId(1)).await?;
    Ok(incarnation)
}
