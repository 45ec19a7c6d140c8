//! What became of the process of a pid file.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use ankole_plan::node::facts::Doubt;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::pidfile::{self, Child, Identity, PidFile};
use super::supervisor::{Part, Process, ProcessName};

/// What a pid file tells.
pub(super) enum Fate {
    Lives(Process, OwnedFd),
    Ended,
    /// A fork was about to be made.
    Unborn,
    Unknown(Doubt),
}

/// What the pid file of `name` says of its process.
pub(super) fn judge(name: &ProcessName, path: &Path, boot_id: &str) -> io::Result<Fate> {
    let unknown = |why: &dyn fmt::Display, pid: Option<u32>| {
        let path = path.display();
        let who = pid.map_or(String::new(), |pid| format!(", most likely process {pid}"));
        Fate::Unknown(Doubt {
            message: format!("{path} can't be used ({why}): its process may still run{who}"),
            next: format!("end that process if it runs, and remove {path}"),
        })
    };
    let PidFile { header, child } = match pidfile::read(path) {
        Ok(PidFile { header: Ok(header), child }) if header.spec.name != *name => {
            let why = format!("it is about {}", header.spec.name);
            PidFile { header: Err(why), child }
        }
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Fate::Ended),
        Err(error) => return Ok(unknown(&error, None)),
    };
    match (header, child) {
        (Ok(header), _) if header.boot_id != boot_id => Ok(Fate::Ended),
        (Ok(header), Child::Told(identity)) => Ok(match pidfd_of(identity)? {
            Some(pidfd) => Fate::Lives(Process { spec: header.spec, pid: identity.pid }, pidfd),
            None => Fate::Ended,
        }),
        (Ok(_), Child::Silent) => Ok(Fate::Unborn),
        (Ok(_), Child::Unclear) => Ok(unknown(&"its second line names no process", None)),
        (Err(why), Child::Told(identity)) => Ok(match pidfile::is_alive(identity)? {
            true => unknown(&why, Some(identity.pid)),
            false => Fate::Ended,
        }),
        (Err(why), _) => Ok(unknown(&why, None)),
    }
}

/// `V.engine.process`, `V.R.process`, `V.backup.NAME.process` or `V.restore.NAME.process`.
pub(super) fn name_of(path: &Path) -> Option<ProcessName> {
    let name = path.file_name()?.to_str()?.strip_suffix(".process")?;
    let (volume, part) = name.split_once('.')?;
    Some(ProcessName { volume: volume.parse().ok()?, part: Part::parse(part)? })
}

/// None if the process has ended. The identity is checked after the descriptor is open: from then
/// on it can't change.
pub(super) fn pidfd_of(identity: Identity) -> io::Result<Option<OwnedFd>> {
    let pid = i32::try_from(identity.pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(pidfile::is_alive(identity)?.then_some(pidfd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
