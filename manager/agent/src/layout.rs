//! Where things lie on this machine.
//!
//! ```text
//! <data>/ankole.redb                        the store
//!        lock                               held by the one standalone; has its pid
//!        token                              who may use the API (0600)
//!        disks/default/replicas/V-UID-R/    a replica, unless --disk names other places
//!        run/api.addr                       where the API listens
//!        run/V.engine.process, V.R.process  pid files
//!        run/V.backup.NAME.process, V.restore.NAME.process
//!        run/jobs/backup.NAME/, restore.NAME/   what a job is told and says, and its log
//!        run/api.sock, arbiter.sock, V.admin, V.nbd, V.R
//!        run/V.tgt/                         of the volume's tgtd
//!        logs/V.engine.log, V.R.log
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ankole_api::Name;
use ankole_replica::types::ReplicaId;
use ankole_whole_file as whole_file;

use super::sockets::{self, Sockets};
use super::supervisor::{Part, ProcessName};

/// In the folder of sockets and pid files: where the folders of jobs are.
pub(super) const JOBS: &str = "jobs";

#[derive(Clone, Debug)]
pub struct Layout {
    data: PathBuf,
    sockets: Sockets,
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
    /// Makes the folders. `disks` are further places for replicas, instead of the default one;
    /// `short_names` see [`short_names_folder`].
    pub fn prepare(
        data: &Path,
        disks: &[PathBuf],
        short_names: &Path,
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
        for folder in [data.join("run"), data.join("run").join(JOBS), data.join("logs")] {
            make_private_folder(&folder)?;
            keep_others_out(&folder);
        }
        let sockets = Sockets::prepare(&data, short_names)?;
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
        if let Some(token) =
            whole_file::read_line(&path).map_err(failed("read the token", &path))?
        {
            return Ok(token.trim().into());
        }
        let token = random_hex::<24>().map_err(failed("make a token for", &path))?;
        whole_file::write(&path, format!("{token}\n").as_bytes())
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
    pub fn socket_folders(&self) -> Vec<&Path> {
        self.sockets.folders()
    }
    /// See [`Sockets`].
    pub fn mend_short_name(&self) -> Result<(), LayoutError> {
        self.sockets.mend_short_name()
    }
    pub fn remove_short_name(&self) {
        self.sockets.remove_short_name();
    }
    pub fn join_old_sockets(&self) -> Result<(), LayoutError> {
        self.sockets.join_old()
    }
    pub fn forget_old_sockets(&self) {
        self.sockets.forget_old();
    }
    pub fn api_address(&self) -> PathBuf {
        api_address_path(&self.data)
    }
    pub fn api_socket(&self) -> PathBuf {
        api_socket_path(&self.data)
    }
    pub fn arbiter(&self) -> PathBuf {
        self.run().join(sockets::ARBITER)
    }
    pub fn admin(&self, volume: &Name) -> PathBuf {
        self.run().join(format!("{volume}.admin"))
    }
    /// Other programs connect there.
    pub fn nbd(&self, volume: &Name) -> PathBuf {
        self.sockets.short.join(format!("{volume}.nbd"))
    }
    pub fn replica_socket(&self, volume: &Name, replica: &ReplicaId) -> PathBuf {
        self.run().join(format!("{volume}.{replica}"))
    }
    /// The folder of a job.
    pub fn job(&self, job: &Part) -> PathBuf {
        self.run().join(JOBS).join(job.to_string())
    }
    /// Those that have one.
    pub fn jobs(&self) -> io::Result<Vec<Part>> {
        let names = fs::read_dir(self.run().join(JOBS))?.map(|it| it.map(|it| it.file_name()));
        let names: Vec<_> = names.collect::<io::Result<_>>()?;
        let parts = names.iter().filter_map(|name| Part::parse(name.to_str()?));
        Ok(parts.filter(Part::is_job).collect())
    }
    pub fn log(&self, process: &ProcessName) -> PathBuf {
        self.data.join("logs").join(format!("{process}.log"))
    }
    pub fn disks(&self) -> &[PathBuf] {
        &self.disks
    }

    /// Sockets that a process which was killed may leave.
    pub fn remove_sockets(&self, process: &ProcessName) {
        let volume = &process.volume;
        match &process.part {
            Part::Engine => {
                self.sockets.remove(&format!("{volume}.admin"));
                self.sockets.remove(&format!("{volume}.nbd"));
            }
            Part::Replica(replica) => self.sockets.remove(&format!("{volume}.{replica}")),
            Part::Backup(_) | Part::Restore(_) => {}
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
    data.join("run").join(sockets::API)
}

/// Where long paths of sockets get a short name. No logout takes it away, unlike the runtime folder.
pub fn short_names_folder() -> PathBuf {
    match rustix::process::geteuid().as_raw() {
        0 => "/run/ankole".into(),
        user => PathBuf::from(format!("/tmp/ankole-{user}")),
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

/// Whether a user may ask what only the owner and root may.
pub fn may_use(user: u32) -> bool {
    use rustix::process::{geteuid, getuid};
    [0, getuid().as_raw(), geteuid().as_raw()].contains(&user)
}

/// `N` random bytes from the kernel, as hex.
pub fn random_hex<const N: usize>() -> io::Result<String> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
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

    #[test]
    fn the_token_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::prepare(folder.path(), &[], folder.path()).unwrap();
        let token = layout.token().unwrap();
        assert_eq!(token.len(), 48);
        assert_eq!(layout.token().unwrap(), token);
        // One that was cut short isn't replaced in silence: who has the old one would be locked out.
        fs::write(token_path(folder.path()), &token[..20]).unwrap();
        let refused = layout.token().unwrap_err();
        assert!(refused.to_string().contains("token"), "{refused}");
        fs::remove_file(token_path(folder.path())).unwrap();
        layout.token().unwrap();
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
