//! Engine, arbiter and three machines in this process, over real sockets and directories.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ankole_replica::admin::ReplicaMode;
use ankole_replica::engine::{Engine, SocketArbiter, serve_admin};
use ankole_replica::record::Record;
use ankole_replica::replication::{Config, End};
use ankole_replica::types::ReplicaId;
use anyhow::{Context, bail};

use crate::admin;
use crate::arbiter::Arbiter;
use crate::machine::{Machine, Site, VOLUME};
use crate::oracle::Clock;
use crate::recording::{Boot, Sabotage};

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// An engine waits this long for a member that is silent.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);

/// The replicas' names, in the order of their machines.
pub const REPLICAS: [&str; 3] = ["r1", "r2", "r3"];

pub struct Cluster {
    pub sites: Vec<Site>,
    pub machines: Vec<Option<Machine>>,
    pub arbiter: Arbiter,
    pub clock: Clock,
    folder: PathBuf,
    sabotage: Sabotage,
}

impl Cluster {
    /// Boots the machines over the directories `r1`, … of `folder`. Within a `LocalSet`.
    pub async fn boot(
        folder: &Path,
        boots: &[Boot],
        record: Record,
        clock: Clock,
        sabotage: Sabotage,
    ) -> anyhow::Result<Self> {
        let site = |name: &&str| Site {
            replica: ReplicaId::from(*name),
            directory: folder.join(name),
            socket: folder.join(format!("{name}.sock")),
        };
        let sites: Vec<Site> = REPLICAS.iter().map(site).collect();
        let arbiter = Arbiter::start(&folder.join("arbiter.sock"), record, clock.clone())?;
        let mut machines = Vec::new();
        for (site, boot) in sites.iter().zip(boots) {
            machines.push(Some(Machine::boot(site, boot.clone(), &clock, sabotage).await?));
        }
        Ok(Self { sites, machines, arbiter, clock, folder: folder.to_owned(), sabotage })
    }

    pub async fn boot_again(&mut self, index: usize, boot: Boot) -> anyhow::Result<()> {
        let machine = Machine::boot(&self.sites[index], boot, &self.clock, self.sabotage).await?;
        self.machines[index] = Some(machine);
        Ok(())
    }

    /// Whether a member is left that runs when this one is gone.
    pub fn can_lose(&self, index: usize) -> bool {
        let members = self.arbiter.record().in_sync;
        let is_member = |site: &Site| members.iter().any(|member| member.replica == site.replica);
        let others = self.sites.iter().zip(&self.machines).enumerate();
        others
            .filter(|(other, _)| *other != index)
            .any(|(_, (site, machine))| machine.is_some() && is_member(site))
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }

    /// An engine with a new grant, open.
    pub async fn start_engine(&self) -> anyhow::Result<Engine> {
        let instance = self.arbiter.grant();
        let replicas = self.sites.iter().map(|site| site.replica.clone()).collect();
        let config =
            Config { open_timeout: OPEN_TIMEOUT, ..Config::new(VOLUME, instance, replicas) };
        let addresses: BTreeMap<_, _> =
            self.sites.iter().map(|site| (site.replica.clone(), site.address())).collect();
        let arbiter = Box::new(SocketArbiter::new(self.folder.join("arbiter.sock")));
        let engine = Engine::start(config, addresses, arbiter);
        let (serving, socket) = (engine.clone(), self.admin_socket());
        tokio::task::spawn_local(async move { serve_admin(serving, &socket).await });
        match tokio::time::timeout(PATIENCE, engine.opened()).await {
            Ok(Ok(())) => Ok(engine),
            Ok(Err(end)) => bail!("the volume can't be opened: {end:?}"),
            Err(_) => bail!("the volume isn't open after {PATIENCE:?}: {:?}", engine.status()),
        }
    }
}

/// Returns when all replicas are in sync and nothing is left to compare.
pub async fn until_healthy(admin_socket: &Path) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let status = admin::status(admin_socket).await?;
        let in_sync = |mode| mode == ReplicaMode::ReadWrite;
        let all = status.replicas.iter().all(|replica| in_sync(replica.mode));
        if all && status.unsettled_bytes == 0 {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            bail!("the replicas aren't equal after {PATIENCE:?}: {status:?}");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Detaches the volume in order.
pub async fn detach(engine: &Engine) -> anyhow::Result<()> {
    engine.detach();
    let end = tokio::time::timeout(PATIENCE, engine.ended()).await;
    match end.context("the engine doesn't detach")? {
        End::Detached => Ok(()),
        end => bail!("the engine ended otherwise than by the detach: {end:?}"),
    }
}
