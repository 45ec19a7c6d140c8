//! What can go wrong, told with the device, the cause and the next step.

use std::io;

use libublk::UblkError as LibraryError;

/// Why this node can't serve ublk devices.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error(
        "this kernel has no ublk driver loaded: `modprobe ublk_drv` (Linux 6.0 or newer, \
             CONFIG_BLK_DEV_UBLK)"
    )]
    NoDriver,
    #[error("/dev/ublk-control can't be opened; run as root, or give access to it")]
    NoAccess(#[source] io::Error),
    #[error("the ublk driver doesn't say what it can do; Linux 6.5 or newer is needed")]
    TooOld,
    #[error("the ublk driver lacks {0}; a newer kernel is needed")]
    MissingFeature(&'static str),
    #[error(
        "the ublk driver makes no more devices than the {used} that there are; as root: \
             echo {} > /sys/module/ublk_drv/parameters/ublks_max",
        used.saturating_mul(2).max(64)
    )]
    Full { used: u32 },
    #[error("kernel {release} is known to be dangerous with ublk: {reason}; use another kernel")]
    KnownBad { release: String, reason: &'static str },
}

/// Why a device couldn't be served, stopped or changed.
#[derive(Debug, thiserror::Error)]
pub enum UblkError {
    #[error("ublk can't be used on this node")]
    Unavailable(#[from] Unavailable),
    #[error("{step} ublk device {device}{}", hint(.source, .step))]
    Command { step: Step, device: DeviceName, source: io::Error },
    #[error("look through the ublk devices of this node")]
    List(#[source] io::Error),
    #[error("set up the queue of ublk device {device}")]
    Queue { device: u32, source: io::Error },
    #[error("start a thread for a ublk device")]
    Thread(#[source] io::Error),
    #[error("/dev/ublkb{device} is in use ({users}): release it first")]
    InUse { device: u32, users: String },
    #[error(
        "ublk device {device} belongs to another volume (identity {found:#x}, expected \
             {expected:#x}); it is left alone"
    )]
    OtherVolume { device: u32, found: u64, expected: u64 },
    #[error("ublk device {device} was made without {missing}, so it can't be taken over; stop it")]
    NotRecoverable { device: u32, missing: &'static str },
    #[error(
        "ublk device {device} has {device_bytes} bytes, more than its disk ({disk_bytes}); it \
             is left alone"
    )]
    LargerThanDisk { device: u32, device_bytes: u64, disk_bytes: u64 },
    #[error(
        "ublk device {device} can't grow while in use on this kernel (Linux 6.16 or newer \
             can); detach and attach the volume"
    )]
    NoResize { device: u32 },
    #[error("the control thread of the ublk device has ended")]
    ControlGone,
}

/// Steps of a device's life that the driver can refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Add,
    Inspect,
    Open,
    Recover,
    Start,
    Stop,
    Delete,
    Resize,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Inspect => "look at",
            Self::Open => "open",
            Self::Recover => "take over",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Delete => "delete",
            Self::Resize => "resize",
        })
    }
}

/// A device's number, or that the kernel was to choose one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceName(pub Option<u32>);

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(id) => id.fmt(f),
            None => f.write_str("(of any number)"),
        }
    }
}

/// What to do about errors that the driver words badly.
fn hint(source: &io::Error, step: &Step) -> &'static str {
    match (step, source.raw_os_error()) {
        (Step::Add, Some(libc::EEXIST)) => ": there is one; take it over, or stop it",
        (Step::Add, Some(libc::EACCES)) => {
            ": the driver's limit is reached; raise the parameter ublks_max of ublk_drv"
        }
        (Step::Add, Some(libc::EPERM)) => ": run as root",
        (Step::Recover, Some(libc::EBUSY)) => ": its old server is still running; end it first",
        (Step::Open, Some(libc::EACCES)) => ": its /dev/ublkc doesn't appear or is held by another",
        (_, Some(libc::ENODEV)) => ": there is none",
        _ => "",
    }
}

/// The library tells errors of the kernel in three ways, one of them as success.
pub(super) fn check(result: Result<i32, LibraryError>) -> io::Result<i32> {
    match result {
        Ok(code) if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        Ok(code) => Ok(code),
        Err(error) => Err(cause(error)),
    }
}

pub(super) fn cause(error: LibraryError) -> io::Error {
    match error {
        LibraryError::UringIOError(code) | LibraryError::OtherError(code) if code < 0 => {
            io::Error::from_raw_os_error(-code)
        }
        LibraryError::IOError(error) => error,
        LibraryError::InvalidVal => io::Error::from_raw_os_error(libc::EINVAL),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library returns EBUSY as `Ok(-16)`: taken as success, a device would be served twice.
    #[test]
    fn negative_success_of_the_library_is_an_error() {
        let busy = check(Ok(-libc::EBUSY)).unwrap_err();
        assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
        assert_eq!(check(Ok(0)).unwrap(), 0);
        let kernel = check(Err(LibraryError::UringIOError(-libc::ENODEV))).unwrap_err();
        assert_eq!(kernel.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn errors_name_the_device_and_the_next_step() {
        let source = io::Error::from_raw_os_error(libc::EBUSY);
        let device = DeviceName(Some(7));
        let text = UblkError::Command { step: Step::Recover, device, source }.to_string();
        assert_eq!(text, "take over ublk device 7: its old server is still running; end it first");
        assert!(Unavailable::NoDriver.to_string().contains("modprobe ublk_drv"));
    }
}
