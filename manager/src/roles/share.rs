//! `ankole share serve`: the process that exports a directory over NFS.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ankole_api::error::chain;
use ankole_share::serve::{Settings, StartError, serve};
use ankole_share::tree::local::OpenError;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::ApiError;

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
pub fn run(args: ShareArgs) -> Result<(), ApiError> {
    super::prepare_to_serve();
    let listener = TcpListener::bind(args.listen).map_err(|e| not_listening(args.listen, &e))?;
    let address = listener.local_addr().map_err(|e| not_listening(args.listen, &e))?;
    let settings = Settings {
        root: args.root,
        lease: Duration::from_secs(args.lease),
        stable_metadata: !args.async_metadata,
    };
    let server = serve(listener, &settings).map_err(|error| not_served(&settings.root, &error))?;
    println!("{} is served", settings.root.display());
    println!("mount -t nfs4 -o vers=4.1,port={} {}:/ /mnt", address.port(), address.ip());
    let ended = until_a_signal().map_err(|error| ApiError::failed(format!("wait: {error}")));
    drop(server);
    ended
}

fn until_a_signal() -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

fn not_listening(address: SocketAddr, error: &io::Error) -> ApiError {
    let next = match error.kind() {
        ErrorKind::AddrInUse => format!(
            "take another port, or end what listens there: ss -ltnp 'sport = :{}'",
            address.port()
        ),
        ErrorKind::AddrNotAvailable => "take an address of this machine: ip address".into(),
        ErrorKind::PermissionDenied => "take a port above 1023, or run as root".into(),
        _ => "take another address".into(),
    };
    ApiError::failed(format!("listen on {address}: {error}")).next(next)
}

fn not_served(root: &Path, error: &StartError) -> ApiError {
    let next = match error {
        StartError::Tree(OpenError::Taken { holder: Some(holder), .. }) => {
            format!("end it (kill {}), or serve another directory", holder.pid)
        }
        StartError::Tree(OpenError::Taken { holder: None, .. }) => {
            "end the share in the other container, or serve another directory".into()
        }
        StartError::Tree(OpenError::Failed { source, .. }) => match source.kind() {
            ErrorKind::NotFound => format!("make it: mkdir {}", root.display()),
            ErrorKind::NotADirectory => "name a directory with --root".into(),
            ErrorKind::PermissionDenied => "run as root, or serve a directory of your own".into(),
            _ => format!("look at it: findmnt --target {}", root.display()),
        },
        StartError::Server(_) => "look at the limit of threads: ulimit -u".into(),
    };
    ApiError::failed(chain(error)).next(next)
}
