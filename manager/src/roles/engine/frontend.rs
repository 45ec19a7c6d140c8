//! How an engine's volume is shown: always on the NBD socket, and as a device if asked.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use ankole_blockdev::device::{self, Device, Driver, Ended, Origin, Volume};
use ankole_blockdev::nbd::{self, Export, Limits, Listener};
use ankole_replica::engine::{Engine, FrontendRequest};
use anyhow::Context;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::EngineArgs;
use crate::agent::device_link::{self, Link};

/// Serves clients until the engine ends, or someone asks to detach and nothing is in the way.
pub(super) async fn serve(engine: &Engine, args: &EngineArgs) -> anyhow::Result<()> {
    let (ask, mut asked) = mpsc::channel(1);
    if args.read_only {
        engine.show_read_only();
    }
    let socket = Socket::start(engine, args).await?;
    let mut device = match args.frontend.driver() {
        Some(driver) => Some(start_device(engine, args, driver).await?),
        None => None,
    };
    let mut link = device.as_ref().and_then(|device| make_link(&args.volume, device.path()));
    engine.set_frontend(ask);
    let endpoint = match &device {
        Some(device) => device.path().display().to_string(),
        None => socket.uri.clone(),
    };
    info!(volume = args.volume, endpoint, "serving");
    engine.set_endpoint(endpoint);
    loop {
        tokio::select! {
            Some(request) = asked.recv() => match request {
                FrontendRequest::Users(answer) => {
                    let users = match &device {
                        Some(device) => device.users().await,
                        None => Vec::new(),
                    };
                    let _gone = answer.send(users);
                }
                FrontendRequest::HandOver(done) => {
                    if let Some(device) = device.take() {
                        device.hand_over().await;
                    }
                    socket.stop().await;
                    info!(volume = args.volume, "handed over");
                    let _gone = done.send(Ok(()));
                    return Ok(());
                }
                FrontendRequest::Close(done) => {
                    // Before the device goes, since another volume may get its number at once.
                    if let Some(device) = &device
                        && device.users().await.is_empty()
                    {
                        remove_link(link.take());
                    }
                    match stop_device(device.take()).await {
                        Ok(()) => {
                            remove_link(link);
                            socket.stop().await;
                            let _gone = done.send(Ok(()));
                            return Ok(());
                        }
                        Err((still_there, reason)) => {
                            link = link.or_else(|| make_link(&args.volume, still_there.path()));
                            device = Some(still_there);
                            let _gone = done.send(Err(reason));
                        }
                    }
                }
            },
            ended = device_ended(&device) => match ended {
                Ended::Stopped => {
                    warn!(volume = args.volume, "somebody stopped the device: detaching");
                    remove_link(link.take());
                    socket.stop().await;
                    engine.detach();
                    return Ok(());
                }
                Ended::DiskGone => drop(engine.ended().await),
                Ended::Failed => anyhow::bail!("the device isn't served any more"),
            },
            size_bytes = engine.grown() => {
                if let Some(device) = &device
                    && let Err(error) = device.resize(size_bytes).await
                {
                    warn!(volume = args.volume, %error, "the device shows its old size until it \
                        is attached again");
                }
            }
            _ = engine.ended() => return Ok(()),
        }
    }
}

/// The NBD server on its unix socket.
struct Socket {
    uri: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Socket {
    async fn start(engine: &Engine, args: &EngineArgs) -> anyhow::Result<Self> {
        let export = Export::new(args.volume.clone(), Rc::new(engine.clone()));
        let clients = export.clients.clone();
        // tgtd is one of them, and no user.
        let own = u32::from(args.frontend.driver() == Some(Driver::Tgt));
        engine.count_clients(move || clients.get().saturating_sub(own));
        let listener = Listener::bind_unix(&args.socket).await?;
        let uri = listener.uri();
        let (stop, stopped) = oneshot::channel();
        let stopped = async { drop(stopped.await) };
        let serving = nbd::serve(listener, export, Limits::default(), stopped);
        Ok(Self { uri, stop, task: tokio::task::spawn_local(serving) })
    }

    /// Lets requests in flight finish, then closes the connections.
    async fn stop(self) {
        let _gone = self.stop.send(());
        if let Err(panic) = self.task.await.map_err(tokio::task::JoinError::try_into_panic)
            && let Ok(panic) = panic
        {
            std::panic::resume_unwind(panic);
        }
    }
}

async fn start_device(
    engine: &Engine,
    args: &EngineArgs,
    driver: Driver,
) -> anyhow::Result<Device> {
    let origin = match (args.recover, args.device) {
        (true, Some(id)) => Origin::Recovery { id },
        (_, id) => Origin::New { id },
    };
    let disk = Rc::new(engine.clone());
    let identity = args.identity.as_deref().unwrap_or(&args.volume);
    let volume = Volume { identity, socket: &args.socket };
    let device = device::serve(driver, disk, origin, volume).await;
    device.with_context(|| format!("show volume {} by the driver {driver}", args.volume))
}

async fn stop_device(device: Option<Device>) -> Result<(), (Device, String)> {
    let Some(device) = device else { return Ok(()) };
    device.stop().await.map_err(|(device, error)| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        (device, format!("{error}{}", cause.unwrap_or_default()))
    })
}

/// A volume can do without.
fn make_link(volume: &str, device: PathBuf) -> Option<Link> {
    match Link::make(Path::new(device_link::FOLDER), volume, &device) {
        Ok(link) => {
            info!(volume, link = %link.path().display(), "the device has a stable name");
            Some(link)
        }
        Err(error) => {
            warn!(volume, %error, "the device has no stable name in {}", device_link::FOLDER);
            None
        }
    }
}

fn remove_link(link: Option<Link>) {
    if let Some(Err(error)) = link.map(Link::remove) {
        warn!(%error, "a link in {} is left", device_link::FOLDER);
    }
}

async fn device_ended(device: &Option<Device>) -> Ended {
    match device {
        Some(device) => device.ended().await,
        None => std::future::pending().await,
    }
}
