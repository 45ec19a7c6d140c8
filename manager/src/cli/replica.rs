//! `ankole replica …`

use clap::Subcommand;

use super::output::{column, wide};
use super::{Outcome, Session};
use crate::api::Name;
use crate::api::replica::ReplicaView;
use crate::api::size::human;
use crate::roles::replica::ReplicaArgs;

#[derive(Debug, Subcommand)]
pub(super) enum ReplicaCommand {
    /// Replicas of the running system
    Ls { volume: Option<Name> },
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
            column("NODE", |r| r.node.clone()),
            wide("PID", |r| r.pid.map_or("-".into(), |pid| pid.to_string())),
            wide("ADDRESS", |r| r.address.clone().unwrap_or("-".into())),
            wide("DIRECTORY", |r| r.directory.display().to_string()),
        ],
    )
}
