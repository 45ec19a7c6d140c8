//! One server for one directory: two would each grant what the other has granted already.
//!
//! It is the directory itself that is locked, by `flock`: whatever is removed or renamed in it, and whichever
//! path or mount it is reached by, it is the same. The lock ends with the process, however that ends.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// A process that was killed a moment ago may still be on its way out.
const WAIT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);

pub struct Sole {
    _locked: OwnedFd,
}

pub enum Refused {
    /// By this process, if it can be seen from here.
    Taken(Option<Holder>),
    Failed(Errno),
}

#[derive(Debug)]
pub struct Holder {
    pub pid: u32,
    pub command: String,
}

impl Sole {
    pub fn of(directory: BorrowedFd) -> Result<Self, Refused> {
        Self::within(directory, WAIT)
    }

    fn within(directory: BorrowedFd, wait: Duration) -> Result<Self, Refused> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let locked =
            rustix::fs::openat(directory, c".", flags, Mode::empty()).map_err(Refused::Failed)?;
        let deadline = Instant::now() + wait;
        loop {
            match rustix::fs::flock(&locked, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _locked: locked }),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOOK),
                Err(Errno::WOULDBLOCK) => return Err(Refused::Taken(holder(&locked))),
                Err(errno) => return Err(Refused::Failed(errno)),
            }
        }
    }
}

/// Who has locked it, as the kernel lists it: `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF`. It
/// lists no process of another container, and some file systems by another device.
fn holder(locked: &OwnedFd) -> Option<Holder> {
    let stat = rustix::fs::fstat(locked.as_fd()).ok()?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let file = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    let list = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = list.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, _, pid, of, ..] if of == file => pid.parse().ok(),
            _ => None,
        }
    })?;
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Holder { pid, command: command.trim().into() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_served_by_one() {
        let directory = tempfile::tempdir().unwrap();
        let open = || std::fs::File::open(directory.path()).unwrap();
        let take = || Sole::within(open().as_fd(), Duration::ZERO);
        let Ok(first) = take() else { panic!("nobody else has it") };
        let Err(Refused::Taken(holder)) = take() else { panic!("two have it") };
        if let Some(holder) = holder {
            assert_eq!(holder.pid, std::process::id());
        }
        drop(first);
        assert!(take().is_ok());
    }
}
