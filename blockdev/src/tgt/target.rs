//! A volume's own tgtd: its folder, its life, and what it is told.
//!
//! ```text
//! FOLDER/stores/bs_ankole.so    all the backing stores that it may load
//!        c.0                    it listens here for tgtadm
//!        c.0.lock               it holds a lock on it as long as it lives
//!        secret                 what an initiator has to know (0600)
//!        configured             it has its target: whoever started it lived long enough to tell it
//! ```
//! tgtd outlives the engine that started it, as a device of the kernel would. What may never happen:
//! that two volumes look like one disk, by which multipathd would mix them up. Each has its own
//! identifiers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::account;
use super::command::{command, run};
use super::sys::{self, Process};
use super::{PLUGIN, TgtError, Unavailable, file_error};

/// Of CHAP, which wants one beside the secret.
pub(super) const USER: &str = "ankole";
/// Compiled into tgtd, which takes all that is in it for backing stores.
const STORES: &str = "/usr/lib/tgt/backing-store";
/// What the LUN says that it is.
pub(super) const VENDOR: &str = "ANKOLE";
pub(super) const PRODUCT: &str = "VOLUME";
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// iSCSI's own, and upwards.
const PORTS: std::ops::RangeInclusive<u16> = 3260..=u16::MAX;
/// Bytes: `iscsiadm` takes letters, and a CHAP secret should have 12 of them or more (RFC 7143,
/// 12.1.3.1).
const SECRET_BYTES: usize = 16;

/// Of one volume.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// RFC 7143, 4.2.7.4.
    name: String,
    /// Of this volume behind this port, and of no other.
    serial: String,
    port: u16,
    folder: PathBuf,
    /// The engine's.
    socket: PathBuf,
}

impl Target {
    /// `socket` is where the engine serves NBD; the folder is beside it.
    pub(super) fn new(identity: &str, port: u16, socket: &Path) -> Self {
        Self {
            name: format!("iqn.2026-01.io.ankole:{identity}"),
            serial: format!("{:016x}-{port}", crate::device::hash(identity)),
            port,
            folder: socket.with_extension("tgt"),
            socket: socket.into(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn portal(&self) -> String {
        format!("{}:{}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// tgtd with the LUN. Kept is only the secret, if there is one.
    pub(super) fn start(&self, initiator: &str, is_read_only: bool) -> Result<(), TgtError> {
        let stores = self.folder.join("stores");
        let mut folders = fs::DirBuilder::new();
        folders.recursive(true).mode(0o700);
        folders.create(&stores).map_err(file_error("make", &stores))?;
        self.take_plugin(&stores)?;
        let secret = self.secret()?;
        let mark = self.mark();
        match fs::remove_file(&mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file_error("remove", &mark)(error));
            }
            _ => {}
        }
        self.start_daemon(&stores)?;
        let configured = self
            .configure(initiator, &secret, is_read_only)
            .and_then(|()| File::create(&mark).map_err(file_error("make", &mark)));
        if configured.is_err() {
            self.end()?;
        }
        configured.map(drop)
    }

    /// Whether a tgtd was started for it, and not removed since.
    pub(super) fn is_known(&self) -> bool {
        self.folder.exists()
    }

    /// Whether a tgtd serves the LUN. One whose engine died before it had told it all doesn't.
    pub(super) fn is_served(&self) -> Result<bool, TgtError> {
        Ok(self.daemon()?.is_some() && self.mark().exists())
    }

    fn mark(&self) -> PathBuf {
        self.folder.join("configured")
    }

    /// As it is now, or as the last engine had it, whose program may have lain elsewhere.
    fn take_plugin(&self, stores: &Path) -> Result<(), TgtError> {
        let (fresh, taken) = (self.folder.join(PLUGIN), stores.join("bs_ankole.so"));
        let Some(plugin) = find_plugin() else {
            return if taken.is_file() { Ok(()) } else { Err(Unavailable::NoPlugin.into()) };
        };
        fs::copy(&plugin, &fresh).map_err(file_error("copy", &plugin))?;
        fs::rename(&fresh, &taken).map_err(file_error("replace", &taken))
    }

    /// What an initiator has to know; made if it isn't there.
    pub(super) fn secret(&self) -> Result<String, TgtError> {
        let path = self.folder.join("secret");
        match fs::read_to_string(&path) {
            Ok(secret) if secret.len() == 2 * SECRET_BYTES => return Ok(secret),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file_error("read", &path)(error));
            }
            _ => {}
        }
        let mut bytes = [0; SECRET_BYTES];
        let filled = getrandom::fill(&mut bytes).map_err(io::Error::from);
        filled.map_err(file_error("get random bytes for", &path))?;
        let secret: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&path).and_then(|mut file| file.write_all(secret.as_bytes()));
        written.map_err(file_error("write", &path))?;
        Ok(secret)
    }

    fn start_daemon(&self, stores: &Path) -> Result<(), TgtError> {
        let place = Path::new(STORES);
        fs::create_dir_all(place).map_err(file_error("make", place))?;
        let started = |source| TgtError::Start { program: "tgtd".into(), source };
        let mut command = command("tgtd");
        command.args(["--foreground", "--control-port", "0"]);
        command.arg("--iscsi").arg(format!("portal={}", self.portal()));
        command.env("TGT_IPC_SOCKET", self.folder.join("c")).stdin(Stdio::null());
        sys::in_own_namespace(&mut command, stores, place).map_err(started)?;
        let mut daemon = command.spawn().map_err(started)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if daemon.try_wait().map_err(started)?.is_some() {
                return Err(TgtError::Ended { port: self.port });
            }
            match self.tell(["system", "show"], &[]) {
                Ok(_) => break,
                Err(error) if Instant::now() >= deadline => {
                    // By its number: it may not hold its lock yet.
                    let _ended_meanwhile = daemon.kill();
                    let _ = daemon.wait();
                    return Err(error);
                }
                Err(_) => std::thread::sleep(LOOK_EVERY),
            }
        }
        // Whoever waits for it is a thread of its own, since it may end at any time.
        std::thread::spawn(move || daemon.wait());
        Ok(())
    }

    fn configure(&self, initiator: &str, secret: &str, is_read_only: bool) -> Result<(), TgtError> {
        let tid = ["--tid", "1"];
        let lun = ["--tid", "1", "--lun", "1"];
        let user = ["--user", USER];
        self.tell(["target", "new"], &[&tid[..], &["--targetname", &self.name]].concat())?;
        let control = self.folder.join("c.0");
        let made = account::make(&control, USER, secret, PATIENCE);
        made.map_err(file_error("make an account of tgtd over", &control))?;
        self.tell(["account", "bind"], &[&tid[..], &user].concat())?;
        self.add_unit("1")?;
        let params = format!(
            "vendor_id={VENDOR},product_id={PRODUCT},product_rev=1,scsi_id={0},scsi_sn={0},lbppbe=3,\
             thin_provisioning=1,readonly={1}",
            self.serial,
            u8::from(is_read_only)
        );
        self.tell(["logicalunit", "update"], &[&lun[..], &["--params", &params]].concat())?;
        self.tell(["target", "bind"], &[&tid[..], &["--initiator-name", initiator]].concat())?;
        Ok(())
    }

    fn add_unit(&self, tid: &str) -> Result<(), TgtError> {
        let socket = self.socket.to_string_lossy();
        let unit = ["--tid", tid, "--lun", "1", "--bstype", "ankole", "--backing-store", &socket];
        self.tell(["logicalunit", "new"], &unit).map(drop)
    }

    /// Has the LUN learn that the disk has grown: the store tells all LUNs of a socket what it hears
    /// when one is opened, and this one nobody can log in to.
    pub(super) fn grow(&self) -> Result<(), TgtError> {
        let name = format!("{}.size", self.name);
        let delete = || self.tell(["target", "delete"], &["--tid", "2", "--force"]);
        let _left_by_an_engine_that_died = delete(); // mostly there is none
        self.tell(["target", "new"], &["--tid", "2", "--targetname", &name])?;
        let added = self.add_unit("2");
        delete()?;
        added
    }

    /// MODE OPERATION, in tgtadm's words.
    fn tell(&self, [mode, operation]: [&str; 2], more: &[&str]) -> Result<String, TgtError> {
        let mut command = command("tgtadm");
        command.args(["--control-port", "0", "--mode", mode, "--op", operation]);
        if mode != "system" {
            command.args(["--lld", "iscsi"]);
        }
        command.args(more).env("TGT_IPC_SOCKET", self.folder.join("c"));
        run(&mut command, PATIENCE)
    }

    /// tgtd, while it lives.
    pub(super) fn daemon(&self) -> Result<Option<Process>, TgtError> {
        let path = self.folder.join("c.0.lock");
        let failed = file_error("look for the owner of", &path);
        match File::open(&path) {
            Ok(file) => Process::that_locks(&file).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Nothing of a volume is lost with tgtd: it has no cache.
    pub(super) fn end(&self) -> Result<(), TgtError> {
        let Some(daemon) = self.daemon()? else { return Ok(()) };
        daemon.kill().map_err(|source| TgtError::Start { program: "end tgtd".into(), source })?;
        let deadline = Instant::now() + PATIENCE;
        while self.daemon()?.is_some() {
            if Instant::now() >= deadline {
                return Err(TgtError::Silent { program: "tgtd".into(), patience: PATIENCE });
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// What isn't needed any more, once tgtd has ended.
    pub(super) fn remove(&self) -> Result<(), TgtError> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(file_error("remove", &self.folder)(error))
            }
            _ => Ok(()),
        }
    }
}

/// The first port from iSCSI's own upwards that nobody listens at and `is_taken` doesn't know.
pub(super) fn free_port(is_taken: impl Fn(u16) -> bool) -> Option<u16> {
    PORTS.into_iter().find(|port| !is_taken(*port) && is_free(*port))
}

/// Nobody listens there.
pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Beside this program, or where it would be installed.
pub(super) fn find_plugin() -> Option<PathBuf> {
    let program = std::env::current_exe().ok();
    let beside = program.as_deref().and_then(Path::parent);
    let installed = ["/usr/local/lib/ankole", "/usr/lib/ankole"].map(PathBuf::from);
    let folders = beside.into_iter().flat_map(|folder| {
        [folder.to_owned(), folder.join("../lib/ankole"), folder.join("..")] // examples/ lie deeper
    });
    folders.chain(installed).map(|folder| folder.join(PLUGIN)).find(|plugin| plugin.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// multipathd takes disks with the same identifiers for paths to one disk.
    #[test]
    fn no_two_volumes_look_like_one_disk() {
        let socket = Path::new("/run/x.nbd");
        let serials = [("a", 3260), ("b", 3260), ("a", 3261)]
            .map(|(volume, port)| Target::new(volume, port, socket).serial);
        assert!(serials[0] != serials[1] && serials[0] != serials[2], "{serials:?}");
        assert!(serials.iter().all(|serial| serial.len() <= 35), "tgtd cuts it: {serials:?}");
    }

    #[test]
    fn a_port_at_which_somebody_listens_is_left_to_them() {
        let first = free_port(|_| false).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).unwrap();
        let second = free_port(|_| false).unwrap();
        assert!(second > first);
        assert!(free_port(|port| port == second).unwrap() > second);
        drop(listener);
    }

    #[test]
    fn a_secret_is_kept_and_no_two_are_alike() {
        let folder = tempfile::tempdir().unwrap();
        let target = |name: &str| {
            let target = Target::new(name, 3260, &folder.path().join(name).with_extension("nbd"));
            fs::create_dir(&target.folder).unwrap();
            target
        };
        let (a, b) = (target("a"), target("b"));
        assert_eq!(a.secret().unwrap(), a.secret().unwrap());
        assert_ne!(a.secret().unwrap(), b.secret().unwrap());
    }
}
