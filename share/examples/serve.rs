//! Serves a directory: `serve --root DIR --listen ADDR:PORT`.

use ankole_share::policy::Policy;
use ankole_share::serve::{Settings, serve};
use anyhow::Context;
use clap::Parser;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    root: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
    /// Answer before names and attributes are on the disk
    #[arg(long)]
    async_metadata: bool,
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter("info").with_writer(std::io::stderr).init();
    let Arguments { root, listen, async_metadata } = Arguments::parse();
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    let lease = Duration::from_secs(10);
    let policy = Policy::default();
    let settings = Settings { root, lease, stable_metadata: !async_metadata, policy };
    let _server = serve(listener, &settings)?;
    loop {
        std::thread::park();
    }
}
