//! The store on one machine: a redb file with a table for each kind of object.
//!
//! ```text
//! meta             "format" → 1, "version" → the last version that was given
//! volumes          name → version (8 bytes, little-endian), then the object as JSON
//! backup-targets   the same
//! ```
//! A write transaction is durable before it is answered; redb lets one write at a time.

use std::fs::{File, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::broadcast;

use super::{Changed, Kind, Store, StoreError, Stored, Version};

const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 1;
/// Watchers that fall behind by more than this list again.
const CHANGES_KEPT: usize = 1024;

type Objects = TableDefinition<'static, &'static str, &'static [u8]>;

const fn objects(table: &'static str) -> Objects {
    TableDefinition::new(table)
}

pub struct EmbeddedStore {
    database: Database,
    changes: broadcast::Sender<Changed>,
}

impl EmbeddedStore {
    /// Opens the file, or makes it. A store that a newer program wrote is refused untouched.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let shown = || path.display().to_string();
        let open = |error: redb::Error| StoreError::Open { path: shown(), source: error.into() };
        let private =
            File::options().write(true).create(true).truncate(false).mode(0o600).open(path);
        let private = private.and_then(|file| file.set_permissions(Permissions::from_mode(0o600)));
        private.map_err(|error| open(error.into()))?;
        let database = Database::create(path).map_err(|error| open(error.into()))?;
        if let Some(found) = format_of(&database).map_err(open)? {
            if found > FORMAT {
                return Err(StoreError::Newer { path: shown(), found, known: FORMAT });
            }
        } else {
            lay_out(&database).map_err(open)?;
        }
        Ok(Self { database, changes: broadcast::channel(CHANGES_KEPT).0 })
    }

    /// One write transaction. `change` sees the present version of the object and says what to
    /// put in its place.
    fn write(
        &self,
        kind: Kind,
        name: &str,
        change: impl FnOnce(Option<Version>) -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<Version, StoreError> {
        let transaction = self.database.begin_write().map_err(database_error)?;
        let version = {
            let mut table =
                transaction.open_table(objects(kind.table())).map_err(database_error)?;
            let present = table
                .get(name)
                .map_err(database_error)?
                .and_then(|value| split(value.value()).map(|stored| stored.version));
            let json = change(present)?;

            let mut meta = transaction.open_table(META).map_err(database_error)?;
            let last = meta.get("version").map_err(database_error)?.map_or(0, |v| v.value());
            let version = last + 1;
            meta.insert("version", version).map_err(database_error)?;
            match json {
                Some(json) => {
                    let value = [&version.to_le_bytes()[..], &json].concat();
                    table.insert(name, value.as_slice()).map_err(database_error)?;
                }
                None => drop(table.remove(name).map_err(database_error)?),
            }
            Version(version)
        };
        transaction.commit().map_err(database_error)?;
        // Nobody may be watching.
        let _ = self.changes.send(Changed { kind, name: name.into() });
        Ok(version)
    }
}

fn format_of(database: &Database) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    match transaction.open_table(META) {
        Ok(meta) => Ok(meta.get("format")?.map(|format| format.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn lay_out(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for kind in Kind::ALL {
        transaction.open_table(objects(kind.table()))?;
    }
    transaction.open_table(META)?.insert("format", FORMAT)?;
    transaction.commit()?;
    Ok(())
}

fn split(value: &[u8]) -> Option<Stored> {
    let (version, json) = value.split_first_chunk::<8>()?;
    Some(Stored { version: Version(u64::from_le_bytes(*version)), json: json.to_vec() })
}

fn database_error(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database(Box::new(error.into()))
}

impl Store for EmbeddedStore {
    fn get(&self, kind: Kind, name: &str) -> Result<Option<Stored>, StoreError> {
        let transaction = self.database.begin_read().map_err(database_error)?;
        let table = transaction.open_table(objects(kind.table())).map_err(database_error)?;
        let value = table.get(name).map_err(database_error)?;
        Ok(value.and_then(|value| split(value.value())))
    }

    fn list(&self, kind: Kind) -> Result<Vec<(String, Stored)>, StoreError> {
        let transaction = self.database.begin_read().map_err(database_error)?;
        let table = transaction.open_table(objects(kind.table())).map_err(database_error)?;
        let mut found = Vec::new();
        for entry in table.iter().map_err(database_error)? {
            let (name, value) = entry.map_err(database_error)?;
            found.extend(split(value.value()).map(|stored| (name.value().into(), stored)));
        }
        Ok(found)
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

    use super::*;
    use crate::api::target::BackupTarget;

    fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&folder.path().join("ankole.redb")).unwrap();
        (folder, Arc::new(store))
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
            let transaction = store.database.begin_write().unwrap();
            transaction.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
            transaction.commit().unwrap();
        }
        let refused = EmbeddedStore::open(&path).err().expect("it is newer").to_string();
        assert!(refused.contains("has format 2; this program knows up to 1"), "{refused}");
    }

    #[test]
    fn a_file_that_is_no_store_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ankole.redb");
        std::fs::write(&path, "not a database ".repeat(1000)).unwrap();
        let refused = EmbeddedStore::open(&path).err().expect("it is garbage");
        assert!(refused.to_string().contains("ankole.redb"), "{refused}");
        assert!(std::fs::read(&path).unwrap().starts_with(b"not a database"));
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
