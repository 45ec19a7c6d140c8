//! `ankole target …`

use clap::Subcommand;

use super::output::column;
use super::{Done, Outcome, Session};
use crate::api::Name;
use crate::api::target::BackupTarget;

#[derive(Debug, Subcommand)]
pub(super) enum TargetCommand {
    /// Give a place for backups a name; `default` is used when none is named
    Add {
        name: Name,
        /// file:///PATH
        url: String,
    },
    /// List
    Ls,
    /// Forget the name; the backups stay
    Rm { name: Name },
}

pub(super) fn run(session: &Session<'_>, command: TargetCommand) -> Outcome {
    let client = session.client()?;
    match command {
        TargetCommand::Add { name, url } => client.add_target(&name, &url).map(|_| Done::Well),
        TargetCommand::Rm { name } => client.remove_target(&name).map(|()| Done::Well),
        TargetCommand::Ls => session.output.list(
            &client.targets()?,
            |target: &BackupTarget| target.name.to_string(),
            &[
                column("NAME", |target: &BackupTarget| target.name.to_string()),
                column("URL", |target| target.url.clone()),
            ],
        ),
    }
}
