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
//!
//! ```text
//! sound, of format 1 or 2 ──convert──▶ written beside it ──▶ kept as ankole.redb.format-2 ──▶ replaced
//! ```
//! A crash leaves the older file, which is converted again, or the new one. What can't be read of the
//! older is kept as it is, for `convert` hands it on, and is listed as unreadable then.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use ankole_api::error::chain;
use ankole_api::why::lasting;
use ankole_whole_file as whole_file;
use jiff::Timestamp;

use super::copy::{StoreCopy, path_of as copy_of};
use super::file::{self, FileError, OLDER_FORMATS, StoredObject, Verified, read_older, verify};
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
    /// The objects of the copy, without what may be older than what others know.
    pub believable: &'a dyn Fn(Vec<StoredObject>) -> Vec<StoredObject>,
    /// What comes of the objects of format 1 or 2. Without it a store of these is refused.
    pub convert: Option<&'a Convert<'a>>,
}

/// Their keys are the name of the older table and the object's; versions are given by the store. An
/// object that can't be read comes as it is, under the plural of its kind.
pub type Convert<'a> = dyn Fn(&[StoredObject]) -> Result<Vec<StoredObject>, Unconverted> + 'a;
/// With the name of the object.
pub type Unconverted = Box<dyn Error + Send + Sync>;

impl Default for Opening<'_> {
    fn default() -> Self {
        Self { elsewhere: None, recover: None, believable: &|objects| objects, convert: None }
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
    #[error("convert the store {path}, which a version before wrote")]
    Convert { path: PathBuf, source: Unconverted },
    #[error("keep the store of the version before as {path}")]
    Keep { path: PathBuf, source: io::Error },
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
            Self::SetAside { .. } | Self::Keep { .. } => {
                "look at the disk of the data folder".into()
            }
            Self::Convert { .. } => {
                "nothing was changed: the version of ankole that wrote it can still be run".into()
            }
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

/// What is there.
enum Found {
    Missing,
    Empty,
    Damaged(String),
    Sound(State),
    Older(Older),
}

/// What a sound file of an older format holds.
struct Older {
    format: u64,
    version: u64,
    objects: Vec<StoredObject>,
}

impl Opening<'_> {
    /// What the file at `path` holds, now that it is there and sound.
    pub(super) fn open(&self, path: &Path) -> Result<State, OpenError> {
        let copy = match StoreCopy::read(&copy_of(path)) {
            Ok(Some(copy)) => Copy::Good(copy),
            Ok(None) => Copy::None,
            Err(error) => Copy::Unusable(chain(&error)),
        };
        let found = self.look(path)?;
        let lost = self.what_is_lost(&found, &copy);
        match (lost, self.recover) {
            (None, None) => match found {
                Found::Sound(state) => return Ok(state),
                Found::Older(older) => self.replace_older(path, older)?,
                Found::Missing | Found::Empty | Found::Damaged(_) => {
                    file::make(path, 0, std::iter::empty())?;
                }
            },
            (None, Some(_)) => return Err(OpenError::Sound { path: path.into() }),
            (Some(what), None) => {
                let is_older = matches!(found, Found::Sound(_) | Found::Older(_));
                let next = next_step(&copy, is_older, path);
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
                let version = copy.version + 1;
                let objects = match copy.is_older {
                    true => self.converted(path, version, &copy.objects)?,
                    false => copy.objects,
                };
                let objects = (self.believable)(objects);
                set_aside(path)?;
                file::make(path, version, objects.into_iter())?;
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

    fn look(&self, path: &Path) -> Result<Found, OpenError> {
        let looked = verify(path).map(|found| match found {
            Verified::Sound(state) => Found::Sound(state),
            Verified::Missing => Found::Missing,
            Verified::Empty => Found::Empty,
        });
        let looked = match looked {
            Err(FileError::Older { found: format, .. })
                if self.convert.is_some() && OLDER_FORMATS.contains(&format) =>
            {
                let read = read_older(path);
                read.map(|(version, objects)| Found::Older(Older { format, version, objects }))
            }
            looked => looked,
        };
        match looked {
            Err(FileError::Damaged { what, .. }) => Ok(Found::Damaged(what)),
            looked => Ok(looked?),
        }
    }

    /// All of it, or nothing is changed.
    fn replace_older(&self, path: &Path, older: Older) -> Result<(), OpenError> {
        let version = older.version + 1;
        let objects = self.converted(path, version, &older.objects)?;
        let kept = keep(path, older.format)?;
        file::make(path, version, objects.into_iter())?;
        tracing::warn!(
            path = %path.display(), format = older.format, kept = %kept.display(),
            "the store of a version before was converted"
        );
        Ok(())
    }

    fn converted(
        &self,
        path: &Path,
        version: u64,
        older: &[StoredObject],
    ) -> Result<Vec<StoredObject>, OpenError> {
        let failed = |source| OpenError::Convert { path: path.into(), source };
        let convert = self.convert.ok_or_else(|| failed("nobody here knows how".into()))?;
        let mut all = BTreeMap::new();
        for object in convert(older).map_err(failed)? {
            let object = StoredObject { version, ..object };
            if let Some(twice) = all.insert(object.key.clone(), object) {
                return Err(failed(format!("two objects would be {}", twice.key).into()));
            }
        }
        Ok(all.into_values().collect())
    }

    /// In words that follow "the store PATH".
    fn what_is_lost(&self, found: &Found, copy: &Copy) -> Option<String> {
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
        let version = match found {
            Found::Damaged(what) => return Some(format!("is damaged: {what}")),
            Found::Missing => return gone("is missing"),
            Found::Empty => return gone("has no bytes"),
            Found::Sound(state) => state.revision(),
            Found::Older(older) => older.version,
        };
        match copy {
            Copy::Good(copy) if copy.version > version => Some(format!(
                "has lost changes: its last is {version}, that of its copy {}",
                copy.version
            )),
            _ => None,
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

/// For whoever wants to go back: `NAME.format-2`. What an earlier attempt kept is kept once.
fn keep(path: &Path, format: u64) -> Result<PathBuf, OpenError> {
    let failed = |path: &Path| {
        let path = path.into();
        |source| OpenError::Keep { path, source }
    };
    let bytes = fs::read(path).map_err(failed(path))?;
    let mut kept = whole_file::beside(path, &format!(".format-{format}"));
    let mut number = 2;
    while fs::exists(&kept).map_err(failed(&kept))? {
        if fs::read(&kept).map_err(failed(&kept))? == bytes {
            return Ok(kept);
        }
        kept = whole_file::beside(path, &format!(".format-{format}-{number}"));
        number += 1;
    }
    whole_file::write(&kept, &bytes).map_err(failed(&kept))?;
    Ok(kept)
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
