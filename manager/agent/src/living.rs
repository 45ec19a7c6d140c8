//! Which of our processes live, by their command lines: a witness beside the pid files.
//!
//! A pid file can be lost, cut short or written by another version; what a process was started as
//! is told by the kernel. What may never happen: another standalone's process is taken for ours, so
//! one counts only if its socket, or what it was told, lies in our own folder.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ankole_api::Name;
use ankole_api::job::SPEC_FILE;
use rustix::process::geteuid;

use super::layout::JOBS;
use super::pidfile::{self, Identity};
use super::supervisor::{Part, ProcessName, ProcessSpec};

pub(super) struct Found {
    pub(super) identity: Identity,
    /// Its command line, the program first.
    pub(super) words: Vec<String>,
    /// Without labels.
    pub(super) spec: ProcessSpec,
}

/// Those of this user whose sockets lie in one of `folders`.
pub(super) fn find(folders: &[&Path]) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        match look(pid, folders) {
            Ok(Some((process, parent))) => {
                parents.insert(pid, parent);
                found.push(process);
            }
            Ok(None) => {}
            Err(error) if pidfile::has_ended(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {} // not this user's
            Err(error) => return Err(error),
        }
    }
    // What one of them is about to start has its command line until it becomes another program.
    found.retain(|process| !parents.contains_key(&parents[&process.identity.pid]));
    Ok(found)
}

/// The process, and its parent's pid.
fn look(pid: u32, folders: &[&Path]) -> io::Result<Option<(Found, u32)>> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    if fs::metadata(&folder)?.uid() != geteuid().as_raw() {
        return Ok(None);
    }
    let words = fs::read(folder.join("cmdline"))?;
    let words = String::from_utf8_lossy(&words);
    let words: Vec<_> = words.split_terminator('\0').map(String::from).collect();
    let Some(mut spec) = spec_of(&words, folders) else { return Ok(None) };
    spec.log = fs::read_link(folder.join("fd/1")).unwrap_or_default();
    let stat = pidfile::stat_of(pid)?;
    let living = stat.filter(|stat| !stat.ended);
    Ok(living.map(|stat| (Found { identity: stat.identity, words, spec }, stat.parent)))
}

/// `PROGRAM engine run …`, `PROGRAM replica serve …` or `PROGRAM job run …`; for a script, its
/// interpreter goes before.
fn spec_of(words: &[String], folders: &[&Path]) -> Option<ProcessSpec> {
    let start = (1..=2).find(|start| {
        let role = words.get(*start..*start + 2).unwrap_or_default();
        [["engine", "run"], ["replica", "serve"], ["job", "run"]].iter().any(|it| role == *it)
    })?;
    let args = &words[start..];
    let option = |name| args.windows(2).find(|pair| pair[0] == name).map(|pair| &*pair[1]);
    let volume: Name = option("--volume")?.parse().ok()?;
    let (name, path, within) = match &*args[0] {
        "engine" => {
            (ProcessName::engine(&volume), option("--admin")?, format!("{volume}.admin").into())
        }
        "job" => {
            let spec = Path::new(option("--spec")?);
            let folder = spec.parent()?.file_name()?;
            let part = Part::parse(folder.to_str()?).filter(Part::is_job)?;
            let within = Path::new(JOBS).join(folder).join(SPEC_FILE);
            (ProcessName { volume, part }, option("--spec")?, within)
        }
        _ => {
            let replica = option("--replica")?;
            let socket = option("--listen")?.strip_prefix("unix:")?;
            let within = format!("{volume}.{replica}").into();
            (ProcessName::replica(&volume, &replica.into()), socket, within)
        }
    };
    let is_ours = folders.iter().any(|folder| folder.join(&within) == Path::new(path));
    is_ours.then(|| ProcessSpec {
        name,
        program: words[start - 1].clone().into(),
        args: args.into(),
        log: PathBuf::new(),
        labels: BTreeMap::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(line: &str) -> Option<ProcessSpec> {
        let words: Vec<_> = line.split(' ').map(String::from).collect();
        spec_of(&words, &[Path::new("/data/run")])
    }

    #[test]
    fn an_engine_a_replica_and_a_job_are_told_by_their_words() {
        let line = "/bin/ankole engine run --volume v1 --instance i --admin /data/run/v1.admin";
        let engine = spec(line).unwrap();
        assert_eq!(engine.name.to_string(), "v1.engine");
        assert_eq!(engine.program, Path::new("/bin/ankole"));
        assert_eq!(engine.args.join(" "), line.split_once(' ').unwrap().1);
        let by_script = spec(&format!("/bin/sh {line}")).unwrap();
        assert_eq!(by_script, engine);
        let replica = "x replica serve --volume v1 --replica r1 --listen unix:/data/run/v1.r1";
        assert_eq!(spec(replica).unwrap().name.to_string(), "v1.r1");
        let job = "x job run --volume v1 --spec /data/run/jobs/backup.b1/spec.json";
        assert_eq!(spec(job).unwrap().name.to_string(), "v1.backup.b1");
    }

    /// Two standalones on one machine may each have a volume of that name.
    #[test]
    fn what_has_its_socket_elsewhere_is_somebody_elses() {
        for line in [
            "ankole engine run --volume v1 --admin /other/run/v1.admin",
            "ankole engine run --volume v1 --admin /data/run/v2.admin",
            "ankole replica serve --volume v1 --replica r1 --listen tcp:127.0.0.1:9601",
            "ankole job run --volume v1 --spec /other/run/jobs/backup.b1/spec.json",
            "ankole job run --volume v1 --spec /data/run/jobs/engine/spec.json",
            "ankole job run --volume v1 --spec spec.json",
            "ankole engine show v1",
            "vi engine run",
            "ankole",
        ] {
            assert_eq!(spec(line), None, "{line}");
        }
    }
}
