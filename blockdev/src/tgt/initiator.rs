//! The node's initiator: open-iscsi's `iscsiadm`, and what the kernel shows of a session.
//!
//! ```text
//! /sys/class/iscsi_connection/connectionS:0/{persistent_port, device → …/hostH/sessionS/…}
//! /sys/class/iscsi_session/sessionS/{targetname, recovery_tmo, device/targetH:0:0/H:0:0:1/block/sdX}
//! ```

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::command::{command, run};
use super::record;
use super::target::{Target, USER};
use super::{TgtError, file_error};

/// So long requests wait for a tgtd; longer than a supervisor waits for an engine.
const REPLACEMENT_S: u32 = 600;
/// The kernel aborts a command after this time, and resets the target when that doesn't help. A
/// volume may wait for space on a disk; whoever gives up is the supervisor.
const COMMAND_S: u32 = 24 * 3600;
const LOGIN_PATIENCE: Duration = Duration::from_secs(60);
const RECORD_PATIENCE: Duration = Duration::from_secs(10);
const DISK_PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const SESSIONS: &str = "/sys/class/iscsi_session";
const CONNECTIONS: &str = "/sys/class/iscsi_connection";
/// An abstract unix socket of iscsid, or of what starts it when it is needed.
const ISCSID: &str = "@ISCSIADM_ABSTRACT_NAMESPACE";

/// Whether iscsid runs, or would be started.
pub(super) fn is_running() -> bool {
    fs::read_to_string("/proc/net/unix").is_ok_and(|sockets| sockets.contains(ISCSID))
}

/// What targets know this node by.
pub(super) fn name() -> Result<String, TgtError> {
    let path = Path::new("/etc/iscsi/initiatorname.iscsi");
    let text = fs::read_to_string(path).map_err(file_error("read", path))?;
    let name = text.lines().find_map(|line| line.trim().strip_prefix("InitiatorName="));
    name.map(|name| name.trim().to_owned()).ok_or_else(|| {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it has no InitiatorName");
        file_error("read", path)(source)
    })
}

/// Opens a session. Its record says how to log in again when tgtd has ended.
pub(super) fn log_in(target: &Target, secret: &str) -> Result<Session, TgtError> {
    run(node(target).args(["-o", "new"]), RECORD_PATIENCE)?;
    let settings = [
        ("node.startup", "manual"), // not with the node: an engine has to be there
        ("node.session.auth.authmethod", "CHAP"),
        ("node.session.auth.username", USER),
        ("node.session.timeo.replacement_timeout", &REPLACEMENT_S.to_string()),
    ];
    let mut update = node(target);
    update.args(["-o", "update"]);
    for (name, value) in settings {
        update.args(["-n", name, "-v", value]);
    }
    let address = Ipv4Addr::LOCALHOST.to_string();
    let logged_in = run(&mut update, RECORD_PATIENCE)
        .and_then(|_| {
            record::set_secret(target.name(), (&address, target.port()), secret)
                .map_err(file_error("write the record of", Path::new(target.name())))
        })
        .and_then(|()| run(node(target).arg("--login"), LOGIN_PATIENCE));
    if let Err(error) = logged_in {
        forget(target);
        return Err(error);
    }
    session(target)?.ok_or_else(|| TgtError::NoSession { target: target.name().into() })
}

/// Closes the session if there is one, and forgets how to open it.
pub(super) fn log_out(target: &Target) -> Result<(), TgtError> {
    if session(target)?.is_some() {
        run(node(target).arg("--logout"), LOGIN_PATIENCE)?;
    }
    forget(target);
    Ok(())
}

/// Behind whatever port. A record that is left says only what would be said again.
fn forget(target: &Target) {
    let mut delete = command("iscsiadm");
    delete.args(["-m", "node", "-T", target.name(), "-o", "delete"]);
    if let Err(error) = run(&mut delete, RECORD_PATIENCE) {
        tracing::debug!(target = target.name(), %error, "no record of the target");
    }
}

fn node(target: &Target) -> Command {
    let mut command = command("iscsiadm");
    command.args(["-m", "node", "-T", target.name(), "-p", &target.portal()]);
    command
}

/// The one with this target, if the kernel has it.
pub(super) fn session(target: &Target) -> Result<Option<Session>, TgtError> {
    let is_it = |found: &Found| found.target == target.name() && found.port == target.port();
    Ok(sessions()?.into_iter().find(is_it).map(|found| found.session))
}

/// A session of the kernel, of whoever it is.
pub(super) struct Found {
    pub(super) target: String,
    pub(super) port: u16,
    session: Session,
}

/// All that the kernel has.
pub(super) fn sessions() -> Result<Vec<Found>, TgtError> {
    let failed = file_error("look into", Path::new(CONNECTIONS));
    let connections = match fs::read_dir(CONNECTIONS) {
        Ok(connections) => connections,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut sessions = Vec::new();
    for connection in connections {
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => return Err(failed(error)),
        };
        // connectionS:0
        let name = connection.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_prefix("connection")?.split(':').next());
        let port = line(&connection.path().join("persistent_port")).parse();
        let (Some(number), Ok(port)) = (number, port) else { continue };
        let session = Path::new(SESSIONS).join(format!("session{number}"));
        let target = line(&session.join("targetname"));
        sessions.push(Found { target, port, session: Session(session) });
    }
    Ok(sessions)
}

/// Its folder in sysfs.
#[derive(Clone, Debug)]
pub(super) struct Session(PathBuf);

impl Session {
    /// /dev/sdX, as soon as the kernel has found it. Its commands wait as long as they must.
    pub(super) fn disk(&self, target: &Target) -> Result<PathBuf, TgtError> {
        let deadline = Instant::now() + DISK_PATIENCE;
        let disk = loop {
            match self.find_disk() {
                Some(disk) if disk_bytes(&disk) > 0 && disk.exists() => break disk,
                _ if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
                _ => {
                    let (target, patience) = (target.name().into(), DISK_PATIENCE);
                    return Err(TgtError::NoDisk { target, patience });
                }
            }
        };
        let timeout = of_disk(&disk, "device/timeout");
        fs::write(&timeout, COMMAND_S.to_string()).map_err(file_error("write", &timeout))?;
        Ok(disk)
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.exists()
    }

    /// Requests that wait for a tgtd get errors a second after it has ended.
    pub(super) fn give_up(&self) -> Result<(), TgtError> {
        let bound = self.0.join("recovery_tmo");
        fs::write(&bound, "1").map_err(file_error("write", &bound))
    }

    pub(super) fn has_given_up(&self) -> bool {
        line(&self.0.join("state")) == "FAILED" || !self.is_there()
    }

    pub(super) fn find_disk(&self) -> Option<PathBuf> {
        let targets = folders(&self.0.join("device"), |name| name.starts_with("target"));
        let luns = targets.iter().flat_map(|target| folders(target, |name| name.ends_with(":1")));
        let disks = luns.flat_map(|lun| folders(&lun.join("block"), |_| true));
        disks.into_iter().find_map(|disk| Some(Path::new("/dev").join(disk.file_name()?)))
    }
}

/// The kernel asks the target for its size again.
pub(super) fn rescan(disk: &Path) -> Result<(), TgtError> {
    let rescan = of_disk(disk, "device/rescan");
    fs::write(&rescan, "1").map_err(file_error("write", &rescan))
}

/// 0 if it isn't there.
pub(super) fn disk_bytes(disk: &Path) -> u64 {
    line(&of_disk(disk, "size")).parse::<u64>().unwrap_or(0) * 512
}

fn of_disk(disk: &Path, what: &str) -> PathBuf {
    Path::new("/sys/block").join(disk.file_name().unwrap_or_default()).join(what)
}

fn line(path: &Path) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn folders(within: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(within).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(&wanted));
    named.map(|entry| entry.path()).collect()
}
