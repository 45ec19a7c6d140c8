//! What can go wrong, told with the device, the cause and the next step.

use std::io;

/// Why this node can't serve devices of the driver nbd.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("this kernel has no driver nbd loaded: `modprobe nbd`")]
    NoDriver,
    #[error("the driver nbd obeys root only (CAP_SYS_ADMIN)")]
    NoPrivilege,
    #[error("ask the kernel for the driver nbd")]
    Netlink(#[source] io::Error),
}

/// Why a device couldn't be served, stopped or changed.
#[derive(Debug, thiserror::Error)]
pub enum NbdDeviceError {
    #[error("kernel NBD can't be used on this node")]
    Unavailable(#[from] Unavailable),
    #[error("{step} {device}{}", hint(.source, *.step))]
    Command { step: Step, device: DeviceName, source: io::Error },
    #[error("make a connection for the driver nbd")]
    Connection(#[source] io::Error),
    #[error("/dev/nbd{device} is in use ({users}): release it first")]
    InUse { device: u32, users: String },
    #[error(
        "/dev/nbd{device} belongs to another volume ({found:?}, expected {expected:?}); it is left \
             alone"
    )]
    OtherVolume { device: u32, found: String, expected: String },
    #[error("/dev/nbd{device} isn't connected any more; its requests got errors")]
    NotConnected { device: u32 },
    #[error(
        "/dev/nbd{device} has {device_bytes} bytes, more than its disk ({disk_bytes}); it is left \
             alone"
    )]
    LargerThanDisk { device: u32, device_bytes: u64, disk_bytes: u64 },
}

/// Steps of a device's life that the driver can refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Connect,
    Reconnect,
    Inspect,
    Resize,
    Disconnect,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Reconnect => "take over",
            Self::Inspect => "look at",
            Self::Resize => "resize",
            Self::Disconnect => "disconnect",
        })
    }
}

/// /dev/nbdN, or that the kernel was to choose one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceName(pub Option<u32>);

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(id) => write!(f, "/dev/nbd{id}"),
            None => f.write_str("an nbd device of any number"),
        }
    }
}

/// What to do about errors that the driver words badly.
fn hint(source: &io::Error, step: Step) -> &'static str {
    match (step, source.raw_os_error()) {
        (Step::Connect, Some(libc::EBUSY)) => ": it is connected already, or about to go",
        (_, Some(libc::EPERM)) => ": run as root",
        (_, Some(libc::ENODEV | libc::EINVAL)) => ": the kernel's log says why",
        _ => "",
    }
}
