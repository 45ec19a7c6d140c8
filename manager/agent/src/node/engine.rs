//! The engine of a volume on this node: a pass looks, plans, does and says.

mod ear;
mod hands;
mod look;
mod memory;
mod told;

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ankole_api::Name;
use ankole_api::error::chain;
use ankole_api::object::Spec;
use ankole_api::objects::condition::dated;
use ankole_api::objects::{Engine, EngineSpec, Replica, ReplicaSpec, Volume, VolumeSpec};
use ankole_plan::node::engine::{self as planner, EngineAction, EnginePlan};
use ankole_plan::node::facts::EngineFacts;
use ankole_plan::volume::replicas::name_of;
use ankole_replica::admin::{Answer, ReplicaAddress, Request};
use ankole_replica::inspect::newest_generation;
use ankole_replica::types::{Generation, ReplicaId};
use ankole_store::{Cache, Raw, StoreError};
use jiff::Timestamp;
use tokio::sync::mpsc;

use self::ear::{Ear, Heard};
pub(super) use self::hands::stop_device;
use self::look::Look;
pub(super) use self::look::own_device;
use self::memory::Memory;
use super::failing::Failing;
use super::part::{Part, PassError};
use super::{Node, Told};
use crate::admin;
use crate::supervisor::ProcessName;

const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// Labels of processes.
const INSTANCE_LABEL: &str = "instance";
const TURN_LABEL: &str = "turn";

pub(super) struct EnginePart {
    node: Arc<Node>,
    engines: Cache<EngineSpec>,
    name: Name,
    memory: Memory,
    /// While there is a process.
    ear: Option<Ear>,
    failing: Failing<EngineAction>,
}

impl EnginePart {
    pub(super) fn new(node: Arc<Node>, engines: Cache<EngineSpec>, name: Name) -> Self {
        let (memory, failing) = (Memory::default(), Failing::default());
        Self { node, engines, name, memory, ear: None, failing }
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
                self.memory.past.take_back_asking();
                self.memory.refused = Some((Instant::now(), why));
            }
        }
    }

    async fn news(&mut self) {
        match &mut self.ear {
            Some(ear) => ear.news().await,
            None => pending().await,
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
        self.listen().await;
        let newest = self.newest(volume.as_ref(), engine.as_ref()).await?;
        let look = Look { node: Arc::clone(&self.node), name: self.name.clone(), newest };
        let mut memory = std::mem::take(&mut self.memory);
        let looked = self.node.places.of_node(move || {
            let facts = look.facts(volume, engine, &mut memory);
            (facts, memory)
        });
        let (facts, memory) = looked.await?;
        self.memory = memory;
        let facts = facts?;
        let said = facts.process.as_ref().and_then(|process| process.status.clone());
        self.node.live.note(&self.name, said.map(Arc::from));
        if heard.is_none() && facts.is_nothing_left() {
            return Ok(None);
        }
        let mut plan = planner::plan(&facts);
        let look_again = match self.apply(&facts, &mut plan, back).await {
            // Somebody came in between: nothing was done, and it is planned anew.
            Err(PassError::Store(StoreError::Conflict { .. })) => return Ok(Some(Duration::ZERO)),
            other => other?,
        };
        if let Some(heard) = &heard {
            self.report(heard, &facts, &plan).await?;
        }
        Ok(Some(look_again))
    }
}

impl EnginePart {
    /// To the process that is there now; the first word is waited for.
    async fn listen(&mut self) {
        let process = self.node.supervisor.find(&ProcessName::engine(&self.name));
        let pid = process.map(|process| process.pid);
        if self.ear.as_ref().map(|ear| ear.pid) != pid {
            self.ear = pid.map(|pid| Ear::open(pid, self.node.layout.admin(&self.name)));
            if let Some(ear) = &mut self.ear {
                ear.first_word().await;
            }
        }
        let Some(ear) = &mut self.ear else { return };
        self.memory.note_heard(ear.heard());
        if self.node.is_stopping() {
            // Who has come just now would lose its disk, if what was told last were believed.
            let socket = self.node.layout.admin(&self.name);
            let asked = admin::ask_async(&socket, &Request::Status, STATUS_TIMEOUT).await;
            if let Ok(Answer::Status(said)) = asked {
                self.memory.note_heard(Heard { said: Some(said.into()), ..Heard::default() });
            }
        }
    }

    /// When to look again. What fails is told with the plan's conditions.
    async fn apply(
        &mut self,
        facts: &EngineFacts,
        plan: &mut EnginePlan,
        back: &mpsc::WeakUnboundedSender<Told>,
    ) -> Result<Duration, PassError> {
        let generation = facts.engine.as_ref().map_or(0, |it| it.metadata.generation);
        if let Some((left, told)) = self.failing.hold_off(&plan.actions, generation) {
            plan.conditions.push(told);
            return Ok(plan.look_again.min(left));
        }
        for action in &plan.actions {
            tracing::info!(volume = %self.name, "{action}");
            match self.perform(facts, action, back).await {
                Ok(()) => self.failing.done(action),
                Err(error @ (PassError::Action { .. } | PassError::NoRoom(_))) => {
                    tracing::warn!(volume = %self.name, error = chain(&error), "will be tried again");
                    let told = told::told(facts, action, &error);
                    let left = self.failing.failed(action, generation, told.clone());
                    plan.conditions.push(told);
                    return Ok(plan.look_again.min(left));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(if plan.actions.is_empty() { plan.look_again } else { Duration::ZERO })
    }

    /// What its replicas have seen, if an engine may have to be granted.
    async fn newest(
        &self,
        volume: Option<&Volume>,
        engine: Option<&Engine>,
    ) -> Result<Option<(Generation, ReplicaId)>, PassError> {
        let Some((volume, engine)) = volume.zip(engine) else { return Ok(None) };
        if self.node.supervisor.find(&ProcessName::engine(&self.name)).is_some() {
            return Ok(None);
        }
        let mut newest = None;
        for ReplicaAddress { replica, .. } in &engine.spec.replicas {
            let found = self.node.store.find::<ReplicaSpec>(&name_of(volume, replica)).await?;
            if let Some(found) = found {
                newest = newest.max(self.seen_by(&found).await?.zip(Some(replica.clone())));
            }
        }
        Ok(newest)
    }

    /// On this node by its directory.
    async fn seen_by(&self, replica: &Replica) -> Result<Option<Generation>, PassError> {
        if replica.spec.node != self.node.name {
            return Ok(replica.status.newest_generation);
        }
        let spec = replica.spec.clone();
        let disk = spec.disk.clone();
        let look = move || newest_generation(&spec.directory(), &spec.volume, &spec.id);
        self.node.places.of_disk(&disk, look).await
    }

    async fn report(
        &self,
        heard: &Engine,
        facts: &EngineFacts,
        plan: &EnginePlan,
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
