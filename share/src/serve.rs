//! A directory that is served, put together from its parts.

use crate::ops::Export;
use crate::policy::Policy;
use crate::server::Server;
use crate::tree::local::{LocalTree, OpenError, Options};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub struct Settings {
    pub root: PathBuf,
    /// How long a client may be silent before others may take what it has.
    pub lease: Duration,
    /// See [`Options::stable_metadata`].
    pub stable_metadata: bool,
    pub policy: Policy,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Tree(#[from] OpenError),
    #[error("start the server")]
    Server(#[from] io::Error),
}

/// For the end of the grace.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves until the server is dropped. Modes are what clients say from then on: this process has no umask of
/// its own any more.
pub fn serve(listener: TcpListener, settings: &Settings) -> Result<Server, StartError> {
    rustix::process::umask(rustix::fs::Mode::empty());
    let options = Options { stable_metadata: settings.stable_metadata, ..Options::default() };
    let tree = LocalTree::open(&settings.root, options)?;
    let epoch = RandomState::new().hash_one(Instant::now()) as u32;
    let export = Export::new(Box::new(tree), Instant::now(), epoch, settings.lease)
        .with_patience(PATIENCE)
        .with_policy(settings.policy.clone());
    Ok(Server::start(listener, Arc::new(export))?)
}
