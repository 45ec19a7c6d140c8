//! `ankole replica …`

use std::path::{Path, PathBuf};

use ankole_replica::inspect::{self, Evidence, Found};
use ankole_replica::store::{BadBlock, ReadError, StoreError, VerifyReport};
use clap::Subcommand;

use super::output::{Format, column, wide};
use super::salvage::{epoch, found, state, synced, synced_with};
use super::{Done, Outcome, Session, confirm};
use crate::api::error::chain;
use crate::api::replica::ReplicaView;
use crate::api::size::human;
use crate::api::{ApiError, Name};
use crate::roles::replica::ReplicaArgs;

#[derive(Debug, Subcommand)]
pub(super) enum ReplicaCommand {
    /// Replicas of the running system
    Ls { volume: Option<Name> },
    /// What a directory tells about the copy that it holds; changes nothing in it
    Inspect {
        /// Or VOLUME/REPLICA of the running system
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Read all that a directory holds and compare it with its checksums; changes nothing in it
    Verify {
        /// Or VOLUME/REPLICA of the running system
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Make a replica anew from the others; its directory is set aside and kept
    Rebuild {
        volume: Name,
        replica: String,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Serve one replica; started by the agent, usable by hand
    Serve(ReplicaArgs),
}

pub(super) fn list(session: &Session<'_>, volume: Option<&Name>) -> Outcome {
    let replicas = session.client()?.replicas(volume)?;
    session.output.list(
        &replicas,
        |replica: &ReplicaView| format!("{}/{}", replica.volume, replica.replica),
        &[
            column("VOLUME", |r: &ReplicaView| r.volume.to_string()),
            column("REPLICA", |r| r.replica.to_string()),
            column("MODE", |r| r.mode.to_string()),
            column("IN-SYNC", |r| if r.in_sync { "yes".into() } else { "no".into() }),
            column("REBUILD", |r| {
                r.rebuild.map_or("-".into(), |rebuild| {
                    format!("{} of {}", human(rebuild.done_bytes), human(rebuild.total_bytes))
                })
            }),
            column("USED", |r| r.used_bytes.map_or("-".into(), human)),
            column("NODE", |r| r.node.clone()),
            wide("PID", |r| r.pid.map_or("-".into(), |pid| pid.to_string())),
            wide("ADDRESS", |r| r.address.clone().unwrap_or("-".into())),
            wide("DIRECTORY", |r| r.directory.display().to_string()),
        ],
    )
}

pub(super) fn rebuild(session: &Session<'_>, volume: &Name, replica: &str, yes: bool) -> Outcome {
    confirm(&format!("take replica {replica} out of volume {volume} and make it anew"), yes)?;
    session.client()?.rebuild_replica(volume, &replica.into())?;
    Ok(Done::Well)
}

/// `v1/r2` is where replica r2 of v1 lies, unless there is such a path.
fn place(session: &Session<'_>, given: &Path) -> Result<PathBuf, ApiError> {
    let text = given.to_str().unwrap_or_default();
    let named = text.split_once('/').filter(|_| !given.exists());
    let Some((Ok(volume), id)) = named.map(|(volume, id)| (volume.parse::<Name>(), id)) else {
        return Ok(given.into());
    };
    let replicas = session.client()?.replicas(Some(&volume))?;
    let found = replicas.into_iter().find(|replica| *replica.replica.0 == *id);
    found.map(|replica| replica.directory).ok_or_else(|| {
        ApiError::not_found(format!("volume {volume} has no replica {id}"))
            .next(format!("ankole replica ls {volume}"))
    })
}

pub(super) fn inspect(session: &Session<'_>, directory: &Path) -> Outcome {
    let directory = &*place(session, directory)?;
    let evidence = inspect::inspect(directory);
    if evidence.found == Found::Missing {
        return Err(ApiError::not_found(format!("there is no directory {}", directory.display()))
            .next("ankole replica ls -o wide shows where the replicas of a running system lie"));
    }
    match session.output.format {
        Format::Json => session.output.json(&evidence),
        Format::Name => session.output.line(&found(&evidence)),
        Format::Table | Format::Wide => session.output.fields(&fields(&evidence)),
    }
}

fn fields(evidence: &Evidence) -> Vec<(&'static str, String)> {
    let mut fields =
        vec![("directory", evidence.directory.display().to_string()), ("found", found(evidence))];
    if let Some(held) = evidence.held {
        let who = held.pid.map_or("a process".into(), |pid| format!("process {pid}"));
        fields.push(("in use", format!("by {who}; what follows is of this moment")));
    }
    match &evidence.found {
        Found::Foreign { file } => fields.push(("file", file.clone())),
        Found::Unreadable { why } => fields.push(("why", why.clone())),
        Found::Missing | Found::Empty | Found::HalfFormatted | Found::Replica(_) => {}
    }
    let Some(replica) = evidence.replica() else { return fields };
    let seen = replica
        .fence
        .map_or("-".into(), |fence| format!("{}, session {}", fence.generation, fence.session.0));
    fields.extend([
        ("volume", replica.volume.clone()),
        ("replica", replica.replica.to_string()),
        ("incarnation", replica.incarnation.to_string()),
        ("state", state(replica.state).to_owned()),
        ("in sync", format!("{} with {}", synced(evidence), synced_with(evidence))),
        ("epoch", epoch(evidence)),
        ("seen", seen),
    ]);
    fields.extend(replica.failure.iter().map(|failure| ("failure", failure.clone())));
    if let Some(content) = &replica.content {
        let continuous = if content.continuous { "yes" } else { "no" };
        fields.extend([
            ("continuous", format!("{continuous}: {}", content.continuity)),
            ("size", human(content.size_bytes)),
            ("data", human(content.data_bytes)),
            ("layers", content.layers.to_string()),
            ("snapshots", content.snapshots.join(", ")),
            ("marked", format!("{} regions of 1 MiB", content.marked_regions)),
            ("unverified", format!("{} blocks", content.unverified_blocks)),
        ]);
        if content.partial {
            fields.push(("partial", "a rebuild was filling it".into()));
        }
    }
    fields.extend(replica.problems.iter().map(|problem| ("problem", problem.clone())));
    fields
}

/// 1 if a block is bad.
pub(super) fn verify(session: &Session<'_>, directory: &Path) -> Outcome {
    let directory = &*place(session, directory)?;
    let report = inspect::verify(directory).map_err(|error| {
        let message = chain(&error);
        match error {
            StoreError::Locked { .. } => ApiError::conflict(message),
            StoreError::NoReplica { .. } => ApiError::not_found(message),
            StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                ApiError::not_found(message)
            }
            _ => ApiError::failed(message),
        }
    })?;
    let VerifyReport { blocks_checked, blocks_unverified, blocks_bad, bad } = &report;
    match session.output.format {
        Format::Json => session.output.json(&serde_json::json!({
            "blocksChecked": blocks_checked,
            "blocksUnverified": blocks_unverified,
            "blocksBad": blocks_bad,
            "bad": bad.iter().map(problem).collect::<Vec<_>>(),
        }))?,
        Format::Name => session.output.line(if *blocks_bad == 0 { "ok" } else { "bad" })?,
        Format::Table | Format::Wide => {
            let mut fields = vec![
                ("checked", format!("{blocks_checked} blocks")),
                ("unverified", format!("{blocks_unverified} blocks: their sums were rebuilt")),
                ("bad", format!("{blocks_bad} blocks")),
            ];
            fields.extend(bad.iter().map(|bad| ("problem", problem(bad))));
            session.output.fields(&fields)?
        }
    };
    if *blocks_bad == 0 {
        return Ok(Done::Well);
    }
    Err(ApiError::failed(format!("{}: {blocks_bad} blocks are bad", directory.display()))
        .next("the engine reads them from another replica; ankole replica rebuild makes it anew"))
}

fn problem(bad: &BadBlock) -> String {
    ReadError::BadBlocks(vec![bad.clone()]).to_string()
}
