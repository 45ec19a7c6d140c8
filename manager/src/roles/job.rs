//! `ankole job run`: the process of one job.
//!
//! It reads what it is to do, does it, and says what came of it, in files beside each other
//! ([`crate::api::job`]). A signal ends it without a result: what a backup has stored stays.
//!
//! Its memory is limited by itself, before anything else: the program that does the work knows best
//! that it begins with nothing, and whoever starts it needn't do it between fork and exec. An
//! allocation that fails aborts the process (without a backtrace: one that gets no memory would wait for
//! itself), and how it ended is told of its object.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ankole_whole_file as whole_file;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::backup::{BackupView, JobProgress};
use crate::api::error::chain;
use crate::api::job::{JobOrder, JobResult, PROGRESS_FILE, RESULT_FILE};
use crate::api::{ApiError, Name};
use crate::backup_job::work::{self, Observer};

/// Of the file that says what is to be done.
const SPEC_BYTES_MAX: u64 = 1 << 20;
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct JobArgs {
    /// The volume that it works on
    #[arg(long)]
    pub volume: Name,
    /// What is to be done; progress and result are written beside it
    #[arg(long, value_name = "FILE")]
    pub spec: PathBuf,
}

/// Also says what went wrong where the result can't: in the log.
pub fn run(args: &JobArgs) -> Result<(), ApiError> {
    let spec = read(&args.spec)?;
    if spec.volume.name != args.volume {
        let (file, about) = (args.spec.display(), &spec.volume.name);
        let message = format!("{file} is about volume {about}, not {}", args.volume);
        return Err(ApiError::invalid(message));
    }
    limit_memory(spec.memory_bytes)?;
    let folder = args.spec.parent().unwrap_or(Path::new("."));
    let observer = Arc::new(Files {
        progress: folder.join(PROGRESS_FILE),
        written: Mutex::new(Instant::now()),
        is_stopping: AtomicBool::new(false),
    });
    let outcome = work_until_signal(spec, Arc::clone(&observer))?;
    let result = match &outcome {
        Ok(backup) => JobResult::Done { backup: backup.clone() },
        Err(error) if observer.is_stopping() => return Err(error.clone()),
        Err(error) => JobResult::Failed { error: error.clone() },
    };
    let path = folder.join(RESULT_FILE);
    let written = serde_json::to_vec(&result).map_err(io::Error::from);
    let written = written.and_then(|text| whole_file::write(&path, &text));
    written.map_err(|error| ApiError::failed(format!("write {}: {error}", path.display())))?;
    outcome.map(drop)
}

fn read(path: &Path) -> Result<JobOrder, ApiError> {
    let mut text = Vec::new();
    let file = File::open(path).map(|file| file.take(SPEC_BYTES_MAX));
    let spec = file.and_then(|mut file| file.read_to_end(&mut text));
    let spec = spec.and_then(|_| serde_json::from_slice(&text).map_err(io::Error::from));
    spec.map_err(|error| ApiError::invalid(format!("read {}: {error}", path.display())))
}

/// Never more than whoever started it has allowed.
fn limit_memory(wanted_bytes: u64) -> Result<(), ApiError> {
    let given = getrlimit(Resource::Data).maximum;
    let limit = Some(given.map_or(wanted_bytes, |given| given.min(wanted_bytes)));
    setrlimit(Resource::Data, Rlimit { current: limit, maximum: limit })
        .map_err(|error| ApiError::failed(format!("limit the memory of this process: {error}")))
}

fn work_until_signal(
    spec: JobOrder,
    observer: Arc<Files>,
) -> Result<Result<BackupView, ApiError>, ApiError> {
    let failed = |error: io::Error| ApiError::failed(format!("wait for the job: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(failed)?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let working = Arc::clone(&observer);
        let mut work =
            tokio::task::spawn_blocking(move || work::run(&spec.volume, &spec.work, &*working));
        loop {
            tokio::select! {
                done = &mut work => return Ok(done.unwrap_or_else(|panic| {
                    Err(ApiError::failed(format!("the job has a fault: {panic}")))
                })),
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            observer.is_stopping.store(true, Ordering::Release);
        }
    })
}

struct Files {
    progress: PathBuf,
    written: Mutex<Instant>,
    is_stopping: AtomicBool,
}

impl Observer for Files {
    /// Whoever comes while another thread writes has nothing newer to say.
    fn progress(&self, progress: JobProgress) {
        let Ok(mut written) = self.written.try_lock() else { return };
        if written.elapsed() < PROGRESS_PAUSE {
            return;
        }
        *written = Instant::now();
        let text = serde_json::to_vec(&progress).map_err(io::Error::from);
        if let Err(error) = text.and_then(|text| whole_file::write(&self.progress, &text)) {
            tracing::warn!(error = chain(&error), "say how far the job is");
        }
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }
}
