//! What was planned, written: each write names the version that the plan was made from.

use ankole_api::object::{Object, Spec};
use ankole_api::objects::condition::dated;
use ankole_api::objects::volume::{DATA_FINALIZER, UNFORMATTED};
use ankole_api::objects::{
    AttachmentSpec, Engine, EngineSpec, Replica, ReplicaSpec, Volume, VolumeStatus,
};
use ankole_plan::volume::{Known, Plan, Write, shown};
use ankole_store::{Precondition, Raw, Store, StoreError};
use jiff::Timestamp;

async fn put<S: Spec>(store: &dyn Store, object: &Object<S>) -> Result<(), StoreError> {
    store.replace_raw(S::KIND, Raw::of(object)).await.map(drop)
}

async fn put_status<S: Spec>(store: &dyn Store, object: &Object<S>) -> Result<(), StoreError> {
    store.replace_status_raw(S::KIND, Raw::of(object)).await.map(drop)
}

async fn delete<S: Spec>(store: &dyn Store, name: &str) -> Result<(), StoreError> {
    store.delete_raw(S::KIND, name, &Precondition::none()).await.map(drop)
}

pub(super) async fn carry_out(
    store: &dyn Store,
    known: &Known,
    write: &Write,
) -> Result<(), StoreError> {
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
pub(super) async fn show(store: &dyn Store, known: &Known, plan: &Plan) -> Result<(), StoreError> {
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
