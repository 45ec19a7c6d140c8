//! `ankole engine run`: the process of one attached volume.

mod frontend;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ankole_blockdev::device::Driver;
use ankole_blockdev::namespace;
use ankole_replica::admin::ReplicaAddress;
use ankole_replica::engine::{Engine, SocketArbiter, serve_admin};
use ankole_replica::listen::Address;
use ankole_replica::record::InstanceId;
use ankole_replica::replication::{Config, End, SLOTS_MAX};
use ankole_replica::types::ReplicaId;
use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tracing::{error, info, warn};

/// Exit status: another engine has the volume.
const FENCED: i32 = 10;
/// Exit status: a successor must open the volume anew.
const REOPEN: i32 = 11;

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
    /// ID=unix:PATH or ID=tcp:127.0.0.1:PORT: where a replica inside this process is served to
    /// backups; repeatable
    #[arg(long = "serve-local", value_name = "ID=ADDRESS", value_parser = replica)]
    pub serve_local: Vec<ReplicaAddress>,
    #[arg(long, value_enum, default_value_t = EngineFrontend::Socket)]
    pub frontend: EngineFrontend,
    /// The unix socket that serves NBD, whatever the frontend is
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// What the block device is marked with in the kernel; the volume's name without it
    #[arg(long, value_name = "TEXT")]
    pub identity: Option<String>,
    /// Number of the block device; for tgt the port of its target. Without it the kernel chooses
    #[arg(long, value_name = "N")]
    pub device: Option<u32>,
    /// Take over from an engine that died: clients of its frontend may be waiting
    #[arg(long)]
    pub recover: bool,
    #[arg(long)]
    pub read_only: bool,
    /// Bytes per second that rebuilds may move, all of them together; without it as many as the
    /// volume's clients leave them
    #[arg(long, value_name = "BYTES")]
    pub rebuild_limit: Option<u64>,
    /// Serve internal jobs only
    #[arg(long)]
    pub no_frontend: bool,
    /// For tests: a replica that owes an answer for so long is given up
    #[arg(long, hide = true, value_name = "MS")]
    pub replica_timeout_ms: Option<u64>,
    /// For tests: how long the open waits for a silent member
    #[arg(long, hide = true, value_name = "MS")]
    pub open_timeout_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineFrontend {
    Socket,
    Ublk,
    Nbd,
    Tgt,
}

impl EngineFrontend {
    /// Whose block device shows the volume.
    fn driver(self) -> Option<Driver> {
        match self {
            Self::Socket => None,
            Self::Ublk => Some(Driver::Ublk),
            Self::Nbd => Some(Driver::Nbd),
            Self::Tgt => Some(Driver::Tgt),
        }
    }
}

fn replica(text: &str) -> Result<ReplicaAddress, String> {
    match text.split_once('=') {
        Some((replica, address)) if !replica.is_empty() && !address.is_empty() => {
            Ok(ReplicaAddress { replica: replica.into(), address: address.into() })
        }
        _ => Err("write it as ID=ADDRESS, for example r1=unix:/run/v1.r1".into()),
    }
}

/// Runs until the engine ends: detached, or because another engine has the volume.
pub fn run(args: EngineArgs) -> anyhow::Result<()> {
    super::prepare_to_serve();
    if args.frontend.driver().is_some()
        && let Err(error) = namespace::enter_own()
    {
        warn!(volume = args.volume, %error, "no mount namespace of its own: when the last process \
            of this one ends, file systems that are still mounted there may hang");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(args))
}

async fn serve(args: EngineArgs) -> anyhow::Result<()> {
    let mut addresses = BTreeMap::new();
    for ReplicaAddress { replica, address } in &args.replicas {
        let parsed: Address = address.parse().with_context(|| format!("replica {replica}"))?;
        addresses.insert(replica.clone(), parsed);
    }
    anyhow::ensure!(addresses.len() <= SLOTS_MAX, "at most {SLOTS_MAX} replicas are possible");
    let replicas: Vec<ReplicaId> = addresses.keys().cloned().collect();
    let local = local_replicas(&addresses, &args.serve_local)?;
    let mut config = Config::new(&args.volume, InstanceId(args.instance.clone()), replicas);
    config.recover = args.recover;
    config.rebuild_bytes_per_second = args.rebuild_limit;
    let for_tests = [
        (args.replica_timeout_ms, &mut config.replica_timeout),
        (args.open_timeout_ms, &mut config.open_timeout),
    ];
    for (wanted_ms, time) in for_tests {
        *time = wanted_ms.map_or(*time, Duration::from_millis);
    }
    let arbiter = Box::new(SocketArbiter::new(&args.arbiter));
    let engine = Engine::start(config, addresses, arbiter);
    tokio::task::spawn_local(detach_on_signal(engine.clone()));
    let (admin, admin_socket) = (engine.clone(), args.admin.clone());
    tokio::task::spawn_local(async move {
        if let Err(error) = serve_admin(admin, &admin_socket).await {
            error!(%error, socket = %admin_socket.display(), "the admin socket isn't served");
        }
    });

    if engine.opened().await.is_ok() {
        let serving = local.into_iter().map(|(directory, address)| {
            tokio::task::spawn_local(serve_local(engine.clone(), directory, address))
        });
        let serving: Vec<_> = serving.collect();
        frontend::serve(&engine, &args).await?;
        for task in serving {
            let _ended = task.await;
        }
    }
    match engine.ended().await {
        End::Detached => {
            engine.close().await.context("close the replicas of this process")?;
            // Whoever asked hears that it is done before the socket goes.
            tokio::time::sleep(Duration::from_millis(20)).await;
            info!(volume = args.volume, "detached");
            Ok(())
        }
        // Nothing is answered any more: not by the frontend, not by what is in flight.
        End::Fenced(reason) => {
            error!(volume = args.volume, reason, "fenced");
            std::process::exit(FENCED);
        }
        End::Reopen(reason) => {
            warn!(volume = args.volume, reason, "the volume has to be opened anew");
            std::process::exit(REOPEN);
        }
    }
}

/// Directories of replicas inside this process, and where each is served to readers.
fn local_replicas(
    addresses: &BTreeMap<ReplicaId, Address>,
    served: &[ReplicaAddress],
) -> anyhow::Result<Vec<(PathBuf, Address)>> {
    let find = |local: &ReplicaAddress| match addresses.get(&local.replica) {
        Some(Address::Directory(directory)) => {
            let address = local.address.parse();
            Ok((directory.clone(), address.with_context(|| format!("replica {}", local.replica))?))
        }
        _ => anyhow::bail!("replica {} isn't inside this process", local.replica),
    };
    served.iter().map(find).collect()
}

/// The volume can do without: only backups need it.
async fn serve_local(engine: Engine, directory: PathBuf, address: Address) {
    if let Err(error) = engine.serve_local(&directory, &address).await {
        error!(%error, %address, "the replica in this process can't be read by backups");
    }
}

async fn detach_on_signal(engine: Engine) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return warn!("signals can't be caught: a signal ends the engine without a detach");
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        match engine.close_frontend().await {
            Ok(()) => return engine.detach(),
            Err(reason) => warn!(reason, "can't detach; unmount it first"),
        }
    }
}
