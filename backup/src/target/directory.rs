//! A target that is a directory, local or mounted.
//!
//! An object is written beside its place as `<name>.tmp.<nanoseconds>` and renamed once it is on
//! the disk, as Longhorn does; lists leave such files out. Folders are synced by `flush`, once for
//! many objects: a block's folders are mostly its own, so syncing them with each block would cost
//! several syncs where one is needed. Promises that an object which is seen under its name is
//! whole, also after a power cut; that nothing outside the directory is touched, as every folder
//! is opened from the one above it and links below the directory aren't followed; and that nothing
//! is opened but plain files, so that a FIFO or a device makes nobody wait.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, renameat, unlinkat};

use super::{Access, Target, TargetError, found};

/// How often a write starts again because another process removed the folder, which had become
/// empty, between our making it and our using it.
const FOLDER_ATTEMPTS: usize = 100;

/// To go through a folder, whether or not it may be listed; never through a link.
const PASS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(NO_LINK);
const LIST: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(NO_LINK);
const NO_LINK: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);

pub struct DirectoryTarget {
    url: String,
    root: PathBuf,
    /// Folders, relative to the root, with names that came, went or changed since the last flush.
    unsynced: Mutex<BTreeSet<PathBuf>>,
}

/// Where an object is, or would be: its folder, opened, and its name there.
struct Spot<'k> {
    folder: OwnedFd,
    name: &'k str,
}

impl Spot<'_> {
    /// What is there, without opening it.
    fn look(&self) -> io::Result<Metadata> {
        let flags = OFlags::PATH | NO_LINK;
        File::from(openat(&self.folder, self.name, flags, Mode::empty())?).metadata()
    }

    /// Opens it if it is a plain file.
    fn open(&self) -> io::Result<File> {
        let refuse = |found: &Metadata| match found.is_file() {
            true => Ok(()),
            false => Err(io::Error::other(NotPlain(kind(found)))),
        };
        refuse(&self.look()?)?;
        // Should it have been exchanged for a FIFO since, this doesn't wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | NO_LINK;
        let file = File::from(openat(&self.folder, self.name, flags, Mode::empty())?);
        refuse(&file.metadata()?)?;
        Ok(file)
    }
}

/// In the place of an object or a folder.
#[derive(Debug, thiserror::Error)]
#[error("it is {0}, which nothing below a target may be; remove it")]
struct NotPlain(&'static str);

fn kind(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    match () {
        () if kind.is_symlink() => "a link",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_dir() => "a folder",
        () if kind.is_file() => "a file",
        () => "a device",
    }
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

    /// The parts of a key that leads to somewhere below the directory.
    fn parts<'k>(&self, access: Access, key: &'k str) -> Result<Vec<&'k str>, TargetError> {
        let mut parts = Vec::new();
        for component in Path::new(key).components() {
            match component {
                Component::Normal(part) => parts.push(part.to_str().expect("a key is text")),
                _ => parts.clear(),
            }
        }
        if parts.is_empty() || parts.join("/") != key {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "leads out of the target");
            return Err(TargetError::Other { access, path: key.to_owned(), source });
        }
        Ok(parts)
    }

    /// Not held open between two calls: a mount may be exchanged, or taken away.
    fn open_root(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.root, flags, Mode::empty())?)
    }

    fn folder(&self, parts: &[&str]) -> io::Result<OwnedFd> {
        let mut folder = self.open_root()?;
        for part in parts {
            folder = match openat(&folder, *part, PASS, Mode::empty()) {
                Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                    let found = Spot { folder, name: part }.look()?;
                    return Err(io::Error::other(NotPlain(kind(&found))));
                }
                opened => opened?,
            };
        }
        Ok(folder)
    }

    fn spot<'k>(&self, parts: &[&'k str]) -> io::Result<Spot<'k>> {
        let (name, folders) = parts.split_last().expect("a key has a part");
        Ok(Spot { folder: self.folder(folders)?, name })
    }

    /// Does something with the place of an object.
    fn at<'k, T>(
        &self,
        access: Access,
        key: &'k str,
        work: impl FnOnce(Spot<'k>) -> io::Result<T>,
    ) -> Result<T, TargetError> {
        let parts = self.parts(access, key)?;
        self.spot(&parts).and_then(work).map_err(|error| self.failed(access, key, error))
    }

    fn failed(&self, access: Access, key: &str, error: io::Error) -> TargetError {
        let path = self.locate(key);
        match error.get_ref().and_then(|inner| inner.downcast_ref::<NotPlain>()) {
            Some(NotPlain(found)) => TargetError::NotPlain { access, path, found },
            None => TargetError::from_io(access, path, error),
        }
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
        let parts = match folder {
            "" => Vec::new(),
            folder => self.parts(Access::List, folder)?,
        };
        let list = || -> io::Result<_> {
            let folder = self.folder(&parts)?;
            let listed = openat(&folder, ".", LIST, Mode::empty())?;
            let mut entries = Vec::new();
            for entry in rustix::fs::Dir::new(listed)? {
                let entry = entry?;
                // A name that isn't UTF-8 is neither ours nor Longhorn's.
                let Ok(name) = entry.file_name().to_str() else { continue };
                if matches!(name, "." | "..") {
                    continue;
                }
                let is_folder = match entry.file_type() {
                    rustix::fs::FileType::Unknown => {
                        let folder = rustix::io::dup(&folder)?;
                        Spot { folder, name }.look()?.is_dir()
                    }
                    kind => kind.is_dir(),
                };
                entries.push((name.to_owned(), is_folder));
            }
            Ok(entries)
        };
        match list() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // An unmounted target would look like an empty one.
                Self::open(self.url.clone(), self.root.clone())?;
                Ok(Vec::new())
            }
            other => other.map_err(|error| self.failed(Access::List, folder, error)),
        }
    }

    fn remember(&self, parts: &[&str]) {
        let folder: PathBuf = parts.iter().collect();
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner).insert(folder);
    }

    /// Makes the folders above an object.
    fn make_folders(&self, parts: &[&str]) -> io::Result<()> {
        if parts.is_empty() {
            return self.open_root().map(drop);
        }
        match self.folder(parts) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found.map(drop),
        }
        let (name, above) = parts.split_last().expect("it isn't empty");
        self.make_folders(above)?;
        match mkdirat(self.folder(above)?, *name, Mode::from_raw_mode(0o777)) {
            Err(error) if error != rustix::io::Errno::EXIST => return Err(error.into()),
            _ => self.remember(above),
        }
        Ok(())
    }

    fn write_beside(&self, parts: &[&str], bytes: &[u8]) -> io::Result<()> {
        let (_, folders) = parts.split_last().expect("a key has a part");
        self.make_folders(folders)?;
        let spot = self.spot(parts)?;
        let (beside, mut file) = create_beside(&spot)?;
        let written = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| Ok(renameat(&spot.folder, &beside, &spot.folder, spot.name)?));
        self.remember(folders);
        if written.is_err() {
            // Best effort: the space matters most when it has run out.
            let _ = unlinkat(&spot.folder, &beside, AtFlags::empty());
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
        Ok(Box::new(self.at(Access::Read, key, |spot| spot.open())?))
    }

    fn read(&self, key: &str, bytes_max: u64) -> Result<Vec<u8>, TargetError> {
        let bytes = self.at(Access::Read, key, |spot| {
            let file = spot.open()?;
            let length = file.metadata()?.len().min(bytes_max);
            let mut bytes = Vec::with_capacity(length as usize + 1);
            file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
            Ok(bytes)
        })?;
        if bytes.len() as u64 > bytes_max {
            return Err(TargetError::TooBig { path: self.locate(key), bytes_max });
        }
        Ok(bytes)
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), TargetError> {
        let parts = self.parts(Access::Write, key)?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.write_beside(&parts, bytes) {
                Ok(()) => return Ok(()),
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && attempts < FOLDER_ATTEMPTS =>
                {
                    Self::open(self.url.clone(), self.root.clone())?;
                }
                Err(error) => return Err(self.failed(Access::Write, key, error)),
            }
        }
    }

    fn flush(&self) -> Result<(), TargetError> {
        let folders =
            std::mem::take(&mut *self.unsynced.lock().unwrap_or_else(PoisonError::into_inner));
        for folder in &folders {
            match self.sync(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    // Not synced is not forgotten: the next flush must not succeed without it.
                    self.unsynced
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend(folders.clone());
                    let path = self.root.join(folder).display().to_string();
                    return Err(TargetError::from_io(Access::Write, path, error));
                }
                _ => {} // or pruned meanwhile: the folder above is in the set too
            }
        }
        Ok(())
    }

    fn object_bytes(&self, key: &str) -> Result<Option<u64>, TargetError> {
        match found(self.at(Access::Read, key, |spot| spot.look()))? {
            Some(found) => Ok(found.is_file().then_some(found.len())),
            None => Ok(None),
        }
    }

    /// Removes the folders above too, as far as they have become empty.
    fn delete(&self, key: &str) -> Result<(), TargetError> {
        let parts = self.parts(Access::Delete, key)?;
        let remove = |parts: &[&str], flags| -> io::Result<()> {
            let spot = self.spot(parts)?;
            Ok(unlinkat(&spot.folder, spot.name, flags)?)
        };
        match remove(&parts, AtFlags::empty()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self.failed(Access::Delete, key, error));
            }
            _ => {}
        }
        let mut folders = &parts[..parts.len() - 1];
        self.remember(folders);
        // Ends at the first that still holds something: removing that one fails.
        while let Some((_, above)) = folders.split_last() {
            if remove(folders, AtFlags::REMOVEDIR).is_err() {
                break;
            }
            self.remember(above);
            folders = above;
        }
        Ok(())
    }

    fn modified(&self, key: &str) -> Result<SystemTime, TargetError> {
        self.at(Access::Read, key, |spot| spot.look()?.modified())
    }
}

impl DirectoryTarget {
    fn sync(&self, folder: &Path) -> io::Result<()> {
        let parts: Vec<_> = folder.iter().filter_map(|part| part.to_str()).collect();
        let folder = openat(self.folder(&parts)?, ".", LIST, Mode::empty())?;
        File::from(folder).sync_all()
    }
}

/// Opens a new file for what will become the object. Two writers never share one.
fn create_beside(spot: &Spot<'_>) -> io::Result<(String, File)> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | NO_LINK;
    loop {
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
        let name = format!("{}.tmp.{nanoseconds}", spot.name);
        match openat(&spot.folder, &name, flags, Mode::from_raw_mode(0o666)) {
            Err(rustix::io::Errno::EXIST) => {}
            opened => return Ok((name, File::from(opened?))),
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

    /// A FIFO made a restore, a verification and a list wait for ever; a link led anywhere.
    #[test]
    fn what_is_no_plain_file_is_refused_without_waiting() {
        let (dir, target) = target();
        let place = |name: &str| dir.path().join(name);
        target.write("a/whole", b"1").unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, place("a/fifo"), fifo, 0o600.into(), 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(place("a/socket")).unwrap();
        std::os::unix::fs::symlink("whole", place("a/link")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", place("a/device")).unwrap();
        fs::create_dir(place("a/folder")).unwrap();
        std::os::unix::fs::symlink("a", place("elsewhere")).unwrap();
        for (key, kind) in [
            ("a/fifo", "a FIFO"),
            ("a/socket", "a socket"),
            ("a/link", "a link"),
            ("a/device", "a link"),
            ("a/folder", "a folder"),
            ("elsewhere/whole", "a link"),
            ("a/whole/x", "a file"),
        ] {
            let error = target.read(key, 10).unwrap_err();
            assert!(matches!(error, TargetError::NotPlain { found, .. } if found == kind), "{key}");
            assert!(target.open(key).is_err());
        }
        assert!(target.children("elsewhere").is_err());
        assert!(target.write("elsewhere/new", b"").is_err());
        assert!(target.delete("elsewhere/whole").is_err());
        // It isn't an object, so one can be put in its place; what a link led to stays.
        for key in ["a/fifo", "a/link"] {
            assert_eq!(target.object_bytes(key).unwrap(), None);
            target.write(key, b"22").unwrap();
            assert_eq!(target.object_bytes(key).unwrap(), Some(2));
        }
        assert_eq!(target.read("a/whole", 10).unwrap(), b"1");
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
