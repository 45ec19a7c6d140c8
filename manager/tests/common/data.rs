//! What volumes hold, written and read by qemu-io.

use std::process::Command;

pub const SIZE: usize = 32 << 20;

/// Every byte of the volume.
pub fn fill(endpoint: &str, value: u8) {
    let command = format!("write -P {value} 0 {SIZE}");
    let args = ["-f", "raw", "-c", &command, "-c", "flush", endpoint];
    let done = Command::new("qemu-io").args(args).output();
    let done = done.expect("qemu-io is there: apt-get install qemu-utils");
    assert!(done.status.success(), "{done:?}");
}

/// Whether every byte has this value. Readers take turns, so this looks at all of them.
pub fn holds(endpoint: &str, value: u8) -> bool {
    let command = format!("read -P {value} 0 {SIZE}");
    let done = Command::new("qemu-io").args(["-f", "raw", "-c", &command, endpoint]).output();
    let done = done.expect("qemu-io is there: apt-get install qemu-utils");
    done.status.success() && !String::from_utf8_lossy(&done.stdout).contains("failed")
}
