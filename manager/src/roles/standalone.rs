//! `ankole standalone`: manager, agent, arbiter and API of one machine, in one process.
//!
//! ```text
//! start     lock the data folder ─▶ bind the API ─▶ store ─▶ manager ─▶ arbiter ─▶ agent adopts processes ─▶ API
//! Ctrl-C    all volumes detached, replicas ended; what is used goes on, and is named ─▶ exit 0
//! again     engines killed, devices stopped, replicas killed ─▶ exit 1; what was flushed is there
//! kill -9   engines and replicas go on; the next start adopts them
//! ```

mod shutdown;

use std::convert::Infallible;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ankole_blockdev::unix_socket::Listener;
use ankole_plan::volume::Life;
use ankole_store::Store;
use ankole_store::embedded::{Copies, CopyError, Recover, copy_of};
use ankole_whole_file as whole_file;
use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::agent::format::Format;
use crate::agent::layout::{Layout, LayoutError, is_ours, make_private_folder, registration_path};
use crate::agent::node::records::ObjectRecords;
use crate::agent::node::{self, Node};
use crate::agent::{LocalSupervisor, Supervisor, arbiter, logs, pidfile, probe, replica_folders};
use crate::api::error::chain;
use crate::http;
use crate::manager::Manager;
use crate::opening;
use crate::service::{Agents, Service};

const HEARD_LOOK: Duration = Duration::from_millis(10);
const HEARD_LOOKS: u32 = 300;

pub struct Options {
    pub data: PathBuf,
    /// Port 0 takes a free one; `<data>/run/api.addr` says which.
    pub listen: SocketAddr,
    /// Places for replicas, instead of the one in the data folder.
    pub disks: Vec<PathBuf>,
    /// What to do about a store that is gone or damaged; without it that is an error.
    pub recover_store: Option<Recover>,
    pub node: String,
    /// See [`crate::agent::layout::runtime_folder`].
    pub runtime_folder: PathBuf,
    /// See [`crate::agent::layout::short_names_folder`].
    pub short_names: PathBuf,
    /// The binary that is started as engine and replica.
    pub program: PathBuf,
    pub format: Format,
    pub device_patience: Duration,
    /// End as by a signal when standard input is closed. The pipe of a parent closes however the
    /// parent ends.
    pub until_stdin_closes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every volume is detached, no process is left.
    Clean,
    /// What somebody uses goes on, without a supervisor.
    LeftUsed,
    /// Something didn't end, or was killed.
    InHaste,
}

/// Until a signal ends it.
pub fn run(options: &Options) -> anyhow::Result<Ended> {
    super::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(options));
    // Jobs on other threads don't keep the process.
    runtime.shutdown_background();
    ended
}

async fn serve(options: &Options) -> anyhow::Result<Ended> {
    anyhow::ensure!(
        options.listen.ip().is_loopback(),
        "the API can't listen on {}: until it has TLS it is for this machine only; use an address of 127.0.0.0/8 or [::1]",
        options.listen
    );
    // The signals are caught first: a Ctrl-C during the start is heard after it.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let left_alone = stdin_closes(options.until_stdin_closes);

    let layout = Layout::prepare(&options.data, &options.disks, &options.short_names)?;
    let _lock = layout.lock().map_err(|error| match error {
        LayoutError::InUse { .. } => anyhow::Error::new(error)
            .context("use another --data, or end that one with Ctrl-C or SIGTERM"),
        error => error.into(),
    })?;
    let api = tokio::net::TcpListener::bind(options.listen).await.with_context(|| {
        format!("the API can't listen on {}; use another address with --listen, or port 0 for a free one", options.listen)
    })?;
    let (store, copies) = open_store(options, &layout)?;
    let agent = Arc::new(agent(options, &layout, &store)?);
    let manager = Manager::new(Arc::clone(&store));
    let managing = tokio::spawn(Arc::clone(&manager).run());
    manager.filled().await;
    let (runtime, agents) = (Handle::current(), Agents::new(vec![Arc::clone(&agent)]));
    let opening = {
        let (store, manager) = (Arc::clone(&store), Arc::clone(&manager));
        move || Service::open(store, runtime, manager, agents)
    };
    let service = tokio::task::spawn_blocking(opening).await??;

    let mut arbiter = start_arbiter(&agent)
        .with_context(|| format!("listen on {}", layout.arbiter().display()))?;
    let running = tokio::spawn(node::run(Arc::clone(&agent)));
    tokio::spawn(watch_node(Arc::clone(&agent)));
    tokio::spawn(Arc::clone(&copies).follow());
    tell_orphans(&service).await;
    // Who asks first is answered as by a node that is there.
    until_heard(&manager, &agent.name).await;
    let socket = layout.api_socket();
    let local =
        Listener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    let limits = http::Limits::of_this_process();
    let router = http::router(service);
    let mut local = tokio::spawn(http::serve(http::OwnersOnly(local), router.clone(), limits));
    let address = api.local_addr()?;
    let router = http::remote(router, layout.token()?, address.port());
    let mut remote = tokio::spawn(http::serve(api, router, limits));
    let address = address.to_string();
    let published = Published::new(&layout, &options.runtime_folder, &address)?;
    // For scripts that wait for it; nobody has to read it.
    let data = layout.data().display();
    let _ = writeln!(io::stdout(), "ankole standalone: http://{address}, data in {data}");

    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = left_alone => {}
        _ = &mut arbiter => anyhow::bail!("the arbiter ended: its log says why"),
        ended = &mut local => anyhow::bail!("the API's socket ended: {ended:?}"),
        ended = &mut remote => anyhow::bail!("the API ended: {ended:?}"),
    }
    let again = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let ending = shutdown::Ending { store, agents: vec![agent], running };
    let ended = ending.run(again).await;
    managing.abort();
    note_failure(copies.take());
    drop(published);
    if ended == Ended::Clean {
        layout.remove_short_name();
    }
    Ok(ended)
}

fn open_store(options: &Options, layout: &Layout) -> anyhow::Result<(Arc<dyn Store>, Arc<Copies>)> {
    let store = Arc::new(opening::open(layout, &options.node, options.recover_store)?);
    let copies = Arc::new(Copies::new(&store, copy_of(&layout.store())));
    note_failure(copies.take());
    Ok((store, copies))
}

fn agent(options: &Options, layout: &Layout, store: &Arc<dyn Store>) -> anyhow::Result<Node> {
    layout.join_old_sockets()?;
    let supervisor = LocalSupervisor::open(&layout.run(), &layout.socket_folders())?;
    if supervisor.list().is_empty() {
        layout.forget_old_sockets();
    }
    Ok(Node::new(
        options.node.clone(),
        Arc::clone(store),
        Arc::new(supervisor),
        layout.clone(),
        options.program.clone(),
        options.format,
        pidfile::boot_id().context("read the boot's id")?,
        options.device_patience,
    ))
}

fn start_arbiter(agent: &Node) -> io::Result<oneshot::Receiver<Infallible>> {
    let records = Arc::new(ObjectRecords::new(Arc::clone(&agent.store), Handle::current()));
    let supervisor = Arc::clone(&agent.supervisor);
    let limits = arbiter::Limits::default();
    arbiter::start(&agent.layout.arbiter(), records, supervisor, limits)
}

/// For the person at the terminal, whatever the log's filter is.
async fn tell_orphans(service: &Service) {
    let service = service.clone();
    match tokio::task::spawn_blocking(move || service.orphans()).await {
        Ok(Ok(orphans)) if orphans.is_empty() => {}
        Ok(Ok(orphans)) => {
            let _ = writeln!(io::stderr(), "{}", replica_folders::nobodys(&orphans));
        }
        Ok(Err(error)) => tracing::warn!(%error, "look for directories that no volume knows"),
        Err(_) => {} // the panic is in the log
    }
}

/// Of the node's lease, which takes a moment; a store that can't be written doesn't keep the API away.
async fn until_heard(manager: &Manager, node: &str) {
    let is_heard = || manager.nodes().get(node).is_some_and(|it| it.life == Life::Ready);
    for _ in 0..HEARD_LOOKS {
        if is_heard() {
            return;
        }
        tokio::time::sleep(HEARD_LOOK).await;
    }
    tracing::warn!(node, "the store doesn't take the word that this node lives");
}

/// The store is whole without its copy.
fn note_failure(copied: Result<(), CopyError>) {
    if let Err(error) = copied {
        tracing::warn!(error = chain(&error), "copy the store");
    }
}

/// For as long as the process lives: a few system calls each time.
async fn watch_node(agent: Arc<Node>) {
    loop {
        let watch = Arc::clone(&agent);
        let look = move || {
            watch.frontends.note(probe::frontends(), SystemTime::now());
            for process in watch.supervisor.list() {
                if let Err(error) = logs::trim(&process.spec.log) {
                    tracing::warn!(process = %process.spec.name, %error, "shorten its log");
                }
            }
            if let Err(error) = watch.layout.mend_short_name() {
                tracing::debug!(%error, "the short name of the sockets");
            }
        };
        if tokio::task::spawn_blocking(look).await.is_err() {
            return; // the process ends, or the panic is in its log
        }
        tokio::time::sleep(probe::INTERVAL).await;
    }
}

async fn stdin_closes(is_wanted: bool) {
    if !is_wanted {
        return std::future::pending().await;
    }
    let (closed, hear) = oneshot::channel::<()>();
    // Reading blocks, for as long as the process lives if need be.
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        drop(closed);
    });
    let _ = hear.await;
}

/// The files that lead others to the API, for as long as it is there.
struct Published(Vec<PathBuf>);

impl Published {
    fn new(layout: &Layout, runtime_folder: &Path, address: &str) -> anyhow::Result<Self> {
        let path = layout.api_address();
        write_line(&path, address).with_context(|| format!("write {}", path.display()))?;
        let mut published = vec![path];
        // Only a convenience: without it, users name the data folder.
        let registered = make_private_folder(runtime_folder).and_then(|()| is_ours(runtime_folder));
        if let Ok(true) = registered {
            let path = registration_path(runtime_folder, address);
            if write_line(&path, &layout.data().display().to_string()).is_ok() {
                published.push(path);
            }
        }
        Ok(Self(published))
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

fn write_line(path: &Path, text: &str) -> io::Result<()> {
    whole_file::write(path, format!("{text}\n").as_bytes())
}
