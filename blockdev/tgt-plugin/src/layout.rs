//! tgtd's structures, as far as a backing store needs them.
//!
//! No header is installed, so offsets are written down here: those of tgt 1.0.67 to 1.0.97 on
//! x86-64, read from the sizes and offsets of its debug information. Promises that a tgtd whose
//! layout is another one is refused: a store that tgtd has registered itself, and the LUN that it
//! hands over, must look as they do here.

#![expect(unsafe_code, reason = "memory of tgtd, by its layout")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// `struct backingstore_template`, 112 bytes.
#[repr(C)]
pub struct Template {
    pub name: *const c_char,
    pub data_bytes: c_int,
    pub open: unsafe extern "C" fn(Lu, *mut c_char, *mut c_int, *mut u64) -> c_int,
    pub close: unsafe extern "C" fn(Lu),
    pub init: unsafe extern "C" fn(Lu, *mut c_char) -> c_int,
    pub exit: unsafe extern "C" fn(Lu),
    pub submit: unsafe extern "C" fn(Cmd) -> c_int,
    pub open_flags: c_int,
    /// One bit for each operation code.
    pub operations: [u64; 4],
    pub siblings: [*mut c_void; 2],
}

const _: () = assert!(size_of::<Template>() == 112);

/// `struct scsi_lu *`
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lu(*mut u8);

/// `struct scsi_cmd *`
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cmd(*mut u8);

// SAFETY: both are only addresses here; what they lead to is read in tgtd's thread alone.
unsafe impl Send for Lu {}
// SAFETY: as above.
unsafe impl Send for Cmd {}

mod lu {
    pub(super) const SIZE: usize = 16;
    pub(super) const BLOCK_SHIFT: usize = 44;
    pub(super) const TEMPLATE: usize = 6336;
}

mod cmd {
    pub(super) const LU: usize = 48;
    pub(super) const STATE: usize = 56;
    pub(super) const IN: usize = 72;
    pub(super) const OUT: usize = 96;
    pub(super) const OFFSET: usize = 128;
    pub(super) const LENGTH: usize = 136;
    pub(super) const CDB: usize = 144;
    pub(super) const CDB_LENGTH: usize = 152;
    /// `1 << TGT_CMD_ASYNC`
    pub(super) const ASYNC: u64 = 1 << 2;
}

/// # Safety
/// `base` is a structure of tgtd with a `T` at the offset.
unsafe fn field<T: Copy>(base: *mut u8, offset: usize) -> T {
    // SAFETY: by this function's condition.
    unsafe { base.add(offset).cast::<T>().read_unaligned() }
}

impl Lu {
    /// For an event of tgtd, and back.
    pub fn as_data(self) -> *mut c_void {
        self.0.cast()
    }

    pub fn from_data(data: *mut c_void) -> Self {
        Self(data.cast())
    }

    /// # Safety
    /// tgtd has handed it over, and not taken it back.
    pub unsafe fn template(self) -> *const Template {
        // SAFETY: by this function's condition.
        unsafe { field(self.0, lu::TEMPLATE) }
    }

    /// # Safety
    /// As above, and its layout is known to be this one.
    pub unsafe fn size_bytes(self) -> u64 {
        // SAFETY: by this function's condition.
        unsafe { field(self.0, lu::SIZE) }
    }

    /// # Safety
    /// As above, in tgtd's thread.
    pub unsafe fn set_size_bytes(self, size_bytes: u64) {
        // SAFETY: by this function's condition.
        unsafe { self.0.add(lu::SIZE).cast::<u64>().write_unaligned(size_bytes) }
    }

    /// # Safety
    /// As above.
    pub unsafe fn block_bytes(self) -> u64 {
        // SAFETY: by this function's condition.
        let shift: c_uint = unsafe { field(self.0, lu::BLOCK_SHIFT) };
        1 << shift.clamp(9, 12)
    }
}

/// A buffer of tgtd; it stays until the command is said to be done.
#[derive(Clone, Copy)]
pub struct Area {
    start: *mut u8,
    length: usize,
}

// SAFETY: only the worker that has the command uses it, until it says that it is done.
unsafe impl Send for Area {}

impl Area {
    pub fn length_bytes(self) -> usize {
        self.length
    }

    /// # Safety
    /// The command isn't done, and nobody else has the area.
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.start.is_null() || self.length == 0 {
            return &[];
        }
        // SAFETY: by this function's condition.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }

    /// # Safety
    /// As above.
    pub unsafe fn bytes_mut<'a>(self) -> &'a mut [u8] {
        if self.start.is_null() || self.length == 0 {
            return &mut [];
        }
        // SAFETY: by this function's condition.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl Cmd {
    /// # Safety
    /// tgtd has submitted it, and it isn't done. So for all that follow.
    pub unsafe fn lu(self) -> Lu {
        // SAFETY: by this function's condition.
        Lu(unsafe { field(self.0, cmd::LU) })
    }

    /// Whoever submits it won't complete it when the submission returns.
    ///
    /// # Safety
    /// As above.
    pub unsafe fn set_async(self) {
        // SAFETY: by this function's condition; tgtd's thread is this one.
        unsafe {
            let state = self.0.add(cmd::STATE).cast::<u64>();
            state.write(state.read() | cmd::ASYNC);
        }
    }

    /// # Safety
    /// As above.
    pub unsafe fn cdb(self) -> [u8; 16] {
        let mut copy = [0; 16];
        // SAFETY: by this function's condition.
        unsafe {
            let cdb: *const u8 = field(self.0, cmd::CDB);
            let length: c_int = field(self.0, cmd::CDB_LENGTH);
            let length = usize::try_from(length).unwrap_or(0).min(copy.len());
            if !cdb.is_null() {
                std::ptr::copy_nonoverlapping(cdb, copy.as_mut_ptr(), length);
            }
        }
        copy
    }

    /// # Safety
    /// As above.
    pub unsafe fn offset_bytes(self) -> u64 {
        // SAFETY: by this function's condition.
        unsafe { field(self.0, cmd::OFFSET) }
    }

    /// # Safety
    /// As above.
    pub unsafe fn length_bytes(self) -> u64 {
        // SAFETY: by this function's condition.
        u64::from(unsafe { field::<u32>(self.0, cmd::LENGTH) })
    }

    /// What the initiator has sent.
    ///
    /// # Safety
    /// As above.
    pub unsafe fn sent(self) -> Area {
        // SAFETY: by this function's condition.
        unsafe { self.area(cmd::OUT) }
    }

    /// Room for what it wants.
    ///
    /// # Safety
    /// As above.
    pub unsafe fn wanted(self) -> Area {
        // SAFETY: by this function's condition.
        unsafe { self.area(cmd::IN) }
    }

    /// `struct scsi_data_buffer`: address, and length in bytes.
    unsafe fn area(self, offset: usize) -> Area {
        // SAFETY: as for all of this.
        let (start, length) = unsafe {
            let start: u64 = field(self.0, offset);
            let length: u32 = field(self.0, offset + 8);
            (start as *mut u8, length as usize)
        };
        Area { start, length }
    }
}

/// What tgtd exports to its stores.
#[derive(Clone, Copy)]
pub struct Tgtd {
    pub register: unsafe extern "C" fn(*mut Template) -> c_int,
    pub event_add: unsafe extern "C" fn(
        c_int,
        c_int,
        unsafe extern "C" fn(c_int, c_int, *mut c_void),
        *mut c_void,
    ) -> c_int,
    pub event_delete: unsafe extern "C" fn(c_int),
    pub done: unsafe extern "C" fn(Cmd, c_int),
    pub sense: unsafe extern "C" fn(Cmd, u8, u16),
}

impl Tgtd {
    /// Or why this tgtd isn't one that is known.
    pub fn find() -> Result<Self, String> {
        let known: unsafe extern "C" fn(*const c_char) -> *const Template =
            function(c"get_backingstore_template")?;
        // SAFETY: the name ends with a zero, and the function only reads it.
        let stock = unsafe { known(c"rdwr".as_ptr()) };
        let submit: *const c_void = symbol(c"bs_thread_cmd_submit")?;
        check_template(stock, submit)?;
        Ok(Self {
            register: function(c"register_backingstore_template")?,
            event_add: function(c"tgt_event_add")?,
            event_delete: function(c"tgt_event_del")?,
            done: function(c"target_cmd_io_done")?,
            sense: function(c"sense_data_build")?,
        })
    }
}

/// tgtd's own store: its name and its submission must be where we have ours.
fn check_template(stock: *const Template, submit: *const c_void) -> Result<(), String> {
    if stock.is_null() {
        return Err("it has no store rdwr to compare with".into());
    }
    // SAFETY: tgtd has returned it, and a template has at least these fields; should the layout be
    // another one, words are read that are something else, within the structure.
    let (name, found) = unsafe { ((*stock).name, (*stock).submit as *const c_void) };
    if found != submit {
        return Err("its backing stores are laid out otherwise".into());
    }
    // SAFETY: the word before was where it should be, so this is the name.
    match unsafe { CStr::from_ptr(name) } {
        name if name == c"rdwr" => Ok(()),
        name => Err(format!("its store rdwr says that it is {}", name.to_string_lossy())),
    }
}

fn symbol(name: &CStr) -> Result<*const c_void, String> {
    // SAFETY: the name ends with a zero.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() {
        return Err(format!("it has no function {}", name.to_string_lossy()));
    }
    Ok(found)
}

fn function<F: Copy>(name: &CStr) -> Result<F, String> {
    const { assert!(size_of::<F>() == size_of::<*const c_void>()) };
    let found = symbol(name)?;
    // SAFETY: a function's address; its type is that of tgt's source for all versions known.
    Ok(unsafe { std::mem::transmute_copy(&found) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loaded anywhere but in tgtd.
    #[test]
    fn a_program_that_is_not_tgtd_is_refused() {
        let why = Tgtd::find().err().expect("a test isn't tgtd");
        assert!(why.contains("get_backingstore_template"), "{why}");
    }
}
