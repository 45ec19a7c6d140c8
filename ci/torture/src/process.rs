//! The processes that are tortured. The only unsafe code here: what runs between fork and exec.
//!
//! Promises that each ends when its [`Process`] is dropped, and when this program ends in whatever
//! way. Signals go only to children that weren't waited for yet, so never to a stranger.

#![expect(unsafe_code, reason = "pre_exec is the way to die with one's parent")]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

pub struct Process {
    child: Child,
    is_stopped: bool,
    was_killed: bool,
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// By this program; otherwise it ended on its own.
    pub was_killed: bool,
}

impl Process {
    /// Starts `program`; what it prints is added to the file `log`.
    pub fn start(
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        log: &Path,
    ) -> io::Result<Self> {
        let log = File::options().append(true).create(true).open(log)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_remove("ANKOLE_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let parent = rustix::process::getpid();
        let before_exec = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            match rustix::process::getppid() {
                Some(now) if now == parent => Ok(()),
                _ => Err(io::ErrorKind::NotFound.into()), // it ended before the line above
            }
        };
        // SAFETY: the closure runs in the child after fork, where only async-signal-safe calls are
        // allowed: it makes two plain system calls, allocates nothing and takes no lock.
        unsafe { command.pre_exec(before_exec) };
        Ok(Self { child: command.spawn()?, is_stopped: false, was_killed: false })
    }

    pub fn kill(&mut self) {
        self.was_killed = true;
        self.signal(Signal::KILL);
    }

    pub fn stop(&mut self) {
        self.is_stopped = true;
        self.signal(Signal::STOP);
    }

    pub fn go_on(&mut self) {
        if std::mem::take(&mut self.is_stopped) {
            self.signal(Signal::CONT);
        }
    }

    pub fn terminate(&mut self) {
        self.was_killed = true;
        self.signal(Signal::TERM);
    }

    /// Whether it has ended; it is asked again after that only by mistake.
    pub fn poll(&mut self) -> io::Result<Option<Ended>> {
        let was_killed = self.was_killed;
        Ok(self.child.try_wait()?.map(|status| Ended { status, was_killed }))
    }

    /// Kills it and waits for its end, as an agent does before it asks for a grant.
    pub fn end(mut self) -> io::Result<Ended> {
        self.kill();
        let status = self.child.wait()?;
        Ok(Ended { status, was_killed: true })
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // A child that has ended stays ours until it is waited for: the pid is no one else's.
        if let Some(pid) = pid {
            let _has_ended = kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::KILL);
            let _status = self.child.wait();
        }
    }
}
