//! Serves a directory: `serve --root DIR --listen ADDR:PORT`.

use ankole_share::ops::Export;
use ankole_share::server::Server;
use ankole_share::tree::local::{LocalTree, Options};
use anyhow::Context;
use clap::Parser;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    root: PathBuf,
    #[arg(long, default_value = "127.0.0.1:2049")]
    listen: SocketAddr,
    /// How long a client may be silent before others may take what it has
    #[arg(long, default_value_t = 20)]
    lease_seconds: u64,
    /// Answer before names and attributes are on the disk
    #[arg(long)]
    async_metadata: bool,
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter("info").with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let options = Options { stable_metadata: !arguments.async_metadata, ..Options::default() };
    let tree = LocalTree::open(&arguments.root, options)?;
    let lease = Duration::from_secs(arguments.lease_seconds);
    let epoch = std::process::id() ^ std::time::UNIX_EPOCH.elapsed()?.subsec_nanos();
    let export = Export::new(Box::new(tree), Instant::now(), epoch, lease);
    let listener = TcpListener::bind(arguments.listen)
        .with_context(|| format!("listen on {}", arguments.listen))?;
    let server = Server::start(listener, Arc::new(export))?;
    println!("serving {} on {}", arguments.root.display(), server.local_addr()?);
    loop {
        std::thread::park();
    }
}
