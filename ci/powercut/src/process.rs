//! Child processes that end with this program, and can be stopped for a while.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(30);
pub const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Killed when dropped.
pub struct Process {
    child: Child,
    what: String,
}

impl Process {
    /// Its output goes to a file; `what` is for messages.
    pub fn start(mut command: Command, what: &str, output: &Path) -> anyhow::Result<Self> {
        let log = fs::File::options().create(true).append(true).open(output)?;
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {what}"))?;
        Ok(Self { child, what: what.into() })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.pid(), signal).with_context(|| format!("send {signal} to {}", self.what))
    }

    /// Returns when none of its threads runs any more. What the kernel has begun for it goes on.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let deadline = Instant::now() + PATIENCE;
        while !self.is_stopped()? {
            if Instant::now() > deadline {
                bail!("{} doesn't stop", self.what);
            }
            std::thread::sleep(LOOK_AGAIN / 8);
        }
        Ok(())
    }

    pub fn go_on(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn is_stopped(&self) -> anyhow::Result<bool> {
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let Ok(stat) = fs::read_to_string(task?.path().join("stat")) else { continue };
            // pid (name) state …; the workers of io_uring never stop, and never answer anybody.
            let Some((name, rest)) = stat.rsplit_once(") ") else { continue };
            if !name.contains("(iou-wrk") && !rest.starts_with('T') {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    pub fn end(mut self) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} doesn't end", self.what);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Fails if it has ended by itself.
    pub fn check_runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}", self.what),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end; its output is in the error if it fails.
pub fn run_tool(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed: {} {text} {errors}", output.status);
    }
    Ok(text)
}
