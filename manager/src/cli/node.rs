//! `ankole node …`

use clap::Subcommand;

use super::output::{Format, column};
use super::{Outcome, Session};
use crate::api::node::Capability;

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// What the running node can show volumes by, and what it has lost since it started
    Show,
}

pub(super) fn run(session: &Session<'_>, command: NodeCommand) -> Outcome {
    let NodeCommand::Show = command;
    let node = session.client()?.node()?;
    match session.output.format {
        Format::Json => session.output.json(&node),
        Format::Name => session.output.line(&node.name),
        Format::Table | Format::Wide => session.output.list(
            &node.frontends,
            |capability: &Capability| capability.finding.name.clone(),
            &[
                column("FRONTEND", |capability: &Capability| capability.finding.name.clone()),
                column("FOUND", found),
                column("DETAIL", |capability| capability.finding.detail.clone()),
                column("NEXT", |capability| capability.finding.next.clone().unwrap_or_default()),
            ],
        ),
    }
}

fn found(capability: &Capability) -> String {
    match capability.lost {
        true => "lost".into(),
        false => format!("{:?}", capability.finding.found).to_lowercase(),
    }
}
