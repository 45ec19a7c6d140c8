//! The processes of this machine: started, watched, signalled, and found again.
//!
//! Owns the pid files. Promises that a process which it started is known to every later supervisor
//! on the same folder until it has ended, whatever happens to this one; that the end of a process
//! is told at once; and that a signal reaches the process that is meant or none (pidfd). What may
//! never happen: two processes of one name at a time. Where it can't be told whether one lives,
//! nothing of that name is started, and the file and the pid are named.
//!
//! ```text
//! command line says so, or pid file and pid, start time, boot are right ─▶ adopted
//! another boot, or no such process                                      ─▶ the file goes
//! neither can be told                                                   ─▶ doubt: the file stays
//! ```

mod ends;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ankole_api::Name;
use ankole_plan::node::facts::Doubt;
use ankole_replica::types::ReplicaId;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use self::ends::Ends;
use super::fate::{self, Fate, name_of, pidfd_of};
use super::living::{self, Found};
use super::logs;
use super::pidfile::{self, Header};
use super::spawn::spawn;

const EXTENSION: &str = "process";
/// A fork that was seen without its child's line: it got no processor yet, or never happened.
const FORK_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessName {
    pub volume: Name,
    pub part: Part,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Part {
    Engine,
    Replica(ReplicaId),
    Backup(Name),
    Restore(Name),
}

impl Part {
    const ENGINE: &'static str = "engine";
    const BACKUP: &'static str = "backup";
    const RESTORE: &'static str = "restore";

    /// As it is written; None: nothing is.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.split_once('.') {
            None if text == Self::ENGINE => Some(Self::Engine),
            None => (!text.is_empty()).then(|| Self::Replica(text.into())),
            Some((Self::BACKUP, name)) => name.parse().ok().map(Self::Backup),
            Some((Self::RESTORE, name)) => name.parse().ok().map(Self::Restore),
            Some(_) => None,
        }
    }

    /// Work on a volume, which can be done again.
    pub fn is_job(&self) -> bool {
        matches!(self, Self::Backup(_) | Self::Restore(_))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine => f.write_str(Self::ENGINE),
            Self::Replica(replica) => write!(f, "{replica}"),
            Self::Backup(name) => write!(f, "{}.{name}", Self::BACKUP),
            Self::Restore(name) => write!(f, "{}.{name}", Self::RESTORE),
        }
    }
}

impl ProcessName {
    pub fn engine(volume: &Name) -> Self {
        Self { volume: volume.clone(), part: Part::Engine }
    }
    pub fn replica(volume: &Name, replica: &ReplicaId) -> Self {
        Self { volume: volume.clone(), part: Part::Replica(replica.clone()) }
    }
}

impl fmt::Display for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.volume, self.part)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessSpec {
    pub name: ProcessName,
    pub program: PathBuf,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub log: PathBuf,
    /// What a successor of this manager must know about it: the engine's instance, the replica's
    /// address.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// One that runs.
#[derive(Clone, Debug)]
pub struct Process {
    pub spec: ProcessSpec,
    pub pid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub name: ProcessName,
    pub pid: u32,
    /// As the kernel put it; unknown for a process that was adopted.
    pub how: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Kill,
}

#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("{name} runs already")]
    Running { name: ProcessName },
    #[error("{}; {}", .0.message, .0.next)]
    Doubt(Doubt),
    #[error("{step} of {name}")]
    Start { step: &'static str, name: ProcessName, source: io::Error },
    #[error("look for processes in {folder}")]
    Look { folder: PathBuf, source: io::Error },
}

pub trait Supervisor: Send + Sync {
    fn start(&self, spec: ProcessSpec) -> Result<u32, SupervisorError>;
    fn list(&self) -> Vec<Process>;
    /// That of this name, if it runs.
    fn find(&self, name: &ProcessName) -> Option<Process> {
        self.list().into_iter().find(|process| process.spec.name == *name)
    }
    /// Of the process of that name, if it runs.
    fn pid(&self, name: &ProcessName) -> Option<u32>;
    /// Why it can't be told whether a process of that name lives, and what to do.
    fn doubt(&self, name: &ProcessName) -> Option<Doubt>;
    /// To the process of that name, if there is one.
    fn signal(&self, name: &ProcessName, signal: Signal);
    /// Whether no process of that name is left, after at most `timeout`.
    fn wait(&self, name: &ProcessName, timeout: Duration) -> bool;
    /// Ends from now on.
    fn ended(&self) -> broadcast::Receiver<Ended>;
}

pub struct LocalSupervisor {
    run: PathBuf,
    boot_id: String,
    table: Arc<Table>,
    ends: Ends,
    /// Held from "is there one?" until it is in the table. Taken before the table's lock.
    starting: Mutex<()>,
    /// Names whose pid files tell nothing.
    doubtful: Mutex<BTreeSet<ProcessName>>,
}

struct Table {
    running: Mutex<BTreeMap<ProcessName, Entity>>,
    changed: Condvar,
    ended: broadcast::Sender<Ended>,
}

struct Entity {
    process: Process,
    pidfd: Arc<OwnedFd>,
}

impl LocalSupervisor {
    /// Adopts what earlier supervisors left running; `sockets` are the folders in which its
    /// processes listen. The caller holds the lock on the folder.
    pub fn open(run: &Path, sockets: &[&Path]) -> Result<Self, SupervisorError> {
        let look = |source| SupervisorError::Look { folder: run.into(), source };
        let boot_id = pidfile::boot_id().map_err(look)?;
        let table = Arc::new(Table {
            running: Mutex::default(),
            changed: Condvar::new(),
            ended: broadcast::channel(1024).0,
        });
        let (starting, doubtful) = (Mutex::default(), Mutex::default());
        let ends = Ends::start().map_err(look)?;
        let supervisor = Self { run: run.into(), boot_id, table, ends, starting, doubtful };
        for found in living::find(sockets).map_err(look)? {
            supervisor.adopt_found(found).map_err(look)?;
        }
        for entry in fs::read_dir(run).map_err(look)? {
            let path = entry.map_err(look)?.path();
            if let Some(name) = name_of(&path)
                && !supervisor.table.lock().contains_key(&name)
            {
                supervisor.adopt(name, &path).map_err(look)?;
            }
        }
        Ok(supervisor)
    }

    /// A process that says itself what it is. Its pid file adds the labels, and is mended.
    fn adopt_found(&self, found: Found) -> io::Result<()> {
        let Found { identity, words, spec } = found;
        if let Some(running) = self.table.lock().get(&spec.name) {
            let (name, pid, other) = (&spec.name, identity.pid, running.process.pid);
            tracing::error!(process = %name, pid, other, "two processes of one name live");
            return Ok(());
        }
        let Some(pidfd) = pidfd_of(identity)? else { return Ok(()) };
        let path = self.pid_file(&spec.name);
        let known = pidfile::read(&path).ok().and_then(|file| {
            let header = file.header.ok().filter(|header| header.boot_id == self.boot_id)?;
            let started = [header.spec.program.display().to_string()];
            let started = [&started[..], &header.spec.args].concat();
            let is_it = file.child == pidfile::Child::Told(identity) && words.ends_with(&started);
            is_it.then_some(header.spec)
        });
        let is_known = known.is_some();
        let spec = known.unwrap_or(spec);
        if !is_known {
            let pid = identity.pid;
            tracing::warn!(process = %spec.name, pid, path = %path.display(), "its pid file is \
                missing or can't be used: it was found by its command line");
            let header = Header::new(&self.boot_id, &spec);
            if let Err(error) = pidfile::write_whole(&path, &header, identity) {
                tracing::warn!(path = %path.display(), %error, "write the pid file anew");
            }
        }
        self.adopted(Process { spec, pid: identity.pid }, pidfd);
        Ok(())
    }

    /// By its pid file alone.
    fn adopt(&self, name: ProcessName, path: &Path) -> io::Result<()> {
        let deadline = Instant::now() + FORK_PATIENCE;
        loop {
            match fate::judge(&name, path, &self.boot_id)? {
                Fate::Lives(process, pidfd) => self.adopted(process, pidfd),
                Fate::Ended => drop(fs::remove_file(path)),
                Fate::Unborn if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                    continue;
                }
                Fate::Unborn => drop(fs::remove_file(path)),
                Fate::Unknown(doubt) => {
                    tracing::error!(process = %name, next = doubt.next, "{}", doubt.message);
                    self.doubtful().insert(name);
                }
            }
            return Ok(());
        }
    }

    fn adopted(&self, process: Process, pidfd: OwnedFd) {
        tracing::info!(process = %process.spec.name, pid = process.pid, "adopted");
        let pidfd = Arc::new(pidfd);
        self.watch(process, pidfd, || None);
    }

    fn doubtful(&self) -> MutexGuard<'_, BTreeSet<ProcessName>> {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pid_file(&self, name: &ProcessName) -> PathBuf {
        self.run.join(format!("{name}.{EXTENSION}"))
    }

    fn launch(&self, spec: &ProcessSpec) -> Result<(Child, OwnedFd), SupervisorError> {
        let failed = |step| {
            let name = spec.name.clone();
            move |source| SupervisorError::Start { step, name, source }
        };
        let log = logs::open(&spec.log).map_err(failed("open the log"))?;
        let header = Header::new(&self.boot_id, spec);
        let path = self.pid_file(&spec.name);
        let pid_file =
            pidfile::write_header(&path, &header).map_err(failed("write the pid file"))?;
        let mut child = spawn(spec, pid_file, log).map_err(|error| {
            let _ = fs::remove_file(&path);
            failed("start the process")(error)
        })?;
        // It can't be reaped before we have this, so the pid is still its own.
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok((child, pidfd)),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let _ = fs::remove_file(&path);
                Err(failed("watch the process")(error.into()))
            }
        }
    }

    /// Puts the process into the table until it ends; `how` is asked then.
    fn watch(
        &self,
        process: Process,
        pidfd: Arc<OwnedFd>,
        how: impl FnOnce() -> Option<String> + Send + 'static,
    ) {
        let name = process.spec.name.clone();
        let pid = process.pid;
        let entity = Entity { process, pidfd: Arc::clone(&pidfd) };
        self.table.lock().insert(name.clone(), entity);
        let table = Arc::clone(&self.table);
        let pid_file = self.pid_file(&name);
        let on_end = move || {
            let how = how();
            // The file goes while the name is still taken, so it can't be a successor's.
            let _ = fs::remove_file(pid_file);
            table.lock().remove(&name);
            table.changed.notify_all();
            tracing::info!(process = %name, pid, how = how.as_deref(), "ended");
            // Nobody may be listening.
            let _ = table.ended.send(Ended { name, pid, how });
        };
        self.ends.when_ended(pidfd, Box::new(on_end));
    }
}

impl Table {
    /// No code panics while it holds the lock, and the map is whole at every step.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ProcessName, Entity>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Supervisor for LocalSupervisor {
    fn start(&self, spec: ProcessSpec) -> Result<u32, SupervisorError> {
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(running) = self.table.lock().entry(spec.name.clone()) {
            return Err(SupervisorError::Running { name: running.key().clone() });
        }
        if let Some(doubt) = self.doubt(&spec.name) {
            return Err(SupervisorError::Doubt(doubt));
        }
        let (mut child, pidfd) = self.launch(&spec)?;
        let pid = child.id();
        tracing::info!(process = %spec.name, pid, "started");
        self.watch(Process { spec, pid }, Arc::new(pidfd), move || {
            child.wait().ok().map(|status| status.to_string())
        });
        Ok(pid)
    }

    fn list(&self) -> Vec<Process> {
        self.table.lock().values().map(|entity| entity.process.clone()).collect()
    }

    fn find(&self, name: &ProcessName) -> Option<Process> {
        self.table.lock().get(name).map(|entity| entity.process.clone())
    }

    fn pid(&self, name: &ProcessName) -> Option<u32> {
        self.table.lock().get(name).map(|entity| entity.process.pid)
    }

    /// Looks again: the process may have ended since, or somebody have removed the file.
    fn doubt(&self, name: &ProcessName) -> Option<Doubt> {
        if !self.doubtful().contains(name) {
            return None;
        }
        let path = self.pid_file(name);
        let doubt = match fate::judge(name, &path, &self.boot_id) {
            Ok(Fate::Ended) => {
                let _ = fs::remove_file(path);
                self.doubtful().remove(name);
                return None;
            }
            Ok(Fate::Unknown(doubt)) => doubt,
            Ok(Fate::Lives(..) | Fate::Unborn) => Doubt {
                message: format!("{} was written by somebody else", path.display()),
                next: "start ankole standalone anew: it looks for its processes then".into(),
            },
            Err(error) => Doubt {
                message: format!("it can't be told whether {name} runs: {error}"),
                next: "repair the cause; it is looked at again".into(),
            },
        };
        Some(doubt)
    }

    fn signal(&self, name: &ProcessName, signal: Signal) {
        let signal = match signal {
            Signal::Terminate => rustix::process::Signal::TERM,
            Signal::Kill => rustix::process::Signal::KILL,
        };
        let pidfd = self.table.lock().get(name).map(|entity| Arc::clone(&entity.pidfd));
        if let Some(pidfd) = pidfd {
            // It fails only when the process has ended.
            let _ = pidfd_send_signal(&pidfd, signal);
        }
    }

    fn wait(&self, name: &ProcessName, timeout: Duration) -> bool {
        let running = self.table.lock();
        let waited = self
            .table
            .changed
            .wait_timeout_while(running, timeout, |running| running.contains_key(name));
        let (running, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !running.contains_key(name)
    }

    fn ended(&self) -> broadcast::Receiver<Ended> {
        self.table.ended.subscribe()
    }
}

#[cfg(test)]
mod tests;
