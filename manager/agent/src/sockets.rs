//! Where engines and replicas listen: in the data folder, where no cleaner and no logout comes.
//!
//! ```text
//! <data>/run/V.admin, V.nbd, V.R, arbiter.sock     the sockets, whatever the path's length is
//! <short names>/run-HASH ─▶ <data>/run             if the path is long: for programs that know
//!                                                  nothing of that, as tgtd or a user's nbdcopy
//! <old folder>/arbiter.sock ─▶ <data>/run/…        for processes that an earlier version left
//! <data>/run/V.admin ─▶ <old folder>/V.admin
//! ```
//! Owns the links; the sockets are their processes'. A short name that was removed is made anew, and
//! nothing of ours depends on it.

use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ankole_api::name::NAME_LENGTH_MAX;
use ankole_blockdev::hash::fnv1a;
use ankole_whole_file as whole_file;

use super::layout::{LayoutError, is_ours, make_private_folder};

/// `sun_path` has 108 bytes, the last is 0.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const LONGEST_SUFFIX: &str = "/.tgt/c.0";
pub(super) const API: &str = "api.sock";
pub(super) const ARBITER: &str = "arbiter.sock";
/// Named the folder of the sockets, if it wasn't `run` itself.
const OLD: &str = "sockets";

#[derive(Clone, Debug)]
pub(super) struct Sockets {
    pub(super) run: PathBuf,
    /// Leads to `run`, and is short enough for any program.
    pub(super) short: PathBuf,
    /// Of the version before.
    old: Option<PathBuf>,
}

impl Sockets {
    pub(super) fn prepare(data: &Path, short_names: &Path) -> Result<Self, LayoutError> {
        let run = data.join("run");
        let short = match fits(&run) {
            true => run.clone(),
            false => short_names.join(format!("run-{}", hash_of(data))),
        };
        let old = old_folder(&run)?;
        let sockets = Self { run, short, old };
        if let Err(error) = sockets.mend_short_name() {
            let short = sockets.short.display();
            tracing::warn!(%short, %error, "the sockets have no short name: other programs can't \
                connect to them");
        }
        Ok(sockets)
    }

    /// Makes the short name anew if somebody has removed it.
    pub(super) fn mend_short_name(&self) -> Result<(), LayoutError> {
        let leads_there = || fs::read_link(&self.short).is_ok_and(|target| target == self.run);
        if self.short == self.run || leads_there() {
            return Ok(());
        }
        let folder = self.short.parent().expect("it was joined to its parent");
        make_private_folder(folder)?;
        if !is_ours(folder)? {
            return Err(LayoutError::NotOurs { path: folder.into() });
        }
        lead(&self.short, &self.run)
    }

    /// When no process is left that is reached by it.
    pub(super) fn remove_short_name(&self) {
        if fs::read_link(&self.short).is_ok_and(|target| target == self.run) {
            let _ = fs::remove_file(&self.short);
        }
    }

    pub(super) fn folders(&self) -> Vec<&Path> {
        [&*self.run, &*self.short].into_iter().chain(self.old.as_deref()).collect()
    }

    /// So that processes of the version before are reached, and reach us and each other. The caller
    /// holds the lock on the data folder.
    pub(super) fn join_old(&self) -> Result<(), LayoutError> {
        let Some(old) = &self.old else { return Ok(()) };
        make_private_folder(old)?;
        let failed = |source| LayoutError::Io { what: "look into", path: old.clone(), source };
        for entry in fs::read_dir(old).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (here, name) = (self.run.join(entry.file_name()), entry.file_name());
            let is_served_by_us = name == API || name == ARBITER;
            if is_made_by_them(&entry) && !is_served_by_us && fs::symlink_metadata(&here).is_err() {
                lead(&here, &entry.path())?;
            }
        }
        lead(&old.join(ARBITER), &self.run.join(ARBITER))
    }

    /// When none of its processes is left.
    pub(super) fn forget_old(&self) {
        if let Some(old) = &self.old {
            let _ = fs::remove_file(self.run.join(OLD));
            let _ = fs::remove_dir_all(old);
        }
    }

    /// What a process that was killed has left. Its successor listens in `run`, and who asks for it
    /// at the old place is led there.
    pub(super) fn remove(&self, name: &str) {
        let path = self.run.join(name);
        let _ = fs::remove_file(&path);
        if let Some(old) = &self.old {
            let _ = lead(&old.join(name), &path);
        }
    }
}

fn fits(folder: &Path) -> bool {
    folder.as_os_str().len() + LONGEST_SUFFIX.len() + NAME_LENGTH_MAX <= SOCKET_PATH_BYTES_MAX
}

/// None also if somebody else has made a folder of that name meanwhile.
fn old_folder(run: &Path) -> Result<Option<PathBuf>, LayoutError> {
    let path = run.join(OLD);
    let failed = |source| LayoutError::Io { what: "read", path: path.clone(), source };
    let Some(folder) = whole_file::read_line(&path).map_err(failed)?.map(PathBuf::from) else {
        return Ok(None);
    };
    Ok((!folder.exists() || is_ours(&folder)?).then_some(folder))
}

fn is_made_by_them(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| !kind.is_symlink())
}

/// Makes `from` a link to `to`, in place of what is there.
fn lead(from: &Path, to: &Path) -> Result<(), LayoutError> {
    let draft = from.with_extension("new");
    let link = || {
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => symlink(to, &draft)?,
        }
        fs::rename(&draft, from)
    };
    link().map_err(|source| LayoutError::Io { what: "make the link", path: from.into(), source })
}

fn hash_of(path: &Path) -> String {
    let hash = fnv1a(path.as_os_str().as_encoded_bytes());
    format!("{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::{UnixListener, UnixStream};

    use ankole_blockdev::unix_socket::short;

    use super::*;

    struct Long {
        folder: tempfile::TempDir,
        run: PathBuf,
    }

    impl Long {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let run = folder.path().join("d".repeat(90)).join("run");
            fs::create_dir_all(&run).unwrap();
            Self { folder, run }
        }
        fn sockets(&self) -> Sockets {
            let data = self.run.parent().unwrap();
            Sockets::prepare(data, &self.folder.path().join("s")).unwrap()
        }
    }

    fn says(listener: &UnixListener, word: &str) {
        use std::io::Write;
        listener.accept().unwrap().0.write_all(word.as_bytes()).unwrap();
    }

    fn hear(path: &Path) -> String {
        let mut word = String::new();
        UnixStream::connect(short(path).unwrap().as_path())
            .unwrap()
            .read_to_string(&mut word)
            .unwrap();
        word
    }

    /// They lay under /tmp, where a cleaner took them: nobody reached the engine any more.
    #[test]
    fn a_long_data_path_has_its_sockets_in_the_data_folder_and_a_short_name() {
        let long = Long::new();
        let sockets = long.sockets();
        assert_eq!(sockets.run, long.run);
        let name = format!("{}.tgt/c.0", "v".repeat(NAME_LENGTH_MAX));
        assert!(fits(&sockets.short), "{}", sockets.short.display());
        fs::create_dir(long.run.join(name.split_once('/').unwrap().0)).unwrap();
        // By the bare path, as other programs do.
        let listener = UnixListener::bind(sockets.short.join(&name)).unwrap();
        fs::remove_dir_all(sockets.short.parent().unwrap()).unwrap();
        sockets.mend_short_name().unwrap();
        let served = std::thread::spawn(move || says(&listener, "moo"));
        assert_eq!(hear(&sockets.short.join(&name)), "moo");
        served.join().unwrap();
    }

    /// Engines and replicas live on while their standalone is replaced by this version.
    #[test]
    fn processes_with_sockets_at_the_old_place_are_reached_and_reach_us() {
        let long = Long::new();
        let old = long.folder.path().join("old");
        make_private_folder(&old).unwrap();
        let bind = |name: &str| UnixListener::bind(old.join(name)).unwrap();
        let (engine, _replica, _arbiter) = (bind("v1.admin"), bind("v1.r1"), bind(ARBITER));
        whole_file::write(&long.run.join(OLD), format!("{}\n", old.display()).as_bytes()).unwrap();
        let sockets = long.sockets();
        assert!(sockets.folders().contains(&&*old));
        sockets.join_old().unwrap();
        let old_engine = std::thread::spawn(move || says(&engine, "old"));
        assert_eq!(hear(&long.run.join("v1.admin")), "old");
        old_engine.join().unwrap();
        // The replica's successor, and our arbiter, are found where the old engine looks for them.
        sockets.remove("v1.r1");
        for name in ["v1.r1", ARBITER] {
            let ours = UnixListener::bind(short(&long.run.join(name)).unwrap().as_path()).unwrap();
            let served = std::thread::spawn(move || says(&ours, "new"));
            assert_eq!(hear(&old.join(name)), "new", "{name}");
            served.join().unwrap();
        }
        sockets.forget_old();
        assert_eq!(long.sockets().old, None);
    }
}
