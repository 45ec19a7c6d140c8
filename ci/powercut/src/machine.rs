//! A machine with one replica, played by a thread: its power can be cut, or its process killed.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Instant;

use ankole_replica::listen::Address;
use ankole_replica::server::{Replica, serve};
use ankole_replica::store::file::{Directory, DirectoryOptions};
use ankole_replica::store::{Store, StoreOptions};
use ankole_replica::types::ReplicaId;
use anyhow::{Context, anyhow};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::oracle::{Clock, Moment};
use crate::recording::{Boot, Recording, Sabotage};
use crate::write_log::{Files, WriteLog};

pub const VOLUME: &str = "v1";

/// How a machine's process ends.
enum Ending {
    /// As if by SIGKILL.
    Killed,
    /// After everything was closed in order.
    Closed,
}

/// One boot of one machine: from what it found on its disk to everything it did there.
pub struct Life {
    pub before: Files,
    pub log: WriteLog,
    pub boot_id: String,
    pub since: Moment,
}

/// A machine that runs.
pub struct Machine {
    pub life: Life,
    ending: oneshot::Sender<Ending>,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// Where a machine finds what it needs.
#[derive(Clone)]
pub struct Site {
    pub replica: ReplicaId,
    pub directory: PathBuf,
    pub socket: PathBuf,
}

impl Site {
    pub fn address(&self) -> Address {
        Address::Unix(self.socket.clone())
    }
}

impl Machine {
    /// Boots over what lies in the site's directory; returns when the replica serves.
    pub async fn boot(
        site: &Site,
        boot: Boot,
        clock: &Clock,
        sabotage: Sabotage,
    ) -> anyhow::Result<Self> {
        let before = Files::read(&site.directory)?;
        let log = WriteLog::new(clock.clone());
        let life = Life { before, log: log.clone(), boot_id: boot.id.clone(), since: clock.now() };
        let (ending, ended) = oneshot::channel();
        let (opened, is_open) = oneshot::channel();
        let (site, files) = (site.clone(), life.before.numbered());
        let place = site.directory.display().to_string();
        let thread = std::thread::spawn(move || {
            run(async {
                let directory = Directory::open(&site.directory, &DirectoryOptions::default())?;
                let storage = Recording::new(directory, files, log, boot, sabotage);
                let store = Store::open(storage, StoreOptions::default()).await?;
                let replica = Replica::new(store, Rc::new(Instant::now));
                let _gone = opened.send(());
                serve_until(replica, &site.address(), ended).await
            })
        });
        match is_open.await {
            Ok(()) => Ok(Self { life, ending, thread }),
            Err(_) => Err(join(thread).err().unwrap_or_else(|| anyhow!("it ended at once")))
                .with_context(|| format!("boot a replica over {place}")),
        }
    }

    /// Nothing is written after this returns.
    pub fn kill(self) -> anyhow::Result<Life> {
        self.end(Ending::Killed)
    }

    pub fn close(self) -> anyhow::Result<Life> {
        self.end(Ending::Closed)
    }

    fn end(self, ending: Ending) -> anyhow::Result<Life> {
        let _gone = self.ending.send(ending);
        join(self.thread)?;
        Ok(self.life)
    }
}

fn join(thread: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("the replica's thread panicked")))
}

async fn serve_until(
    replica: Rc<Replica<Recording>>,
    address: &Address,
    ended: oneshot::Receiver<Ending>,
) -> anyhow::Result<()> {
    let mut ending = Ending::Killed;
    let until = async { ending = ended.await.unwrap_or(Ending::Killed) };
    serve(replica.clone(), address, until).await?;
    match ending {
        Ending::Killed => Ok(()),
        Ending::Closed => Ok(replica.close().await?),
    }
}

/// Runs `work` on this thread, with everything that it spawns here.
pub fn run<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}

/// An empty folder at this path.
pub fn fresh_folder(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {} // it wasn't there
    }
    std::fs::create_dir_all(path)
}
