//! The plan of a backup or a restore on its node.
//!
//! ```text
//! its volume attached here ─▶ started ─▶ its result is found ─▶ told ─▶ (volume marked or removed) ─▶ ticket, mark
//!          ▲                     │                                ▲
//!          └── died: a restore ──┴── died: a backup ──────────────┘
//! deleted: ended ─▶ ticket, mark; its files go with the object
//! ```
//! What may never happen: a volume is filled that somebody may have used since, or while another one
//! fills it; two processes work on one job; a ticket is taken back before what came of it is told.

use std::fmt;
use std::time::Duration;

use ankole_api::ApiError;
use ankole_api::Name;
use ankole_api::backup::JobProgress;
use ankole_api::job::{JobResult, Work};
use ankole_api::object::Object;
use ankole_api::objects::engine::{EnginePhase, EngineWanted};
use ankole_api::objects::{Condition, JobPhase, JobSpec, JobStatus, Volume};
use ankole_api::volume::Reason;

use super::facts::JobFacts;

/// Of its process, without lists. A backup by 4 workers of what can't be compressed, the worst case
/// that was measured, fails with 96 MiB and is made with 128.
const MEMORY_BYTES: u64 = 256 << 20;
/// For the lists of blocks: a backup of 300 000 took 280 bytes for each.
const MEMORY_FOR_BLOCK_BYTES: u64 = 512;
const BLOCK_BYTES: u64 = 2 << 20;

/// It ends what it has in hand, and takes its lock and its draft from the target.
pub const JOB_PATIENCE: Duration = Duration::from_secs(30);
/// Of each kind on each node, the newest.
pub const FINISHED_KEPT: usize = 100;
/// That its progress is looked at.
const WHILE_RUNNING: Duration = Duration::from_secs(1);
const WHILE_IDLE: Duration = Duration::from_secs(60);
/// It is kept to be asked for, and nothing of it changes.
const WHILE_OVER: Duration = Duration::from_secs(3600);
const STEPS: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobAction {
    Start,
    End,
    Kill,
    /// The volume: it holds what it shall, and its users may have it.
    MarkRestored,
    /// It holds a part of a backup, and nobody but the restore ever had it.
    RemoveVolume,
    TakeBackTicket,
    /// The job is over, and its object may go.
    Release,
    RemoveFiles,
}

#[derive(Clone, Debug, PartialEq)]
pub struct JobPlan {
    pub actions: Vec<JobAction>,
    pub status: JobStatus,
    /// If no event comes before.
    pub look_again: Duration,
}

pub fn plan<S: JobSpec>(facts: &JobFacts<S>) -> JobPlan {
    let mut plan =
        JobPlan { actions: Vec::new(), status: JobStatus::default(), look_again: WHILE_IDLE };
    let Some(job) = &facts.job else {
        if plan.is_ended(facts) && facts.files.is_some() {
            plan.act(JobAction::RemoveFiles);
        }
        return plan;
    };
    plan.status = JobStatus { conditions: Vec::new(), ..job.status.clone() };
    let is_told = job.status.phase.is_some_and(JobPhase::is_final);
    if is_told || job.is_over() {
        match plan.is_ended(facts) {
            true if !is_told => plan.tell_what_is_left(facts, job),
            true if !job.is_over() => plan.finish(facts, job),
            true if has_lost_its_mark(facts, job) => plan.act(JobAction::MarkRestored),
            true => plan.look_again = WHILE_OVER,
            false => {}
        }
    } else if let Some(outcome) = outcome(facts, job) {
        if plan.is_ended(facts) {
            plan.tell(outcome);
        }
    } else if job.is_ending() {
        if plan.is_ended(facts) {
            plan.finish(facts, job);
        }
    } else if facts.process.is_some() {
        plan.go_on(facts, job);
    } else {
        plan.begin(facts, job);
    }
    plan
}

/// What came of it, or why nothing more will.
fn outcome<S: JobSpec>(facts: &JobFacts<S>, job: &Object<S>) -> Option<JobResult> {
    let (name, volume) = (job.name(), job.spec.volume());
    if let Some(result) = facts.files.as_ref().and_then(|files| files.result.as_ref()) {
        return Some(match result {
            Ok(JobResult::Failed { error }) => failed(facts, job, error.clone()),
            Ok(done) => done.clone(),
            Err(why) => {
                let message =
                    format!("what became of {name} of volume {volume} can't be read: {why}");
                failed(facts, job, ApiError::failed(message))
            }
        });
    }
    if job.is_ending() {
        return None;
    }
    if own_volume(facts, job).is_none_or(Object::is_ending) {
        let message = format!("{name}: volume {volume} is gone, or is being removed");
        return Some(JobResult::Failed { error: ApiError::not_found(message) });
    }
    if let Some(refused) = refused(facts, job) {
        let error = ApiError::conflict(format!("{name}: volume {volume} {refused}"));
        return Some(JobResult::Failed { error: error.next("restore to a new volume") });
    }
    let was_started = facts.files.is_some() || job.status.phase == Some(JobPhase::Running);
    let how = facts.history.last_end.as_deref();
    // As it ends itself when it gets no memory: the next one would get none either.
    let aborted = how.is_some_and(|how| how.starts_with("signal: 6 "));
    let is_dead = facts.process.is_none() && facts.history.doubt.is_none() && was_started;
    if !is_dead || (S::FILLS_VOLUME && !aborted) {
        return None;
    }
    let next = facts.history.last_words.as_ref().and_then(|words| words.next.clone());
    let again = "start it again: what is stored already isn't uploaded again".to_owned();
    let next = next.or(if S::FILLS_VOLUME { None } else { Some(again) });
    Some(failed(facts, job, ApiError { next, ..ApiError::failed(ended(facts, job)) }))
}

/// Why the volume isn't filled: what is in it may be its users', or another one fills it.
fn refused<S: JobSpec>(facts: &JobFacts<S>, job: &Object<S>) -> Option<String> {
    let Work::Restore { url } = job.spec.work(job.name()) else { return None };
    let volume = own_volume(facts, job)?;
    if !volume.is_being_restored() {
        return Some("isn't one that waits to be restored".into());
    }
    if volume.spec.from_backup.as_deref() != Some(&*url) {
        return Some(format!("was made for another backup than {url}"));
    }
    facts.rival.as_ref().map(|rival| format!("is being filled by {rival} already"))
}

/// Not another one of that name.
fn own_volume<'a, S: JobSpec>(facts: &'a JobFacts<S>, job: &Object<S>) -> Option<&'a Volume> {
    facts.volume.as_ref().filter(|it| it.metadata.uid == job.spec.volume_uid())
}

/// It is this one that has filled it in part, if anything is in it.
fn is_for_nothing<S: JobSpec>(facts: &JobFacts<S>, job: &Object<S>) -> bool {
    let is_there = own_volume(facts, job).is_some_and(|volume| !volume.is_ending());
    S::FILLS_VOLUME && is_there && refused(facts, job).is_none()
}

/// The volume has lost its mark since it was filled.
fn has_lost_its_mark<S: JobSpec>(facts: &JobFacts<S>, job: &Object<S>) -> bool {
    let is_done = job.status.phase == Some(JobPhase::Done);
    let own = own_volume(facts, job);
    S::FILLS_VOLUME && is_done && own.is_some_and(Volume::is_being_restored)
}

fn failed<S: JobSpec>(facts: &JobFacts<S>, job: &Object<S>, mut error: ApiError) -> JobResult {
    if is_for_nothing(facts, job) {
        let volume = job.spec.volume();
        error.message.push_str(&format!("; volume {volume}, filled in part, is removed again"));
    }
    JobResult::Failed { error }
}

fn ended<S: JobSpec>(facts: &JobFacts<S>, job: &Object<S>) -> String {
    let (name, volume) = (job.name(), job.spec.volume());
    let how = facts.history.last_end.as_deref().unwrap_or("for an unknown reason");
    let words = facts.history.last_words.as_ref();
    let why = words.map_or(String::new(), |words| format!(": {}", words.error));
    format!("{name} of volume {volume} ended ({how}){why}")
}

impl JobPlan {
    fn act(&mut self, action: JobAction) {
        self.actions.push(action);
    }

    fn note(&mut self, reason: Reason, message: String) -> &mut Condition {
        self.status.conditions.push(Condition::new(reason, message));
        self.status.conditions.last_mut().expect("it was just added")
    }

    /// A little later than `left`, so that what is due then is due.
    fn look_within(&mut self, left: Duration) {
        self.look_again = self.look_again.min(left + Duration::from_millis(10));
    }

    /// Whether no process of it is left; if one is, it is asked to end.
    fn is_ended<S: JobSpec>(&mut self, facts: &JobFacts<S>) -> bool {
        let Some(process) = &facts.process else { return !self.is_in_doubt(facts) };
        match process.asked_to_end {
            None => self.act(JobAction::End),
            Some(since) if since > JOB_PATIENCE => {
                self.act(JobAction::Kill);
                self.look_within(WHILE_RUNNING);
            }
            Some(since) => self.look_within(JOB_PATIENCE.saturating_sub(since)),
        }
        false
    }

    fn is_in_doubt<S: JobSpec>(&mut self, facts: &JobFacts<S>) -> bool {
        let Some(doubt) = &facts.history.doubt else { return false };
        self.note(Reason::ProcessUnknown, doubt.message.clone()).next = Some(doubt.next.clone());
        self.look_within(Duration::from_secs(1));
        true
    }

    /// What is said must be stored before anything follows from it.
    fn tell(&mut self, outcome: JobResult) {
        let progress = self.status.progress;
        let whole = JobProgress { done_bytes: progress.total_bytes, ..progress };
        self.status = match outcome {
            JobResult::Done { backup } => JobStatus {
                phase: Some(JobPhase::Done),
                progress: whole,
                backup: Some(backup),
                ..JobStatus::default()
            },
            JobResult::Failed { error } => JobStatus {
                phase: Some(JobPhase::Failed),
                progress,
                error: Some(error),
                ..JobStatus::default()
            },
        };
    }

    /// It was over, and its status was lost.
    fn tell_what_is_left<S: JobSpec>(&mut self, facts: &JobFacts<S>, job: &Object<S>) {
        let found = facts.files.as_ref().and_then(|files| files.result.clone());
        self.tell(found.and_then(Result::ok).unwrap_or_else(|| {
            let message = format!("what became of {} isn't known any more", job.name());
            JobResult::Failed { error: ApiError::failed(message) }
        }));
    }

    fn finish<S: JobSpec>(&mut self, facts: &JobFacts<S>, job: &Object<S>) {
        match self.status.phase {
            Some(JobPhase::Done) if S::FILLS_VOLUME => self.act(JobAction::MarkRestored),
            Some(JobPhase::Done) => {}
            _ if is_for_nothing(facts, job) => self.act(JobAction::RemoveVolume),
            _ => {}
        }
        self.act(JobAction::TakeBackTicket);
        self.act(JobAction::Release);
    }

    fn go_on<S: JobSpec>(&mut self, facts: &JobFacts<S>, job: &Object<S>) {
        self.status.phase = Some(JobPhase::Running);
        if let Some(progress) = facts.files.as_ref().and_then(|files| files.progress) {
            self.status.progress = in_steps(progress);
        }
        self.look_again = WHILE_RUNNING;
        if facts.is_stopping && !self.is_ended(facts) {
            let message = format!("{} ends, since its agent does", job.name());
            self.note(Reason::Stopping, message);
        }
    }

    fn begin<S: JobSpec>(&mut self, facts: &JobFacts<S>, job: &Object<S>) {
        if self.is_in_doubt(facts) {
            return;
        }
        self.status.phase = Some(JobPhase::Pending);
        if facts.history.last_end.is_some() {
            self.note(Reason::JobEnded, format!("{}; it is started again", ended(facts, job)));
        }
        if facts.is_stopping {
            return;
        }
        if !is_attached_here(facts, job) {
            let volume = job.spec.volume();
            let where_it_is = facts.volume.as_ref().and_then(|it| it.status.node.as_deref());
            let elsewhere = where_it_is.filter(|node| *node != facts.node);
            let elsewhere = elsewhere.map_or(String::new(), |node| format!("; it is on {node}"));
            let message = format!(
                "{} waits until volume {volume} is attached to node {}{elsewhere}",
                job.name(),
                facts.node,
            );
            let next = format!("ankole volume why {volume} says what it waits for");
            self.note(Reason::JobWaits, message).next = Some(next);
        } else if let Some(left) = facts.history.hold_off {
            self.look_within(left);
        } else {
            self.act(JobAction::Start);
        }
    }
}

fn is_attached_here<S: JobSpec>(facts: &JobFacts<S>, job: &Object<S>) -> bool {
    facts.engine.as_ref().is_some_and(|engine| {
        engine.spec.volume_uid == job.spec.volume_uid()
            && matches!(engine.spec.wanted, EngineWanted::Attached { .. })
            && engine.status.node == facts.node
            && engine.is_observed()
            && engine.status.phase == Some(EnginePhase::Attached)
            && engine.status.endpoint.is_some()
    })
}

fn in_steps(progress: JobProgress) -> JobProgress {
    let JobProgress { done_bytes, total_bytes } = progress;
    let step = (total_bytes / STEPS).max(1);
    let done_bytes = if done_bytes < total_bytes { done_bytes / step * step } else { done_bytes };
    JobProgress { done_bytes, total_bytes }
}

/// That the process of a job may take, for a volume of this size.
pub fn memory_bytes(size_bytes: u64) -> u64 {
    MEMORY_BYTES + size_bytes.div_ceil(BLOCK_BYTES) * MEMORY_FOR_BLOCK_BYTES
}

/// Those that are over and that nobody will ask for any more, of all of one kind on one node.
pub fn to_forget<'a, S: JobSpec>(jobs: impl IntoIterator<Item = &'a Object<S>>) -> Vec<Name> {
    let over = jobs.into_iter().filter(|job| job.is_over() && !job.is_ending());
    let mut over: Vec<_> =
        over.map(|job| (job.metadata.creation_timestamp, job.name().clone())).collect();
    over.sort();
    let too_many = over.len().saturating_sub(FINISHED_KEPT);
    over.into_iter().take(too_many).map(|(_, name)| name).collect()
}

impl fmt::Display for JobAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start it",
            Self::End => "end it",
            Self::Kill => "kill it",
            Self::MarkRestored => "give the volume to its users",
            Self::RemoveVolume => "remove the volume",
            Self::TakeBackTicket => "take back its ticket",
            Self::Release => "release the object",
            Self::RemoveFiles => "remove its files",
        })
    }
}

impl fmt::Display for JobPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let JobStatus { phase, progress, backup, error, conditions } = &self.status;
        let phase = phase.map_or("unknown".into(), |phase| phase.to_string());
        let JobProgress { done_bytes, total_bytes } = progress;
        writeln!(f, "{phase}, {done_bytes} of {total_bytes} bytes")?;
        backup.iter().try_for_each(|backup| writeln!(f, "made or restored: {}", backup.name))?;
        if let Some(ApiError { kind, message, next }) = error {
            writeln!(f, "error, {kind:?}: {message}")?;
            next.iter().try_for_each(|next| writeln!(f, "  next: {next}"))?;
        }
        self.actions.iter().try_for_each(|action| writeln!(f, "do: {action}"))?;
        for Condition { reason, message, next, .. } in conditions {
            writeln!(f, "{reason:?}: {message}")?;
            next.iter().try_for_each(|next| writeln!(f, "  next: {next}"))?;
        }
        writeln!(f, "look again: {:?}", self.look_again)
    }
}
