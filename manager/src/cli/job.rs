//! `ankole job …`: the process of a backup or a restore. Agents start it; people have no use for it.

use clap::Subcommand;

use crate::roles::job::JobArgs;

#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// Do what a file says
    Run(JobArgs),
}
