//! A process of this machine, also once it is gone and its number is another one's.
//!
//! Owns one question: may the process of back then still be running? The answer is "gone" only if
//! that is sure; another machine, another boot or another namespace of process numbers makes it
//! unknown.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// What tells a process from any other one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    boot_id: String,
    /// Inode of `/proc/self/ns/pid`, the namespace in which `pid` counts (`pid_namespaces(7)`).
    namespace: u64,
    pid: u32,
    /// In clock ticks since the boot: field 22 of `/proc/PID/stat` (`proc_pid_stat(5)`).
    started: u64,
}

impl ProcessIdentity {
    /// The process that has this number now; `None` if it can't be told.
    pub fn of(pid: u32) -> Option<Self> {
        let (boot_id, namespace) = (boot_id().ok()?, namespace()?);
        Some(Self { boot_id, namespace, pid, started: started(pid)? })
    }

    /// Whether it has surely ended, with all its threads.
    pub fn is_gone(&self) -> bool {
        let is_here = boot_id().is_ok_and(|boot_id| boot_id == self.boot_id)
            && namespace() == Some(self.namespace);
        let Ok(pid) = i32::try_from(self.pid) else { return false };
        // `/proc` may be mounted so that others' processes can't be seen; signals know better.
        let nobody = kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH);
        let another = || started(self.pid).is_some_and(|started| started != self.started);
        is_here && (nobody || another())
    }
}

/// Changes with every boot of the machine (`random(4)`).
pub(crate) fn boot_id() -> std::io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/pid").ok().map(|metadata| metadata.ino())
}

fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold any characters; what follows it can't hold one.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_gone_once_it_was_killed_and_reaped() {
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        assert!(!identity.is_gone());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(identity.is_gone());
    }

    /// Its number was given to another process since.
    #[test]
    fn another_process_of_the_same_number_is_another_one() {
        let own = ProcessIdentity::of(std::process::id()).unwrap();
        assert!(!own.is_gone());
        assert!(ProcessIdentity { started: own.started - 1, ..own }.is_gone());
    }

    /// Its disk may have been moved here while the machine that it came from runs on.
    #[test]
    fn of_another_machine_or_boot_or_namespace_nothing_is_known() {
        let own = ProcessIdentity::of(std::process::id()).unwrap();
        let older = ProcessIdentity { started: own.started - 1, ..own.clone() };
        assert!(older.is_gone());
        assert!(!ProcessIdentity { boot_id: "another".into(), ..older.clone() }.is_gone());
        assert!(!ProcessIdentity { namespace: 1, ..older }.is_gone());
    }
}
