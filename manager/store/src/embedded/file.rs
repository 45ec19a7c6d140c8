//! The file of the embedded store: redb, with one table of objects.
//!
//! ```text
//! meta      "format" → 3, "version" → the last version that was given
//! objects   "plural/name" → version (8 bytes, little-endian), sum (8), then the object as JSON
//! ```
//! The sum is XXH3 of key, version and JSON. Formats 1 and 2 had a table for each kind, and objects
//! without an envelope; they are read by [`read_older`], to be converted, and never opened.
//!
//! redb compares the sums of its pages only where it has to repair, and panics on pages that don't
//! hold what they should. So the file is verified before it is opened ([`verify`]), by a look that
//! changes nothing of it, also where redb repairs; and every later panic is an error.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ankole_api::error::chain;
use ankole_whole_file as whole_file;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    TableError, TableHandle,
};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::guard::caught;
use super::look::Look;
use crate::state::{After, Change, State, version_of};
use crate::{Raw, Unreadable};

type Objects = TableDefinition<'static, &'static str, &'static [u8]>;

pub(super) const OBJECTS: Objects = TableDefinition::new("objects");
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
pub const FORMAT: u64 = 3;
/// Of redb; reads are answered from memory.
pub const CACHE_BYTES: usize = 8 << 20;
const FORMAT_WITHOUT_SUMS: u64 = 1;
/// That [`read_older`] reads.
pub const OLDER_FORMATS: std::ops::RangeInclusive<u64> = FORMAT_WITHOUT_SUMS..=2;

/// Why the file can't be opened. It is untouched.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("open the store {path}")]
    Open { path: PathBuf, source: Box<redb::Error> },
    #[error("the store {path} is in use by another program")]
    InUse { path: PathBuf },
    #[error("the store {path} is damaged: {what}")]
    Damaged { path: PathBuf, what: String },
    #[error("the store {path} has format {found}; this program knows up to {FORMAT}")]
    Newer { path: PathBuf, found: u64 },
    #[error("the store {path} has format {found}, which has to be converted first")]
    Older { path: PathBuf, found: u64 },
}

/// What [`verify`] found.
#[derive(Debug)]
pub enum Verified {
    /// There is no file.
    Missing,
    /// A file of no bytes.
    Empty,
    /// Every page and every object is what was written.
    Sound(State),
}

/// An object as it is stored, whether or not it can be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// `plural/name`
    pub key: String,
    pub version: u64,
    pub json: String,
}

/// Reads the whole file and changes nothing. An error is [`FileError::Damaged`] if the file is,
/// else it says nothing of the file's bytes.
pub fn verify(path: &Path) -> Result<Verified, FileError> {
    match sound(path, |transaction| state_of(path, transaction))? {
        Found::Missing => Ok(Verified::Missing),
        Found::Empty => Ok(Verified::Empty),
        Found::Sound(state) => Ok(Verified::Sound(state)),
    }
}

/// The objects of a file of format 1 or 2, as they are: what converts them knows their kinds. The key
/// is the name of the table and the object's.
pub fn read_older(path: &Path) -> Result<(u64, Vec<StoredObject>), FileError> {
    let older = |transaction: &ReadTransaction| {
        let format = number(transaction, "format")?;
        let mut objects = Vec::new();
        let names: Vec<_> = transaction.list_tables()?.map(|it| it.name().to_owned()).collect();
        for name in names.iter().filter(|name| *name != META.name()) {
            let table: TableDefinition<'_, &str, &[u8]> = TableDefinition::new(name);
            for entry in transaction.open_table(table)?.iter()? {
                let (key, value) = entry?;
                let key = format!("{name}/{}", key.value());
                let object = match format {
                    Some(FORMAT_WITHOUT_SUMS) => split_without_sum(&key, value.value()),
                    _ => split(&key, value.value()),
                };
                objects.push(object.ok_or_else(|| object_damaged(path, &key))?);
            }
        }
        Ok((number(transaction, "version")?.unwrap_or(0), objects))
    };
    match sound(path, older)? {
        Found::Sound(found) => Ok(found),
        Found::Missing | Found::Empty => Err(damaged(path, "it has no bytes")),
    }
}

enum Found<T> {
    Missing,
    Empty,
    Sound(T),
}

enum Trouble {
    Redb(redb::Error),
    File(FileError),
}

/// redb has an error for each kind of call.
macro_rules! troubles_of_redb {
    ($($error:ty)*) => {
        $(impl From<$error> for Trouble {
            fn from(error: $error) -> Self {
                Self::Redb(error.into())
            }
        })*
    };
}

troubles_of_redb! {
    redb::CommitError redb::DatabaseError redb::StorageError redb::TableError redb::TransactionError
}

impl From<FileError> for Trouble {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

/// What `look` finds in a file of which every page is what was written.
fn sound<T>(
    path: &Path,
    look: impl FnOnce(&ReadTransaction) -> Result<T, Trouble>,
) -> Result<Found<T>, FileError> {
    let opened = |error: io::Error| open_error(path, error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        Err(error) => return Err(opened(error)),
    };
    let unchanged = Look::new(file).map_err(opened)?;
    if unchanged.len().map_err(opened)? == 0 {
        return Ok(Found::Empty);
    }
    let looked = caught(|| {
        let mut database =
            Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(unchanged)?;
        if !database.check_integrity()? {
            return Err(damaged(path, "its pages aren't what was written").into());
        }
        look(&database.begin_read()?)
    });
    match looked {
        Ok(Ok(found)) => Ok(Found::Sound(found)),
        Ok(Err(Trouble::File(error))) => Err(error),
        Ok(Err(Trouble::Redb(error))) => Err(damaged(path, chain(&error))),
        Err(panic) => Err(damaged(path, panic)),
    }
}

fn state_of(path: &Path, transaction: &ReadTransaction) -> Result<State, Trouble> {
    match number(transaction, "format")? {
        Some(FORMAT) => {}
        Some(found) if found > FORMAT => {
            return Err(FileError::Newer { path: path.into(), found }.into());
        }
        Some(found) => return Err(FileError::Older { path: path.into(), found }.into()),
        None => return Err(damaged(path, "it doesn't say its format").into()),
    }
    let (mut objects, mut unreadable) = (Vec::new(), Vec::new());
    for entry in transaction.open_table(OBJECTS)?.iter()? {
        let (key, value) = entry?;
        let key = key.value();
        let stored = split(key, value.value()).ok_or_else(|| object_damaged(path, key))?;
        match read(&stored) {
            Ok(object) => objects.push(object),
            Err(why) => unreadable.push(as_unreadable(stored, why)),
        }
    }
    let version = number(transaction, "version")?.unwrap_or(0);
    Ok(State::new(version, objects, unreadable))
}

fn read(stored: &StoredObject) -> Result<(String, Raw), String> {
    let (plural, name) = parts_of(&stored.key);
    let mut object = Raw::from_json(&stored.json).map_err(|error| error.to_string())?;
    if object.name() != name {
        return Err(format!("it says that it is {}", object.name()));
    }
    object.metadata.resource_version = version_of(stored.version);
    Ok((plural.into(), object))
}

fn as_unreadable(stored: StoredObject, why: String) -> Unreadable {
    let (plural, name) = parts_of(&stored.key);
    let (plural, name) = (plural.into(), name.into());
    let version = version_of(stored.version);
    Unreadable { plural, name, version, why, text: stored.json.into() }
}

fn parts_of(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

fn number(transaction: &ReadTransaction, key: &str) -> Result<Option<u64>, Trouble> {
    match transaction.open_table(META) {
        Ok(meta) => Ok(meta.get(key)?.map(|number| number.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Everything of a state, as it is stored.
pub fn stored(state: &State) -> impl Iterator<Item = StoredObject> {
    let objects = state.objects().map(|(plural, object)| StoredObject {
        key: format!("{plural}/{}", object.name()),
        version: number_of(&object.metadata.resource_version.0),
        json: object.to_json(),
    });
    let unreadable = state.unreadable().map(|it| StoredObject {
        key: format!("{}/{}", it.plural, it.name),
        version: number_of(&it.version.0),
        json: it.text.to_string(),
    });
    objects.chain(unreadable)
}

fn number_of(version: &str) -> u64 {
    version.parse().expect("a state's versions are its own")
}

/// Makes the file, whole or not at all, in place of one that may be there.
pub fn make(
    path: &Path,
    version: u64,
    objects: impl Iterator<Item = StoredObject>,
) -> Result<(), FileError> {
    let draft = whole_file::beside(path, ".new");
    let failed = |error: io::Error| open_error(path, error);
    let made = caught(|| {
        whole_file::remove_if_there(&draft).map_err(failed)?;
        let mut new = File::options();
        new.read(true).write(true).create_new(true).mode(0o600);
        let file = new.open(&draft).map_err(failed)?;
        let mut objects = objects;
        lay_out(file, version, &mut objects)
    });
    match made {
        Ok(Ok(())) => whole_file::put(&draft, path).map_err(failed),
        failed => {
            // On a full disk what was made of it would only stand in the way.
            let _ = fs::remove_file(&draft);
            let panicked = |what| Err(Trouble::File(damaged(path, what)));
            match failed.unwrap_or_else(panicked) {
                Err(Trouble::File(error)) => Err(error),
                Err(Trouble::Redb(error)) => Err(open_error(path, error)),
                Ok(()) => unreachable!("it failed"),
            }
        }
    }
}

fn lay_out(
    file: File,
    version: u64,
    objects: &mut dyn Iterator<Item = StoredObject>,
) -> Result<(), Trouble> {
    let database = Database::builder().create_file(file)?;
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(OBJECTS)?;
        for object in objects {
            table.insert(object.key.as_str(), value_of(&object).as_slice())?;
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("version", version)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Why changes weren't written, or may not have been.
#[derive(Debug)]
pub struct WriteFailure {
    pub why: String,
    /// Nothing of them is in the file.
    pub is_undone: bool,
}

/// One transaction: durable with all of them, or with none.
pub fn write(database: &Database, changes: &[Change]) -> Result<(), WriteFailure> {
    let failure = |error: Trouble, is_undone| {
        let why = match error {
            Trouble::Redb(error) => chain(&error),
            Trouble::File(error) => chain(&error),
        };
        WriteFailure { why, is_undone }
    };
    let written = caught(|| {
        let transaction = begin(database, changes).map_err(|error| failure(error, true))?;
        transaction.commit().map_err(|error| failure(error.into(), false))
    });
    written.unwrap_or_else(|why| Err(WriteFailure { why, is_undone: false }))
}

fn begin(database: &Database, changes: &[Change]) -> Result<redb::WriteTransaction, Trouble> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(OBJECTS)?;
        let mut meta = transaction.open_table(META)?;
        for Change { revision, kind, name, after, .. } in changes {
            let key = format!("{}/{name}", kind.plural);
            match after {
                After::Put(object) => {
                    let stored = StoredObject { key, version: *revision, json: object.to_json() };
                    table.insert(stored.key.as_str(), value_of(&stored).as_slice())?;
                }
                After::Removed(_) | After::Forgotten => drop(table.remove(key.as_str())?),
            }
            meta.insert("version", revision)?;
        }
    }
    Ok(transaction)
}

pub(super) fn value_of(object: &StoredObject) -> Vec<u8> {
    let StoredObject { key, version, json } = object;
    let sum = sum_of(key, *version, json.as_bytes());
    [&version.to_le_bytes()[..], &sum.to_le_bytes(), json.as_bytes()].concat()
}

fn sum_of(key: &str, version: u64, json: &[u8]) -> u64 {
    let mut sum = XxHash3_64::new();
    for part in [key.as_bytes(), &version.to_le_bytes(), json] {
        std::hash::Hasher::write(&mut sum, part);
    }
    std::hash::Hasher::finish(&sum)
}

/// None: its sum isn't that of what it holds.
fn split(key: &str, value: &[u8]) -> Option<StoredObject> {
    let (version, rest) = value.split_first_chunk::<8>()?;
    let (sum, json) = rest.split_first_chunk::<8>()?;
    let version = u64::from_le_bytes(*version);
    if u64::from_le_bytes(*sum) != sum_of(key, version, json) {
        return None;
    }
    let json = String::from_utf8(json.to_vec()).ok()?;
    Some(StoredObject { key: key.into(), version, json })
}

fn split_without_sum(key: &str, value: &[u8]) -> Option<StoredObject> {
    let (version, json) = value.split_first_chunk::<8>()?;
    let json = String::from_utf8(json.to_vec()).ok()?;
    Some(StoredObject { key: key.into(), version: u64::from_le_bytes(*version), json })
}

pub fn open_error(path: &Path, error: impl Into<redb::Error>) -> FileError {
    FileError::Open { path: path.into(), source: Box::new(error.into()) }
}

pub fn damaged(path: &Path, what: impl Into<String>) -> FileError {
    FileError::Damaged { path: path.into(), what: what.into() }
}

fn object_damaged(path: &Path, key: &str) -> FileError {
    damaged(path, format!("the sum of {key} isn't that of what it holds"))
}
