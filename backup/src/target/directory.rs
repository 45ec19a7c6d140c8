//! A target that is a directory, local or mounted.
//!
//! An object is written beside its place as `<name>.tmp.<nanoseconds>` and renamed once it is on
//! the disk, as Longhorn does; lists leave such files out. Folders are synced by `flush`, once for
//! many objects: a block's folders are mostly its own, so syncing them with each block would cost
//! several syncs where one is needed. Promises that an object which is seen
//! under its name is whole, also after a power cut, and that nothing outside the directory is
//! touched.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Access, Target, TargetError};

/// How often a write starts again because another process removed the folder, which had become
/// empty, between our making it and our using it.
const FOLDER_ATTEMPTS: usize = 100;

pub struct DirectoryTarget {
    url: String,
    root: PathBuf,
    /// Folders with names that came, went or changed since the last flush.
    unsynced: Mutex<BTreeSet<PathBuf>>,
}

impl DirectoryTarget {
    /// `url` is only used to name the target. The directory must exist.
    pub fn open(url: String, root: PathBuf) -> Result<Self, TargetError> {
        let error = |source| TargetError::from_io(Access::Open, root.display().to_string(), source);
        match fs::metadata(&root) {
            Ok(found) if found.is_dir() => Ok(Self { url, root, unsynced: Mutex::default() }),
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error(source)),
            _ => Err(TargetError::NoDirectory { path: root.display().to_string() }),
        }
    }

    fn path(&self, access: Access, key: &str) -> Result<PathBuf, TargetError> {
        let relative = Path::new(key);
        if !key.is_empty() && relative.components().all(|c| matches!(c, Component::Normal(_))) {
            return Ok(self.root.join(relative));
        }
        let source = io::Error::new(io::ErrorKind::InvalidInput, "leads out of the target");
        Err(TargetError::Other { access, path: key.to_owned(), source })
    }

    /// Keys of the files below `folder` that are wanted by name.
    fn files_below(
        &self,
        folder: &str,
        is_wanted: fn(&str) -> bool,
    ) -> Result<Vec<String>, TargetError> {
        let mut keys = Vec::new();
        for (name, is_folder) in self.entries(folder)? {
            let key = format!("{folder}/{name}");
            if is_folder {
                keys.extend(self.files_below(&key, is_wanted)?);
            } else if is_wanted(&name) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// Names in a folder, finished or not, and whether each is a folder itself.
    fn entries(&self, folder: &str) -> Result<Vec<(String, bool)>, TargetError> {
        let path = match folder {
            "" => self.root.clone(),
            folder => self.path(Access::List, folder)?,
        };
        let list = || -> io::Result<_> {
            let mut entries = Vec::new();
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                // A name that isn't UTF-8 is neither ours nor Longhorn's.
                let Ok(name) = entry.file_name().into_string() else { continue };
                entries.push((name, entry.file_type()?.is_dir()));
            }
            Ok(entries)
        };
        match list() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // An unmounted target would look like an empty one.
                Self::open(self.url.clone(), self.root.clone())?;
                Ok(Vec::new())
            }
            other => other.map_err(|error| failed(Access::List, &path, error)),
        }
    }

    fn remember(&self, folder: &Path) {
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        if !unsynced.contains(folder) {
            unsynced.insert(folder.to_owned());
        }
    }

    /// Makes the folders above an object.
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        if let Some(parent) = folder.parent().filter(|_| folder != self.root) {
            self.make_folder(parent)?;
            match fs::create_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => self.remember(parent),
            }
            return Ok(());
        }
        Err(io::ErrorKind::NotFound.into()) // the root is gone
    }

    fn write_beside(&self, place: &Path, bytes: &[u8]) -> io::Result<()> {
        let folder = place.parent().expect("a key has a folder or the root above it");
        self.make_folder(folder)?;
        let (beside, mut file) = create_beside(place)?;
        let written = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&beside, place));
        self.remember(folder);
        if written.is_err() {
            // Best effort: the space matters most when it has run out.
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

impl Target for DirectoryTarget {
    fn url(&self) -> &str {
        &self.url
    }

    fn locate(&self, key: &str) -> String {
        self.root.join(key).display().to_string()
    }

    fn children(&self, folder: &str) -> Result<Vec<String>, TargetError> {
        let names = self.entries(folder)?.into_iter().map(|(name, _)| name);
        Ok(names.filter(|name| !is_unfinished(name)).collect())
    }

    fn objects_below(&self, folder: &str) -> Result<Vec<String>, TargetError> {
        self.files_below(folder, |name| !is_unfinished(name))
    }

    fn unfinished_below(&self, folder: &str) -> Result<Vec<String>, TargetError> {
        self.files_below(folder, is_unfinished)
    }

    fn open(&self, key: &str) -> Result<Box<dyn Read + Send>, TargetError> {
        let path = self.path(Access::Read, key)?;
        let file = File::open(&path).map_err(|error| failed(Access::Read, &path, error))?;
        Ok(Box::new(file))
    }

    fn read(&self, key: &str, bytes_max: u64) -> Result<Vec<u8>, TargetError> {
        let path = self.path(Access::Read, key)?;
        let read = || {
            let file = File::open(&path)?;
            let length = file.metadata()?.len().min(bytes_max);
            let mut bytes = Vec::with_capacity(length as usize + 1);
            file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error| failed(Access::Read, &path, error))?;
        if bytes.len() as u64 > bytes_max {
            return Err(TargetError::TooBig { path: self.locate(key), bytes_max });
        }
        Ok(bytes)
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), TargetError> {
        let path = self.path(Access::Write, key)?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.write_beside(&path, bytes) {
                Ok(()) => return Ok(()),
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && attempts < FOLDER_ATTEMPTS =>
                {
                    Self::open(self.url.clone(), self.root.clone())?;
                }
                Err(error) => return Err(failed(Access::Write, &path, error)),
            }
        }
    }

    fn flush(&self) -> Result<(), TargetError> {
        let folders =
            std::mem::take(&mut *self.unsynced.lock().unwrap_or_else(PoisonError::into_inner));
        for folder in &folders {
            match sync_folder(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    // Not synced is not forgotten: the next flush must not succeed without it.
                    folders.iter().for_each(|folder| self.remember(folder));
                    return Err(failed(Access::Write, folder, error));
                }
                _ => {} // or pruned meanwhile: the folder above is in the set too
            }
        }
        Ok(())
    }

    fn object_bytes(&self, key: &str) -> Result<Option<u64>, TargetError> {
        let path = self.path(Access::Read, key)?;
        match fs::metadata(&path) {
            Ok(found) => Ok(found.is_file().then_some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(Access::Read, &path, error)),
        }
    }

    /// Removes the folders above too, as far as they have become empty.
    fn delete(&self, key: &str) -> Result<(), TargetError> {
        let path = self.path(Access::Delete, key)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(Access::Delete, &path, error));
            }
            _ => {}
        }
        let mut folder = path.parent();
        if let Some(folder) = folder {
            self.remember(folder);
        }
        // Ends at the first that still holds something: removing that one fails.
        while let Some(empty) = folder.filter(|folder| *folder != self.root) {
            if fs::remove_dir(empty).is_err() {
                break;
            }
            folder = empty.parent();
            folder.into_iter().for_each(|above| self.remember(above));
        }
        Ok(())
    }

    fn modified(&self, key: &str) -> Result<SystemTime, TargetError> {
        let path = self.path(Access::Read, key)?;
        fs::metadata(&path)
            .and_then(|found| found.modified())
            .map_err(|error| failed(Access::Read, &path, error))
    }
}

fn failed(access: Access, path: &Path, error: io::Error) -> TargetError {
    TargetError::from_io(access, path.display().to_string(), error)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Opens a new file for what will become `place`. Two writers never share one.
fn create_beside(place: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
        let mut name = place.as_os_str().to_owned();
        name.push(format!(".tmp.{nanoseconds}"));
        match OpenOptions::new().write(true).create_new(true).open(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            opened => return opened.map(|file| (name.into(), file)),
        }
    }
}

/// A file that [`create_beside`], or Longhorn, made and hasn't renamed yet.
fn is_unfinished(name: &str) -> bool {
    name.rsplit_once(".tmp.").is_some_and(|(_, nanoseconds)| {
        !nanoseconds.is_empty() && nanoseconds.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> (tempfile::TempDir, DirectoryTarget) {
        let dir = tempfile::tempdir().unwrap();
        let target = DirectoryTarget::open("file:///t".into(), dir.path().to_owned()).unwrap();
        (dir, target)
    }

    #[test]
    fn objects_come_back_and_empty_folders_go() {
        let (dir, target) = target();
        target.write("a/b/one", b"1").unwrap();
        target.write("a/b/one", b"2").unwrap();
        target.write("a/two", b"3").unwrap();
        assert_eq!(target.read("a/b/one", 10).unwrap(), b"2");
        let mut below = target.objects_below("a").unwrap();
        below.sort();
        assert_eq!(below, ["a/b/one", "a/two"]);
        target.delete("a/b/one").unwrap();
        target.delete("a/b/one").unwrap();
        assert_eq!(target.children("a").unwrap(), ["two"]);
        target.delete("a/two").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(target.children("a").unwrap().is_empty());
        assert!(!target.exists("a/two").unwrap());
        assert!(target.read("a/two", 10).unwrap_err().is_not_found());
    }

    /// A writer that was killed leaves its file; nobody may take it for an object.
    #[test]
    fn files_that_were_never_finished_are_not_listed() {
        let (dir, target) = target();
        target.write("a/x.cfg", b"whole").unwrap();
        fs::write(dir.path().join("a/x.cfg.tmp.1795208564123456789"), b"ha").unwrap();
        fs::write(dir.path().join("a/y.tmp.z"), b"a file of that name").unwrap();
        let mut names = target.children("a").unwrap();
        names.sort();
        assert_eq!(names, ["x.cfg", "y.tmp.z"]);
        assert_eq!(target.objects_below("a").unwrap().len(), 2);
        let left = target.unfinished_below("a").unwrap();
        assert_eq!(left, ["a/x.cfg.tmp.1795208564123456789"]);
    }

    #[test]
    fn a_key_can_not_lead_out_of_the_directory() {
        let (_dir, target) = target();
        for key in ["../x", "a/../../x", "/etc/passwd", "", "./a/../b"] {
            assert!(target.write(key, b"!").is_err(), "{key}");
            assert!(target.read(key, 10).is_err(), "{key}");
        }
    }

    /// An NFS mount that is away leaves an empty mount point or none; a backup into the disk below
    /// it would be lost from sight, and a list of it would say that no backups exist.
    #[test]
    fn a_target_that_goes_away_is_an_error_not_an_empty_one() {
        let (dir, target) = target();
        let moved = dir.path().with_extension("away");
        fs::rename(dir.path(), &moved).unwrap();
        assert!(matches!(target.children("a"), Err(TargetError::NoDirectory { .. })));
        assert!(matches!(target.write("a/b", b""), Err(TargetError::NoDirectory { .. })));
        fs::rename(&moved, dir.path()).unwrap();
        assert!(target.children("a").unwrap().is_empty());
    }

    #[test]
    fn an_object_bigger_than_its_kind_is_not_read() {
        let (_dir, target) = target();
        target.write("a", &[0; 11]).unwrap();
        assert!(matches!(target.read("a", 10), Err(TargetError::TooBig { .. })));
        assert_eq!(target.read("a", 11).unwrap().len(), 11);
    }

    /// Deleting prunes folders while others write into them: neither may fail.
    #[test]
    fn writers_and_pruners_of_one_folder_do_not_disturb_each_other() {
        let (_dir, target) = target();
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let target = &target;
                scope.spawn(move || {
                    for _ in 0..50 {
                        let key = format!("a/b/c/{worker}");
                        target.write(&key, b"x").unwrap();
                        assert_eq!(target.read(&key, 1).unwrap(), b"x");
                        target.delete(&key).unwrap();
                    }
                });
            }
        });
    }
}
