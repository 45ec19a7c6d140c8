//! A backing store of tgt that is an Ankole volume: `--bstype ankole -b SOCKET`.
//!
//! Stock `tgtd` loads this library from its folder of backing stores and calls
//! [`register_bs_module`]. Owns the LUNs of that store. Promises that no panic crosses into tgtd, that
//! tgtd's only thread is never kept waiting by an engine, and that a tgtd of another layout is refused.
//!
//! ```text
//! initiator ─iSCSI─▶ tgtd ─submit─▶ Unit ─NBD on a unix socket─▶ engine
//! ```
//! tgt is licensed under the GPL, version 2 only; this crate therefore is MIT alone and depends on no
//! other crate of Ankole.

#![expect(unsafe_code, reason = "an interface of C")]

mod layout;
mod nbd;
mod scsi;
mod thread;
mod unit;

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use layout::{Cmd, Lu, Template, Tgtd};
use scsi::{Command, work_of};
use unit::{Task, Unit};

const NAME: &CStr = c"ankole";
const GOOD: c_int = 0;
const CHECK_CONDITION: c_int = 2;
/// tgtd looks for holes in the file of a LUN, in a loop that ends only if there are some, or if it
/// can't look (`sbc_getlbastatus`).
const NO_FILE: c_int = -1;

/// This library in a tgtd that is known.
struct Plugin {
    tgtd: Tgtd,
    template: *mut Template,
    units: Mutex<BTreeMap<Lu, Arc<Unit>>>,
}

// SAFETY: the template is written once, before it is registered, and then tgtd's alone.
unsafe impl Send for Plugin {}
// SAFETY: as above; the rest is locked.
unsafe impl Sync for Plugin {}

static PLUGIN: OnceLock<Plugin> = OnceLock::new();

pub(crate) fn log(text: &str) {
    eprintln!("ankole: {text}");
}

/// Called by tgtd when it has loaded the library.
#[unsafe(no_mangle)]
pub extern "C" fn register_bs_module() {
    guarded((), || match Tgtd::find() {
        Err(why) => log(&format!("this tgtd isn't known, and gets no store ankole: {why}")),
        Ok(tgtd) => {
            let template = Box::new(Template {
                name: NAME.as_ptr(),
                data_bytes: 0,
                open,
                close,
                init,
                exit,
                submit,
                open_flags: 0,
                operations: [0; 4], // all, and those that aren't known are refused by us
                siblings: [std::ptr::null_mut(); 2],
            });
            let template = Box::into_raw(template); // tgtd keeps it for its life
            let units = Mutex::default();
            if PLUGIN.set(Plugin { tgtd, template, units }).is_ok() {
                // SAFETY: the function has this type, and the template stays.
                unsafe { (tgtd.register)(template) };
            }
        }
    });
}

/// A panic ends here. What it was about fails.
fn guarded<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

impl Plugin {
    fn of(lu: Lu) -> Option<(&'static Self, Option<Arc<Unit>>)> {
        let plugin = PLUGIN.get()?;
        let units = plugin.units.lock().unwrap_or_else(PoisonError::into_inner);
        let unit = units.get(&lu).cloned();
        drop(units);
        Some((plugin, unit))
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<Lu, Arc<Unit>>) -> T) -> T {
        change(&mut self.units.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

unsafe extern "C" fn init(lu: Lu, _options: *mut c_char) -> c_int {
    guarded(libc::EINVAL, || {
        let Some(plugin) = PLUGIN.get() else { return libc::EINVAL };
        // SAFETY: tgtd has just made this LUN.
        if unsafe { lu.template() } != plugin.template {
            log("this tgtd's LUNs are laid out otherwise: refused");
            return libc::EINVAL;
        }
        0
    })
}

unsafe extern "C" fn exit(_lu: Lu) {}

unsafe extern "C" fn open(lu: Lu, path: *mut c_char, fd: *mut c_int, size: *mut u64) -> c_int {
    guarded(-libc::EINVAL, || {
        let Some((plugin, None)) = Plugin::of(lu) else { return -libc::EBUSY };
        // SAFETY: tgtd's strings end with a zero.
        let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
        match open_unit(plugin, lu, path) {
            Ok(size_bytes) => {
                // SAFETY: both lead to fields of the LUN.
                unsafe {
                    *fd = NO_FILE;
                    *size = size_bytes;
                }
                0
            }
            Err(error) => {
                log(&format!("{}: {error}", path.display()));
                -error.raw_os_error().unwrap_or(libc::EIO)
            }
        }
    })
}

/// All LUNs of this socket learn how large the disk is by now: so it is grown while it is in use, for
/// which tgtd has no command.
fn open_unit(plugin: &Plugin, lu: Lu, path: &Path) -> std::io::Result<u64> {
    // SAFETY: the call takes numbers only.
    let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if bell < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nothing else knows it.
    let bell = unsafe { File::from_raw_fd(bell) };
    let fd = bell.as_raw_fd();
    let unit = Arc::new(Unit::open(path, bell)?);
    let size_bytes = unit.size_bytes();
    plugin.change(|units| units.insert(lu, unit));
    // SAFETY: `collect` is there for ever, and looks the LUN up.
    let added = unsafe { (plugin.tgtd.event_add)(fd, libc::EPOLLIN, collect, lu.as_data()) };
    if added != 0 {
        plugin.change(|units| units.remove(&lu));
        return Err(std::io::Error::other("tgtd doesn't wait for its completions"));
    }
    plugin.change(|units| {
        let others = units.iter().filter(|(other, unit)| **other != lu && unit.path() == path);
        // SAFETY: the LUNs are ours, and tgtd has called from its thread.
        others.for_each(|(other, _)| unsafe { other.set_size_bytes(size_bytes) });
    });
    Ok(size_bytes)
}

unsafe extern "C" fn close(lu: Lu) {
    guarded((), || {
        let Some((plugin, Some(unit))) = Plugin::of(lu) else { return };
        // SAFETY: the descriptor was added when the LUN was opened.
        unsafe { (plugin.tgtd.event_delete)(unit.bell().as_raw_fd()) };
        plugin.change(|units| units.remove(&lu));
    });
}

/// tgtd answers a command whose submission fails with a sense of its own, so none fails.
unsafe extern "C" fn submit(cmd: Cmd) -> c_int {
    guarded(-libc::EIO, || {
        // SAFETY: tgtd has submitted it just now; so for all below.
        let lu = unsafe { cmd.lu() };
        let Some((_, Some(unit))) = Plugin::of(lu) else { return -libc::EIO };
        // SAFETY: as above, and the LUN is one of ours.
        let (cdb, sent, wanted) = unsafe { (cmd.cdb(), cmd.sent(), cmd.wanted()) };
        // SAFETY: as above. The areas are looked at by nobody else meanwhile.
        let work = work_of(&unsafe {
            Command {
                cdb: &cdb,
                offset: cmd.offset_bytes(),
                length: cmd.length_bytes(),
                block_bytes: lu.block_bytes(),
                disk_bytes: lu.size_bytes(),
                sent: sent.bytes(),
                wanted: wanted.bytes().len(),
            }
        });
        // SAFETY: as above.
        unsafe { cmd.set_async() };
        match work {
            Ok(work) => unit.submit(Task { cmd, work, sent, wanted }),
            Err(sense) => unit.refuse(cmd, sense),
        }
        0
    })
}

/// In tgtd's thread, when the bell of a LUN has rung.
unsafe extern "C" fn collect(_fd: c_int, _events: c_int, lu: *mut c_void) {
    guarded((), || {
        let Some((plugin, Some(unit))) = Plugin::of(Lu::from_data(lu)) else { return };
        for done in unit.collect() {
            let result = match done.result {
                Ok(()) => GOOD,
                Err(sense) => {
                    // SAFETY: tgtd has submitted the command, and it isn't done.
                    unsafe { (plugin.tgtd.sense)(done.cmd, sense.key, sense.code) };
                    CHECK_CONDITION
                }
            };
            // SAFETY: as above; it is done once.
            unsafe { (plugin.tgtd.done)(done.cmd, result) };
        }
    });
}
