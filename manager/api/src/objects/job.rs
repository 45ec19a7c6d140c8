//! What backups and restores share: work on an attached volume by a process of its node.
//!
//! ```text
//! Pending ──attached, started──▶ Running ──▶ Done, Failed ──▶ over: ticket taken back, mark gone
//!    ▲                              │
//!    └── a restore whose process ───┘
//! ```
//! Who makes one adds a ticket to the volume's attachment and names it here, and gives the object the
//! mark [`JOB_FINALIZER`]: one without it was over, or never begun, whatever its status says.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Condition;
use crate::backup::{BackupView, Job, JobProgress, JobState};
use crate::job::Work;
use crate::object::{Object, Spec};
use crate::{ApiError, Name};

/// There is work left, if only to take its ticket back. Taken away by the agent of `spec.node`.
pub const JOB_FINALIZER: &str = "ankole.io/job";

/// Numbers of jobs are below that, so that every program can read them: in JSON numbers are often
/// floating.
const NUMBER_BITS: u32 = 52;

/// Of an object whose spec is a job.
pub trait JobSpec: Spec<Status = JobStatus> {
    /// Its name begins with that, and a hyphen.
    const NOUN: &'static str;
    /// It fills a volume that nobody else may use until it has: what a process left half done is done
    /// again from its beginning.
    const FILLS_VOLUME: bool;

    fn volume(&self) -> &Name;
    fn volume_uid(&self) -> &str;
    /// In the volume's attachment.
    fn ticket(&self) -> &str;
    fn work(&self, name: &Name) -> Work;
    /// What it does, in words.
    fn title(&self) -> String;
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// None: its agent hasn't looked yet, or this was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<JobPhase>,
    /// In steps of a hundredth, so that not each block is a write to the store.
    #[serde(default)]
    pub progress: JobProgress,
    /// Of one that is done: what was made or restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupView>,
    /// Of one that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobPhase {
    /// No process works on it: it waits for its volume, or to be started again.
    Pending,
    Running,
    Done,
    Failed,
}

impl JobPhase {
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

impl fmt::Display for JobPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        })
    }
}

impl<S: JobSpec> Object<S> {
    /// As users see it. None: it has no number.
    pub fn shown(&self) -> Option<Job> {
        let JobStatus { phase, progress, backup, error, conditions } = self.status.clone();
        let state = match (phase, backup, error) {
            (Some(JobPhase::Done), Some(backup), _) => JobState::Done { backup },
            (Some(JobPhase::Failed), _, Some(error)) => JobState::Failed { error },
            _ => JobState::Running,
        };
        let title = self.spec.title();
        let waiting = conditions.into_iter().map(|condition| condition.message).collect();
        Some(Job { id: number::<S>(self.name())?, title, progress, waiting, state })
    }

    /// One that no store knows yet, with its mark. The number is random.
    pub fn job(number: u64, spec: S) -> Self {
        let mut job = Self::new(name::<S>(number), spec);
        job.metadata.finalizers.insert(JOB_FINALIZER.into());
        job
    }

    pub fn is_over(&self) -> bool {
        !self.metadata.finalizers.contains(JOB_FINALIZER)
    }
}

/// `backup-000000000002a`
pub fn name<S: JobSpec>(number: u64) -> Name {
    let number = number & ((1 << NUMBER_BITS) - 1);
    format!("{}-{number:013x}", S::NOUN).parse().expect("letters, digits and a hyphen")
}

/// None: somebody else chose the name.
pub fn number<S: JobSpec>(name: &Name) -> Option<u64> {
    let digits = name.strip_prefix(S::NOUN)?.strip_prefix('-')?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (self::name::<S>(number) == *name).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{BackupSpec, RestoreSpec};
    use crate::volume::Reason;

    #[test]
    fn a_name_has_the_number_that_programs_know_it_by() {
        let name = name::<BackupSpec>(42);
        assert_eq!(&*name, "backup-000000000002a");
        assert_eq!(number::<BackupSpec>(&name), Some(42));
        assert_eq!(number::<RestoreSpec>(&name), None);
        assert_eq!(self::name::<RestoreSpec>(u64::MAX).len(), "restore-".len() + 13);
        for other in ["backup-nightly", "backup-2a", "backup", "restore-000000000002a"] {
            assert_eq!(number::<BackupSpec>(&other.parse().unwrap()), None, "{other}");
        }
    }

    /// One that waits is no state of its own for those who only know the others.
    #[test]
    fn a_job_is_shown_as_running_until_it_has_ended() {
        let spec = r#"{"volume": "v1", "volumeUid": "u1", "node": "n1", "target": "file:///b", "ticket": "t"}"#;
        let mut job = Object::<BackupSpec>::job(42, serde_json::from_str(spec).unwrap());
        job.status.conditions.push(Condition::new(Reason::JobWaits, "it waits"));
        let shown = job.shown().unwrap();
        assert_eq!((shown.id, &*shown.title), (42, "back up volume v1 to file:///b"));
        assert_eq!((shown.state, &*shown.waiting[0]), (JobState::Running, "it waits"));
        let error = ApiError::failed("no room");
        job.status = JobStatus {
            phase: Some(JobPhase::Failed),
            error: Some(error.clone()),
            ..JobStatus::default()
        };
        assert_eq!(job.shown().unwrap().state, JobState::Failed { error });
    }
}
