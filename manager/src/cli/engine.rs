//! `ankole engine …`: the process of an attached volume.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Subcommand;

use super::output::{Format, remark};
use super::{Done, Outcome, Session, poll, seconds};
use crate::api::volume::{State, UpgradeRequest};
use crate::api::{ApiError, Name};
use crate::roles::engine::EngineArgs;

#[derive(Debug, Subcommand)]
pub(super) enum EngineCommand {
    /// Serve a volume; started by the agent, usable by hand
    Run(Box<EngineArgs>),
    /// Hand a volume over to an engine of another binary, while it is used
    Upgrade(UpgradeArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct UpgradeArgs {
    name: Name,
    /// The other binary, which this volume's engines are then [default: that of the server]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// How long to wait, in seconds
    #[arg(long, default_value = "60", value_parser = seconds, value_name = "SECONDS")]
    timeout: Duration,
}

/// Done when there is another engine that can be used.
pub(super) fn upgrade(session: &Session<'_>, args: UpgradeArgs) -> Outcome {
    let UpgradeArgs { name, program, timeout } = args;
    let client = session.client()?;
    let program = match program.map(std::fs::canonicalize).transpose() {
        Ok(program) => program,
        Err(error) => return Err(ApiError::invalid(format!("--program: {error}"))),
    };
    let began = Instant::now();
    let before = client.volume(&name)?.engine_pid;
    let volume = client.upgrade_engine(&name, &UpgradeRequest { program })?;
    if before.is_none() && volume.state == State::Detached {
        remark(&format!("volume {name} is detached: its next engine will be the new one"));
        return Ok(Done::Well);
    }
    let new = poll(timeout, || {
        let volume = client.volume(&name)?;
        let is_new = volume.engine_pid != before && volume.endpoint.is_some();
        Ok(volume.engine_pid.filter(|_| is_new))
    })?;
    let Some(new) = new else {
        let seconds = timeout.as_secs();
        let message = format!("volume {name} has no new engine after {seconds} s");
        let next = format!("ankole volume why {name} says what it waits for");
        return Err(ApiError::timed_out(message).next(next));
    };
    match session.output.format {
        Format::Json => session.output.json(&client.volume(&name)?),
        Format::Name => session.output.line(&new.to_string()),
        _ => {
            let took = began.elapsed().as_secs_f64();
            remark(&format!("volume {name} has a new engine, pid {new}, after {took:.1} s"));
            Ok(Done::Well)
        }
    }
}
