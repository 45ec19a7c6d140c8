//! The manager: hears of all objects, plans for the volumes that are concerned, and writes.
//!
//! ```text
//! caches of six kinds ──▶ plan::manager ──▶ volume::plan ──▶ writes, in their order
//! the clock ─────────────────┘
//! ```
//! Several may run: what one writes names the version that it has seen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ankole_api::Name;
use ankole_api::object::{Object, Spec};
use ankole_api::objects::condition::dated;
use ankole_api::objects::node::LeaseSpec;
use ankole_api::objects::volume::{DATA_FINALIZER, UNFORMATTED};
use ankole_api::objects::{
    AttachmentSpec, Engine, EngineSpec, NodeSpec, Replica, ReplicaSpec, Volume, VolumeSpec,
    VolumeStatus,
};
use ankole_api::volume::Reason;
use ankole_plan::manager::{Gone, Manager as Memory, Told};
use ankole_plan::volume::{Known, Plan, Write, plan, shown};
use ankole_store::{Cache, Precondition, Raw, Selector, Store, StoreError};
use jiff::Timestamp;

/// Before what failed is tried again, unless something changes before.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Until it is dropped.
pub async fn run(store: Arc<dyn Store>) {
    let all = Selector::all;
    let (volumes, keep_volumes) = Cache::<VolumeSpec>::new(Arc::clone(&store), all());
    let (attachments, keep_attachments) = Cache::<AttachmentSpec>::new(Arc::clone(&store), all());
    let (engines, keep_engines) = Cache::<EngineSpec>::new(Arc::clone(&store), all());
    let (replicas, keep_replicas) = Cache::<ReplicaSpec>::new(Arc::clone(&store), all());
    let (nodes, keep_nodes) = Cache::<NodeSpec>::new(Arc::clone(&store), all());
    let (leases, keep_leases) = Cache::<LeaseSpec>::new(Arc::clone(&store), all());
    let manage = async {
        // A volume without its replicas would be one that lacks them.
        tokio::join!(
            volumes.filled(),
            attachments.filled(),
            engines.filled(),
            replicas.filled(),
            nodes.filled(),
            leases.filled(),
        );
        let mut manager =
            Manager { store, memory: Memory::default(), begun: Instant::now(), has_failed: false };
        let mut changes = (
            nodes.changes(),
            leases.changes(),
            replicas.changes(),
            engines.changes(),
            attachments.changes(),
            volumes.changes(),
        );
        loop {
            let tick = manager.next_tick();
            tokio::select! {
                name = changes.0.next() => manager.hear(&nodes, &name, Told::Node, gone_node),
                name = changes.1.next() => manager.hear(&leases, &name, lease, |_| None),
                name = changes.2.next() => {
                    manager.hear(&replicas, &name, Told::Replica, |it| gone(it, Gone::Replica));
                }
                name = changes.3.next() => {
                    manager.hear(&engines, &name, Told::Engine, |it| gone(it, Gone::Engine));
                }
                name = changes.4.next() => {
                    let is_gone = |it: &str| gone(it, Gone::Attachment);
                    manager.hear(&attachments, &name, Told::Attachment, is_gone);
                }
                name = changes.5.next() => {
                    manager.hear(&volumes, &name, Told::Volume, |it| gone(it, Gone::Volume));
                }
                () = tokio::time::sleep(tick) => {}
            }
            // All that is known by now counts before anything is planned.
            while let Some(name) = changes.0.try_next() {
                manager.hear(&nodes, &name, Told::Node, gone_node);
            }
            while let Some(name) = changes.1.try_next() {
                manager.hear(&leases, &name, lease, |_| None);
            }
            while let Some(name) = changes.2.try_next() {
                manager.hear(&replicas, &name, Told::Replica, |it| gone(it, Gone::Replica));
            }
            while let Some(name) = changes.3.try_next() {
                manager.hear(&engines, &name, Told::Engine, |it| gone(it, Gone::Engine));
            }
            while let Some(name) = changes.4.try_next() {
                let is_gone = |it: &str| gone(it, Gone::Attachment);
                manager.hear(&attachments, &name, Told::Attachment, is_gone);
            }
            while let Some(name) = changes.5.try_next() {
                manager.hear(&volumes, &name, Told::Volume, |it| gone(it, Gone::Volume));
            }
            manager.plan_all().await;
        }
    };
    tokio::select! {
        () = keep_volumes => {}
        () = keep_attachments => {}
        () = keep_engines => {}
        () = keep_replicas => {}
        () = keep_nodes => {}
        () = keep_leases => {}
        () = manage => {}
    }
}

fn lease(it: ankole_api::objects::node::Lease) -> Told {
    Told::Lease(it.name().to_string(), it.spec.renewed)
}

fn gone_node(name: &str) -> Option<Gone> {
    Some(Gone::Node(name.into()))
}

fn gone(name: &str, of: fn(Name) -> Gone) -> Option<Gone> {
    name.parse().ok().map(of)
}

struct Manager {
    store: Arc<dyn Store>,
    memory: Memory,
    begun: Instant,
    /// Some volume's plan waits to be carried out.
    has_failed: bool,
}

impl Manager {
    fn next_tick(&self) -> Duration {
        let due = self.memory.next_tick().unwrap_or(Duration::from_secs(3600));
        let tick = due.saturating_sub(self.begun.elapsed()).max(Duration::from_millis(1));
        if self.has_failed { tick.min(TRY_AGAIN) } else { tick }
    }

    /// One that can't be read is as it was: nothing is concluded from it.
    fn hear<S: Spec>(
        &mut self,
        cache: &Cache<S>,
        name: &str,
        told: impl Fn(Object<S>) -> Told,
        gone: impl Fn(&str) -> Option<Gone>,
    ) {
        match cache.get(name) {
            Ok(Some(object)) => {
                let now = self.begun.elapsed();
                self.memory.applied(told(Object::clone(&object)), now);
            }
            Ok(None) => gone(name).into_iter().for_each(|it| self.memory.gone(it)),
            Err(error) => tracing::error!(%error, "an object is left out"),
        }
    }

    /// One that fails keeps no other from its turn.
    async fn plan_all(&mut self) {
        self.memory.tick(self.begun.elapsed());
        let mut failed = Vec::new();
        while let Some(known) = self.memory.next_volume() {
            let name = known.volume.name().clone();
            if let Err(error) = self.pass(&known).await {
                match error {
                    // It is heard of, and planned again.
                    StoreError::Conflict { .. }
                    | StoreError::Exists { .. }
                    | StoreError::NotFound { .. } => {}
                    error => {
                        tracing::error!(volume = %name, %error, "will be tried again");
                        failed.push(name);
                    }
                }
            }
        }
        self.has_failed = !failed.is_empty();
        failed.iter().for_each(|name| self.memory.look_again(name));
    }

    async fn pass(&mut self, known: &Known) -> Result<(), StoreError> {
        let plan = plan(known);
        let waits = plan.conditions.iter().any(|condition| condition.reason == Reason::NoNode);
        self.memory.waits_for_nodes(known.volume.name(), waits);
        for write in &plan.writes {
            tracing::info!(volume = %known.volume.name(), "{write}");
            carry_out(&*self.store, known, write).await?;
        }
        if plan.writes.is_empty() {
            show(&*self.store, known, &plan).await?;
        }
        Ok(())
    }
}

async fn put<S: Spec>(store: &dyn Store, object: &Object<S>) -> Result<(), StoreError> {
    store.replace_raw(S::KIND, Raw::of(object)).await.map(drop)
}

async fn put_status<S: Spec>(store: &dyn Store, object: &Object<S>) -> Result<(), StoreError> {
    store.replace_status_raw(S::KIND, Raw::of(object)).await.map(drop)
}

async fn delete<S: Spec>(store: &dyn Store, name: &str) -> Result<(), StoreError> {
    store.delete_raw(S::KIND, name, &Precondition::none()).await.map(drop)
}

async fn carry_out(store: &dyn Store, known: &Known, write: &Write) -> Result<(), StoreError> {
    let name = known.volume.name();
    match write {
        Write::Mark => {
            let mut volume = known.volume.clone();
            volume.metadata.finalizers.insert(DATA_FINALIZER.into());
            volume.metadata.annotations.insert(UNFORMATTED.into(), String::new());
            put(store, &volume).await
        }
        // What was written just before counts: the mark goes when there is a record.
        Write::Unmark => {
            let unmark = |volume: &mut Volume| {
                if volume.status.record.is_some() {
                    volume.metadata.annotations.remove(UNFORMATTED);
                }
                Ok::<_, StoreError>(())
            };
            store.modify(name, unmark).await
        }
        Write::Status(status) => {
            let volume = Volume { status: status.clone(), ..known.volume.clone() };
            put_status(store, &volume).await
        }
        Write::CreateReplica(replica) => store.create(replica).await.map(drop),
        Write::SetReplica(replica, spec) => {
            let found = known.replicas.iter().find(|it| it.name() == replica);
            let Some(found) = found else { return Ok(()) };
            put(store, &Replica { spec: spec.clone(), ..found.clone() }).await
        }
        Write::DeleteReplica(replica) => delete::<ReplicaSpec>(store, replica).await,
        Write::CreateEngine(engine) => store.create(engine).await.map(drop),
        Write::SetEngine(spec) => {
            let Some(engine) = known.engine.clone() else { return Ok(()) };
            put(store, &Engine { spec: spec.clone(), ..engine }).await
        }
        Write::DeleteEngine => delete::<EngineSpec>(store, name).await,
        Write::DeleteAttachment => delete::<AttachmentSpec>(store, name).await,
        Write::Release => {
            let mut volume = known.volume.clone();
            volume.metadata.finalizers.remove(DATA_FINALIZER);
            put(store, &volume).await
        }
    }
}

/// How it is shown, if that has changed.
async fn show(store: &dyn Store, known: &Known, plan: &Plan) -> Result<(), StoreError> {
    let before = &known.volume.status;
    let conditions = shown::conditions(known, &plan.conditions);
    let generation = known.volume.metadata.generation;
    let status = VolumeStatus {
        state: Some(shown::state(known)),
        robustness: Some(shown::robustness(known)),
        conditions: dated(conditions, &before.conditions, Timestamp::now(), generation),
        ..before.clone()
    };
    if status == *before {
        return Ok(());
    }
    put_status(store, &Volume { status, ..known.volume.clone() }).await
}
