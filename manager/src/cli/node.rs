//! `ankole node …`

use clap::Subcommand;

use super::output::{Format, column};
use super::{Outcome, Session};
use crate::api::node::{Capability, DiskView};
use crate::api::size::human;

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Its disks, and what it can show volumes by or has lost since it started
    Show,
}

pub(super) fn run(session: &Session<'_>, command: NodeCommand) -> Outcome {
    let NodeCommand::Show = command;
    let node = session.client()?.node()?;
    match session.output.format {
        Format::Json => session.output.json(&node),
        Format::Name => session.output.line(&node.name),
        Format::Table | Format::Wide => {
            session.output.table(
                &node.disks,
                &[
                    column("DISK", |disk: &DiskView| disk.path.display().to_string()),
                    column("CAPACITY", |disk| size(disk.capacity_bytes)),
                    column("FREE", |disk| size(disk.free_bytes)),
                    column("USED", |disk| human(disk.used_bytes)),
                    column("REPLICAS", |disk| disk.replicas.to_string()),
                ],
            )?;
            session.output.line("")?;
            session.output.table(
                &node.frontends,
                &[
                    column("FRONTEND", |capability: &Capability| capability.finding.name.clone()),
                    column("FOUND", found),
                    column("DETAIL", |capability| capability.finding.detail.clone()),
                    column("NEXT", |capability| {
                        capability.finding.next.clone().unwrap_or_default()
                    }),
                ],
            )
        }
    }
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or("-".into(), human)
}

fn found(capability: &Capability) -> String {
    match capability.lost {
        true => "lost".into(),
        false => format!("{:?}", capability.finding.found).to_lowercase(),
    }
}
