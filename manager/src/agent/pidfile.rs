//! Pid files: how a standalone that was killed finds its processes again.
//!
//! ```text
//! {"bootId": …, "spec": {…}}        by the manager, before it forks
//! 4711 (ankole) S 1 4711 …          by the child, its /proc/self/stat, before exec
//! ```
//! A process is the one of the file when pid, start time and boot are the same: a pid alone may
//! have been given to somebody else. What may never happen: a signal to a stranger.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::supervisor::ProcessSpec;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    pub boot_id: String,
    pub spec: ProcessSpec,
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
    let draft = path.with_extension("new");
    let mut file = File::create(&draft)?;
    let mut text = serde_json::to_vec(header)?;
    text.push(b'\n');
    file.write_all(&text)?;
    drop(file);
    fs::rename(&draft, path)?;
    File::options().append(true).open(path)
}

/// The header, and who became the process, if anybody has yet.
pub fn read(path: &Path) -> io::Result<(Header, Option<Identity>)> {
    let text = fs::read_to_string(path)?;
    let (header, stat) = text.split_once('\n').unwrap_or((&text, ""));
    Ok((serde_json::from_str(header)?, parse_stat(stat).map(|stat| stat.identity)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    identity: Identity,
    /// A zombie has ended; only its parent hasn't asked yet.
    ended: bool,
}

/// The name in parentheses may contain anything, also spaces and parentheses.
fn parse_stat(line: &str) -> Option<Stat> {
    let pid = line.split(' ').next()?.parse().ok()?;
    let mut fields = line.rsplit_once(") ")?.1.split(' ');
    let ended = matches!(fields.next()?, "Z" | "X");
    // The state is field 3, the start time field 22.
    let start_ticks = fields.nth(18)?.trim_end().parse().ok()?;
    Some(Stat { identity: Identity { pid, start_ticks }, ended })
}

pub fn is_alive(process: Identity) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
    parse_stat(&stat).is_some_and(|now| now.identity == process && !now.ended)
}

pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_the_same_pid_of_another_time_is_not() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let me = parse_stat(&stat).unwrap().identity;
        assert_eq!(me.pid, std::process::id());
        assert!(is_alive(me));
        assert!(!is_alive(Identity { start_ticks: me.start_ticks + 1, ..me }));
    }

    #[test]
    fn a_program_with_parentheses_in_its_name_is_read() {
        let line = "12 (a) Z (b) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5555 1 1";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat, Stat { identity: Identity { pid: 12, start_ticks: 5555 }, ended: false });
        assert_eq!(parse_stat("12 (a) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }
}
