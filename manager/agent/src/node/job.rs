//! A backup or a restore on this node: what is true of it, and doing what was planned.

mod files;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ankole_api::Name;
use ankole_api::error::chain;
use ankole_api::job::{JobOrder, SPEC_FILE, VolumeAccess};
use ankole_api::object::{Object, Spec};
use ankole_api::objects::condition::dated;
use ankole_api::objects::job::JOB_FINALIZER;
use ankole_api::objects::volume::RESTORED;
use ankole_api::objects::{
    AttachmentSpec, BackupSpec, Condition, Engine, EngineSpec, JobSpec, RestoreSpec, Volume,
    VolumeSpec,
};
use ankole_api::volume::Reason;
use ankole_plan::node::facts::{Doubt, History, JobFacts, JobProcess, LastWords};
use ankole_plan::node::job::{self as planner, JobAction, JobPlan};
use ankole_replica::admin::ReplicaAddress;
use ankole_store::{Cache, Precondition, Raw, StoreError};
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::failing::Failing;
use super::part::{Part, PassError};
use super::{Node, Told};
use crate::backoff::Backoff;
use crate::last_words::last_words;
use crate::supervisor::{self, Ended, ProcessName, ProcessSpec, Signal};

/// What its process is called.
pub(super) trait Job: JobSpec {
    fn part(name: &Name) -> supervisor::Part;
}

impl Job for BackupSpec {
    fn part(name: &Name) -> supervisor::Part {
        supervisor::Part::Backup(name.clone())
    }
}

impl Job for RestoreSpec {
    fn part(name: &Name) -> supervisor::Part {
        supervisor::Part::Restore(name.clone())
    }
}

/// Those that aren't over.
pub(super) fn waiting_for<S: Job>(jobs: &Cache<S>, volume: &str) -> Vec<Name> {
    let all = jobs.all();
    let readable = all.iter().flatten();
    let its = readable.filter(|job| **job.spec.volume() == *volume && !job.is_over());
    its.map(|job| job.name().clone()).collect()
}

pub(super) struct JobPart<S: Job> {
    node: Arc<Node>,
    jobs: Cache<S>,
    engines: Cache<EngineSpec>,
    name: Name,
    memory: Memory,
    failing: Failing<JobAction>,
}

/// What is remembered between passes; all of it may be lost.
#[derive(Clone, Debug, Default)]
struct Memory {
    started: Option<Instant>,
    asked_to_end: Option<Instant>,
    backoff: Backoff,
    last_end: Option<String>,
    /// Where the part of the log begins that the last process wrote.
    log_from_bytes: u64,
}

impl Memory {
    fn ended(&mut self, ended: Ended) {
        if self.asked_to_end.take().is_none() {
            let lived = self.started.map_or(Duration::MAX, |started| started.elapsed());
            self.backoff.failed(Instant::now(), lived);
        }
        self.last_end = ended.how;
    }
}

impl<S: Job> JobPart<S> {
    pub(super) fn new(
        node: Arc<Node>,
        jobs: Cache<S>,
        engines: Cache<EngineSpec>,
        name: Name,
    ) -> Self {
        let (memory, failing) = (Memory::default(), Failing::default());
        Self { node, jobs, engines, name, memory, failing }
    }
}

impl<S: Job> Part for JobPart<S> {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn look_at_all(&self) {
        self.node.look.notify_one();
    }

    fn hear(&mut self, told: Told) {
        if let Told::Ended(ended) = told {
            self.memory.ended(ended);
        }
    }

    async fn pass(
        &mut self,
        _back: &mpsc::WeakUnboundedSender<Told>,
    ) -> Result<Option<Duration>, PassError> {
        let heard = match self.jobs.get(&self.name)? {
            Some(job) => Some(Object::clone(&job)),
            // Whether it is gone is asked of the store itself.
            None => self.node.store.find::<S>(&self.name).await?,
        };
        let heard = heard.filter(|job| job.spec.node() == Some(&self.node.name));
        let facts = self.look(heard.clone()).await?;
        if heard.is_none() && facts.is_nothing_left() {
            return Ok(None);
        }
        let mut plan = planner::plan(&facts);
        let generation = heard.as_ref().map_or(0, |job| job.metadata.generation);
        let held_off = self.failing.hold_off(&plan.actions, generation);
        if let Some((left, told)) = &held_off {
            plan.status.conditions.push(told.clone());
            plan.actions.clear();
            plan.look_again = plan.look_again.min(*left);
        }
        // What came of it is stored before anything follows from that.
        if let Some(job) = &facts.job {
            self.report(job, &plan).await?;
        }
        for action in &plan.actions {
            tracing::info!(job = %self.name, "{action}");
            match self.perform(&facts, *action).await {
                Ok(()) => self.failing.done(action),
                Err(error @ PassError::Action { .. }) => {
                    tracing::warn!(job = %self.name, error = chain(&error), "will be tried again");
                    let message = format!("{}: {}", self.name, chain(&error));
                    let told = Condition::new(Reason::ActionFailed, message);
                    self.failing.failed(action, generation, told);
                    // It is told when it is looked at next, which is now.
                    return Ok(Some(Duration::ZERO));
                }
                Err(error) => return Err(error),
            }
        }
        let waits = plan.actions.is_empty() || plan.actions.contains(&JobAction::Kill);
        Ok(Some(if waits { plan.look_again } else { Duration::ZERO }))
    }
}

impl<S: Job> JobPart<S> {
    async fn look(&mut self, job: Option<Object<S>>) -> Result<JobFacts<S>, PassError> {
        let store = &*self.node.store;
        let volume = match &job {
            Some(job) => store.find::<VolumeSpec>(job.spec.volume()).await?,
            None => None,
        };
        let engine = match &job {
            Some(job) => self.engines.get(job.spec.volume())?.as_deref().cloned(),
            None => None,
        };
        let rival = job.as_ref().filter(|_| S::FILLS_VOLUME).and_then(|job| self.rival(job));
        let (node, part) = (Arc::clone(&self.node), S::part(&self.name));
        let memory = self.memory.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let folder = node.layout.job(&part);
            // What lies there of another of this name has to go first.
            let job = job.filter(|job| files::are_of(&folder, &job.metadata.uid));
            let process = node.supervisor.list().into_iter().find(|it| it.spec.name.part == part);
            let name = match (&job, &process) {
                (Some(job), _) => Some(ProcessName { volume: job.spec.volume().clone(), part }),
                (None, Some(process)) => Some(process.spec.name.clone()),
                (None, None) => None,
            };
            let doubt = name.and_then(|name| node.supervisor.doubt(&name));
            let log = || last_words(&files::log(&folder), memory.log_from_bytes);
            let words = if process.is_none() { log() } else { None };
            JobFacts {
                node: node.name.clone(),
                volume,
                engine,
                rival,
                files: files::read(&folder, job.is_some()),
                process: process.map(|process| JobProcess {
                    pid: process.pid,
                    asked_to_end: memory.asked_to_end.map(|since| since.elapsed()),
                }),
                history: History {
                    hold_off: memory.backoff.hold_off(Instant::now()),
                    last_end: memory.last_end,
                    last_words: words.map(|it| LastWords { error: it.error, next: it.next }),
                    doubt: doubt.map(|it| Doubt { message: it.message, next: it.next }),
                },
                is_stopping: node.is_stopping(),
                job,
            }
        });
        looked.await.map_err(|_| PassError::Panicked)
    }

    /// One that was made earlier comes first. All that can fill the volume are this node's, as its
    /// engine is.
    fn rival(&self, job: &Object<S>) -> Option<Name> {
        let key = |job: &Object<S>| (job.metadata.creation_timestamp, job.name().clone());
        let all = self.jobs.all();
        let rivals = all.iter().flatten().filter(|it| {
            it.spec.volume_uid() == job.spec.volume_uid() && !it.is_over() && key(it) < key(job)
        });
        rivals.map(|it| it.name().clone()).min()
    }

    async fn perform(&mut self, facts: &JobFacts<S>, action: JobAction) -> Result<(), PassError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| PassError::Action {
            action: action.to_string(),
            source,
        };
        let part = S::part(&self.name);
        match (action, &facts.job) {
            (JobAction::Start, Some(job)) => {
                let Some(engine) = &facts.engine else { return Ok(()) };
                self.start(job, engine).await?.map_err(failed)
            }
            (JobAction::End | JobAction::Kill, _) => {
                self.memory.asked_to_end.get_or_insert_with(Instant::now);
                let how = match action {
                    JobAction::Kill => Signal::Kill,
                    _ => Signal::Terminate,
                };
                let all = self.node.supervisor.list();
                for process in all.iter().filter(|it| it.spec.name.part == part) {
                    self.node.supervisor.signal(&process.spec.name, how);
                }
                Ok(())
            }
            (JobAction::MarkRestored, Some(job)) => Ok(self.mark_restored(job).await?),
            (JobAction::RemoveVolume, Some(job)) => Ok(self.remove_volume(job).await?),
            (JobAction::TakeBackTicket, Some(job)) => Ok(self.take_back_ticket(job).await?),
            (JobAction::Release, Some(job)) => {
                self.release(job).await?;
                Ok(self.forget_oldest(job).await?)
            }
            (JobAction::RemoveFiles, _) => {
                let folder = self.node.layout.job(&part);
                let removed = tokio::task::spawn_blocking(move || files::remove(&folder));
                let removed = removed.await.map_err(|_| PassError::Panicked)?;
                removed.map_err(|error| failed(error.into()))
            }
            (_, None) => Ok(()),
        }
    }

    async fn start(
        &mut self,
        job: &Object<S>,
        engine: &Engine,
    ) -> Result<Result<(), Box<dyn std::error::Error + Send + Sync>>, PassError> {
        let (name, volume) = (job.name(), job.spec.volume());
        let part = S::part(name);
        let folder = self.node.layout.job(&part);
        let size_bytes = engine.status.size_bytes.unwrap_or(engine.spec.size_bytes);
        let order = JobOrder {
            uid: job.metadata.uid.clone(),
            volume: access(&self.node, volume, engine),
            work: job.spec.work(name),
            memory_bytes: planner::memory_bytes(size_bytes),
        };
        let path = |path: PathBuf| path.display().to_string();
        let args = [
            ["job", "run"].map(str::to_owned),
            ["--volume".to_owned(), volume.to_string()],
            ["--spec".to_owned(), path(folder.join(SPEC_FILE))],
        ];
        let process = ProcessSpec {
            name: ProcessName { volume: volume.clone(), part },
            program: self.node.program.clone(),
            args: args.concat(),
            log: files::log(&folder),
            labels: BTreeMap::new(),
        };
        let supervisor = Arc::clone(&self.node.supervisor);
        let started = tokio::task::spawn_blocking(move || {
            let begins = files::prepare(&folder, &order)?;
            // Where its order lies, it was started.
            supervisor.start(process).inspect_err(|_| files::take_back(&folder))?;
            Ok(begins)
        });
        Ok(started.await.map_err(|_| PassError::Panicked)?.map(|begins| {
            self.memory.started = Some(Instant::now());
            self.memory.asked_to_end = None;
            self.memory.last_end = None;
            self.memory.log_from_bytes = begins;
        }))
    }

    async fn mark_restored(&self, job: &Object<S>) -> Result<(), StoreError> {
        let marked = self.node.store.modify::<VolumeSpec, _, _>(job.spec.volume(), |volume| {
            if volume.metadata.uid == job.spec.volume_uid() {
                volume.metadata.annotations.insert(RESTORED.into(), String::new());
            }
            Ok::<_, StoreError>(())
        });
        unless_gone(marked.await)
    }

    /// Looks at it once more: what its users have stays.
    async fn remove_volume(&self, job: &Object<S>) -> Result<(), StoreError> {
        let name = job.spec.volume();
        let is_it = |volume: &Volume| {
            let is_it = volume.metadata.uid == job.spec.volume_uid() && volume.is_being_restored();
            let other = || StoreError::NotFound { kind: VolumeSpec::KIND, name: name.to_string() };
            if is_it { Ok(()) } else { Err(other()) }
        };
        let removed = self.node.store.delete::<VolumeSpec, StoreError>(name, is_it).await;
        unless_gone(removed.map(drop))
    }

    async fn take_back_ticket(&self, job: &Object<S>) -> Result<(), StoreError> {
        let taken = self.node.store.modify::<AttachmentSpec, _, _>(job.spec.volume(), |it| {
            it.spec.tickets.remove(job.spec.ticket());
            Ok::<_, StoreError>(())
        });
        unless_gone(taken.await)
    }

    async fn release(&self, job: &Object<S>) -> Result<(), StoreError> {
        let released = self.node.store.modify::<S, _, _>(job.name(), |it| {
            if it.metadata.uid == job.metadata.uid {
                it.metadata.finalizers.remove(JOB_FINALIZER);
            }
            Ok::<_, StoreError>(())
        });
        unless_gone(released.await)
    }

    /// Its own end may not have come to the cache yet.
    async fn forget_oldest(&self, over: &Object<S>) -> Result<(), StoreError> {
        let all: Vec<_> = self.jobs.all().into_iter().flatten().collect();
        let now_over = |job: &Object<S>| {
            let mut job = job.clone();
            if job.metadata.uid == over.metadata.uid {
                job.metadata.finalizers.remove(JOB_FINALIZER);
            }
            job
        };
        let all: Vec<_> = all.iter().map(|job| now_over(job)).collect();
        for name in planner::to_forget(&all) {
            let Some(job) = all.iter().find(|job| *job.name() == name) else { continue };
            let unchanged = Precondition::unchanged(&job.metadata);
            match self.node.store.delete_raw(S::KIND, &name, &unchanged).await {
                // The next one that ends looks again.
                Err(StoreError::Conflict { .. } | StoreError::NotFound { .. }) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    async fn report(&self, heard: &Object<S>, plan: &JobPlan) -> Result<(), StoreError> {
        let mut status = plan.status.clone();
        let (before, generation) = (&heard.status.conditions, heard.metadata.generation);
        status.conditions = dated(status.conditions, before, Timestamp::now(), generation);
        if status == heard.status {
            return Ok(());
        }
        let object = Object { status, ..heard.clone() };
        match self.node.store.replace_status_raw(S::KIND, Raw::of(&object)).await {
            // It has changed meanwhile, and is looked at again for that.
            Err(StoreError::Conflict { .. } | StoreError::NotFound { .. }) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Replicas inside the engine's process are read where it serves them.
fn access(node: &Node, volume: &Name, engine: &Engine) -> VolumeAccess {
    let replicas = engine.spec.replicas.iter().map(|it| match it.address.starts_with("dir:") {
        true => {
            let socket = node.layout.replica_socket(volume, &it.replica);
            let address = format!("unix:{}", socket.display());
            ReplicaAddress { replica: it.replica.clone(), address }
        }
        false => it.clone(),
    });
    VolumeAccess {
        name: volume.clone(),
        uid: engine.spec.volume_uid.clone(),
        admin: node.layout.admin(volume),
        nbd: node.layout.nbd(volume),
        replicas: replicas.collect(),
    }
}

fn unless_gone(outcome: Result<(), StoreError>) -> Result<(), StoreError> {
    match outcome {
        Err(StoreError::NotFound { .. }) => Ok(()),
        other => other,
    }
}
