//! The store on one machine: a redb file with a table for each kind of object.
//!
//! ```text
//! meta             "format" → 2, "version" → the last version that was given
//! volumes          name → version (8 bytes, little-endian), sum (8), then the object as JSON
//! backup-targets   the same
//! ```
//! The sum is XXH3 of kind, name, version and JSON. Format 1 had none; it is rewritten when it is
//! opened. A write transaction is durable before it is answered; redb lets one write at a time.
//!
//! redb compares the sums of its pages only where it has to repair, and panics on pages that don't
//! hold what they should. So the file is verified before it is opened ([`verify`]), in memory, where
//! a repair changes nothing; and every later panic is an error. After an error of the disk redb refuses
//! everything: it is closed then, and verified and opened again when somebody asks next.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use ankole_whole_file as whole_file;
use redb::backends::InMemoryBackend;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    TableError,
};
use tokio::sync::broadcast;
use twox_hash::XxHash3_64;

use super::copy::CopiedObject;
use super::guard::caught;
use super::{Changed, Kind, Store, StoreError, Stored, Version};

const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 2;
const FORMAT_WITHOUT_SUMS: u64 = 1;
/// Watchers that fall behind by more than this list again.
const CHANGES_KEPT: usize = 1024;

type Objects = TableDefinition<'static, &'static str, &'static [u8]>;

const fn objects(table: &'static str) -> Objects {
    TableDefinition::new(table)
}

pub struct EmbeddedStore {
    path: PathBuf,
    /// None after an error, until it is opened again.
    database: RwLock<Option<Database>>,
    changes: broadcast::Sender<Changed>,
}

/// What [`verify`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// There is no file.
    Missing,
    /// A file of no bytes.
    Empty,
    /// Every page and every object is what was written; this is the last change.
    Sound(Version),
}

/// Reads the whole file and changes nothing. An error is [`StoreError::Damaged`] if the file is,
/// else it says nothing of the file's bytes.
pub fn verify(path: &Path) -> Result<Verified, StoreError> {
    let image = match fs::read(path) {
        Ok(image) if image.is_empty() => return Ok(Verified::Empty),
        Ok(image) => image,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Verified::Missing),
        Err(error) => return Err(open_error(path)(error.into())),
    };
    match caught(|| look_through(path, &image)) {
        Ok(Err(error @ (StoreError::Newer { .. } | StoreError::Damaged { .. }))) => Err(error),
        Ok(Err(error)) => Err(damaged(path, crate::api::error::chain(&error))),
        Ok(Ok(version)) => Ok(Verified::Sound(version)),
        Err(panic) => Err(damaged(path, panic)),
    }
}

fn look_through(path: &Path, image: &[u8]) -> Result<Version, StoreError> {
    let memory = InMemoryBackend::new();
    let filled = memory.set_len(image.len() as u64).and_then(|()| memory.write(0, image));
    filled.map_err(|error| database_error(redb::Error::Io(error)))?;
    let mut database = Database::builder().create_with_backend(memory).map_err(database_error)?;
    if !database.check_integrity().map_err(database_error)? {
        return Err(damaged(path, "its pages aren't what was written"));
    }
    let transaction = database.begin_read().map_err(database_error)?;
    let format = format_of(path, &transaction)?;
    if format != FORMAT_WITHOUT_SUMS {
        for kind in Kind::ALL {
            list(&transaction, kind)?;
        }
    }
    version(&transaction)
}

impl EmbeddedStore {
    /// Opens the file, or makes it. A store that is damaged, or that a newer program wrote, is
    /// refused untouched.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Verified::Missing | Verified::Empty = verify(path)? {
            Self::make(path, Version(0), &[])?;
        }
        Self::open_verified(path)
    }

    /// Makes the file, whole or not at all, in place of one that may be there.
    pub(super) fn make(
        path: &Path,
        version: Version,
        objects: &[CopiedObject],
    ) -> Result<(), StoreError> {
        let draft = whole_file::beside(path, ".new");
        let failed = |error: io::Error| open_error(path)(error.into());
        whole_file::remove_if_there(&draft).map_err(failed)?;
        File::options().write(true).create_new(true).mode(0o600).open(&draft).map_err(failed)?;
        {
            let database =
                Database::create(&draft).map_err(|error| open_error(path)(error.into()))?;
            lay_out(&database, version, objects).map_err(open_error(path))?;
        }
        whole_file::put(&draft, path).map_err(failed)
    }

    /// After [`verify`] has found it sound.
    pub(super) fn open_verified(path: &Path) -> Result<Self, StoreError> {
        fs::set_permissions(path, Permissions::from_mode(0o600))
            .map_err(|error| open_error(path)(error.into()))?;
        Ok(Self {
            path: path.into(),
            database: RwLock::new(Some(open_database(path)?)),
            changes: broadcast::channel(CHANGES_KEPT).0,
        })
    }

    /// Of the last change.
    pub fn version(&self) -> Result<Version, StoreError> {
        self.read(version)
    }

    /// Everything, as it is at one moment.
    pub fn dump(&self) -> Result<(Version, Vec<CopiedObject>), StoreError> {
        self.read(|transaction| {
            let mut found = Vec::new();
            for kind in Kind::ALL {
                for (name, Stored { json, .. }) in list(transaction, kind)? {
                    let json = String::from_utf8(json);
                    let json =
                        json.map_err(|_| StoreError::ObjectDamaged { kind, name: name.clone() })?;
                    found.push(CopiedObject { kind, name, json });
                }
            }
            Ok((version(transaction)?, found))
        })
    }

    fn read<T>(
        &self,
        look: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.with(|database| look(&database.begin_read().map_err(database_error)?))
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let opened = self.opened()?;
        let Some(database) = &*opened else { unreachable!("it was opened") };
        let outcome = caught(|| work(database));
        drop(opened);
        let outcome = outcome.unwrap_or_else(|what| Err(StoreError::Panicked { what }));
        if let Err(error @ (StoreError::Database(_) | StoreError::Panicked { .. })) = &outcome {
            let error = crate::api::error::chain(error);
            tracing::error!(%error, "the store is closed, and opened again when it is needed next");
            let closed = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
            let _ = caught(|| drop(closed)); // it may want to write
        }
        outcome
    }

    /// It is there for as long as the guard lives.
    fn opened(&self) -> Result<RwLockReadGuard<'_, Option<Database>>, StoreError> {
        loop {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            if database.is_some() {
                return Ok(database);
            }
            drop(database);
            let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
            if database.is_none() {
                verify(&self.path)?;
                *database = Some(open_database(&self.path)?);
                tracing::warn!("the store is open again");
            }
        }
    }

    fn write(
        &self,
        kind: Kind,
        name: &str,
        change: impl FnOnce(Option<Version>) -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<Version, StoreError> {
        let version = self.with(|database| write(database, kind, name, change))?;
        // Nobody may be watching.
        let _ = self.changes.send(Changed { kind, name: name.into() });
        Ok(version)
    }
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    caught(|| {
        let database = Database::open(path).map_err(|error| open_error(path)(error.into()))?;
        let format = format_of(path, &database.begin_read().map_err(database_error)?)?;
        if format == FORMAT_WITHOUT_SUMS {
            add_sums(&database).map_err(open_error(path))?;
        }
        Ok(database)
    })
    .unwrap_or_else(|panic| Err(damaged(path, panic)))
}

/// One write transaction. `change` sees the present version of the object and says what to
/// put in its place.
fn write(
    database: &Database,
    kind: Kind,
    name: &str,
    change: impl FnOnce(Option<Version>) -> Result<Option<Vec<u8>>, StoreError>,
) -> Result<Version, StoreError> {
    let transaction = database.begin_write().map_err(database_error)?;
    let version = {
        let mut table = transaction.open_table(objects(kind.table())).map_err(database_error)?;
        let present = table.get(name).map_err(database_error)?;
        let present = present.map(|value| split(kind, name, value.value())).transpose()?;
        let present = present.map(|stored| stored.version);
        let json = change(present)?;

        let mut meta = transaction.open_table(META).map_err(database_error)?;
        let last = meta.get("version").map_err(database_error)?.map_or(0, |v| v.value());
        let version = last + 1;
        meta.insert("version", version).map_err(database_error)?;
        match json {
            Some(json) => {
                let value = value_of(kind, name, version, &json);
                table.insert(name, value.as_slice()).map_err(database_error)?;
            }
            None => drop(table.remove(name).map_err(database_error)?),
        }
        Version(version)
    };
    transaction.commit().map_err(database_error)?;
    Ok(version)
}

fn format_of(path: &Path, transaction: &ReadTransaction) -> Result<u64, StoreError> {
    match number(transaction, "format")? {
        Some(found) if found > FORMAT => {
            Err(StoreError::Newer { path: path.display().to_string(), found, known: FORMAT })
        }
        Some(found) => Ok(found),
        None => Err(damaged(path, "it doesn't say its format")),
    }
}

fn version(transaction: &ReadTransaction) -> Result<Version, StoreError> {
    Ok(Version(number(transaction, "version")?.unwrap_or(0)))
}

fn number(transaction: &ReadTransaction, key: &str) -> Result<Option<u64>, StoreError> {
    match transaction.open_table(META) {
        Ok(meta) => Ok(meta.get(key).map_err(database_error)?.map(|number| number.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(database_error(error)),
    }
}

fn list(transaction: &ReadTransaction, kind: Kind) -> Result<Vec<(String, Stored)>, StoreError> {
    let table = transaction.open_table(objects(kind.table())).map_err(database_error)?;
    let mut found = Vec::new();
    for entry in table.iter().map_err(database_error)? {
        let (name, value) = entry.map_err(database_error)?;
        let stored = split(kind, name.value(), value.value())?;
        found.push((name.value().into(), stored));
    }
    Ok(found)
}

fn lay_out(
    database: &Database,
    version: Version,
    copied: &[CopiedObject],
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for kind in Kind::ALL {
        let mut table = transaction.open_table(objects(kind.table()))?;
        for object in copied.iter().filter(|object| object.kind == kind) {
            let value = value_of(kind, &object.name, version.0, object.json.as_bytes());
            table.insert(object.name.as_str(), value.as_slice())?;
        }
    }
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("version", version.0)?;
    }
    transaction.commit()?;
    Ok(())
}

fn add_sums(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for kind in Kind::ALL {
        let mut table = transaction.open_table(objects(kind.table()))?;
        let mut values = Vec::new();
        for entry in table.iter()? {
            let (name, value) = entry?;
            if let Some((version, json)) = value.value().split_first_chunk::<8>() {
                let version = u64::from_le_bytes(*version);
                let value = value_of(kind, name.value(), version, json);
                values.push((name.value().to_owned(), value));
            }
        }
        for (name, value) in values {
            table.insert(name.as_str(), value.as_slice())?;
        }
    }
    transaction.open_table(META)?.insert("format", FORMAT)?;
    transaction.commit()?;
    Ok(())
}

fn value_of(kind: Kind, name: &str, version: u64, json: &[u8]) -> Vec<u8> {
    let sum = sum_of(kind, name, version, json);
    [&version.to_le_bytes()[..], &sum.to_le_bytes(), json].concat()
}

fn sum_of(kind: Kind, name: &str, version: u64, json: &[u8]) -> u64 {
    let mut sum = XxHash3_64::new();
    for part in [kind.table().as_bytes(), b"/", name.as_bytes(), &version.to_le_bytes(), json] {
        std::hash::Hasher::write(&mut sum, part);
    }
    std::hash::Hasher::finish(&sum)
}

fn split(kind: Kind, name: &str, value: &[u8]) -> Result<Stored, StoreError> {
    let parts = value.split_first_chunk::<8>();
    let parts = parts.and_then(|(version, rest)| Some((version, rest.split_first_chunk::<8>()?)));
    if let Some((version, (sum, json))) = parts {
        let version = u64::from_le_bytes(*version);
        if u64::from_le_bytes(*sum) == sum_of(kind, name, version, json) {
            return Ok(Stored { version: Version(version), json: json.to_vec() });
        }
    }
    Err(StoreError::ObjectDamaged { kind, name: name.into() })
}

fn database_error(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database(Box::new(error.into()))
}

fn open_error(path: &Path) -> impl Fn(redb::Error) -> StoreError + '_ {
    |error| StoreError::Open { path: path.display().to_string(), source: error.into() }
}

fn damaged(path: &Path, what: impl Into<String>) -> StoreError {
    StoreError::Damaged { path: path.display().to_string(), what: what.into() }
}

impl Store for EmbeddedStore {
    fn get(&self, kind: Kind, name: &str) -> Result<Option<Stored>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(objects(kind.table())).map_err(database_error)?;
            let value = table.get(name).map_err(database_error)?;
            value.map(|value| split(kind, name, value.value())).transpose()
        })
    }

    fn list(&self, kind: Kind) -> Result<Vec<(String, Stored)>, StoreError> {
        self.read(|transaction| list(transaction, kind))
    }

    fn create(&self, kind: Kind, name: &str, json: &[u8]) -> Result<Version, StoreError> {
        self.write(kind, name, |present| match present {
            None => Ok(Some(json.to_vec())),
            Some(_) => Err(StoreError::Exists { kind, name: name.into() }),
        })
    }

    fn update(
        &self,
        kind: Kind,
        name: &str,
        seen: Version,
        json: &[u8],
    ) -> Result<Version, StoreError> {
        self.write(kind, name, |present| {
            check_version(kind, name, seen, present)?;
            Ok(Some(json.to_vec()))
        })
    }

    fn delete(&self, kind: Kind, name: &str, seen: Version) -> Result<(), StoreError> {
        let change = |present| check_version(kind, name, seen, present).map(|()| None);
        self.write(kind, name, change).map(drop)
    }

    fn watch(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }
}

fn check_version(
    kind: Kind,
    name: &str,
    seen: Version,
    present: Option<Version>,
) -> Result<(), StoreError> {
    match present {
        None => Err(StoreError::NotFound { kind, name: name.into() }),
        Some(present) if present != seen => Err(StoreError::Conflict { kind, name: name.into() }),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::backends::FileBackend;

    use super::*;
    use crate::api::target::BackupTarget;

    fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&folder.path().join("ankole.redb")).unwrap();
        (folder, Arc::new(store))
    }

    fn transaction_of(store: &EmbeddedStore) -> redb::WriteTransaction {
        store.opened().unwrap().as_ref().unwrap().begin_write().unwrap()
    }

    /// A file on a disk that is full, while `full` says so.
    #[derive(Debug)]
    struct Disk {
        file: FileBackend,
        full: Arc<AtomicBool>,
    }

    impl Disk {
        fn room(&self) -> io::Result<()> {
            match self.full.load(Ordering::SeqCst) {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => Ok(()),
            }
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }
        fn set_len(&self, length: u64) -> io::Result<()> {
            self.room()?;
            self.file.set_len(length)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.room()?;
            self.file.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.room()?;
            self.file.write(offset, data)
        }
    }

    /// redb refuses everything after an error of the disk. Nobody opened it again, so one full disk ended
    /// every change of an in-sync set, and with it the writes of all volumes, until a restart.
    #[test]
    fn after_a_full_disk_the_store_goes_on_without_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ankole.redb");
        let store = EmbeddedStore::open(&path).unwrap();
        store.create(Kind::Volume, "v", b"1").unwrap();
        let full = Arc::new(AtomicBool::new(false));
        {
            let mut database = store.database.write().unwrap();
            *database = None;
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let disk = Disk { file: FileBackend::new(file).unwrap(), full: Arc::clone(&full) };
            *database = Some(Database::builder().create_with_backend(disk).unwrap());
        }
        full.store(true, Ordering::SeqCst);
        let failed = store.create(Kind::Volume, "w", &[b'2'; 100_000]);
        assert!(matches!(failed, Err(StoreError::Database(_))), "{failed:?}");
        full.store(false, Ordering::SeqCst);
        let seen = store.get(Kind::Volume, "v").unwrap().unwrap();
        assert_eq!(seen.json, b"1");
        let version = store.update(Kind::Volume, "v", seen.version, b"3").unwrap();
        assert!(version > seen.version);
        assert_eq!(store.get(Kind::Volume, "w").unwrap(), None);
    }

    fn target(url: &str) -> BackupTarget {
        BackupTarget { name: "t".parse().unwrap(), url: url.into() }
    }

    #[test]
    fn of_two_updates_from_one_version_the_second_conflicts() {
        let (_folder, store) = store();
        let seen = store.create(Kind::Volume, "v", b"{}").unwrap();
        store.update(Kind::Volume, "v", seen, b"1").unwrap();
        let second = store.update(Kind::Volume, "v", seen, b"2");
        assert!(matches!(second, Err(StoreError::Conflict { .. })));
        assert_eq!(store.get(Kind::Volume, "v").unwrap().unwrap().json, b"1");
    }

    /// A writer that slept while the object was deleted and made anew must not hit the new one.
    #[test]
    fn a_version_is_not_used_again_for_an_object_that_is_made_anew() {
        let (_folder, store) = store();
        let first = store.create(Kind::Volume, "v", b"1").unwrap();
        store.delete(Kind::Volume, "v", first).unwrap();
        store.create(Kind::Volume, "v", b"2").unwrap();
        assert!(matches!(
            store.update(Kind::Volume, "v", first, b"3"),
            Err(StoreError::Conflict { .. })
        ));
        assert!(matches!(store.delete(Kind::Volume, "v", first), Err(StoreError::Conflict { .. })));
    }

    /// Lost updates are how an in-sync set would forget a removal.
    #[test]
    fn no_update_is_lost_between_writers_that_race() {
        let (_folder, store) = store();
        store.add(&target("")).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let grow = |target: &mut BackupTarget| {
                            target.url.push('x');
                            Ok::<_, StoreError>(())
                        };
                        store.modify("t", grow).unwrap();
                    }
                });
            }
        });
        assert_eq!(store.read::<BackupTarget>("t").unwrap().url.len(), 100);
    }

    #[test]
    fn what_was_written_is_there_after_a_restart_and_versions_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ankole.redb");
        let first = EmbeddedStore::open(&path).unwrap().create(Kind::Volume, "v", b"1").unwrap();
        let store = EmbeddedStore::open(&path).unwrap();
        let seen = store.get(Kind::Volume, "v").unwrap().unwrap();
        assert_eq!((seen.version, seen.json.as_slice()), (first, &b"1"[..]));
        assert!(store.create(Kind::Volume, "w", b"1").unwrap() > first);
    }

    #[test]
    fn a_store_of_a_newer_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ankole.redb");
        {
            let store = EmbeddedStore::open(&path).unwrap();
            let transaction = transaction_of(&store);
            transaction.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
            transaction.commit().unwrap();
        }
        let refused = EmbeddedStore::open(&path).err().expect("it is newer").to_string();
        assert!(refused.contains("has format 3; this program knows up to 2"), "{refused}");
    }

    #[test]
    fn a_store_without_sums_is_opened_and_gets_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ankole.redb");
        {
            let database = Database::create(&path).unwrap();
            let transaction = database.begin_write().unwrap();
            for kind in Kind::ALL {
                let mut table = transaction.open_table(objects(kind.table())).unwrap();
                let value = [&7_u64.to_le_bytes()[..], b"{}"].concat();
                table.insert("v", value.as_slice()).unwrap();
            }
            {
                let mut meta = transaction.open_table(META).unwrap();
                meta.insert("format", FORMAT_WITHOUT_SUMS).unwrap();
                meta.insert("version", 9).unwrap();
            }
            transaction.commit().unwrap();
        }
        let seen = Some(Stored { version: Version(7), json: b"{}".to_vec() });
        for _ in 0..2 {
            let store = EmbeddedStore::open(&path).unwrap();
            assert_eq!(store.get(Kind::Volume, "v").unwrap(), seen);
            assert_eq!(store.get(Kind::BackupTarget, "v").unwrap(), seen);
            assert_eq!(store.version().unwrap(), Version(9));
        }
        assert_eq!(verify(&path).unwrap(), Verified::Sound(Version(9)));
    }

    #[test]
    fn a_file_that_is_no_store_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ankole.redb");
        std::fs::write(&path, "not a database ".repeat(1000)).unwrap();
        let refused = EmbeddedStore::open(&path).err().expect("it is garbage");
        assert!(refused.to_string().contains("ankole.redb is damaged"), "{refused}");
        assert!(std::fs::read(&path).unwrap().starts_with(b"not a database"));
    }

    /// redb's own sums are of pages: who writes through redb, or a page that it doesn't compare
    /// when it is read, changes an object unnoticed.
    #[test]
    fn an_object_that_was_changed_behind_the_stores_back_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ankole.redb");
        let store = EmbeddedStore::open(&path).unwrap();
        let version = store.create(Kind::Volume, "v", b"1").unwrap();
        let transaction = transaction_of(&store);
        let edited = [&value_of(Kind::Volume, "v", version.0, b"1")[..16], b"2"].concat();
        let table = objects(Kind::Volume.table());
        transaction.open_table(table).unwrap().insert("v", edited.as_slice()).unwrap();
        transaction.commit().unwrap();
        let read = store.get(Kind::Volume, "v");
        assert!(matches!(read, Err(StoreError::ObjectDamaged { .. })), "{read:?}");
        drop(store);
        assert!(matches!(verify(&path), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_watcher_hears_of_each_change() {
        let (_folder, store) = store();
        let mut watch = store.watch();
        let seen = store.create(Kind::Volume, "v", b"1").unwrap();
        store.delete(Kind::Volume, "v", seen).unwrap();
        let change = Changed { kind: Kind::Volume, name: "v".into() };
        assert_eq!(watch.try_recv().unwrap(), change);
        assert_eq!(watch.try_recv().unwrap(), change);
    }
}
