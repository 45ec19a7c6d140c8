//! A replica on this node: what is true of it, and doing what was planned.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ankole_api::Name;
use ankole_api::error::chain;
use ankole_api::object::Spec;
use ankole_api::objects::condition::dated;
use ankole_api::objects::engine::EnginePhase;
use ankole_api::objects::replica::DIRECTORY_FINALIZER;
use ankole_api::objects::{Condition, EngineSpec, Replica, ReplicaSpec, ReplicaStatus};
use ankole_api::volume::{Reason, Transport};
use ankole_plan::node::facts::{History, ReplicaFacts, ReplicaProcess};
use ankole_plan::node::replica::{self as planner, ReplicaAction, ReplicaPlan};
use ankole_replica::inspect::{damage, inspect, newest_generation};
use ankole_store::{Cache, Raw, StoreError};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::failing::Failing;
use super::part::{Part, PassError};
use super::past::Past;
use super::{Node, Told};
use crate::set_aside;
use crate::supervisor::{ProcessName, ProcessSpec, Signal, SupervisorError};

/// A process that waits for a disk dies when that answers.
const AFTER_KILL: Duration = Duration::from_secs(1);
/// Before it is looked again whether an engine uses it.
const WHILE_STOPPING: Duration = Duration::from_millis(50);

const ADDRESS_LABEL: &str = "address";
/// A busy disk answers within this; one that doesn't is told.
const DISK_PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct ReplicaPart {
    node: Arc<Node>,
    replicas: Cache<ReplicaSpec>,
    name: Name,
    memory: Memory,
    failing: Failing<ReplicaAction>,
}

/// What is remembered between passes; all of it may be lost.
#[derive(Clone, Debug, Default)]
struct Memory {
    past: Past,
    /// Where it will listen, as it was chosen for it.
    address: Option<String>,
}

impl ReplicaPart {
    pub(super) fn new(node: Arc<Node>, replicas: Cache<ReplicaSpec>, name: Name) -> Self {
        let (memory, failing) = (Memory::default(), Failing::default());
        Self { node, replicas, name, memory, failing }
    }
}

impl Part for ReplicaPart {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn look_at_all(&self) {
        self.node.look.notify_one();
    }

    fn hear(&mut self, told: Told) {
        if let Told::Ended(ended) = told {
            self.memory.past.ended(ended);
        }
    }

    async fn pass(
        &mut self,
        _back: &mpsc::WeakUnboundedSender<Told>,
    ) -> Result<Option<Duration>, PassError> {
        // Only what is there is acted upon: one that is gone had its directory removed before.
        let Some(replica) = self.replicas.get(&self.name)? else { return Ok(None) };
        let is_unused = self.node.is_stopping() && self.is_unused(&replica).await?;
        let (facts, mut plan) = self.look(&replica, is_unused).await?;
        let generation = replica.metadata.generation;
        if let Some((left, told)) = self.failing.hold_off(&plan.actions, generation) {
            plan.status.conditions.push(told);
            let look_again = plan.look_again.min(left);
            self.report(&replica, plan).await?;
            return Ok(Some(look_again));
        }
        let mut is_done = false;
        for action in plan.actions.clone() {
            tracing::info!(replica = %self.name, "{action}");
            match self.perform(&facts, action).await {
                Ok(()) => self.failing.done(&action),
                Err(error @ PassError::Action { .. }) => {
                    tracing::warn!(replica = %self.name, error = chain(&error), "will be tried again");
                    let message = format!("replica {}: {}", replica.spec.id, chain(&error));
                    let told = Condition::new(Reason::ActionFailed, message);
                    let left = self.failing.failed(&action, generation, told.clone());
                    plan.status.conditions.push(told);
                    self.report(&replica, plan).await?;
                    return Ok(Some(left));
                }
                Err(error) => return Err(error),
            }
            is_done = true;
        }
        if plan.actions.contains(&ReplicaAction::Release) {
            return Ok(Some(Duration::from_secs(60)));
        }
        if is_done {
            // What was done is seen at once; one that was killed may take its time, and its end is told.
            let was_killed = plan.actions.contains(&ReplicaAction::Kill);
            let (_, plan) = self.look(&replica, is_unused).await?;
            self.report(&replica, plan).await?;
            return Ok(Some(if was_killed { AFTER_KILL } else { Duration::ZERO }));
        }
        let look_again = plan.look_again;
        self.report(&replica, plan).await?;
        let waits = self.node.is_stopping() && !is_unused;
        Ok(Some(if waits { look_again.min(WHILE_STOPPING) } else { look_again }))
    }
}

impl ReplicaPart {
    /// No engine of its volume runs, by the word of that engine's agent and as this node sees.
    async fn is_unused(&self, replica: &Replica) -> Result<bool, PassError> {
        let volume = &replica.spec.volume;
        if self.node.supervisor.find(&ProcessName::engine(volume)).is_some() {
            return Ok(false);
        }
        let engine = self.node.store.find::<EngineSpec>(volume).await?;
        Ok(engine.is_none_or(|it| it.status.phase == Some(EnginePhase::Ended)))
    }

    async fn look(
        &mut self,
        replica: &Replica,
        is_stopping: bool,
    ) -> Result<(ReplicaFacts, ReplicaPlan), PassError> {
        let (node, replica) = (Arc::clone(&self.node), replica.clone());
        let mut memory = std::mem::take(&mut self.memory);
        let disk = replica.spec.disk.clone();
        let heard = replica.clone();
        let looking = Arc::clone(&self.node);
        let mut looking = pin!(looking.places.of_disk(&disk, move || {
            let facts = facts(&node, replica, is_stopping, &mut memory);
            (facts, memory)
        }));
        let (facts, memory) = match timeout(DISK_PATIENCE, &mut looking).await {
            Ok(looked) => looked?,
            Err(_) => {
                self.tell_hanging(&heard).await;
                looking.await?
            }
        };
        self.memory = memory;
        let facts = facts?;
        let plan = planner::plan(&facts);
        Ok((facts, plan))
    }

    async fn perform(
        &mut self,
        facts: &ReplicaFacts,
        action: ReplicaAction,
    ) -> Result<(), PassError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| PassError::Action {
            action: action.to_string(),
            source,
        };
        let spec = &facts.replica.spec;
        let name = ProcessName::replica(&spec.volume, &spec.id);
        match action {
            ReplicaAction::Start => {
                let started = self.start(facts, name).await?;
                return started.map_err(|error| failed(error.into()));
            }
            ReplicaAction::End | ReplicaAction::Kill => {
                self.memory.past.ask_to_end();
                let how = match action {
                    ReplicaAction::Kill => Signal::Kill,
                    _ => Signal::Terminate,
                };
                self.node.supervisor.signal(&name, how);
                return Ok(());
            }
            ReplicaAction::Release => return Ok(self.release(&facts.replica).await?),
            ReplicaAction::Format | ReplicaAction::SetAside | ReplicaAction::RemoveDirectory => {}
        }
        let (node, spec, directory) = (Arc::clone(&self.node), spec.clone(), spec.directory());
        let disk = spec.disk.clone();
        let done = self.node.places.of_disk(&disk, move || match action {
            ReplicaAction::Format => format(&node, &spec, &directory),
            ReplicaAction::SetAside => Ok(set_aside::set_aside(&directory)?),
            _ => Ok(remove_directory(&directory)?),
        });
        done.await?.map_err(failed)
    }

    async fn start(
        &mut self,
        facts: &ReplicaFacts,
        name: ProcessName,
    ) -> Result<Result<(), SupervisorError>, PassError> {
        let spec = &facts.replica.spec;
        let layout = &self.node.layout;
        let options = [
            ("--dir", spec.directory().display().to_string()),
            ("--volume", spec.volume.to_string()),
            ("--replica", spec.id.to_string()),
            ("--listen", facts.address.clone()),
        ];
        let options = options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
        let args = ["replica", "serve"].map(str::to_owned).into_iter().chain(options).collect();
        let log = layout.log(&name);
        let labels = BTreeMap::from([(ADDRESS_LABEL.into(), facts.address.clone())]);
        let program = self.node.program.clone();
        let spec = ProcessSpec { name, program, args, log: log.clone(), labels };
        let node = Arc::clone(&self.node);
        let launched = self.node.places.of_node(move || {
            node.layout.remove_sockets(&spec.name);
            let begins = fs::metadata(&spec.log).map_or(0, |log| log.len());
            node.supervisor.start(spec).map(|_| begins)
        });
        let begins = match launched.await? {
            Ok(begins) => begins,
            Err(error) => return Ok(Err(error)),
        };
        self.memory.past.started(log, begins);
        Ok(Ok(()))
    }

    async fn release(&self, replica: &Replica) -> Result<(), StoreError> {
        let mut object = replica.clone();
        object.metadata.finalizers.remove(DIRECTORY_FINALIZER);
        match self.node.store.replace_raw(ReplicaSpec::KIND, Raw::of(&object)).await {
            Err(StoreError::NotFound { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// It stays so until the disk answers, which may be never.
    async fn tell_hanging(&self, heard: &Replica) {
        let (id, directory) = (&heard.spec.id, heard.spec.directory());
        let (directory, seconds) = (directory.display(), DISK_PATIENCE.as_secs());
        let message = format!(
            "the disk of replica {id} hasn't answered for {seconds} s, and is waited for: {directory}"
        );
        let hangs = Condition::new(Reason::ReplicaUnreadable, message)
            .next("look at its disk and its mount (the kernel's log, mount)");
        let status = ReplicaStatus { conditions: vec![hangs], ..heard.status.clone() };
        if let Err(error) = self.report_status(heard, status).await {
            tracing::warn!(replica = %self.name, error = chain(&error), "its disk hangs");
        }
    }

    async fn report(&self, heard: &Replica, plan: ReplicaPlan) -> Result<(), StoreError> {
        self.report_status(heard, plan.status).await
    }

    async fn report_status(
        &self,
        heard: &Replica,
        mut status: ReplicaStatus,
    ) -> Result<(), StoreError> {
        let (before, generation) = (&heard.status.conditions, heard.metadata.generation);
        status.conditions = dated(status.conditions, before, Timestamp::now(), generation);
        if status == heard.status {
            return Ok(());
        }
        let object = Replica { status, ..heard.clone() };
        match self.node.store.replace_status_raw(ReplicaSpec::KIND, Raw::of(&object)).await {
            // It has changed meanwhile, and is looked at again for that.
            Err(StoreError::Conflict { .. } | StoreError::NotFound { .. }) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Looks at the machine, and waits for it.
fn facts(
    node: &Node,
    replica: Replica,
    is_stopping: bool,
    memory: &mut Memory,
) -> Result<ReplicaFacts, PassError> {
    let spec = &replica.spec;
    let name = ProcessName::replica(&spec.volume, &spec.id);
    let directory = spec.directory();
    let process = node.supervisor.find(&name);
    let is_looked_at = process.is_none() || replica.status.incarnation.is_none();
    let evidence = is_looked_at.then(|| Box::new(inspect(&directory)));
    let history = memory.past.history();
    // One that ended by itself may never be able to start.
    let is_doubtful = process.is_none() && history.last_end.is_some();
    let newest = newest_generation(&directory, &spec.volume, &spec.id);
    let address = match &replica.status.address {
        Some(address) => address.clone(),
        None => address(node, spec, &directory, memory)?,
    };
    let doubt = node
        .supervisor
        .doubt(&name)
        .map(|it| ankole_plan::node::facts::Doubt { message: it.message, next: it.next });
    Ok(ReplicaFacts {
        node: node.name.clone(),
        evidence,
        damaged: is_doubtful.then(|| damage(&directory)).flatten(),
        newest,
        process: process.map(|process| ReplicaProcess {
            pid: process.pid,
            asked_to_end: memory.past.asked_to_end(),
        }),
        history: History { doubt, ..history },
        address,
        set_aside: set_aside::earlier(&directory),
        is_stopping,
        replica,
    })
}

/// Chosen once, and then the object says it.
fn address(
    node: &Node,
    spec: &ReplicaSpec,
    directory: &Path,
    memory: &mut Memory,
) -> Result<String, PassError> {
    if let Some(address) = &memory.address {
        return Ok(address.clone());
    }
    let failed =
        |source: io::Error| PassError::Look { what: "find a free port", source: source.into() };
    let address = match spec.transport {
        _ if spec.in_engine => format!("dir:{}", directory.display()),
        Transport::Unix => {
            format!("unix:{}", node.layout.replica_socket(&spec.volume, &spec.id).display())
        }
        Transport::Tcp => {
            let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(failed)?;
            format!("tcp:{}", listener.local_addr().map_err(failed)?)
        }
    };
    memory.address = Some(address.clone());
    Ok(address)
}

/// Looks into it once more: what may hold data isn't formatted, whatever was planned.
fn format(
    node: &Node,
    spec: &ReplicaSpec,
    directory: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if !inspect(directory).holds_nothing() {
        let directory = directory.display();
        return Err(format!("{directory} may hold data, and is left as it is").into());
    }
    remove_directory(directory)?;
    (node.format)(directory, &spec.volume, &spec.id, spec.size_bytes)?;
    Ok(())
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
