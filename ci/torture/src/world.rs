//! The volume's processes: replicas, engines, the sockets between them, and who starts them again.
//!
//! Plays the agent: what died is started again after a while, an engine only after the one before
//! it has ended and with a grant of its own (rule 1), except where a race is wanted. What may never
//! happen: that a process ends without having been killed.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ankole_replica::admin::{EngineStatus, ReplicaMode};
use ankole_replica::record::{InstanceId, Member};
use ankole_replica::server;
use ankole_replica::types::{Incarnation, ReplicaId};
use anyhow::{Context, bail, ensure};
use tokio::sync::watch;

use crate::admin;
use crate::arbiter::{Arbiter, Mood};
use crate::disks::ReplicaDisk;
use crate::oracle::{EngineNumber, Oracle};
use crate::process::Process;
use crate::proxy::{Proxy, Weather};

pub const VOLUME: &str = "torture";
const OTHER_VOLUME: &str = "other";
/// Exit status of an engine: another one has the volume.
const FENCED: i32 = 10;
/// Exit status of an engine: a successor must open the volume anew.
const REOPEN: i32 = 11;
/// The processes are looked at this often.
pub const TICK: Duration = Duration::from_millis(10);

pub struct Setup {
    pub binary: PathBuf,
    pub dir: PathBuf,
    pub replicas: usize,
    pub size_bytes: u64,
    /// Each replica on a file system of its own.
    pub images: bool,
    /// A replica that is silent for so long is given up by the engine.
    pub replica_timeout: Duration,
}

pub struct World {
    binary: PathBuf,
    replica_timeout: Duration,
    pub dir: PathBuf,
    pub oracle: Rc<RefCell<Oracle>>,
    pub arbiter: Rc<Arbiter>,
    pub arbiter_weather: watch::Sender<Weather>,
    pub replicas: Vec<ReplicaHost>,
    pub decoy: Decoy,
    pub engine: EngineHost,
    /// One that was succeeded while it was stopped.
    pub older: Option<Running>,
    engines: EngineNumber,
    route: watch::Sender<Route>,
    began: Instant,
}

/// Where the volume is served.
#[derive(Clone, Debug, Default)]
pub struct Route {
    pub engine: EngineNumber,
    pub socket: PathBuf,
}

pub struct ReplicaHost {
    pub id: ReplicaId,
    pub disk: ReplicaDisk,
    pub process: Option<Process>,
    /// Not started before.
    pub down_until: Instant,
    pub weather: watch::Sender<Weather>,
    socket: PathBuf,
    log: PathBuf,
}

/// A replica of another volume, with a name that exists in this one.
pub struct Decoy {
    pub socket: PathBuf,
    _process: Process,
}

pub struct EngineHost {
    pub running: Option<Running>,
    /// Not started before.
    pub down_until: Instant,
    /// The next one follows a clean detach: no client waits.
    is_detached: bool,
}

/// An engine's process.
pub struct Running {
    pub number: EngineNumber,
    pub process: Process,
    pub admin: PathBuf,
    _proxies: Vec<Proxy>,
}

impl World {
    /// Formats the replicas; starts nothing yet.
    pub async fn new(setup: Setup, oracle: Rc<RefCell<Oracle>>) -> anyhow::Result<Self> {
        let now = Instant::now();
        let Setup { binary, dir, .. } = setup;
        fs::create_dir(dir.join("run")).context("make the folder of sockets")?;
        let mut replicas = Vec::new();
        let mut in_sync = Vec::new();
        for number in 1..=setup.replicas {
            let name = format!("r{number}");
            let id = ReplicaId::from(name.as_str());
            let root = dir.join(&name);
            let disk =
                if setup.images { ReplicaDisk::image(&root)? } else { ReplicaDisk::folder(&root)? };
            let incarnation = format(&disk.replica(), VOLUME, &id, setup.size_bytes).await?;
            in_sync.push(Member { replica: id.clone(), incarnation });
            replicas.push(ReplicaHost {
                id,
                disk,
                process: None,
                down_until: now,
                weather: watch::Sender::default(),
                socket: dir.join("run").join(&name),
                log: dir.join(format!("{name}.log")),
            });
        }
        let decoy = Decoy::start(&binary, &dir, setup.size_bytes).await?;
        let arbiter = Arbiter::new(in_sync, oracle.clone());
        arbiter.serve(&dir.join("run/arbiter")).context("serve the arbiter")?;
        Ok(Self {
            binary,
            replica_timeout: setup.replica_timeout,
            dir,
            oracle,
            arbiter,
            arbiter_weather: watch::Sender::default(),
            replicas,
            decoy,
            engine: EngineHost { running: None, down_until: now, is_detached: true },
            older: None,
            engines: 0,
            route: watch::Sender::default(),
            began: now,
        })
    }

    pub fn route(&self) -> watch::Receiver<Route> {
        self.route.subscribe()
    }

    /// Tells of something that was done, with the time, and keeps it with the history.
    pub fn note(&self, text: impl AsRef<str>) {
        let at = self.began.elapsed().as_secs_f64();
        self.oracle.borrow_mut().note(format!("{at:.3} s: {}", text.as_ref()));
    }

    /// Sees who has ended, and starts who should run.
    pub fn tick(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        for index in 0..self.replicas.len() {
            let host = &mut self.replicas[index];
            if let Some(process) = &mut host.process
                && let Some(ended) = process.poll()?
            {
                ensure!(
                    ended.was_killed,
                    "replica {} ended on its own: {}; see {}",
                    host.id,
                    ended.status,
                    host.log.display()
                );
                host.process = None;
            }
            if host.process.is_none() && host.down_until <= now {
                self.start_replica(index)?;
            }
        }
        self.tick_older()?;
        if let Some(running) = &mut self.engine.running
            && let Some(ended) = running.process.poll()?
        {
            let number = running.number;
            let reopens = ended.status.code() == Some(REOPEN);
            ensure!(
                ended.was_killed || reopens,
                "engine {number} ended on its own: {}; see engine.log",
                ended.status
            );
            if reopens {
                self.note(format!("engine {number} wants the volume to be opened anew"));
            }
            self.engine.running = None;
        }
        if self.engine.running.is_none() && self.engine.down_until <= now {
            self.start_engine()?;
        }
        Ok(())
    }

    fn start_replica(&mut self, index: usize) -> anyhow::Result<()> {
        let host = &mut self.replicas[index];
        let dir = host.disk.replica();
        let process = serve(&self.binary, &dir, VOLUME, &host.id, &host.socket, &host.log)?;
        host.process = Some(process);
        Ok(())
    }

    /// Rule 1: nobody else runs; granted, then started.
    fn start_engine(&mut self) -> anyhow::Result<()> {
        self.engines += 1;
        let number = self.engines;
        let instance = format!("e{number}");
        self.arbiter.grant(InstanceId(instance.clone()));
        let run = self.dir.join("run");
        let place = |what: &str| run.join(format!("{instance}.{what}"));
        let mut proxies = Vec::new();
        let arbiter = place("arbiter");
        let weather = self.arbiter_weather.subscribe();
        proxies.push(Proxy::start(&arbiter, &run.join("arbiter"), weather)?);
        let route = Route { engine: number, socket: place("nbd") };
        let mut arguments: Vec<OsString> =
            ["engine", "run", "--volume", VOLUME, "--node", "here", "--instance", &instance]
                .map(OsString::from)
                .into();
        for (option, path) in
            [("--arbiter", &arbiter), ("--admin", &place("admin")), ("--socket", &route.socket)]
        {
            arguments.extend([option.into(), path.clone().into()]);
        }
        for option in ["--replica-timeout-ms", "--open-timeout-ms"] {
            let time_ms = self.replica_timeout.as_millis().to_string();
            arguments.extend([option.into(), time_ms.into()]);
        }
        for host in &self.replicas {
            let at = place(&host.id.to_string());
            proxies.push(Proxy::start(&at, &host.socket, host.weather.subscribe())?);
            let address = format!("{}=unix:{}", host.id, at.display());
            arguments.extend(["--replica".into(), address.into()]);
        }
        if !self.engine.is_detached {
            arguments.push("--recover".into());
        }
        let process = Process::start(&self.binary, arguments, &self.dir.join("engine.log"))?;
        let admin = place("admin");
        self.note(format!("engine {number} starts"));
        self.route.send_replace(route);
        self.engine.is_detached = false;
        self.engine.running = Some(Running { number, process, admin, _proxies: proxies });
        Ok(())
    }

    fn tick_older(&mut self) -> anyhow::Result<()> {
        if let Some(older) = &mut self.older
            && let Some(ended) = older.process.poll()?
        {
            let number = older.number;
            // When all replicas leave it in the middle of a change of the chain, it ends before it
            // has heard why: in silence too.
            ensure!(
                matches!(ended.status.code(), Some(FENCED | REOPEN)),
                "engine {number} had a successor and should end in silence, not with {}",
                ended.status
            );
            self.older = None;
            self.note(format!("engine {number} ends: it has a successor"));
        }
        Ok(())
    }

    /// Ends what makes trouble; what is dead is started by the next tick.
    pub fn heal(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        for host in &mut self.replicas {
            host.disk.make_room()?;
            host.weather.send_replace(Weather::Fine);
            host.down_until = now;
            host.process.iter_mut().for_each(Process::go_on);
        }
        self.arbiter.mood.set(Mood::Good);
        self.arbiter_weather.send_replace(Weather::Fine);
        self.engine.down_until = now;
        let engines = self.engine.running.iter_mut().chain(&mut self.older);
        engines.for_each(|running| running.process.go_on());
        Ok(())
    }

    /// What keeps the volume from being whole, in words; nothing when all replicas are in sync and
    /// nothing is left to settle.
    pub async fn missing(&self) -> Option<String> {
        if let Some(older) = &self.older {
            return Some(format!("engine {} still runs, though it has a successor", older.number));
        }
        let Some(running) = &self.engine.running else { return Some("no engine runs".into()) };
        let asked = tokio::time::timeout(Duration::from_secs(2), admin::status(&running.admin));
        match asked.await {
            Ok(Some(status)) => missing_in(&status),
            Ok(None) => Some("the engine's admin socket doesn't answer".into()),
            Err(_) => Some("the engine takes no admin request".into()),
        }
    }

    /// Kills everything, as when the machine's processes are all killed, and waits for their ends.
    pub fn kill_all(&mut self) -> anyhow::Result<()> {
        let later = Instant::now() + Duration::from_secs(3600);
        self.engine.down_until = later;
        for running in self.engine.running.take().into_iter().chain(self.older.take()) {
            running.process.end()?;
        }
        for host in &mut self.replicas {
            host.down_until = later;
            host.process.take().map(Process::end).transpose()?;
        }
        Ok(())
    }

    /// Ends everything in order: the engine detaches, the replicas close.
    pub async fn detach_all(&mut self, patience: Duration) -> anyhow::Result<()> {
        let later = Instant::now() + Duration::from_secs(3600);
        self.engine.down_until = later;
        if let Some(mut running) = self.engine.running.take() {
            running.process.terminate();
            until_ended(&mut running.process, patience).await.context("detach the engine")?;
            self.engine.is_detached = true;
        }
        for host in &mut self.replicas {
            host.down_until = later;
            if let Some(mut process) = host.process.take() {
                process.terminate();
                let ended = until_ended(&mut process, patience).await;
                ended.with_context(|| format!("close replica {}", host.id))?;
            }
        }
        Ok(())
    }

    /// After [`World::kill_all`] or [`World::detach_all`].
    pub fn start_again(&mut self) {
        let now = Instant::now();
        self.engine.down_until = now;
        self.replicas.iter_mut().for_each(|host| host.down_until = now);
    }

    /// The replica's disk was replaced: an empty directory, formatted anew, under the old name.
    pub async fn replace_disk(&mut self, index: usize, size_bytes: u64) -> anyhow::Result<()> {
        let host = &mut self.replicas[index];
        host.process.take().map(Process::end).transpose()?;
        let dir = host.disk.replica();
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        format(&dir, VOLUME, &host.id, size_bytes).await.map(drop)
    }

    pub fn replica_dir(&self, index: usize) -> PathBuf {
        self.replicas[index].disk.replica()
    }

    pub fn replica_socket(&self, index: usize) -> &Path {
        &self.replicas[index].socket
    }

    /// Lines of the logs that no process may write: that it panicked; or, the replica of another
    /// volume, that it welcomed an engine of this one.
    pub fn said_what_may_not_be(&self) -> Vec<String> {
        let logs = self.replicas.iter().map(|host| (host.log.clone(), "panicked at"));
        let others = [("engine.log", "panicked at"), ("decoy.log", "engine welcomed")];
        let logs = logs.chain(others.map(|(log, word)| (self.dir.join(log), word)));
        logs.flat_map(|(log, word)| {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines = text.lines().filter(|line| line.contains(word));
            lines.map(|line| format!("{}: {line}", log.display())).collect::<Vec<_>>()
        })
        .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The processes first: what they hold can't be unmounted.
        self.engine.running = None;
        self.older = None;
        for host in &mut self.replicas {
            host.process = None;
        }
    }
}

impl Decoy {
    async fn start(binary: &Path, dir: &Path, size_bytes: u64) -> anyhow::Result<Self> {
        let (directory, socket) = (dir.join("decoy"), dir.join("run/decoy"));
        let (id, log) = (ReplicaId::from("r1"), dir.join("decoy.log"));
        format(&directory, OTHER_VOLUME, &id, size_bytes).await?;
        let process = serve(binary, &directory, OTHER_VOLUME, &id, &socket, &log)?;
        Ok(Self { socket, _process: process })
    }
}

async fn format(
    dir: &Path,
    volume: &str,
    id: &ReplicaId,
    size_bytes: u64,
) -> anyhow::Result<Incarnation> {
    let formatted = server::format(dir, volume, id, size_bytes).await;
    formatted.with_context(|| format!("format {}", dir.display()))
}

fn serve(
    binary: &Path,
    dir: &Path,
    volume: &str,
    id: &ReplicaId,
    socket: &Path,
    log: &Path,
) -> anyhow::Result<Process> {
    let arguments: [OsString; 10] = [
        "replica".into(),
        "serve".into(),
        "--dir".into(),
        dir.into(),
        "--volume".into(),
        volume.into(),
        "--replica".into(),
        id.to_string().into(),
        "--listen".into(),
        format!("unix:{}", socket.display()).into(),
    ];
    let process = Process::start(binary, arguments, log);
    process.with_context(|| format!("start {}", binary.display()))
}

async fn until_ended(process: &mut Process, patience: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(ended) = process.poll()? {
            ensure!(ended.status.success(), "it ended with {}", ended.status);
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("it still runs {} s after SIGTERM", patience.as_secs());
        }
        tokio::time::sleep(TICK).await;
    }
}

fn missing_in(status: &EngineStatus) -> Option<String> {
    let mut missing = status.waiting.clone();
    for replica in &status.replicas {
        if replica.mode != ReplicaMode::ReadWrite {
            let reason = replica.reason.as_deref().unwrap_or("no reason given");
            let progress = replica.rebuild.map_or_else(String::new, |rebuild| {
                format!(", rebuilt {} of {} bytes", rebuild.done_bytes, rebuild.total_bytes)
            });
            missing.push(format!("{} is {:?}: {reason}{progress}", replica.replica, replica.mode));
        }
    }
    if status.unsettled_bytes > 0 {
        missing.push(format!("{} bytes are unsettled", status.unsettled_bytes));
    }
    if status.endpoint.is_none() {
        missing.push("the volume isn't served yet".into());
    }
    (!missing.is_empty()).then(|| missing.join("; "))
}
