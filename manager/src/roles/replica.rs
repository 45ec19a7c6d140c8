//! `ankole replica serve`: the process of one replica.

use std::path::PathBuf;

use ankole_replica::listen::Address;
use ankole_replica::server::{Replica, serve};
use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

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

/// Runs until a signal ends it; what it holds is then closed in order.
pub fn run(args: ReplicaArgs) -> anyhow::Result<()> {
    super::prepare_to_serve();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let address: Address = args.listen.parse()?;
        let replica = Replica::open(&args.dir).await?;
        replica.check_identity(&args.volume, &args.replica.as_str().into())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        serve(replica.clone(), &address, stop).await?;
        replica.close().await.context("close the replica")
    })
}
