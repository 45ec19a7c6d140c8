//! The engine of a volume on this node: a pass looks, plans, does and says.

mod hands;
mod look;
mod memory;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ankole_api::Name;
use ankole_api::object::Spec;
use ankole_api::objects::condition::dated;
use ankole_api::objects::{Engine, EngineSpec, VolumeSpec};
use ankole_plan::node::engine as planner;
use ankole_plan::node::facts::EngineFacts;
use ankole_store::{Cache, Raw, StoreError};
use jiff::Timestamp;
use tokio::sync::mpsc;

use self::look::Look;
use self::memory::Memory;
use super::part::{Part, PassError};
use super::{Node, Told};

/// Labels of processes.
const INSTANCE_LABEL: &str = "instance";
const TURN_LABEL: &str = "turn";

pub(super) struct EnginePart {
    node: Arc<Node>,
    engines: Cache<EngineSpec>,
    name: Name,
    memory: Memory,
}

impl EnginePart {
    pub(super) fn new(node: Arc<Node>, engines: Cache<EngineSpec>, name: Name) -> Self {
        Self { node, engines, name, memory: Memory::default() }
    }
}

impl Part for EnginePart {
    fn name(&self) -> String {
        format!("{}.engine", self.name)
    }

    fn look_at_all(&self) {
        self.node.look.notify_one();
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Look => {}
            Told::Ended(ended) => self.memory.ended(ended),
            Told::Refused(why) => {
                self.memory.asked_to_end = None;
                self.memory.refused = Some((Instant::now(), why));
            }
        }
    }

    async fn pass(
        &mut self,
        back: &mpsc::WeakUnboundedSender<Told>,
    ) -> Result<Option<Duration>, PassError> {
        let store = &*self.node.store;
        let heard = self.engines.get(&self.name)?;
        let engine = match &heard {
            Some(engine) => Some(Engine::clone(engine)),
            // Whose it is now is asked of the store itself.
            None => store.find::<EngineSpec>(&self.name).await?,
        };
        let volume = store.find::<VolumeSpec>(&self.name).await?;
        let engine = engine.filter(|it| {
            volume.as_ref().is_none_or(|volume| volume.metadata.uid == it.spec.volume_uid)
        });
        let look = Look { node: Arc::clone(&self.node), name: self.name.clone() };
        let mut memory = std::mem::take(&mut self.memory);
        let looked = tokio::task::spawn_blocking(move || {
            let facts = look.facts(volume, engine, &mut memory);
            (facts, memory)
        });
        let (facts, memory) = looked.await.map_err(|_| PassError::Panicked)?;
        self.memory = memory;
        let facts = facts?;
        if heard.is_none() && facts.is_nothing_left() {
            return Ok(None);
        }
        let plan = planner::plan(&facts);
        let mut is_done = false;
        let mut failed = None;
        for action in &plan.actions {
            tracing::info!(volume = %self.name, "{action}");
            if let Err(error) = self.perform(&facts, action, back).await {
                failed = Some(error);
                break;
            }
            is_done = true;
        }
        if let Some(heard) = &heard {
            self.report(heard, &facts, &plan).await?;
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(Some(if is_done { Duration::ZERO } else { plan.look_again })),
        }
    }
}

impl EnginePart {
    async fn report(
        &self,
        heard: &Engine,
        facts: &EngineFacts,
        plan: &planner::EnginePlan,
    ) -> Result<(), StoreError> {
        let mut status = planner::status(facts, plan);
        status.waiting_since = self.memory.waiting_since.filter(|_| status.instance.is_some());
        status.unknown_since = self.memory.unknown_since.filter(|_| planner::is_unknown(facts));
        status.conditions = dated(
            status.conditions,
            &heard.status.conditions,
            Timestamp::now(),
            heard.metadata.generation,
        );
        if status == heard.status {
            return Ok(());
        }
        let object = Engine { status, ..heard.clone() };
        match self.node.store.replace_status_raw(EngineSpec::KIND, Raw::of(&object)).await {
            // It has changed meanwhile, and is looked at again for that.
            Err(StoreError::Conflict { .. } | StoreError::NotFound { .. }) => Ok(()),
            other => other.map(drop),
        }
    }
}
