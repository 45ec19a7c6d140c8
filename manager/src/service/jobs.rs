//! Jobs: work that outlives the request which asked for it, on a thread each.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ankole_api::objects::VolumeSpec;

use super::Service;
use crate::api::ApiError;
use crate::api::backup::{BackupRequest, BackupView, Job, JobProgress, JobState, RestoreRequest};
use crate::backup_job;

/// Finished jobs that are remembered.
const FINISHED_KEPT: usize = 100;
const RUNNING_MAX: usize = 8;

#[derive(Default)]
pub(super) struct Jobs {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_id: u64,
    jobs: BTreeMap<u64, Job>,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.lock().jobs.get_mut(&id) {
            change(job);
        }
    }
}

/// How a job tells how far it is.
pub struct JobControl<'a> {
    jobs: &'a Jobs,
    id: u64,
}

impl JobControl<'_> {
    pub fn progress(&self, progress: JobProgress) {
        self.jobs.change(self.id, |job| job.progress = progress);
    }
}

impl Service {
    pub fn create_backup(&self, request: BackupRequest) -> Result<Job, ApiError> {
        let volume = self.volume(&request.volume)?;
        let target = self.target_url(request.target.as_deref())?;
        let title = format!("back up volume {} to {target}", volume.name);
        self.start_job(title, move |service, control| {
            backup_job::create(service, control, &request, &target)
        })
    }

    pub fn restore_backup(&self, request: RestoreRequest) -> Result<Job, ApiError> {
        if self.objects.find::<VolumeSpec>(&request.volume)?.is_some() {
            return Err(ApiError::conflict(format!("volume {} exists already", request.volume))
                .next("restore to a new name"));
        }
        let title = format!("restore {} to volume {}", request.url, request.volume);
        self.start_job(title, move |service, control| {
            backup_job::restore_to_volume(service, control, &request)
        })
    }

    pub fn job(&self, id: u64) -> Result<Job, ApiError> {
        let job = self.jobs.lock().jobs.get(&id).cloned();
        job.ok_or_else(|| {
            ApiError::not_found(format!("job {id} isn't known"))
                .next("a restart of the manager ends its jobs: start it again, it goes on")
        })
    }

    fn start_job(
        &self,
        title: String,
        work: impl FnOnce(&Service, &JobControl<'_>) -> Result<BackupView, ApiError> + Send + 'static,
    ) -> Result<Job, ApiError> {
        self.refuse_new_jobs()?;
        let job = {
            let mut state = self.jobs.lock();
            state.last_id += 1;
            let id = state.last_id;
            let (progress, waiting) = (JobProgress::default(), Vec::new());
            let job = Job { id, title, progress, waiting, state: JobState::Running };
            state.jobs.insert(id, job.clone());
            let finished = state.jobs.values().filter(|job| job.state != JobState::Running);
            let finished: Vec<_> = finished.map(|job| job.id).collect();
            let too_many = finished.len().saturating_sub(FINISHED_KEPT);
            for id in &finished[..too_many] {
                state.jobs.remove(id);
            }
            job
        };
        let (service, id) = (self.clone(), job.id);
        std::thread::spawn(move || {
            let outcome = work(&service, &JobControl { jobs: &service.jobs, id });
            service.jobs.change(id, |job| {
                job.state = match outcome {
                    Ok(backup) => JobState::Done { backup },
                    Err(error) => JobState::Failed { error },
                };
            });
        });
        Ok(job)
    }

    fn refuse_new_jobs(&self) -> Result<(), ApiError> {
        let state = self.jobs.lock();
        let running = state.jobs.values().filter(|job| job.state == JobState::Running).count();
        if running >= RUNNING_MAX {
            return Err(ApiError::conflict(format!("{running} jobs run already"))
                .next("try again when one has ended"));
        }
        Ok(())
    }
}
