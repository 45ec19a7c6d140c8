//! Where things lie on this machine.
//!
//! ```text
//! <data>/ankole.redb                        the store
//!        lock                               held by the one standalone; has its pid
//!        token                              who may use the API (0600)
//!        disks/default/replicas/V-R/        a replica, unless --disk names other places
//!        run/api.addr                       where the API listens
//!        run/V.engine.process, V.R.process  pid files
//!        run/sockets                        the folder of the sockets, if it isn't run/
//!        run/api.sock, arbiter.sock, V.admin, V.nbd, V.R
//!        run/V.tgt/                         of the volume's tgtd
//!        logs/V.engine.log, V.R.log
//! ```
//! The path of a unix socket has at most 107 bytes. When `run` is too long for the longest name,
//! the sockets lie in the runtime folder of the user, under a name made of the data folder's path.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ankole_replica::types::ReplicaId;

use super::supervisor::{Part, ProcessName};
use crate::api::Name;
use crate::api::name::NAME_LENGTH_MAX;

/// `sun_path` has 108 bytes, the last is 0.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const LONGEST_SUFFIX: &str = "/.tgt/c.0";
const API_SOCKET: &str = "api.sock";
/// Names the folder of the sockets, if it isn't `run` itself.
const SOCKETS: &str = "sockets";

#[derive(Clone, Debug)]
pub struct Layout {
    data: PathBuf,
    sockets: PathBuf,
    /// At least one.
    disks: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("{what} {path}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the data folder {data} is in use by another standalone, pid {pid}")]
    InUse { data: PathBuf, pid: String },
    #[error("{path} belongs to somebody else, or others can enter it")]
    NotOurs { path: PathBuf },
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LayoutError + 'a {
    move |source| LayoutError::Io { what, path: path.into(), source }
}

/// Held while a standalone works on the folder; the kernel lets go when the process ends.
#[derive(Debug)]
pub struct DataLock(#[expect(dead_code, reason = "the lock lives as long as the file")] File);

impl Layout {
    /// Makes the folders. `disks` are further places for replicas, instead of the default one.
    pub fn prepare(
        data: &Path,
        disks: &[PathBuf],
        runtime_folder: &Path,
    ) -> Result<Self, LayoutError> {
        make_private_folder(data)?;
        let data = data.canonicalize().map_err(failed("find", data))?;
        let mut absolute = Vec::new();
        for disk in disks {
            make_private_folder(disk)?;
            absolute.push(disk.canonicalize().map_err(failed("find the disk's folder", disk))?);
        }
        if absolute.is_empty() {
            absolute.push(data.join("disks/default"));
        }
        for folder in absolute.iter().map(|disk| disk.join("replicas")) {
            make_private_folder(&folder)?;
            keep_others_out(&folder);
        }
        for folder in [data.join("run"), data.join("logs")] {
            make_private_folder(&folder)?;
            keep_others_out(&folder);
        }
        let sockets = sockets_folder(&data, runtime_folder)?;
        Ok(Self { data, sockets, disks: absolute })
    }

    /// For the one process that may work on the folder.
    pub fn lock(&self) -> Result<DataLock, LayoutError> {
        let path = self.data.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let pid = pid.trim().into();
                return Err(LayoutError::InUse { data: self.data.clone(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed("write", &path))?;
        Ok(DataLock(file))
    }

    /// The token of the API; made at the first start.
    pub fn token(&self) -> Result<String, LayoutError> {
        let path = token_path(&self.data);
        match fs::read_to_string(&path) {
            Ok(token) if !token.trim().is_empty() => return Ok(token.trim().into()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("read", &path)(error));
            }
            _ => {}
        }
        let token = random_hex::<24>().map_err(failed("make a token for", &path))?;
        // Whole or not at all: an empty token would let everybody in.
        let draft = path.with_extension("new");
        let _ = fs::remove_file(&draft);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .and_then(|mut file| writeln!(file, "{token}"))
            .and_then(|()| fs::rename(&draft, &path))
            .map_err(failed("write", &path))?;
        Ok(token)
    }

    pub fn data(&self) -> &Path {
        &self.data
    }
    pub fn store(&self) -> PathBuf {
        self.data.join("ankole.redb")
    }
    pub fn run(&self) -> PathBuf {
        self.data.join("run")
    }
    /// Where engines and replicas listen.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }
    pub fn api_address(&self) -> PathBuf {
        api_address_path(&self.data)
    }
    pub fn api_socket(&self) -> PathBuf {
        self.sockets.join(API_SOCKET)
    }
    pub fn arbiter(&self) -> PathBuf {
        self.sockets.join("arbiter.sock")
    }
    pub fn admin(&self, volume: &Name) -> PathBuf {
        self.sockets.join(format!("{volume}.admin"))
    }
    pub fn nbd(&self, volume: &Name) -> PathBuf {
        self.sockets.join(format!("{volume}.nbd"))
    }
    pub fn replica_socket(&self, volume: &Name, replica: &ReplicaId) -> PathBuf {
        self.sockets.join(format!("{volume}.{replica}"))
    }
    pub fn log(&self, process: &ProcessName) -> PathBuf {
        self.data.join("logs").join(format!("{process}.log"))
    }
    pub fn disks(&self) -> &[PathBuf] {
        &self.disks
    }
    pub fn replica_directory(disk: &Path, volume: &Name, replica: &ReplicaId) -> PathBuf {
        disk.join("replicas").join(format!("{volume}-{replica}"))
    }

    /// Sockets that a process which was killed may leave.
    pub fn remove_sockets(&self, process: &ProcessName) {
        let volume = &process.volume;
        let sockets = match &process.part {
            Part::Engine => vec![self.admin(volume), self.nbd(volume)],
            Part::Replica(replica) => vec![self.replica_socket(volume, replica)],
        };
        for socket in sockets {
            let _ = fs::remove_file(socket);
        }
    }
}

pub fn token_path(data: &Path) -> PathBuf {
    data.join("token")
}

pub fn api_address_path(data: &Path) -> PathBuf {
    data.join("run/api.addr")
}

/// Where the standalone of a data folder listens, for its own user and root.
pub fn api_socket_path(data: &Path) -> PathBuf {
    let run = data.join("run");
    match fs::read_to_string(run.join(SOCKETS)) {
        Ok(folder) => Path::new(folder.trim_end()).join(API_SOCKET),
        Err(_) => run.join(API_SOCKET),
    }
}

/// The user's own folder for what ends with the login or the boot.
pub fn runtime_folder(xdg_runtime_dir: Option<&Path>) -> PathBuf {
    match xdg_runtime_dir {
        Some(folder) if folder.is_absolute() => folder.join("ankole"),
        _ => PathBuf::from(format!("/tmp/ankole-{}", rustix::process::getuid().as_raw())),
    }
}

/// Where a standalone notes its data folder under its API's address, so that the command line
/// finds the token without being told.
pub fn registration_path(runtime_folder: &Path, address: &str) -> PathBuf {
    runtime_folder.join(format!("api-{}", address.replace(['/', ':'], "_")))
}

fn sockets_folder(data: &Path, runtime_folder: &Path) -> Result<PathBuf, LayoutError> {
    let fits = |folder: &Path| {
        folder.as_os_str().len() + LONGEST_SUFFIX.len() + NAME_LENGTH_MAX <= SOCKET_PATH_BYTES_MAX
    };
    let run = data.join("run");
    if fits(&run) {
        return Ok(run);
    }
    // An earlier choice stays: processes that were left running listen there.
    let remembered = run.join(SOCKETS);
    if let Ok(path) = fs::read_to_string(&remembered) {
        let folder = PathBuf::from(path.trim_end());
        if fits(&folder) && make_private_folder(&folder).is_ok() && is_ours(&folder)? {
            return Ok(folder);
        }
    }
    let preferred = runtime_folder.join(hash_of(data));
    let folder = if fits(&preferred) {
        preferred
    } else {
        crate::agent::layout::runtime_folder(None).join(hash_of(data))
    };
    let parent = folder.parent().expect("it was joined to its parent");
    for folder in [parent, &folder] {
        make_private_folder(folder)?;
        if !is_ours(folder)? {
            return Err(LayoutError::NotOurs { path: folder.into() });
        }
    }
    fs::write(&remembered, format!("{}\n", folder.display()))
        .map_err(failed("write", &remembered))?;
    Ok(folder)
}

/// Makes it with mode 0700; one that is there keeps its mode.
pub fn make_private_folder(path: &Path) -> Result<(), LayoutError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make", path))
}

/// Of a folder that is only ours whatever the one around it is.
fn keep_others_out(folder: &Path) {
    let mended = fs::metadata(folder).and_then(|metadata| match metadata.mode() & 0o077 {
        0 => Ok(()),
        _ => fs::set_permissions(folder, fs::Permissions::from_mode(0o700)),
    });
    if let Err(error) = mended {
        tracing::warn!(folder = %folder.display(), %error, "others can look into it");
    }
}

/// In /tmp, somebody else may have made a folder with our name.
pub fn is_ours(folder: &Path) -> Result<bool, LayoutError> {
    let metadata = fs::symlink_metadata(folder).map_err(failed("look at", folder))?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    Ok(metadata.is_dir() && ours && metadata.mode() & 0o077 == 0)
}

/// FNV-1a: any hash that stays the same between versions does.
fn hash_of(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}

/// `N` random bytes from the kernel, as hex.
pub fn random_hex<const N: usize>() -> io::Result<String> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_on_one_folder_the_second_is_told_the_firsts_pid() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::prepare(folder.path(), &[], &folder.path().join("r")).unwrap();
        let first = layout.lock().unwrap();
        let refused = layout.lock().expect_err("the first holds it");
        assert!(refused.to_string().contains(&format!("pid {}", std::process::id())));
        drop(first);
        layout.lock().expect("the first let go");
    }

    /// A socket path that is too long fails only when the first volume is attached, and with a
    /// message that names neither the folder nor the limit.
    #[test]
    fn a_long_data_path_moves_the_sockets_to_the_runtime_folder_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("d".repeat(60));
        let runtime = folder.path().join("r");
        let name: Name = "v".repeat(NAME_LENGTH_MAX).parse().unwrap();
        let first = Layout::prepare(&data, &[], &runtime).unwrap();
        let socket = first.admin(&name);
        assert!(socket.starts_with(&runtime), "{}", socket.display());
        assert!(socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
        let mode = fs::metadata(&runtime).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        // A later start without XDG_RUNTIME_DIR still finds what was left running.
        let second = Layout::prepare(&data, &[], Path::new("/nowhere")).unwrap();
        assert_eq!(second.admin(&name), socket);
    }

    #[test]
    fn the_token_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::prepare(folder.path(), &[], folder.path()).unwrap();
        let token = layout.token().unwrap();
        assert_eq!(token.len(), 48);
        assert_eq!(layout.token().unwrap(), token);
        let mode = fs::metadata(token_path(folder.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// A data folder or a disk that was there, with the usual 0755, left everything readable.
    #[test]
    fn in_a_folder_that_others_can_enter_ours_are_closed() {
        let folder = tempfile::tempdir().unwrap();
        let (data, disk) = (folder.path().join("data"), folder.path().join("disk"));
        for path in [&data.join("run"), &data.join("logs"), &disk.join("replicas")] {
            fs::create_dir_all(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Layout::prepare(&data, std::slice::from_ref(&disk), folder.path()).unwrap();
        for path in [data.join("run"), data.join("logs"), disk.join("replicas")] {
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", path.display());
        }
    }

    #[test]
    fn a_folder_that_can_not_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let refused = Layout::prepare(&file.join("data"), &[], folder.path()).unwrap_err();
        assert!(refused.to_string().contains("file/data"), "{refused}");
    }
}
