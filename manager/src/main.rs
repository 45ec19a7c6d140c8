//! The one binary of Ankole: every role, and the command line. It only reads the environment and
//! dispatches.

use std::process::ExitCode;

use ankole_manager::cli::{self, Environment};
use ankole_manager::handed_in;

fn main() -> ExitCode {
    let environment = Environment {
        server: std::env::var("ANKOLE_SERVER").ok(),
        data: std::env::var_os("ANKOLE_DATA").map(Into::into),
        token: std::env::var("ANKOLE_TOKEN").ok(),
        log: std::env::var("ANKOLE_LOG").ok(),
        runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").map(Into::into),
        temporary: std::env::temp_dir(),
        home: std::env::home_dir(),
        no_colour: std::env::var_os("NO_COLOR").is_some_and(|it| !it.is_empty())
            || std::env::var_os("TERM").is_some_and(|it| it == "dumb"),
        handed_in: handed_in::is_said(
            std::env::var("LISTEN_FDS").ok().as_deref(),
            std::env::var("LISTEN_PID").ok().as_deref(),
        ),
        search_path: std::env::var_os("PATH").unwrap_or_default(),
    };
    cli::run(std::env::args_os(), &environment)
}
