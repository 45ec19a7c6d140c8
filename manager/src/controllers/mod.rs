//! What makes the wishes in the store true: one task per volume, woken by changes of its object,
//! by the ends of its processes, and by the clock.

pub mod board;
pub mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, broadcast, mpsc};

use self::board::Board;
use self::volume::Event;
use crate::agent::format::Format;
use crate::agent::supervisor::{Ended, Signal};
use crate::agent::{Layout, Supervisor, probe};
use crate::api::Name;
use crate::api::replica::Place;
use crate::store::{Changed, Kind, Store, StoreError};
use ankole_plan::one_node::plan::DEVICE_PATIENCE;

/// Labels of processes.
pub const INSTANCE_LABEL: &str = "instance";
pub const ADDRESS_LABEL: &str = "address";
pub const TURN_LABEL: &str = "turn";

/// What every controller works with.
pub struct Context {
    pub store: Arc<dyn Store>,
    pub supervisor: Arc<dyn Supervisor>,
    pub layout: Layout,
    pub board: Board,
    pub node: String,
    /// The binary with the roles `engine run` and `replica serve`.
    pub program: PathBuf,
    pub format: Format,
    pub boot_id: String,
    /// What this node could show volumes by when it last looked.
    pub frontends: probe::Watch,
    /// How long requests of a device may wait for an engine.
    pub device_patience: Duration,
    stopping: AtomicBool,
    held: Mutex<BTreeSet<Name>>,
    /// Why engines wouldn't detach, until their tasks have heard of it.
    refusals: Mutex<BTreeMap<Name, String>>,
    look: Notify,
}

impl Context {
    pub fn new(
        store: Arc<dyn Store>,
        supervisor: Arc<dyn Supervisor>,
        layout: Layout,
        node: String,
        program: PathBuf,
        format: Format,
        boot_id: String,
    ) -> Self {
        Self {
            store,
            supervisor,
            layout,
            board: Board::default(),
            node,
            program,
            format,
            boot_id,
            frontends: probe::Watch::default(),
            device_patience: DEVICE_PATIENCE,
            stopping: AtomicBool::new(false),
            held: Mutex::default(),
            refusals: Mutex::default(),
            look: Notify::new(),
        }
    }

    /// Where the process of a replica listens.
    pub fn address(&self, volume: &Name, place: &Place) -> String {
        match place.port {
            Some(port) => format!("tcp:127.0.0.1:{port}"),
            None => {
                let socket = self.layout.replica_socket(volume, &place.replica);
                format!("unix:{}", socket.display())
            }
        }
    }

    /// From now on every volume is wanted detached.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.look.notify_one();
    }

    /// For a task that ended: its volume may have been made anew meanwhile.
    fn look_at_all(&self) {
        self.look.notify_one();
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The volume's engine doesn't detach, since its device is in use.
    pub fn refused(&self, volume: &Name, why: String) {
        self.refusals().insert(volume.clone(), why);
        self.look.notify_one();
    }

    fn take_refusal(&self, volume: &Name) -> Option<String> {
        self.refusals().remove(volume)
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, BTreeMap<Name, String>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it is dropped no process of the volume is wanted. None if somebody holds it already.
    /// Lost with the process, and the volume is then looked after as before.
    pub fn hold(self: &Arc<Self>, volume: &Name) -> Option<Hold> {
        let fresh = self.held().insert(volume.clone());
        self.look.notify_one();
        fresh.then(|| Hold { context: Arc::clone(self), volume: volume.clone() })
    }

    pub fn is_held(&self, volume: &Name) -> bool {
        self.held().contains(volume)
    }

    /// The set is whole at every step, so a panic elsewhere doesn't matter.
    fn held(&self) -> std::sync::MutexGuard<'_, BTreeSet<Name>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, the processes of one volume are ended and none is started.
pub struct Hold {
    context: Arc<Context>,
    volume: Name,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.context.held().remove(&self.volume);
        self.context.look.notify_one();
    }
}

/// Ends processes whose volume doesn't exist: nobody would ever look after them. One that is there
/// but can't be read keeps its processes.
pub fn end_strays(context: &Context) -> Result<(), StoreError> {
    let volumes = context.store.list(Kind::Volume)?;
    for process in context.supervisor.list() {
        let name = &process.spec.name;
        if !volumes.iter().any(|(volume, _)| *volume == *name.volume) {
            tracing::warn!(process = %name, pid = process.pid, "its volume doesn't exist: ended");
            context.supervisor.signal(name, Signal::Kill);
        }
    }
    Ok(())
}

/// Runs the tasks of all volumes until it is dropped.
pub async fn run(context: Arc<Context>) {
    let mut director = Director { tasks: BTreeMap::new(), context: Arc::clone(&context) };
    // Subscribed before the first look, so that nothing falls between.
    let mut changes = context.store.watch();
    let mut ends = context.supervisor.ended();
    director.look_at_all().await;
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Ok(Changed { kind: Kind::Volume, name }) => director.tell(&name, Event::Look),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => director.look_at_all().await,
                Err(broadcast::error::RecvError::Closed) => return,
            },
            end = ends.recv() => match end {
                Ok(ended @ Ended { .. }) => {
                    director.tell(&ended.name.volume.clone(), Event::Ended(ended));
                }
                Err(broadcast::error::RecvError::Lagged(_)) => director.look_at_all().await,
                Err(broadcast::error::RecvError::Closed) => return,
            },
            () = context.look.notified() => director.look_at_all().await,
        }
    }
}

struct Director {
    context: Arc<Context>,
    tasks: BTreeMap<Name, mpsc::UnboundedSender<Event>>,
}

impl Director {
    /// Starts the volume's task if there is none; one without an object ends by itself.
    fn tell(&mut self, name: &str, event: Event) {
        let Ok(name) = name.parse::<Name>() else { return };
        self.tasks.retain(|_, task| !task.is_closed());
        let event = match self.tasks.get(&name) {
            Some(task) => match task.send(event) {
                Ok(()) => return,
                Err(unsent) => unsent.0,
            },
            None => event,
        };
        let (task, events) = mpsc::unbounded_channel();
        // A task that was just made looks anyway; only what it would not see is told.
        if matches!(event, Event::Ended(_)) {
            let _ = task.send(event);
        }
        tokio::spawn(volume::run(Arc::clone(&self.context), name.clone(), events));
        self.tasks.insert(name, task);
    }

    async fn look_at_all(&mut self) {
        let store = Arc::clone(&self.context.store);
        let volumes = tokio::task::spawn_blocking(move || store.list(Kind::Volume)).await;
        match volumes {
            Ok(Ok(volumes)) => {
                for (name, _) in volumes {
                    self.tell(&name, Event::Look);
                }
            }
            Ok(Err(error)) => {
                tracing::error!(error = crate::api::error::chain(&error), "list the volumes");
            }
            Err(_) => {} // the runtime ends
        }
    }
}
