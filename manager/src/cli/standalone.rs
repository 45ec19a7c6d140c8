//! `ankole standalone`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::Session;
use crate::agent::format::format;
use crate::agent::layout::{runtime_folder, short_names_folder};
use crate::api::ApiError;
use crate::roles::standalone::{self, Ended, Options};
use ankole_plan::node::engine::DEVICE_PATIENCE;
use ankole_store::embedded::{OpenError, Recover};

#[derive(Debug, clap::Args)]
pub(super) struct StandaloneArgs {
    /// Where the API listens; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9500")]
    listen: SocketAddr,
    /// A place for replicas, instead of DATA/disks/default; repeatable, one for each disk
    #[arg(long = "disk", value_name = "DIR")]
    disks: Vec<PathBuf>,
    /// If the store is gone or damaged: what to start with instead
    #[arg(long, value_enum, value_name = "FROM")]
    recover_store: Option<From>,
    /// Name of this node
    #[arg(long, default_value = "localhost")]
    node: String,
    /// End when standard input is closed: when whoever started this has ended
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
    /// For tests: so long requests of a device wait for an engine
    #[arg(long, hide = true, value_name = "SECONDS", value_parser = super::seconds)]
    device_patience: Option<Duration>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum From {
    /// Make it from the copy that is kept beside it
    Copy,
    /// Begin with an empty one, ending engines and replicas that still run; `ankole volume recover`
    /// makes volumes of the replicas' directories
    Empty,
}

pub(super) fn run(session: &Session<'_>, args: StandaloneArgs) -> Result<ExitCode, ApiError> {
    let data = session.global.data.clone().or_else(|| session.environment.data.clone());
    let data = data.ok_or_else(|| {
        ApiError::invalid("a standalone needs a data folder").next("add --data DIR")
    })?;
    let program = std::env::current_exe()
        .map_err(|error| ApiError::failed(format!("find this program: {error}")))?;
    let options = Options {
        data,
        listen: args.listen,
        disks: args.disks,
        recover_store: args.recover_store.map(|from| match from {
            From::Copy => Recover::Copy,
            From::Empty => Recover::Empty,
        }),
        node: args.node,
        runtime_folder: runtime_folder(session.environment.runtime_dir.as_deref()),
        short_names: short_names_folder(),
        program,
        format,
        device_patience: args.device_patience.unwrap_or(DEVICE_PATIENCE),
        until_stdin_closes: args.until_stdin_closes,
    };
    match standalone::run(&options) {
        Ok(Ended::Clean | Ended::LeftUsed) => Ok(ExitCode::SUCCESS),
        Ok(Ended::InHaste) => Ok(ExitCode::FAILURE),
        Err(error) => {
            let failed = ApiError::failed(format!("{error:#}"));
            Err(match error.downcast_ref::<OpenError>() {
                Some(error) => failed.next(error.next()),
                None => failed,
            })
        }
    }
}
