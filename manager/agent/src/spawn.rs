//! Starting a process that outlives this one. The only unsafe code of the manager: what runs in
//! the child between fork and exec.

#![expect(unsafe_code, reason = "pre_exec is the way to a new session before exec")]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use ankole_blockdev::descriptors;
use rustix::fs::{Mode, OFlags};

use super::supervisor::{Part, ProcessSpec};

/// The child is in a session of its own, so that neither Ctrl-C nor the end of the terminal
/// reaches it. It writes its line of `/proc/self/stat` to `pid_file` before it becomes the
/// program: there is no moment at which the program runs and the file doesn't say so, even if we
/// are killed right after the fork.
pub(super) fn spawn(spec: &ProcessSpec, pid_file: File, log: File) -> io::Result<Child> {
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .env_remove("ANKOLE_TOKEN")
        .current_dir("/") // don't keep a file system busy
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if spec.name.part.is_job() {
        // Its memory is limited. A backtrace takes some, and one of an allocation that fails waits for
        // itself when it gets none.
        command.env("RUST_BACKTRACE", "0");
    }
    let out_of_memory_score = match spec.name.part {
        // Its end is an outage; a replica's only costs a rebuild.
        Part::Engine => "-999",
        Part::Replica(_) => "-900",
        // It is done again, or told as failed.
        Part::Backup(_) | Part::Restore(_) => "300",
    };
    let before_exec = move || {
        descriptors::pass_on_none();
        rustix::process::setsid()?;
        // Only root may lower it. What frees memory by killing takes the highest first.
        if let Ok(score) =
            rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY, Mode::empty())
        {
            let _ = rustix::io::write(&score, out_of_memory_score.as_bytes());
        }
        let stat = rustix::fs::open(c"/proc/self/stat", OFlags::RDONLY, Mode::empty())?;
        let mut line = [0; 1024];
        let length = rustix::io::read(&stat, &mut line)?;
        rustix::io::write(pid_file.as_fd(), &line[..length])?;
        Ok(())
    };
    // SAFETY: the closure runs in the child after fork, where only async-signal-safe calls are
    // allowed: it makes plain system calls on descriptors and buffers that exist already, allocates
    // nothing and takes no lock.
    unsafe { command.pre_exec(before_exec) };
    command.spawn()
}
