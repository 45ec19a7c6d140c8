//! What the API does, free of HTTP: check a wish, write it into objects, show what is.
//!
//! ```text
//! wishes ──▶ Volume.spec, VolumeAttachment.spec
//! views  ◀── objects (plan::volume::shown), and what agents know that isn't stored
//! ```
//! All calls may block: they wait for the disk, and some for a manager, an agent or an engine.

mod attaching;
mod jobs;
mod node;
mod objects;
mod program;
mod recovery;
mod salvage;
mod snapshots;
mod targets;
mod view;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ankole_api::object::Spec;
use ankole_api::objects::VolumeSpec;
use ankole_plan::volume::Known;
use ankole_store::{Store, StoreError};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

pub use attaching::Engaged;
pub use objects::Objects;

use crate::agent::node::Node;
use crate::agent::usage::Usage;
use crate::api::{ApiError, Name};
use crate::manager::Manager;

#[derive(Clone)]
pub struct Service {
    objects: Objects,
    manager: Arc<Manager>,
    agents: Agents,
    usage: Arc<Usage>,
}

/// The nodes whose agents run in this process, the first being the one that users mean by "this".
#[derive(Clone)]
pub struct Agents(Arc<Vec<Arc<Node>>>);

impl Agents {
    /// At least one.
    pub fn new(agents: Vec<Arc<Node>>) -> Self {
        assert!(!agents.is_empty(), "there is a node");
        Self(Arc::new(agents))
    }

    pub fn first(&self) -> &Arc<Node> {
        &self.0[0]
    }

    pub fn all(&self) -> &[Arc<Node>] {
        &self.0
    }

    pub fn of(&self, node: &str) -> Option<&Arc<Node>> {
        self.0.iter().find(|agent| agent.name == node)
    }

    /// Those that lie on a disk of any of them.
    fn disks(&self) -> Vec<PathBuf> {
        self.0.iter().flat_map(|agent| agent.layout.disks().to_vec()).collect()
    }
}

impl Service {
    /// Also takes back the tickets that an earlier process has left and nobody works for.
    pub fn open(
        store: Arc<dyn Store>,
        runtime: Handle,
        manager: Arc<Manager>,
        agents: Agents,
    ) -> Result<Self, ApiError> {
        let usage =
            Usage::start().map_err(|error| ApiError::failed(format!("start a thread: {error}")))?;
        let objects = Objects { store, runtime };
        let service = Self { objects, manager, agents, usage: Arc::new(usage) };
        service.drop_job_tickets()?;
        Ok(service)
    }

    /// All of a volume, as the store has it now.
    fn known(&self, volume: &str) -> Result<Known, StoreError> {
        let known = self.objects.runtime.block_on(self.manager.known(volume))?;
        let not_found = || StoreError::NotFound { kind: VolumeSpec::KIND, name: volume.into() };
        known.ok_or_else(not_found)
    }

    /// Until `enough` finds what it looks for; None when the time is over. `enough` sees None when
    /// there is no such volume.
    fn wait<T>(
        &self,
        volume: &Name,
        patience: Duration,
        mut enough: impl FnMut(Option<&Known>) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        self.objects.runtime.block_on(async {
            let deadline = Instant::now() + patience;
            let told = self.manager.watch(volume);
            loop {
                let mut changed = std::pin::pin!(told.notified());
                changed.as_mut().enable();
                let known = self.manager.known(volume).await?;
                if let Some(found) = enough(known.as_ref()) {
                    return Ok(Some(found));
                }
                if timeout_at(deadline, changed).await.is_err() {
                    return Ok(None);
                }
            }
        })
    }

    /// Where the volume's engine is or was, if that node's agent is here.
    fn agent_of(&self, known: &Known) -> Option<&Arc<Node>> {
        self.agents.of(&known.engine.as_ref()?.spec.node)
    }

    pub fn is_stopping(&self) -> bool {
        self.agents.first().is_stopping()
    }

    fn refuse_while_stopping(&self) -> Result<(), ApiError> {
        if self.is_stopping() {
            return Err(ApiError::conflict("this standalone is ending"));
        }
        Ok(())
    }
}
