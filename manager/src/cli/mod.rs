//! The command line: `noun verb`.
//!
//! Promises: what a verb answers is on stdout and nothing else is; an error names the object, the
//! cause and the next step on stderr; the exit code is 0 ok, 1 failed, 2 usage, 3 not found,
//! 4 conflict or precondition, 5 time-out, 6 degraded. A destructive verb asks, and refuses when
//! nobody can be asked.

mod aliases;
mod arguments;
mod backup;
mod check;
mod complete;
mod connect;
mod engine;
mod examples;
mod job;
mod man;
mod node;
mod output;
mod recover;
mod replica;
mod salvage;
mod share;
mod snapshot;
mod standalone;
mod target;
mod volume;
mod waiting;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ankole_replica::VERSION;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use self::output::{Format, Output};
use crate::api::{ApiError, ErrorKind};
use crate::client::Client;
use crate::roles;

/// Of `check` and `--wait`.
const EXIT_DEGRADED: u8 = 6;

/// What the process was started with; nothing below `main` reads the environment.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// ANKOLE_SERVER
    pub server: Option<String>,
    /// ANKOLE_DATA
    pub data: Option<PathBuf>,
    /// ANKOLE_TOKEN
    pub token: Option<String>,
    /// ANKOLE_LOG
    pub log: Option<String>,
    /// XDG_RUNTIME_DIR
    pub runtime_dir: Option<PathBuf>,
    /// PATH
    pub search_path: OsString,
    /// Where temporary files go
    pub temporary: PathBuf,
    /// HOME
    pub home: Option<PathBuf>,
    /// NO_COLOR, or a terminal that has none
    pub no_colour: bool,
    /// LISTEN_FDS and LISTEN_PID: whether a socket is handed in
    pub handed_in: bool,
}

/// Replicated block storage
#[derive(Debug, Parser)]
#[command(name = "ankole", version = VERSION, propagate_version = true, max_term_width = 100)]
#[command(after_help = "\
Which server: --server, --data, then ANKOLE_SERVER, ANKOLE_DATA, then http://127.0.0.1:9500.
A data folder's server is reached by its socket; one at a URL needs a token: ANKOLE_TOKEN, or the
file `token` of the data folder. ANKOLE_LOG sets the log's filter, NO_COLOR takes the colours away.
Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, 5 time-out, 6 degraded.")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// URL of the API
    #[arg(long, global = true, value_name = "URL")]
    server: Option<String>,
    /// The data folder of a standalone on this machine
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How to print; `name` is the bare answer, for scripts
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Tables without their first line
    #[arg(long, global = true)]
    no_headers: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The main job, start to end, on this machine
    Demo(ankole_demo::DemoArgs),
    /// What this node can do, what is missing, and what to do about it
    Check,
    /// Manager, agent and API on this machine
    Standalone(standalone::StandaloneArgs),
    /// Volumes
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Snapshots of a volume
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// The node that the server runs on
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Backups of snapshots
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Places for backups
    #[command(subcommand)]
    Target(target::TargetCommand),
    /// Replicas, and the process of one
    #[command(subcommand)]
    Replica(replica::ReplicaCommand),
    /// The process of an attached volume
    #[command(subcommand)]
    Engine(engine::EngineCommand),
    /// The process of a backup or a restore
    #[command(subcommand, hide = true)]
    Job(job::JobCommand),
    /// Files that many machines write to
    #[command(subcommand)]
    Share(share::ShareCommand),
    /// Completion for a shell, of commands and of names that the server knows
    Completion { shell: clap_complete::Shell },
    /// The manual's first page, or all its pages into a folder
    Man {
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// The version of this program
    Version,
}

/// How a verb ends when it doesn't fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Well,
    Degraded,
}

type Outcome = Result<Done, ApiError>;

/// What every verb gets.
struct Session<'a> {
    global: &'a Global,
    environment: &'a Environment,
    output: Output,
}

impl Session<'_> {
    fn client(&self) -> Result<Client, ApiError> {
        let (server, data) = (self.global.server.as_deref(), self.global.data.as_deref());
        Ok(connect::reach(server, data, self.environment)?.client())
    }
}

/// All that can be typed. `args` are what the process was started with.
fn grammar(environment: &Environment, args: &[OsString]) -> clap::Command {
    let grammar = examples::add(arguments::explain(aliases::add(Cli::command())));
    complete::add(grammar, environment, args)
}

pub fn run(args: impl Iterator<Item = OsString>, environment: &Environment) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    // Help and version are "errors" with code 0. A closed pipe is nobody's fault.
    let end = |error: clap::Error| {
        let _ = error.print();
        ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
    };
    match complete::answer(&args, environment) {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => return end(error),
    }
    let matches = grammar(environment, &args).try_get_matches_from(&args);
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return end(error),
    };
    start_log(environment, &cli.command);
    let output = Output {
        format: cli.global.output,
        headers: !cli.global.no_headers,
        colours: !environment.no_colour && io::stdout().is_terminal(),
    };
    let session = Session { global: &cli.global, environment, output };
    match dispatch(&session, cli.command) {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// Whether it is a command that this program knows.
#[cfg(test)]
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<(), clap::Error> {
    grammar(&Environment::default(), &[]).try_get_matches_from(args).map(drop)
}

fn dispatch(session: &Session<'_>, command: Command) -> Result<ExitCode, ApiError> {
    let done = match command {
        Command::Demo(args) => return demo(session, args),
        Command::Engine(engine::EngineCommand::Run(args)) => {
            return role(roles::engine::run(*args));
        }
        Command::Engine(engine::EngineCommand::Upgrade(args)) => engine::upgrade(session, args),
        Command::Replica(replica::ReplicaCommand::Serve(args)) => {
            return role(roles::replica::run(args));
        }
        Command::Job(job::JobCommand::Run(args)) => {
            return roles::job::run(&args).map(|()| ExitCode::SUCCESS);
        }
        Command::Share(share::ShareCommand::Serve(args)) => {
            return roles::share::run(args, session.environment.handed_in)
                .map(|()| ExitCode::SUCCESS);
        }
        Command::Standalone(args) => return standalone::run(session, args),
        Command::Check => check::run(session),
        Command::Volume(command) => volume::run(session, command),
        Command::Snapshot(command) => snapshot::run(session, command),
        Command::Node(command) => node::run(session, command),
        Command::Backup(command) => backup::run(session, command),
        Command::Target(command) => target::run(session, command),
        Command::Replica(replica::ReplicaCommand::Ls { volume }) => {
            replica::list(session, volume.as_ref())
        }
        Command::Replica(replica::ReplicaCommand::Rebuild { volume, replica, yes }) => {
            replica::rebuild(session, &volume, &replica, yes)
        }
        Command::Replica(replica::ReplicaCommand::Inspect { directory }) => {
            replica::inspect(session, &directory)
        }
        Command::Replica(replica::ReplicaCommand::Verify { directory }) => {
            replica::verify(session, &directory)
        }
        Command::Completion { shell } => complete::script(session.output, shell),
        Command::Man { folder } => {
            let grammar = grammar(session.environment, &[]);
            man::run(session.output, grammar, folder.as_deref())
        }
        Command::Version => match session.output.format {
            Format::Json => session.output.json(&serde_json::json!({ "version": VERSION })),
            Format::Name => session.output.line(VERSION),
            Format::Table | Format::Wide => session.output.line(&format!("ankole {VERSION}")),
        },
    };
    Ok(match done? {
        Done::Well => ExitCode::SUCCESS,
        Done::Degraded => ExitCode::from(EXIT_DEGRADED),
    })
}

fn demo(session: &Session<'_>, args: ankole_demo::DemoArgs) -> Result<ExitCode, ApiError> {
    let program = std::env::current_exe()
        .map_err(|error| ApiError::failed(format!("find this program: {error}")))?;
    let environment = session.environment;
    let surroundings = ankole_demo::Surroundings {
        search_path: environment.search_path.clone(),
        temporary: environment.temporary.clone(),
        home: environment.home.clone(),
        program,
    };
    ankole_demo::run(args, surroundings)
}

fn role(outcome: anyhow::Result<()>) -> Result<ExitCode, ApiError> {
    outcome.map(|()| ExitCode::SUCCESS).map_err(|error| ApiError::failed(format!("{error:#}")))
}

fn complain(error: &ApiError) {
    let mut text = format!("error: {}\n", error.message);
    if let Some(next) = &error.next {
        text.push_str(&format!("next: {next}\n"));
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

fn start_log(environment: &Environment, command: &Command) {
    let default = match command {
        Command::Standalone(_)
        | Command::Engine(engine::EngineCommand::Run(_))
        | Command::Replica(replica::ReplicaCommand::Serve(_))
        | Command::Job(_)
        | Command::Share(_) => "info",
        _ => "warn",
    };
    let filter = EnvFilter::builder().parse_lossy(environment.log.as_deref().unwrap_or(default));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // It fails only when there is a log already, in tests.
    let _ = log.try_init();
}

/// Before what can't be undone.
fn confirm(what: &str, yes: bool) -> Result<(), ApiError> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(ApiError::conflict(format!("{what} can't be undone, and nobody can be asked"))
            .next("add --yes"));
    }
    let _ = write!(io::stderr(), "{what}: this can't be undone. Type yes to go on: ");
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    match read {
        Ok(_) if matches!(answer.trim(), "yes" | "y") => Ok(()),
        _ => Err(ApiError::conflict(format!("{what}: nothing was done"))),
    }
}

/// Looks until there is an answer; None when `timeout` is over.
fn poll<T>(
    timeout: Duration,
    mut look: impl FnMut() -> Result<Option<T>, ApiError>,
) -> Result<Option<T>, ApiError> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(20);
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if Instant::now() + pause > deadline {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 5 / 4).min(Duration::from_millis(500));
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<u32>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
        Err(_) => Err("write a number of seconds, for example 60".into()),
    }
}

fn is_not_found<T>(outcome: &Result<T, ApiError>) -> bool {
    matches!(outcome, Err(error) if error.kind == ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        grammar(&Environment::default(), &[]).debug_assert();
    }
}
