//! What to do next when something is wrong with a backup: commands as they can be typed.
//!
//! Every error of the crate `ankole-backup` becomes one of the API here, and nowhere else a command
//! about backups is advised. So a test can go through all of them.

use std::fmt;

use ankole_backup::prune::WhyKept;
use ankole_backup::{self as backup, BackupUrl, Error, TargetUrl};

use crate::api::error::chain;
use crate::api::{ApiError, ErrorKind};

/// What an error is about; says which place a next step is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum About<'a> {
    Target(&'a TargetUrl),
    Backup(&'a BackupUrl),
}

impl About<'_> {
    fn target(self) -> String {
        match self {
            Self::Target(target) => target.to_string(),
            Self::Backup(backup) => backup.target.to_string(),
        }
    }

    fn backup(self, volume: &backup::Name, backup: &backup::Name) -> String {
        match self {
            Self::Target(target) => target.backup(volume, backup).to_string(),
            Self::Backup(url) => url.target.backup(volume, backup).to_string(),
        }
    }
}

/// A command, and what it is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    List { target: String },
    ListVolume { target: String, volume: String },
    Verify { backup: String },
    Unlock { volume: String, target: String },
    Remove { backup: String },
    RemoveIfDead { backup: String },
    StoreAgain { volume: String, target: String },
    GoOn { volume: String, snapshot: String, target: String, full: bool },
    RemoveSnapshot { volume: String, snapshot: String },
    ListSnapshots { volume: String },
    AskWhy { volume: String },
}

impl Step {
    fn purpose(&self) -> &'static str {
        match self {
            Self::List { .. } => "see what is there",
            Self::ListVolume { .. } => "see what is there of the volume",
            Self::Verify { .. } => "see all blocks that are bad",
            Self::Unlock { .. } => "if nobody works on it, remove what a dead one left",
            Self::Remove { .. } => "remove it",
            Self::RemoveIfDead { .. } => "wait for it, or, if whoever made it died, remove it",
            Self::StoreAgain { .. } => "while the volume still has them, store all its blocks anew",
            Self::GoOn { .. } => "go on with the snapshot that was made for it",
            Self::RemoveSnapshot { .. } => "or remove that snapshot",
            Self::ListSnapshots { .. } => "see what it has",
            Self::AskWhy { .. } => "see how the volume is",
        }
    }

    fn arguments(&self) -> Vec<&str> {
        match self {
            Self::List { target } => vec!["backup", "ls", "--target", target],
            Self::ListVolume { target, volume } => {
                vec!["backup", "ls", "--target", target, "--volume", volume]
            }
            Self::Verify { backup } => vec!["backup", "verify", backup],
            Self::Unlock { volume, target } => vec!["backup", "unlock", volume, "--target", target],
            Self::Remove { backup } | Self::RemoveIfDead { backup } => vec!["backup", "rm", backup],
            Self::StoreAgain { volume, target } => {
                vec!["backup", "create", volume, "--full", "--target", target]
            }
            Self::GoOn { volume, snapshot, target, full } => {
                let create = ["backup", "create", volume, "--snapshot", snapshot];
                let full = full.then_some("--full");
                create.into_iter().chain(full).chain(["--target", target]).collect()
            }
            Self::RemoveSnapshot { volume, snapshot } => vec!["snapshot", "rm", volume, snapshot],
            Self::ListSnapshots { volume } => vec!["snapshot", "ls", volume],
            Self::AskWhy { volume } => vec!["volume", "why", volume],
        }
    }
}

/// The command comes last, so that it can be copied.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ankole", self.purpose())?;
        self.arguments().into_iter().try_for_each(|argument| write!(f, " {}", quoted(argument)))
    }
}

/// As a shell wants it: the URL of a backup has an `&`.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=".contains(c);
    match argument.chars().all(is_plain) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

/// What can be done with a snapshot that was made for a backup which failed.
pub(super) fn snapshot_left(volume: &str, name: &str, target: &TargetUrl, full: bool) -> String {
    let [of, made] = [volume, name].map(String::from);
    let (volume, snapshot, target) = (of.clone(), made.clone(), target.to_string());
    all(&[
        Step::GoOn { volume, snapshot, target, full },
        Step::RemoveSnapshot { volume: of, snapshot: made },
    ])
}

fn all(steps: &[Step]) -> String {
    steps.iter().map(Step::to_string).collect::<Vec<_>>().join("; ")
}

/// The error of the API: its kind, all causes, and what to do.
pub(super) fn refused(about: About<'_>, error: &Error) -> ApiError {
    let answer = ApiError::new(kind(error), chain(error));
    match next(about, error) {
        Some(next) => answer.next(next),
        None => answer,
    }
}

/// Why blocks stay, and what would let them go.
pub(super) fn why_kept(target: &TargetUrl, volume: &backup::Name, why: &WhyKept) -> String {
    match why {
        WhyKept::InProgress(name) | WhyKept::Unreadable(name) => {
            let backup = target.backup(volume, name).to_string();
            format!("{why}; {}", Step::Remove { backup })
        }
        WhyKept::VolumeUnreadable => {
            let see = Step::ListVolume { target: target.to_string(), volume: volume.to_string() };
            format!("{why}; the volume's next backup makes it anew, if it can be; {see}")
        }
        WhyKept::BackupsChanged => format!("{why}; run it again"),
    }
}

fn kind(error: &Error) -> ErrorKind {
    match error {
        Error::NoSuchVolume { .. } | Error::NoSuchBackup { .. } => ErrorKind::NotFound,
        Error::BackupExists { .. }
        | Error::InProgress { .. }
        | Error::Busy { .. }
        | Error::Shrank { .. }
        | Error::FileExists { .. }
        | Error::FileBusy { .. }
        | Error::BackingImage { .. } => ErrorKind::Conflict,
        Error::Name(_)
        | Error::NotWholeBlocks { .. }
        | Error::TooManyBlocks { .. }
        | Error::SingleFile { .. } => ErrorKind::Invalid,
        _ => ErrorKind::Failed,
    }
}

fn next(about: About<'_>, error: &Error) -> Option<String> {
    let target = || about.target();
    let step = match error {
        Error::NoSuchVolume { .. } | Error::NoSuchBackup { .. } => Step::List { target: target() },
        Error::InProgress { backup, volume } => {
            Step::RemoveIfDead { backup: about.backup(volume, backup) }
        }
        Error::Shrank { volume, .. } => {
            let see = Step::ListVolume { target: target(), volume: volume.to_string() };
            return Some(format!(
                "use another target, or remove the backups of the larger volume; {see}"
            ));
        }
        Error::Block(bad) => {
            let (volume, target) = (bad.volume.to_string(), target());
            let verify = Step::Verify { backup: about.backup(&bad.volume, &bad.backup) };
            return Some(all(&[Step::StoreAgain { volume, target }, verify]));
        }
        Error::BackingImage { .. } => {
            return Some("restore its backups with Longhorn, and use another target here".into());
        }
        Error::BackupExists { .. } | Error::LockLost { .. } | Error::Cancelled => {
            return Some("run it again: what is stored already isn't uploaded again".into());
        }
        Error::Busy { volume, .. } => {
            let unlock = Step::Unlock { volume: volume.to_string(), target: target() };
            return Some(format!("run it again when that has finished; {unlock}"));
        }
        Error::FileExists { .. } => return Some("name a file that doesn't exist".into()),
        Error::FileBusy { .. } => return Some("wait for it, or name another file".into()),
        Error::File { .. } => {
            return Some("check that its folder exists, is writable, and has room".into());
        }
        Error::Manifest { .. } => {
            let see = Step::List { target: target() };
            return Some(format!("repair it from a copy of the target; {see}"));
        }
        Error::Source { volume, .. } => Step::AskWhy { volume: volume.to_string() },
        Error::Sink { .. } => return Some("look at what is restored to, and run it again".into()),
        // Their texts say it: they are also met where no command is advised.
        Error::Target(_) | Error::Name(_) => return None,
        Error::SingleFile { .. } => return Some("restore it with Longhorn".into()),
        // Sizes of volumes and blocks are chosen here so that these can't be.
        Error::NotWholeBlocks { .. } | Error::TooManyBlocks { .. } | Error::SinkTooSmall { .. } => {
            return None;
        }
    };
    Some(step.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each. The match has no wildcard, so that a new one can't be forgotten here.
    fn one_of_each() -> Vec<Step> {
        let target = || String::from("file:///my backups");
        let backup = || String::from("file:///b?backup=b1&volume=v1");
        let (volume, snapshot) = (|| String::from("v1"), || String::from("s1"));
        let after = |step: Option<&Step>| match step {
            None => Some(Step::List { target: target() }),
            Some(Step::List { .. }) => {
                Some(Step::ListVolume { target: target(), volume: volume() })
            }
            Some(Step::ListVolume { .. }) => Some(Step::Verify { backup: backup() }),
            Some(Step::Verify { .. }) => Some(Step::Unlock { volume: volume(), target: target() }),
            Some(Step::Unlock { .. }) => Some(Step::Remove { backup: backup() }),
            Some(Step::Remove { .. }) => Some(Step::RemoveIfDead { backup: backup() }),
            Some(Step::RemoveIfDead { .. }) => {
                Some(Step::StoreAgain { volume: volume(), target: target() })
            }
            Some(Step::StoreAgain { .. }) => {
                let (volume, snapshot, target) = (volume(), snapshot(), target());
                Some(Step::GoOn { volume, snapshot, target, full: true })
            }
            Some(Step::GoOn { .. }) => {
                Some(Step::RemoveSnapshot { volume: volume(), snapshot: snapshot() })
            }
            Some(Step::RemoveSnapshot { .. }) => Some(Step::ListSnapshots { volume: volume() }),
            Some(Step::ListSnapshots { .. }) => Some(Step::AskWhy { volume: volume() }),
            Some(Step::AskWhy { .. }) => None,
        };
        std::iter::successors(after(None), |step| after(Some(step))).collect()
    }

    /// "A new backup in mode full" was advised, and no command could make one.
    #[test]
    fn every_command_that_is_advised_is_one() {
        for step in one_of_each() {
            let words = std::iter::once("ankole").chain(step.arguments());
            crate::cli::parse(words.map(Into::into)).unwrap_or_else(|e| panic!("{step}: {e}"));
        }
    }

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        let step = Step::Remove { backup: "file:///it's?backup=b1&volume=v1".into() };
        let text = r"remove it: ankole backup rm 'file:///it'\''s?backup=b1&volume=v1'";
        assert_eq!(step.to_string(), text);
    }
}
