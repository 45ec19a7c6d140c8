//! Unix sockets at paths of any length, whose names come back when somebody removes them.
//!
//! `sun_path` has 108 bytes; a longer path is reached through a descriptor of its folder. A name can
//! go while its listener lives (a cleaner of old files, a careless `rm`): nobody could connect any
//! more, and the volume could no longer be controlled. So a listener looks for its name, and makes
//! it anew.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

/// The last of `sun_path`'s bytes is 0.
const PATH_BYTES_MAX: usize = 107;
/// A name that is gone is back so soon.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 2000 });

/// A path for `connect` or `bind`, as long as this lives.
pub struct ShortPath {
    path: PathBuf,
    _folder: Option<File>,
}

impl ShortPath {
    /// A reference, not [`AsRef`]: who takes a path by value may let go of it before it is used.
    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

/// Leads to the same file as `path`.
pub fn short(path: &Path) -> io::Result<ShortPath> {
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return Ok(ShortPath { path: path.into(), _folder: None });
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidFilename.into());
    };
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let folder = File::options().read(true).custom_flags(flags).open(folder)?;
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok(ShortPath { path, _folder: Some(folder) })
}

pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(short(path)?.as_path()).await
}

/// Of its user alone.
pub struct Listener {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    listener: Arc<UnixListener>,
    /// Device and inode.
    file: (u64, u64),
    look: Instant,
}

impl Listener {
    /// In place of what an earlier process left there: the caller knows that it is gone.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self { path: path.into(), state: Mutex::new(State::bind(path)?) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One caller at a time.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (listener, look) = {
                let state = self.state();
                (Arc::clone(&state.listener), state.look)
            };
            tokio::select! {
                biased; // who is in the queue already isn't dropped with it
                accepted = listener.accept() => return Ok(accepted?.0),
                () = tokio::time::sleep_until(look) => self.look_for_name(),
            }
        }
    }

    /// Another file that is there now is a successor's.
    fn look_for_name(&self) {
        let mut state = self.state();
        state.look = Instant::now() + LOOK;
        let found = fs::symlink_metadata(&self.path).map_err(|error| error.kind());
        if !matches!(found, Err(io::ErrorKind::NotFound)) {
            return;
        }
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        match made.and_then(|()| State::bind(&self.path)) {
            Ok(anew) => {
                tracing::warn!(socket = %self.path.display(), "somebody removed it: made anew");
                *state = anew;
            }
            Err(error) => {
                let socket = self.path.display();
                tracing::warn!(%socket, %error, "somebody removed it, and it can't be made anew");
            }
        }
    }

    /// Unless the name is a successor's.
    pub fn remove_name(&self) {
        let is_ours = identity(&self.path).is_ok_and(|file| file == self.state().file);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// No code panics while it holds the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn bind(path: &Path) -> io::Result<Self> {
        let listener = Arc::new(UnixListener::bind(short(path)?.as_path())?);
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(Self { listener, file: identity(path)?, look: Instant::now() + LOOK })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_runtime(test: impl Future<Output = ()>) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(test);
    }

    /// It failed when the first volume was attached, so the sockets lay under /tmp instead.
    #[test]
    fn a_path_of_any_length_can_be_listened_on_and_connected_to() {
        with_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path().join("d".repeat(200)).join("e".repeat(200));
            fs::create_dir_all(&folder).unwrap();
            let path = folder.join(format!("{}.admin", "v".repeat(63)));
            let listener = Listener::bind(&path).unwrap();
            let (here, there) = tokio::join!(connect(&path), listener.accept());
            assert!(here.is_ok() && there.is_ok());
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            listener.remove_name();
            assert!(!path.exists());
        });
    }

    /// Cleaners of /tmp do this: I/O went on, and nobody reached the engine any more.
    #[test]
    fn a_socket_whose_name_or_folder_was_removed_is_made_anew() {
        with_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let run = folder.path().join("run");
            fs::create_dir(&run).unwrap();
            let path = run.join("v1.admin");
            let listener = Listener::bind(&path).unwrap();
            for round in 0..3 {
                match round {
                    0 => fs::remove_file(&path).unwrap(),
                    _ => fs::remove_dir_all(&run).unwrap(),
                }
                let client = async {
                    loop {
                        match connect(&path).await {
                            Ok(client) => return client,
                            Err(_) => tokio::time::sleep(LOOK / 10).await,
                        }
                    }
                };
                let (_here, there) = tokio::join!(client, listener.accept());
                there.unwrap();
            }
        });
    }

    /// The engine after this one listens there.
    #[test]
    fn a_successors_socket_is_left_alone() {
        with_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("v1.admin");
            let first = Listener::bind(&path).unwrap();
            let second = Listener::bind(&path).unwrap();
            tokio::time::timeout(LOOK * 3, first.accept()).await.expect_err("nobody comes to it");
            first.remove_name();
            let (here, there) = tokio::join!(connect(&path), second.accept());
            assert!(here.is_ok() && there.is_ok());
        });
    }
}
