//! Pid files: how a standalone that was killed finds its processes again.
//!
//! ```text
//! {"version": 1, "bootId": …, "spec": {…}}     by the manager, before it forks
//! 4711 (ankole) S 1 4711 …                     by the child, its /proc/self/stat, before exec
//! ```
//! A process is the one of the file when pid, start time and boot are the same: a pid alone may
//! have been given to somebody else. The two lines are read apart, so that a header that isn't
//! understood hides no process. What may never happen: a signal to a stranger; an error that is
//! taken for "there is no process".

use std::fs::{self, File};
use std::io;
use std::path::Path;

use ankole_whole_file as whole_file;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::supervisor::ProcessSpec;

/// Raised when a header can't be understood any more by the program before.
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// The first files had none.
    #[serde(default)]
    version: u32,
    pub boot_id: String,
    pub spec: ProcessSpec,
}

impl Header {
    pub fn new(boot_id: &str, spec: &ProcessSpec) -> Self {
        Self { version: VERSION, boot_id: boot_id.into(), spec: spec.clone() }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct PidFile {
    /// Or why it can't be used.
    pub header: Result<Header, String>,
    pub child: Child,
}

/// The child's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// There is none, yet.
    Silent,
    Told(Identity),
    /// There is one that names no process.
    Unclear,
}

/// One process since the boot of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
}

/// Puts the header in place, whole or not at all, and returns the file for the child's line.
pub fn write_header(path: &Path, header: &Header) -> io::Result<File> {
    write(path, header, "")?;
    File::options().append(true).open(path)
}

/// Of a process that lives already.
pub fn write_whole(path: &Path, header: &Header, process: Identity) -> io::Result<()> {
    write(path, header, &fs::read_to_string(format!("/proc/{}/stat", process.pid))?)
}

fn write(path: &Path, header: &Header, stat: &str) -> io::Result<()> {
    let mut text = serde_json::to_string(header)?;
    text.push('\n');
    text.push_str(stat);
    whole_file::write(path, text.as_bytes())
}

pub fn read(path: &Path) -> io::Result<PidFile> {
    Ok(parse(&fs::read(path)?))
}

fn parse(bytes: &[u8]) -> PidFile {
    let text = String::from_utf8_lossy(bytes);
    let (header, stat) = text.split_once('\n').unwrap_or((&text, ""));
    let header = serde_json::from_str(header).map_err(|error| error.to_string());
    let header = header.and_then(|header: Header| match header.version {
        0..=VERSION => Ok(header),
        newer => Err(format!("it has version {newer}, this program reads {VERSION}")),
    });
    let child = match parse_stat(stat) {
        Some(stat) => Child::Told(stat.identity),
        None if stat.is_empty() => Child::Silent,
        None => Child::Unclear,
    };
    PidFile { header, child }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) identity: Identity,
    pub(super) parent: u32,
    /// A zombie has ended; only its parent hasn't asked yet.
    pub(super) ended: bool,
}

/// The name in parentheses may contain anything, also spaces and parentheses.
fn parse_stat(line: &str) -> Option<Stat> {
    let pid = line.split(' ').next()?.parse().ok()?;
    let mut fields = line.rsplit_once(") ")?.1.split(' ');
    let ended = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    // The state is field 3, the start time field 22.
    let start_ticks = fields.nth(17)?.trim_end().parse().ok()?;
    Some(Stat { identity: Identity { pid, start_ticks }, parent, ended })
}

/// None if there is no process with that pid.
pub(super) fn stat_of(pid: u32) -> io::Result<Option<Stat>> {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(parse_stat(&stat)),
        Err(error) if has_ended(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the kernel says of a file in `/proc/PID` when the process has ended.
pub(super) fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

pub fn is_alive(process: Identity) -> io::Result<bool> {
    Ok(stat_of(process.pid)?.is_some_and(|now| now.identity == process && !now.ended))
}

pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProcessName;
    use expect_test::expect_file;

    #[test]
    fn this_process_is_alive_and_the_same_pid_of_another_time_is_not() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let me = parse_stat(&stat).unwrap().identity;
        assert_eq!(me.pid, std::process::id());
        assert!(is_alive(me).unwrap());
        assert!(!is_alive(Identity { start_ticks: me.start_ticks + 1, ..me }).unwrap());
    }

    const STAT: &str = "4711 (ankole) S 1 4711 4711 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5555 1 1";

    fn header() -> Header {
        let spec = ProcessSpec {
            name: ProcessName::engine(&"v1".parse().unwrap()),
            program: "/usr/bin/ankole".into(),
            args: ["engine", "run", "--volume", "v1"].map(String::from).into(),
            log: "/data/logs/v1.engine.log".into(),
            labels: [("instance".into(), "e1".into())].into(),
        };
        Header::new("5a7f7a0e-0000-4000-8000-000000000000", &spec)
    }

    #[test]
    fn the_file_of_this_version_is_the_one_that_was_agreed_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v1.engine.process");
        write(&path, &header(), STAT).unwrap();
        let golden = expect_file!["../tests/golden/pidfile-1.txt"];
        golden.assert_eq(&fs::read_to_string(&path).unwrap());
        let told = Child::Told(Identity { pid: 4711, start_ticks: 5555 });
        assert_eq!(read(&path).unwrap(), PidFile { header: Ok(header()), child: told });
    }

    /// Its processes live on while their standalone is replaced by this version.
    #[test]
    fn the_file_of_the_version_before_is_read() {
        let text = include_str!("../tests/golden/pidfile-0.txt");
        let file = parse(text.as_bytes());
        assert_eq!(file.header.unwrap(), Header { version: 0, ..header() });
        assert_eq!(file.child, Child::Told(Identity { pid: 4711, start_ticks: 5555 }));
    }

    #[test]
    fn a_program_with_parentheses_in_its_name_is_read() {
        let line = "12 (a) Z (b) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5555 1 1";
        let stat = parse_stat(line).unwrap();
        let identity = Identity { pid: 12, start_ticks: 5555 };
        assert_eq!(stat, Stat { identity, parent: 1, ended: false });
        assert_eq!(parse_stat("12 (a) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }
}
