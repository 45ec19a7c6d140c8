//! The driver's commands that say whose a device is, sent by ourselves: to add one, to look at one,
//! and to delete one.
//!
//! What may never happen: that a device is deleted which wasn't added here. The library's control
//! deletes the number that it was to add when it is dropped, whether it has added it or not.

#![expect(unsafe_code, reason = "a ring is given an address")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};
use libublk::sys::{
    UBLK_U_CMD_ADD_DEV, UBLK_U_CMD_DEL_DEV, UBLK_U_CMD_GET_DEV_INFO, ublksrv_ctrl_dev_info,
};

use super::probe::CONTROL_PATH;

/// With this number the kernel chooses one.
pub(super) const ANY_NUMBER: u32 = u32::MAX;
const INFO_BYTES: u16 = size_of::<ublksrv_ctrl_dev_info>() as u16;
/// Of no queue in particular.
const NO_QUEUE: u16 = u16::MAX;

/// /dev/ublk-control, which takes its commands by a ring only.
pub(super) struct Control {
    file: File,
    ring: IoUring<squeue::Entry128>,
}

impl Control {
    pub(super) fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL_PATH)?;
        Ok(Self { file, ring: IoUring::builder().build(1)? })
    }

    /// Returns the device as the kernel has made it. `EEXIST` if there is one of that number.
    pub(super) fn add(
        &mut self,
        wanted: ublksrv_ctrl_dev_info,
    ) -> io::Result<ublksrv_ctrl_dev_info> {
        self.command(UBLK_U_CMD_ADD_DEV, wanted.dev_id, wanted)
    }

    /// What the kernel has of a device; `ENODEV` if there is none.
    pub(super) fn info(&mut self, id: u32) -> io::Result<ublksrv_ctrl_dev_info> {
        self.command(UBLK_U_CMD_GET_DEV_INFO, id, Default::default())
    }

    /// Blocks until nobody has it open.
    pub(super) fn delete(&mut self, id: u32) -> io::Result<()> {
        self.command(UBLK_U_CMD_DEL_DEV, id, Default::default()).map(drop)
    }

    fn command(
        &mut self,
        operation: u32,
        id: u32,
        info: ublksrv_ctrl_dev_info,
    ) -> io::Result<ublksrv_ctrl_dev_info> {
        let info = Box::into_raw(Box::new(info));
        let entry = opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), operation)
            .cmd(header(id, info as u64))
            .build();
        // SAFETY: `info` is the kernel's until the command has completed; nothing else uses it
        // before.
        unsafe { self.ring.submission().push(&entry) }.expect("one command is under way at a time");
        loop {
            let waited = self.ring.submit_and_wait(1);
            if let Some(done) = self.ring.completion().next() {
                // SAFETY: it was made above, and the kernel is done with it.
                let info = unsafe { Box::from_raw(info) };
                return match done.result() {
                    0.. => Ok(*info),
                    errno => Err(io::Error::from_raw_os_error(-errno)),
                };
            }
            match waited.as_ref().map_err(io::Error::raw_os_error) {
                Ok(_) | Err(Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                Err(_) => {
                    tracing::error!(error = ?waited, "a ring that worked is refused");
                    std::process::abort();
                }
            }
        }
    }
}

/// ```text
/// 0         4           6           8         16           32        80
/// | id u32  | queue u16 | bytes u16 | address | 0          | unused  |     ublksrv_ctrl_cmd
/// ```
fn header(id: u32, address: u64) -> [u8; 80] {
    let mut bytes = [0; 80];
    bytes[..4].copy_from_slice(&id.to_ne_bytes());
    bytes[4..6].copy_from_slice(&NO_QUEUE.to_ne_bytes());
    bytes[6..8].copy_from_slice(&INFO_BYTES.to_ne_bytes());
    bytes[8..16].copy_from_slice(&address.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use libublk::sys::ublksrv_ctrl_cmd;

    use super::*;

    #[test]
    fn the_header_is_laid_out_as_the_driver_reads_it() {
        assert_eq!(offset_of!(ublksrv_ctrl_cmd, dev_id), 0);
        assert_eq!(offset_of!(ublksrv_ctrl_cmd, queue_id), 4);
        assert_eq!(offset_of!(ublksrv_ctrl_cmd, len), 6);
        assert_eq!(offset_of!(ublksrv_ctrl_cmd, addr), 8);
        assert_eq!(size_of::<ublksrv_ctrl_cmd>(), 32);
        let header = header(7, 0x0102_0304_0506_0708);
        assert_eq!(header[..4], 7_u32.to_ne_bytes());
        assert_eq!(header[4..8], [0xff, 0xff, 64, 0]);
        assert_eq!(header[8..16], 0x0102_0304_0506_0708_u64.to_ne_bytes());
        assert_eq!(header[16..], [0; 64]);
    }
}
