//! The manager: hears of all objects, plans for the volumes that are concerned, and writes.
//!
//! ```text
//! caches of six kinds ──▶ plan::manager ──▶ volume::plan ──▶ writes, in their order
//! the clock ─────────────────┘       └─────▶ Known, for who shows volumes or waits for them
//! ```
//! Several may run: what one writes names the version that it has seen.

mod hearing;
#[cfg(test)]
mod tests;
mod writes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ankole_api::Name;
use ankole_api::objects::{
    AttachmentSpec, Engine, EngineSpec, Volume, VolumeAttachment, VolumeSpec,
};
use ankole_api::volume::Reason;
use ankole_plan::manager::Manager as Memory;
use ankole_plan::volume::{Known, Nodes, plan};
use ankole_store::{Store, StoreError};
use futures_util::StreamExt;
use tokio::sync::{Notify, watch};

/// Before what failed is tried again, unless something changes before.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Volumes whose writes are under way together: a store writes what waits in one go.
const AT_ONCE_MAX: usize = 64;

pub struct Manager {
    store: Arc<dyn Store>,
    /// Never locked while something is waited for.
    memory: Mutex<Memory>,
    begun: Instant,
    /// It has heard of all objects once.
    is_filled: watch::Sender<bool>,
    watched: Mutex<BTreeMap<Name, Weak<Notify>>>,
    look: Notify,
}

/// While it lives, the processes of one volume are ended and none is started. Lost with the process,
/// and the volume is then looked after as before.
pub struct Hold {
    manager: Arc<Manager>,
    volume: Name,
}

impl Manager {
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            memory: Mutex::default(),
            begun: Instant::now(),
            is_filled: watch::Sender::new(false),
            watched: Mutex::default(),
            look: Notify::new(),
        })
    }

    /// Until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let (mut hearing, keep) = hearing::start(&self.store);
        let manage = async {
            hearing.filled().await;
            loop {
                self.hear(&mut hearing);
                self.is_filled.send_replace(true);
                let has_failed = self.plan_all().await;
                tokio::select! {
                    () = hearing.something() => {}
                    () = self.look.notified() => {}
                    () = tokio::time::sleep(self.next_tick(has_failed)) => {}
                }
            }
        };
        tokio::select! {
            () = keep => {}
            () = manage => {}
        }
    }

    /// Until it has heard of all that there is.
    pub async fn filled(&self) {
        // An error would mean that there is no sender, and that is this.
        let _ = self.is_filled.subscribe().wait_for(|is_filled| *is_filled).await;
    }

    /// All of a volume, as the store has it now; of its replicas and the nodes what was heard last.
    pub async fn known(&self, volume: &str) -> Result<Option<Known>, StoreError> {
        let Some(found) = self.store.find::<VolumeSpec>(volume).await? else { return Ok(None) };
        let attachment = self.store.find::<AttachmentSpec>(volume).await?;
        let engine = self.store.find::<EngineSpec>(volume).await?;
        Ok(Some(self.known_with(found, attachment, engine)))
    }

    pub fn known_with(
        &self,
        volume: Volume,
        attachment: Option<VolumeAttachment>,
        engine: Option<Engine>,
    ) -> Known {
        self.memory().known_with(volume, attachment, engine)
    }

    pub fn nodes(&self) -> Arc<Nodes> {
        Arc::clone(self.memory().nodes())
    }

    /// Notified of each change of anything of the volume, for as long as it is kept.
    pub fn watch(&self, volume: &Name) -> Arc<Notify> {
        let mut watched = self.watched();
        if let Some(told) = watched.get(volume).and_then(Weak::upgrade) {
            return told;
        }
        let told = Arc::new(Notify::new());
        watched.retain(|_, told| told.strong_count() > 0);
        watched.insert(volume.clone(), Arc::downgrade(&told));
        told
    }

    /// None if somebody holds it already.
    pub fn hold(self: &Arc<Self>, volume: &Name) -> Option<Hold> {
        let is_new = self.memory().hold(volume, true);
        self.look.notify_one();
        is_new.then(|| Hold { manager: Arc::clone(self), volume: volume.clone() })
    }

    /// It is whole at every step, so a panic elsewhere doesn't matter.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> MutexGuard<'_, BTreeMap<Name, Weak<Notify>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_tick(&self, has_failed: bool) -> Duration {
        let due = self.memory().next_tick().unwrap_or(Duration::from_secs(3600));
        let tick = due.saturating_sub(self.begun.elapsed()).max(Duration::from_millis(1));
        if has_failed { tick.min(TRY_AGAIN) } else { tick }
    }

    /// Whether one couldn't be written. It keeps no other from its turn.
    async fn plan_all(&self) -> bool {
        let concerned: Vec<Known> = {
            let mut memory = self.memory();
            std::iter::from_fn(|| memory.next_volume()).collect()
        };
        let passes = concerned.iter().map(|known| self.pass(known));
        let passes = futures_util::stream::iter(passes.collect::<Vec<_>>());
        let failed: Vec<_> =
            passes.buffer_unordered(AT_ONCE_MAX).filter_map(std::future::ready).collect().await;
        let mut memory = self.memory();
        failed.iter().for_each(|name| memory.look_again(name));
        !failed.is_empty()
    }

    /// The volume's name if it has to be tried again.
    async fn pass(&self, known: &Known) -> Option<Name> {
        let name = known.volume.name();
        match self.plan_one(known).await {
            // It is heard of, and planned again.
            Ok(())
            | Err(
                StoreError::Conflict { .. }
                | StoreError::Exists { .. }
                | StoreError::NotFound { .. },
            ) => None,
            Err(error) => {
                tracing::error!(volume = %name, %error, "will be tried again");
                Some(name.clone())
            }
        }
    }

    async fn plan_one(&self, known: &Known) -> Result<(), StoreError> {
        let plan = plan(known);
        let waits = plan.conditions.iter().any(|condition| condition.reason == Reason::NoNode);
        self.memory().waits_for_nodes(known.volume.name(), waits);
        for write in &plan.writes {
            tracing::info!(volume = %known.volume.name(), "{write}");
            writes::carry_out(&*self.store, known, write).await?;
        }
        if plan.writes.is_empty() {
            writes::show(&*self.store, known, &plan).await?;
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.manager.memory().hold(&self.volume, false);
        self.manager.look.notify_one();
    }
}
