//! What the manager hears: all objects of six kinds, and then each that changes.

use std::sync::Arc;

use ankole_api::Name;
use ankole_api::object::{Object, Spec};
use ankole_api::objects::node::LeaseSpec;
use ankole_api::objects::{AttachmentSpec, EngineSpec, NodeSpec, ReplicaSpec, VolumeSpec};
use ankole_plan::manager::{Gone, Manager as Memory, Told};
use ankole_store::{Cache, Changes, Selector, Store};
use tokio::sync::watch;

use super::Manager;

pub(super) struct Hearing {
    nodes: Heard<NodeSpec>,
    leases: Heard<LeaseSpec>,
    replicas: Heard<ReplicaSpec>,
    engines: Heard<EngineSpec>,
    attachments: Heard<AttachmentSpec>,
    volumes: Heard<VolumeSpec>,
}

struct Heard<S: Spec> {
    cache: Cache<S>,
    names: Changes,
    changed: watch::Receiver<u64>,
}

/// And what keeps it: to be run for as long as it is used.
pub(super) fn start(store: &Arc<dyn Store>) -> (Hearing, impl Future<Output = ()> + Send + use<>) {
    let (nodes, keep_nodes) = Heard::new(store);
    let (leases, keep_leases) = Heard::new(store);
    let (replicas, keep_replicas) = Heard::new(store);
    let (engines, keep_engines) = Heard::new(store);
    let (attachments, keep_attachments) = Heard::new(store);
    let (volumes, keep_volumes) = Heard::new(store);
    let keep = async {
        tokio::join!(
            keep_nodes,
            keep_leases,
            keep_replicas,
            keep_engines,
            keep_attachments,
            keep_volumes
        );
    };
    (Hearing { nodes, leases, replicas, engines, attachments, volumes }, keep)
}

impl Hearing {
    /// A volume without its replicas would be one that lacks them.
    pub(super) async fn filled(&self) {
        tokio::join!(
            self.nodes.cache.filled(),
            self.leases.cache.filled(),
            self.replicas.cache.filled(),
            self.engines.cache.filled(),
            self.attachments.cache.filled(),
            self.volumes.cache.filled(),
        );
    }

    pub(super) async fn something(&mut self) {
        tokio::select! {
            () = self.nodes.something() => {}
            () = self.leases.something() => {}
            () = self.replicas.something() => {}
            () = self.engines.something() => {}
            () = self.attachments.something() => {}
            () = self.volumes.something() => {}
        }
    }
}

impl<S: Spec> Heard<S> {
    fn new(store: &Arc<dyn Store>) -> (Self, impl Future<Output = ()> + Send + use<S>) {
        let (cache, keep) = Cache::new(Arc::clone(store), Selector::all());
        (Self { names: cache.changes(), changed: cache.changed(), cache }, keep)
    }

    async fn something(&mut self) {
        if self.changed.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Each that changed. One that can't be read is as it was: nothing is concluded from it.
    fn each(&mut self, mut hear: impl FnMut(&str, Option<&Object<S>>)) {
        self.changed.borrow_and_update();
        while let Some(name) = self.names.try_next() {
            match self.cache.get(&name) {
                Ok(object) => hear(&name, object.as_deref()),
                Err(error) => tracing::error!(%error, "an object is left out"),
            }
        }
    }
}

impl Manager {
    /// All that is known by now, before anything is planned.
    pub(super) fn hear(&self, hearing: &mut Hearing) {
        let now = self.begun.elapsed();
        let mut memory = self.memory();
        let mut concerned = Vec::new();
        hearing.nodes.each(|name, node| match node {
            Some(node) => memory.applied(Told::Node(node.clone()), now),
            None => drop(memory.gone(Gone::Node(name.into()))),
        });
        hearing.leases.each(|name, lease| {
            if let Some(lease) = lease {
                memory.applied(Told::Lease(name.into(), lease.spec.renewed), now);
            }
        });
        hearing.replicas.each(|name, replica| match replica {
            Some(replica) => {
                concerned.push(replica.spec.volume.clone());
                memory.applied(Told::Replica(replica.clone()), now);
            }
            None => concerned.extend(gone(&mut memory, name, Gone::Replica)),
        });
        hearing.engines.each(|name, engine| match engine {
            Some(engine) => {
                concerned.push(engine.name().clone());
                memory.applied(Told::Engine(engine.clone()), now);
            }
            None => concerned.extend(gone(&mut memory, name, Gone::Engine)),
        });
        hearing.attachments.each(|name, attachment| match attachment {
            Some(attachment) => {
                concerned.push(attachment.name().clone());
                memory.applied(Told::Attachment(attachment.clone()), now);
            }
            None => concerned.extend(gone(&mut memory, name, Gone::Attachment)),
        });
        hearing.volumes.each(|name, volume| match volume {
            Some(volume) => {
                concerned.push(volume.name().clone());
                memory.applied(Told::Volume(volume.clone()), now);
            }
            None => concerned.extend(gone(&mut memory, name, Gone::Volume)),
        });
        memory.tick(now);
        drop(memory);
        self.tell(&concerned);
    }

    fn tell(&self, volumes: &[Name]) {
        let watched = self.watched();
        for volume in volumes {
            if let Some(told) = watched.get(volume).and_then(std::sync::Weak::upgrade) {
                told.notify_waiters();
            }
        }
    }
}

/// The volume that it was of.
fn gone(memory: &mut Memory, name: &str, of: fn(Name) -> Gone) -> Option<Name> {
    memory.gone(of(name.parse().ok()?))
}
