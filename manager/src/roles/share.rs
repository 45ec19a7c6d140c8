//! `ankole share serve`: the process that exports a directory over NFS.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ankole_api::error::chain;
use ankole_share::policy::{Anonymous, Network, Policy, Squash};
use ankole_share::serve::{Settings, StartError, serve};
use ankole_share::tree::local::OpenError;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::ApiError;
use crate::handed_in;

#[derive(Debug, clap::Args)]
pub struct ShareArgs {
    /// The directory; as root, with every file its owner's, else all files are this user's
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// Whoever reaches this address is believed to be who they say. Left out when a supervisor hands in
    /// the socket (as systemd's socket units do), so that no client is refused while the share restarts
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// How long a client may be silent before others may take its locks, in seconds
    #[arg(long, default_value = "10", value_name = "SECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(5..=300))]
    pub lease: u64,
    /// Answer before names and attributes are on the disk: faster, and the last seconds of them can
    /// be lost with the machine
    #[arg(long)]
    pub async_metadata: bool,
    /// Clients can change nothing
    #[arg(long)]
    pub read_only: bool,
    /// Whose requests are taken for those of the anonymous user
    #[arg(long, value_enum, default_value_t, value_name = "USERS")]
    pub squash: SquashArg,
    /// That user, as numbers
    #[arg(long, default_value = "65534:65534", value_name = "UID:GID", value_parser = anonymous)]
    pub anonymous: Anonymous,
    /// Take clients of this network only, as 10.0.0.0/8; may be given several times
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    pub allow: Vec<Network>,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub enum SquashArg {
    #[default]
    None,
    Root,
    All,
}

impl From<SquashArg> for Squash {
    fn from(said: SquashArg) -> Self {
        match said {
            SquashArg::None => Squash::Nobody,
            SquashArg::Root => Squash::Root,
            SquashArg::All => Squash::Everybody,
        }
    }
}

fn anonymous(text: &str) -> Result<Anonymous, String> {
    let number = |text: &str| text.parse().ok().filter(|&id| id != u32::MAX);
    text.split_once(':')
        .and_then(|(uid, gid)| Some(Anonymous { uid: number(uid)?, gid: number(gid)? }))
        .ok_or_else(|| "two numbers, as 65534:65534".into())
}

/// Runs until a signal ends it, and logs its figures then and at SIGUSR1; requests that it has begun are answered. `handed_in`: a supervisor has said
/// that it hands in the socket.
pub fn run(args: ShareArgs, handed_in: bool) -> Result<(), ApiError> {
    let listener = listener(args.listen, handed_in)?;
    super::prepare_to_serve();
    let address = listener
        .local_addr()
        .map_err(|error| ApiError::failed(format!("look at the socket: {error}")))?;
    let mut signals = Signals::new()
        .map_err(|error| ApiError::failed(format!("prepare for signals: {error}")))?;
    let settings = Settings {
        root: args.root,
        lease: Duration::from_secs(args.lease),
        stable_metadata: !args.async_metadata,
        policy: Policy {
            read_only: args.read_only,
            squash: args.squash.into(),
            anonymous: args.anonymous,
            networks: args.allow,
        },
    };
    let server = serve(listener, &settings).map_err(|error| not_served(&settings.root, &error))?;
    println!("{} is served", settings.root.display());
    println!("mount -t nfs4 -o vers=4.2,port={} {}:/ /mnt", address.port(), address.ip());
    while signals.next() == Asked::Figures {
        server.export().metrics().log();
    }
    server.export().metrics().log();
    drop(server);
    Ok(())
}

/// The socket that a supervisor hands in (sd_listen_fds(3)) stays open while this process is away.
fn listener(address: Option<SocketAddr>, handed_in: bool) -> Result<TcpListener, ApiError> {
    match (address, handed_in) {
        (Some(address), true) => {
            let text = format!("listen on {address}: a socket is handed in (LISTEN_FDS)");
            Err(ApiError::invalid(text).next("leave out --listen, or the socket"))
        }
        (None, true) => handed_in::listener().map_err(|error| {
            ApiError::failed(format!("use the socket that is handed in (LISTEN_FDS): {error}"))
                .next("hand in a TCP socket that listens, as descriptor 3")
        }),
        (Some(address), false) => {
            TcpListener::bind(address).map_err(|error| not_listening(address, &error))
        }
        (None, false) => Err(ApiError::invalid("no address to listen on is given")
            .next("--listen 127.0.0.1:2049, or hand in a socket that listens (LISTEN_FDS)")),
    }
}

/// From when they are made on, a signal ends nothing in the middle.
struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    figures: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// SIGUSR1
    Figures,
    /// SIGTERM, SIGINT
    End,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (terminate, interrupt, figures) = {
            let _runtime = runtime.enter();
            (
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
                signal(SignalKind::user_defined1())?,
            )
        };
        Ok(Self { runtime, terminate, interrupt, figures })
    }

    fn next(&mut self) -> Asked {
        let Self { runtime, terminate, interrupt, figures } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => Asked::End,
                _ = interrupt.recv() => Asked::End,
                _ = figures.recv() => Asked::Figures,
            }
        })
    }
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
