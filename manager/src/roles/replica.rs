//! `ankole replica serve`: the process of one replica.

use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct ReplicaArgs {
    /// The replica's directory
    #[arg(long)]
    pub dir: PathBuf,
    #[arg(long)]
    pub volume: String,
    #[arg(long, value_name = "ID")]
    pub replica: String,
    /// unix:PATH or tcp:127.0.0.1:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub listen: String,
}

pub fn run(_args: ReplicaArgs) -> anyhow::Result<()> {
    anyhow::bail!("the replica is not wired yet")
}
