//! `ankole share serve`: the process that exports a directory over NFS.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use ankole_share::serve::{Settings, serve};
use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, clap::Args)]
pub struct ShareArgs {
    /// The directory; as root, with every file its owner's, else all files are this user's
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// Whoever reaches this address is believed to be who they say
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// How long a client may be silent before others may take its locks, in seconds
    #[arg(long, default_value = "10", value_name = "SECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(5..=300))]
    pub lease: u64,
    /// Answer before names and attributes are on the disk: faster, and the last seconds of them can
    /// be lost with the machine
    #[arg(long)]
    pub async_metadata: bool,
}

/// Runs until a signal ends it; requests that it has begun are answered.
pub fn run(args: ShareArgs) -> anyhow::Result<()> {
    super::prepare_to_serve();
    let listener =
        TcpListener::bind(args.listen).with_context(|| format!("listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let settings = Settings {
        root: args.root,
        lease: Duration::from_secs(args.lease),
        stable_metadata: !args.async_metadata,
    };
    let server = serve(listener, &settings)?;
    println!("{} is served", settings.root.display());
    println!("mount -t nfs4 -o vers=4.1,port={} {}:/ /mnt", address.port(), address.ip());
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        drop(server);
        Ok(())
    })
}
