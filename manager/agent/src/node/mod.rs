//! One node: its Engines, Replicas, Backups and Restores are made true here, each by a task of its own.
//!
//! ```text
//! caches (spec.node = this) ──┐                        ┌─▶ processes, directories, devices
//! ends of processes ──────────┼─▶ task of a part: facts ─▶ plan ─▶ hands
//! the clock ──────────────────┘                        └─▶ status of its object; the volume's record
//! ```
//! Owns nothing but processes: objects say what is wanted, the machine says what is so. What may never
//! happen: something is ended because the store can't be asked.

pub mod end;
mod engine;
mod failing;
mod job;
mod lease;
mod live;
mod part;
mod past;
mod places;
pub mod records;
mod replica;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ankole_api::Name;
use ankole_api::error::chain;
use ankole_api::object::Spec;
use ankole_api::objects::{BackupSpec, EngineSpec, ReplicaSpec, RestoreSpec, VolumeSpec};
use ankole_store::{Cache, Selector, Store};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::task::{JoinError, JoinSet};

pub use self::live::Live;

use self::places::Places;
use super::format::Format;
use super::probe::Drivers;
use super::supervisor::{Ended, Part, Signal};
use super::{Layout, Supervisor, probe};

/// Before a part whose task panicked is looked at again.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// What a node's tasks work with.
pub struct Node {
    pub name: String,
    pub store: Arc<dyn Store>,
    pub supervisor: Arc<dyn Supervisor>,
    pub layout: Layout,
    /// The binary with the roles `engine run` and `replica serve`.
    pub program: PathBuf,
    pub format: Format,
    /// Of this machine since it was started.
    pub boot_id: String,
    /// How long requests of a device may wait for an engine.
    pub device_patience: Duration,
    /// By what this node could show volumes when it last looked.
    pub frontends: probe::Watch,
    pub live: Live,
    is_stopping: AtomicBool,
    look: Notify,
    places: Places,
    drivers: Drivers,
}

/// What a task is told.
#[derive(Debug)]
enum Told {
    /// Its object changed, or the wish to stop.
    Look,
    Ended(Ended),
    /// Its engine doesn't detach, since its device is in use.
    Refused(String),
}

impl Node {
    #[expect(clippy::too_many_arguments, reason = "each is one thing of the node")]
    pub fn new(
        name: String,
        store: Arc<dyn Store>,
        supervisor: Arc<dyn Supervisor>,
        layout: Layout,
        program: PathBuf,
        format: Format,
        boot_id: String,
        device_patience: Duration,
    ) -> Self {
        Self {
            name,
            store,
            supervisor,
            layout,
            program,
            format,
            boot_id,
            device_patience,
            frontends: probe::Watch::default(),
            live: Live::default(),
            is_stopping: AtomicBool::new(false),
            look: Notify::new(),
            places: Places::default(),
            drivers: Drivers::default(),
        }
    }

    /// From now on engines detach, but those that somebody uses, and the replicas that no engine uses
    /// end.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.look.notify_one();
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }
}

/// Runs the tasks of all parts until it is dropped.
pub async fn run(node: Arc<Node>) {
    let own = || Selector::on_node(&node.name);
    let (engines, keep_engines) = Cache::<EngineSpec>::new(Arc::clone(&node.store), own());
    let (replicas, keep_replicas) = Cache::<ReplicaSpec>::new(Arc::clone(&node.store), own());
    let (backups, keep_backups) = Cache::<BackupSpec>::new(Arc::clone(&node.store), own());
    let (restores, keep_restores) = Cache::<RestoreSpec>::new(Arc::clone(&node.store), own());
    // Subscribed before the first look, so that nothing falls between.
    let ends = node.supervisor.ended();
    let lease = lease::renew(Arc::clone(&node));
    let (tasks, running) = (BTreeMap::new(), JoinSet::new());
    let director = Director { node, engines, replicas, backups, restores, tasks, running };
    tokio::select! {
        () = keep_engines => {}
        () = keep_replicas => {}
        () = keep_backups => {}
        () = keep_restores => {}
        () = lease => {}
        () = director.run(ends) => {}
    }
}

/// A part by the name of its object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Engine(Name),
    Replica(Name),
    Backup(Name),
    Restore(Name),
}

struct Director {
    node: Arc<Node>,
    engines: Cache<EngineSpec>,
    replicas: Cache<ReplicaSpec>,
    backups: Cache<BackupSpec>,
    restores: Cache<RestoreSpec>,
    tasks: BTreeMap<Key, mpsc::UnboundedSender<Told>>,
    /// They end with it.
    running: JoinSet<()>,
}

impl Director {
    async fn run(mut self, mut ends: broadcast::Receiver<Ended>) {
        // An engine whose object is elsewhere by now is told by its process alone.
        self.look_at_processes();
        self.look_at_folders_of_jobs();
        self.replicas.filled().await;
        self.end_strays().await;
        let (mut engines, mut replicas) = (self.engines.changes(), self.replicas.changes());
        let (mut backups, mut restores) = (self.backups.changes(), self.restores.changes());
        loop {
            tokio::select! {
                name = engines.next() => {
                    self.tell_named(&name, Key::Engine);
                    self.tell_jobs_of(&name);
                }
                name = replicas.next() => self.tell_named(&name, Key::Replica),
                name = backups.next() => self.tell_named(&name, Key::Backup),
                name = restores.next() => self.tell_named(&name, Key::Restore),
                end = ends.recv() => match end {
                    Ok(ended) => self.tell_end(ended),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.look_at_all(),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = self.node.look.notified() => self.look_at_all(),
                Some(ended) = self.running.join_next() => self.note_end_of_task(ended),
            }
        }
    }

    fn tell_named(&mut self, name: &str, key: fn(Name) -> Key) {
        if let Ok(name) = name.parse() {
            self.tell(key(name), Told::Look);
        }
    }

    /// Some may be waiting for its engine.
    fn tell_jobs_of(&mut self, volume: &str) {
        for name in job::waiting_for(&self.backups, volume) {
            self.tell(Key::Backup(name), Told::Look);
        }
        for name in job::waiting_for(&self.restores, volume) {
            self.tell(Key::Restore(name), Told::Look);
        }
    }

    fn tell_end(&mut self, ended: Ended) {
        let volume = ended.name.volume.clone();
        match &ended.name.part {
            Part::Backup(name) => self.tell(Key::Backup(name.clone()), Told::Ended(ended)),
            Part::Restore(name) => self.tell(Key::Restore(name.clone()), Told::Ended(ended)),
            Part::Engine => self.tell(Key::Engine(volume), Told::Ended(ended)),
            Part::Replica(id) => {
                let all = self.replicas.all();
                let mut readable = all.iter().flatten();
                let own = readable.find(|it| it.spec.volume == volume && it.spec.id == *id);
                if let Some(name) = own.map(|it| it.name().clone()) {
                    self.tell(Key::Replica(name), Told::Ended(ended));
                }
            }
        }
    }

    /// Starts the part's task if there is none; one without an object and a process ends by itself.
    fn tell(&mut self, key: Key, told: Told) {
        let told = match self.tasks.get(&key) {
            Some(task) => match task.send(told) {
                Ok(()) => return,
                Err(unsent) => unsent.0,
            },
            None => told,
        };
        let (task, hears) = mpsc::unbounded_channel();
        // A task that was just made looks anyway; only what it would not see is told.
        if !matches!(told, Told::Look) {
            let _ = task.send(told);
        }
        let node = Arc::clone(&self.node);
        match &key {
            Key::Engine(name) => {
                let part = engine::EnginePart::new(node, self.engines.clone(), name.clone());
                self.running.spawn(part::run(part, task.downgrade(), hears));
            }
            Key::Replica(name) => {
                let part = replica::ReplicaPart::new(node, self.replicas.clone(), name.clone());
                self.running.spawn(part::run(part, task.downgrade(), hears));
            }
            Key::Backup(name) => {
                let (jobs, engines) = (self.backups.clone(), self.engines.clone());
                let part = job::JobPart::new(node, jobs, engines, name.clone());
                self.running.spawn(part::run(part, task.downgrade(), hears));
            }
            Key::Restore(name) => {
                let (jobs, engines) = (self.restores.clone(), self.engines.clone());
                let part = job::JobPart::new(node, jobs, engines, name.clone());
                self.running.spawn(part::run(part, task.downgrade(), hears));
            }
        }
        self.tasks.insert(key, task);
    }

    fn look_at_processes(&mut self) {
        for process in self.node.supervisor.list() {
            match process.spec.name.part {
                Part::Engine => self.tell(Key::Engine(process.spec.name.volume), Told::Look),
                Part::Replica(_) => {}
                Part::Backup(name) => self.tell(Key::Backup(name), Told::Look),
                Part::Restore(name) => self.tell(Key::Restore(name), Told::Look),
            }
        }
    }

    /// Their objects may be gone.
    fn look_at_folders_of_jobs(&mut self) {
        let jobs = self.node.layout.jobs().unwrap_or_else(|error| {
            tracing::warn!(%error, "look for what jobs have left");
            Vec::new()
        });
        for part in jobs {
            match part {
                Part::Backup(name) => self.tell(Key::Backup(name), Told::Look),
                Part::Restore(name) => self.tell(Key::Restore(name), Told::Look),
                Part::Engine | Part::Replica(_) => {}
            }
        }
    }

    /// Processes of replicas that don't exist: nobody would ever look after them. Those whose object
    /// can't be read go on, and so do those of a volume that can't be.
    async fn end_strays(&self) {
        let Ok(replicas) = self.replicas.all().into_iter().collect::<Result<Vec<_>, _>>() else {
            return;
        };
        for process in self.node.supervisor.list() {
            let name = &process.spec.name;
            let Part::Replica(id) = &name.part else { continue };
            if replicas.iter().any(|it| it.spec.volume == name.volume && it.spec.id == *id) {
                continue;
            }
            if let Err(error) = self.node.store.find::<VolumeSpec>(&name.volume).await {
                tracing::warn!(process = %name, error = chain(&error), "left as it is");
                continue;
            }
            tracing::warn!(process = %name, pid = process.pid, "there is no such replica: ended");
            self.node.supervisor.signal(name, Signal::Kill);
        }
    }

    /// Also at those whose task has just ended, or panicked.
    fn look_at_all(&mut self) {
        self.tasks.retain(|_, task| !task.is_closed());
        let mut parts: BTreeSet<Key> = self.tasks.keys().cloned().collect();
        parts.extend(names(&self.engines).map(Key::Engine));
        parts.extend(names(&self.replicas).map(Key::Replica));
        parts.extend(names(&self.backups).map(Key::Backup));
        parts.extend(names(&self.restores).map(Key::Restore));
        for part in parts {
            self.tell(part, Told::Look);
        }
        self.look_at_processes();
    }

    /// A panic is a failed pass: its part is looked at again after a while.
    fn note_end_of_task(&mut self, ended: Result<(), JoinError>) {
        let Err(error) = ended else { return };
        tracing::error!(%error, "a part's task ended; it is started again");
        let node = Arc::clone(&self.node);
        self.running.spawn(async move {
            tokio::time::sleep(AFTER_PANIC).await;
            node.look.notify_one();
        });
    }
}

/// Of those that can be read.
fn names<S: Spec>(cache: &Cache<S>) -> impl Iterator<Item = Name> + use<S> {
    cache.all().into_iter().flatten().map(|object| object.name().clone())
}
