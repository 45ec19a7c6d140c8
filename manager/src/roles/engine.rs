//! `ankole engine run`: the process of one attached volume.

use std::path::PathBuf;

use ankole_replica::admin::ReplicaAddress;

#[derive(Debug, clap::Args)]
pub struct EngineArgs {
    #[arg(long)]
    pub volume: String,
    #[arg(long)]
    pub node: String,
    /// The instance that the arbiter's record was granted to
    #[arg(long)]
    pub instance: String,
    /// The arbiter's socket
    #[arg(long, value_name = "PATH")]
    pub arbiter: PathBuf,
    /// Where this engine shall listen for admin requests
    #[arg(long, value_name = "PATH")]
    pub admin: PathBuf,
    /// ID=unix:PATH, ID=tcp:127.0.0.1:PORT, or ID=dir:PATH for one inside this process; repeatable
    #[arg(long = "replica", value_name = "ID=ADDRESS", required = true, value_parser = replica)]
    pub replicas: Vec<ReplicaAddress>,
    #[arg(long, value_enum, default_value_t = EngineFrontend::Socket)]
    pub frontend: EngineFrontend,
    /// The unix socket that serves NBD, whatever the frontend is
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Number of the ublk device
    #[arg(long)]
    pub ublk_id: Option<u32>,
    /// Take over from an engine that died: clients of its frontend may be waiting
    #[arg(long)]
    pub recover: bool,
    #[arg(long)]
    pub read_only: bool,
    /// Serve internal jobs only
    #[arg(long)]
    pub no_frontend: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineFrontend {
    Socket,
    Ublk,
}

fn replica(text: &str) -> Result<ReplicaAddress, String> {
    match text.split_once('=') {
        Some((replica, address)) if !replica.is_empty() && !address.is_empty() => {
            Ok(ReplicaAddress { replica: replica.into(), address: address.into() })
        }
        _ => Err("write it as ID=ADDRESS, for example r1=unix:/run/v1.r1".into()),
    }
}

pub fn run(_args: EngineArgs) -> anyhow::Result<()> {
    anyhow::bail!("the engine is not wired yet")
}
