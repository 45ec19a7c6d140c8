//! What can go wrong, told with the cause and the next step.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Why this node can't show volumes by tgt.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("{0} isn't installed")]
    NoProgram(&'static str),
    #[error("{} isn't there: it belongs beside the program ankole", super::PLUGIN)]
    NoPlugin,
    #[error("iscsid doesn't run: `systemctl start iscsid`")]
    NoInitiator,
    #[error("only root can log in to a target")]
    NoPrivilege,
}

/// Why a device couldn't be served, stopped or changed.
#[derive(Debug, thiserror::Error)]
pub enum TgtError {
    #[error("tgt can't be used on this node")]
    Unavailable(#[from] Unavailable),
    #[error("start {program}")]
    Start { program: String, source: io::Error },
    #[error("{program} said nothing for {} s, and was ended", .patience.as_secs_f64())]
    Silent { program: String, patience: Duration },
    #[error("{program} refused ({status}): {output}")]
    Refused { program: String, status: ExitStatus, output: String },
    #[error("{step} {path}")]
    File { step: &'static str, path: PathBuf, source: io::Error },
    #[error("tgtd of port {port} ended while it started; the engine's log says why")]
    Ended { port: u16 },
    #[error("no port of 127.0.0.1 is free for a target")]
    NoPort,
    #[error("port {0} isn't one: a target's port is from 1 to 65535")]
    Port(u32),
    #[error("{target} isn't logged in to any more; its requests got errors")]
    NoSession { target: String },
    #[error("{target} was logged in to, but its disk didn't appear within {} s: is the driver sd_mod loaded?", .patience.as_secs())]
    NoDisk { target: String, patience: Duration },
    #[error("{path} is in use ({users}): release it first")]
    InUse { path: PathBuf, users: String },
    #[error("{path} has {device_bytes} bytes, more than its disk ({disk_bytes}); it is left alone")]
    LargerThanDisk { path: PathBuf, device_bytes: u64, disk_bytes: u64 },
    #[error("{path} still shows {device_bytes} bytes of {disk_bytes}")]
    NotGrown { path: PathBuf, device_bytes: u64, disk_bytes: u64 },
}
