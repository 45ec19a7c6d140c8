//! `ankole backup …`

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::{Format, column, remark, wide};
use super::waiting::while_told;
use super::{Done, Outcome, Session, complain, confirm};
use crate::api::backup::{BackupRequest, BackupView, Job, JobProgress, JobState, RestoreRequest};
use crate::api::size::human;
use crate::api::target::choose;
use crate::api::{ApiError, Name};
use crate::backup_job;
use crate::client::Client;

#[derive(Debug, Subcommand)]
pub(super) enum BackupCommand {
    /// Back a snapshot up, and wait for the end
    Create {
        volume: Name,
        /// The snapshot; a new one if none is named
        #[arg(long)]
        snapshot: Option<Name>,
        /// A URL such as file:///PATH, or the name of a target
        #[arg(long, value_name = "URL")]
        target: Option<String>,
        /// Read and upload all blocks, also those that the target has: repairs damaged ones
        #[arg(long)]
        full: bool,
    },
    /// List the backups of a target
    Ls {
        /// A URL such as file:///PATH, or the name of a target
        #[arg(long, value_name = "URL")]
        target: Option<String>,
        #[arg(long)]
        volume: Option<String>,
    },
    /// One backup, by its URL
    Inspect { url: String },
    /// Read every block of a backup and compare it with its checksum
    Verify { url: String },
    /// Remove a backup, and the blocks that no other needs
    Rm {
        url: String,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Remove blocks that no backup needs, left by interrupted backups
    Prune {
        /// A URL such as file:///PATH, or the name of a target
        #[arg(long, value_name = "URL")]
        target: Option<String>,
        #[arg(long)]
        volume: Option<String>,
    },
    /// Remove locks of a volume that dead processes left: watches them for 150 s, and removes those
    /// that nobody renews. Only needed if a clock was wrong; others go stale by themselves
    Unlock {
        volume: String,
        /// A URL such as file:///PATH, or the name of a target
        #[arg(long, value_name = "URL")]
        target: Option<String>,
    },
    /// Restore to a new volume, or to a file; the second needs no server
    Restore(RestoreArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct RestoreArgs {
    url: String,
    #[command(flatten)]
    to: RestoreTo,
    /// Of the new volume
    #[arg(long, default_value_t = 3, conflicts_with = "to_file")]
    replicas: u8,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct RestoreTo {
    /// A new volume
    #[arg(long, value_name = "VOLUME")]
    to: Option<Name>,
    /// A new raw image
    #[arg(long, value_name = "PATH")]
    to_file: Option<PathBuf>,
}

pub(super) fn run(session: &Session<'_>, command: BackupCommand) -> Outcome {
    match command {
        BackupCommand::Create { volume, snapshot, target, full } => {
            let client = session.client()?;
            let request = BackupRequest { volume, snapshot, target, full };
            let work = || follow(&client, client.create_backup(&request)?);
            let backup = while_told(&client, &request.volume, work)?;
            show(session, &backup)
        }
        BackupCommand::Ls { target, volume } => list(session, target.as_deref(), volume.as_deref()),
        BackupCommand::Inspect { url } => details(session, &backup_job::inspect(&url)?),
        BackupCommand::Verify { url } => {
            let bar = bar("verify");
            let backup = backup_job::verify(&url, &|progress| advance(&bar, progress))?;
            bar.finish_and_clear();
            show(session, &backup)
        }
        BackupCommand::Rm { url, yes } => {
            confirm(&format!("remove the backup {url}"), yes)?;
            if let Some(kept) = backup_job::remove(&url)? {
                remark(&kept);
            }
            Ok(Done::Well)
        }
        BackupCommand::Prune { target, volume } => {
            let target = target_url(session, target.as_deref())?;
            let mut done = Ok(Done::Well);
            for outcome in backup_job::prune(&target, volume.as_deref())? {
                match outcome {
                    Ok(line) => drop(session.output.line(&line)?),
                    Err(error) => {
                        if let Err(earlier) = std::mem::replace(&mut done, Err(error)) {
                            complain(&earlier);
                        }
                    }
                }
            }
            done
        }
        BackupCommand::Unlock { volume, target } => {
            let target = target_url(session, target.as_deref())?;
            remark(&format!("watching the locks of volume {volume} for up to 150 s"));
            for line in backup_job::unlock(&target, &volume)? {
                session.output.line(&line)?;
            }
            Ok(Done::Well)
        }
        BackupCommand::Restore(args) => restore(session, args),
    }
}

/// A URL needs no server; a name does.
fn target_url(session: &Session<'_>, target: Option<&str>) -> Result<String, ApiError> {
    match target {
        Some(url) if url.contains("://") => Ok(url.into()),
        target => choose(&session.client()?.targets()?, target),
    }
}

fn list(session: &Session<'_>, target: Option<&str>, volume: Option<&str>) -> Outcome {
    let listing = backup_job::list(&target_url(session, target)?, volume)?;
    let listed = session.output.list(
        &listing.backups,
        |backup: &BackupView| backup.url.clone(),
        &[
            column("NAME", |b: &BackupView| b.name.clone()),
            column("VOLUME", |b| b.volume.clone()),
            column("SNAPSHOT", |b| b.snapshot.clone()),
            column("STATE", |b| b.state.to_string()),
            column("CREATED", |b| b.created.clone()),
            column("SIZE", |b| human(b.size_bytes)),
            column("NEW", |b| human(b.new_bytes)),
            wide("URL", |b| b.url.clone()),
        ],
    );
    listing.remarks.iter().for_each(|text| remark(text));
    listed
}

fn restore(session: &Session<'_>, args: RestoreArgs) -> Outcome {
    let RestoreArgs { url, to, replicas } = args;
    let backup = match to {
        RestoreTo { to: Some(volume), .. } => {
            let client = session.client()?;
            follow(&client, client.restore_backup(&RestoreRequest { url, volume, replicas })?)?
        }
        RestoreTo { to_file: Some(path), .. } => {
            if path.exists() {
                return Err(ApiError::conflict(format!("{} exists already", path.display()))
                    .next("name a file that doesn't exist"));
            }
            let bar = bar("restore");
            let restored =
                backup_job::restore_to_file(&url, &path, &|progress| advance(&bar, progress))?;
            bar.finish_and_clear();
            restored
        }
        RestoreTo { to: None, to_file: None } => {
            return Err(ApiError::invalid("restore to what?").next("add --to or --to-file"));
        }
    };
    show(session, &backup)
}

/// The answer of a verb that worked on one backup: its URL.
fn show(session: &Session<'_>, backup: &BackupView) -> Outcome {
    match session.output.format {
        Format::Json => session.output.json(backup),
        _ => session.output.line(&backup.url),
    }
}

fn details(session: &Session<'_>, backup: &BackupView) -> Outcome {
    match session.output.format {
        Format::Json => return session.output.json(backup),
        Format::Name => return session.output.line(&backup.url),
        Format::Table | Format::Wide => {}
    }
    let image = Some(("backing image", backup.backing_image.clone()));
    let image = image.filter(|(_, image)| !image.is_empty());
    let fields = [
        ("name", backup.name.clone()),
        ("volume", backup.volume.clone()),
        ("snapshot", backup.snapshot.clone()),
        ("state", backup.state.to_string()),
        ("created", backup.created.clone()),
        ("url", backup.url.clone()),
        ("size", human(backup.size_bytes)),
        ("new", human(backup.new_bytes)),
    ];
    session.output.fields(&fields.into_iter().chain(image).collect::<Vec<_>>())
}

/// Waits for the end of a job, however long it takes: it is the server's, and goes on without us.
fn follow(client: &Client, mut job: Job) -> Result<BackupView, ApiError> {
    let bar = bar(&job.title);
    loop {
        advance(&bar, job.progress);
        bar.set_message(job.waiting.first().unwrap_or(&job.title).clone());
        match job.state {
            JobState::Running => {}
            JobState::Done { backup } => {
                bar.finish_and_clear();
                return Ok(backup);
            }
            JobState::Failed { error } => {
                bar.finish_and_clear();
                return Err(error);
            }
        }
        std::thread::sleep(Duration::from_millis(200));
        job = client.job(job.id)?;
    }
}

/// Only people see it.
fn bar(title: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{msg} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}");
    let bar = ProgressBar::new(0).with_message(String::from(title));
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn advance(bar: &ProgressBar, progress: JobProgress) {
    bar.set_length(progress.total_bytes);
    bar.set_position(progress.done_bytes);
}
