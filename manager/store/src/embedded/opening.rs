//! Opening the store when it may be gone: never silently empty, never silently older.
//!
//! ```text
//! file                 copy              known elsewhere   without recovery
//! sound                not newer         any               opened
//! missing or empty     none              no                made: the first start
//! sound                newer             any               ─┐
//! missing or empty     any               yes, or a copy    ─┼▶ refused, with what can be done
//! damaged              any               any               ─┘
//! ```
//! It is recovered from the copy or without any object, as somebody says; what is there is set aside,
//! never removed. What may never happen: something of the copy is believed that may be older than what
//! others have seen; `believable` leaves that out.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use ankole_api::error::chain;
use ankole_api::why::lasting;
use ankole_whole_file as whole_file;
use jiff::Timestamp;

use super::copy::{StoreCopy, path_of as copy_of};
use super::file::{self, FileError, StoredObject, Verified, verify};
use crate::state::State;

/// What to do about a store that is gone or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recover {
    /// Make it from the copy that is kept beside it.
    Copy,
    /// Begin without any object.
    Empty,
}

pub struct Opening<'a> {
    /// What shows that there was a store, in words that follow "but": "the disks have …".
    pub elsewhere: Option<String>,
    pub recover: Option<Recover>,
    /// An object of the copy, without what may be older than what others know.
    pub believable: &'a dyn Fn(StoredObject) -> StoredObject,
}

impl Default for Opening<'_> {
    fn default() -> Self {
        Self { elsewhere: None, recover: None, believable: &|object| object }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the store {path} {what}")]
    Lost { path: PathBuf, what: String, next: String },
    #[error("the store {path} is sound: there is nothing to recover")]
    Sound { path: PathBuf },
    #[error("there is no copy of the store {path} that could be used: {why}")]
    NoCopy { path: PathBuf, why: String },
    #[error("set {path} aside")]
    SetAside { path: PathBuf, source: io::Error },
    #[error(transparent)]
    File(#[from] FileError),
}

impl OpenError {
    /// What a person can do.
    pub fn next(&self) -> String {
        match self {
            Self::Lost { next, .. } => next.clone(),
            Self::Sound { .. } => "start it without --recover-store".into(),
            Self::NoCopy { .. } => format!("start it with --recover-store empty, which {EMPTY}"),
            Self::SetAside { .. } => "look at the disk of the data folder".into(),
            Self::File(FileError::Newer { .. }) => "run the version of ankole that wrote it".into(),
            Self::File(FileError::InUse { .. }) => "end the other program first".into(),
            Self::File(_) => "look at the disk and the rights of the data folder".into(),
        }
    }
}

const EMPTY: &str = "begins without any object: ankole volume recover then makes volumes of the replicas' directories";

/// The copy, as far as it can be used.
enum Copy {
    None,
    Unusable(String),
    Good(StoreCopy),
}

impl Opening<'_> {
    /// What the file at `path` holds, now that it is there and sound.
    pub(super) fn open(&self, path: &Path) -> Result<State, OpenError> {
        let copy = match StoreCopy::read(&copy_of(path)) {
            Ok(Some(copy)) => Copy::Good(copy),
            Ok(None) => Copy::None,
            Err(error) => Copy::Unusable(chain(&error)),
        };
        let found = match verify(path) {
            Ok(found) => Ok(found),
            Err(FileError::Damaged { what, .. }) => Err(what),
            Err(error) => return Err(error.into()),
        };
        let lost = self.what_is_lost(&found, &copy);
        match (lost, self.recover) {
            (None, None) => match found {
                Ok(Verified::Sound(state)) => return Ok(state),
                _ => file::make(path, 0, std::iter::empty())?,
            },
            (None, Some(_)) => return Err(OpenError::Sound { path: path.into() }),
            (Some(what), None) => {
                let next = next_step(&copy, matches!(found, Ok(Verified::Sound(_))), path);
                return Err(OpenError::Lost { path: path.into(), what, next });
            }
            (Some(_), Some(Recover::Copy)) => {
                let copy = match copy {
                    Copy::Good(copy) => copy,
                    Copy::None => {
                        let why = "there is none".into();
                        return Err(OpenError::NoCopy { path: path.into(), why });
                    }
                    Copy::Unusable(why) => {
                        return Err(OpenError::NoCopy { path: path.into(), why });
                    }
                };
                let objects: Vec<_> = copy.objects.into_iter().map(self.believable).collect();
                set_aside(path)?;
                file::make(path, copy.version + 1, objects.into_iter())?;
            }
            (Some(_), Some(Recover::Empty)) => {
                set_aside(path)?;
                set_aside(&copy_of(path))?;
                file::make(path, 0, std::iter::empty())?;
            }
        }
        match verify(path)? {
            Verified::Sound(state) => Ok(state),
            Verified::Missing | Verified::Empty => {
                Err(file::damaged(path, "it was made and isn't there").into())
            }
        }
    }

    /// In words that follow "the store PATH".
    fn what_is_lost(&self, found: &Result<Verified, String>, copy: &Copy) -> Option<String> {
        let is_known = match copy {
            Copy::None => false,
            Copy::Unusable(_) => true,
            Copy::Good(copy) => !copy.objects.is_empty(),
        };
        let gone = |how: &str| match &self.elsewhere {
            None if !is_known => None,
            None => Some(format!("{how}, but there is a copy of it")),
            Some(what) => Some(format!("{how}, but {what}")),
        };
        match found {
            Err(what) => Some(format!("is damaged: {what}")),
            Ok(Verified::Missing) => gone("is missing"),
            Ok(Verified::Empty) => gone("has no bytes"),
            Ok(Verified::Sound(state)) => match copy {
                Copy::Good(copy) if copy.version > state.revision() => Some(format!(
                    "has lost changes: its last is {}, that of its copy {}",
                    state.revision(),
                    copy.version
                )),
                _ => None,
            },
        }
    }
}

fn next_step(copy: &Copy, is_older: bool, path: &Path) -> String {
    let from_copy = match copy {
        Copy::Good(copy) => format!(
            "start it with --recover-store copy, which takes its copy of {} ago ({} objects)",
            lasting(age_s(copy)),
            copy.objects.len()
        ),
        Copy::None | Copy::Unusable(_) => format!(
            "bring it back from a backup, or start it with --recover-store empty, which {EMPTY}"
        ),
    };
    if is_older {
        let copy = copy_of(path);
        return format!("{from_copy}; if the older one is meant, move {} away", copy.display());
    }
    from_copy
}

fn age_s(copy: &StoreCopy) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_secs().saturating_sub(copy.taken_unix_s)
}

fn set_aside(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::SetAside { path: path.into(), source };
    if let Some(to) = rename_damaged(path).map_err(failed)? {
        tracing::warn!(from = %path.display(), to = %to.display(), "set aside");
    }
    Ok(())
}

/// Kept under another name, for whoever wants to look at it: `NAME.damaged-20261120-210244`.
fn rename_damaged(path: &Path) -> io::Result<Option<PathBuf>> {
    let now = Timestamp::now().strftime("%Y%m%d-%H%M%S");
    let mut to = whole_file::beside(path, &format!(".damaged-{now}"));
    let mut number = 2;
    while fs::exists(&to)? {
        to = whole_file::beside(path, &format!(".damaged-{now}-{number}"));
        number += 1;
    }
    match whole_file::put(path, &to) {
        Ok(()) => Ok(Some(to)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
