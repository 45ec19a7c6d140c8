//! Other programs: each run has a deadline, and its error tells what the program said.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::TgtError;
use crate::program;

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// One that isn't found is named when it is started.
pub(super) fn command(program: &str) -> Command {
    Command::new(program::find(program).unwrap_or_else(|| program.into()))
}

/// Blocks. What it wrote to its standard output.
pub(super) fn run(command: &mut Command, patience: Duration) -> Result<String, TgtError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| TgtError::Start { program: program.clone(), source };
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                let _ended_meanwhile = child.kill();
                let _ = child.wait();
                return Err(TgtError::Silent { program, patience });
            }
            None => std::thread::sleep(LOOK_EVERY),
        }
    };
    // A few lines at most, which the pipes have held. A daemon that it started may keep them open.
    let said = child.stdout.take().map(what_is_in).unwrap_or_default();
    let complained = child.stderr.take().map(what_is_in).unwrap_or_default();
    if status.success() {
        return Ok(said);
    }
    let output = [complained.trim(), said.trim()].into_iter().find(|text| !text.is_empty());
    let output = output.unwrap_or("nothing").replace('\n', "; ");
    Err(TgtError::Refused { program, status, output })
}

fn what_is_in(mut pipe: impl Read) -> String {
    let mut bytes = vec![0; 16 << 10];
    let length = pipe.read(&mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_ended_and_one_that_fails_is_quoted() {
        let moment = Duration::from_millis(50);
        let hangs = run(Command::new("sleep").arg("60"), moment).unwrap_err();
        assert!(matches!(hangs, TgtError::Silent { .. }), "{hangs:?}");
        let fails = run(Command::new("ls").arg("/no/such"), Duration::from_secs(60)).unwrap_err();
        assert!(fails.to_string().contains("/no/such"), "{fails}");
        let missing = run(&mut Command::new("/no/such/program"), moment).unwrap_err();
        assert!(missing.to_string().contains("/no/such/program"), "{missing}");
    }
}
