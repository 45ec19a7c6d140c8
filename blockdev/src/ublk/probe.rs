//! Whether this node can serve ublk devices, and with what.
//!
//! Promises to ask the driver for its features and never to make a device in order to find out:
//! on some kernels making one is what panics the node. So those are refused by their name first.

use std::fs::{self, OpenOptions};
use std::io;

use libublk::ctrl::UblkCtrl;
use libublk::sys;

use super::error::Unavailable;

pub(super) const CONTROL_PATH: &str = "/dev/ublk-control";
const LIMIT_PATH: &str = "/sys/module/ublk_drv/parameters/ublks_max";
/// One entry for each device.
pub(super) const DEVICES_PATH: &str = "/sys/class/ublk-char";

/// What the driver offers, bit by bit as `GET_FEATURES` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// Without these there is no frontend: taking a device over after a crash with its requests
    /// given again, and moving data by read and write of /dev/ublkcN.
    pub(super) const NEEDED: [(u32, &'static str); 3] = [
        (sys::UBLK_F_USER_RECOVERY, "USER_RECOVERY"),
        (sys::UBLK_F_USER_RECOVERY_REISSUE, "USER_RECOVERY_REISSUE"),
        (sys::UBLK_F_USER_COPY, "USER_COPY"),
    ];

    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub fn bits(self) -> u64 {
        self.0
    }

    fn has(self, flag: u32) -> bool {
        self.0 & u64::from(flag) != 0
    }

    /// A device in use can grow (Linux 6.16).
    pub fn can_resize(self) -> bool {
        self.has(sys::UBLK_F_UPDATE_SIZE)
    }

    /// The driver itself refuses to stop a device that is open (Linux 7.0).
    pub fn can_stop_safely(self) -> bool {
        self.has(sys::UBLK_F_SAFE_STOP_DEV)
    }

    /// The driver's limit is one for unprivileged devices only. It became that in Linux 6.15, which has no
    /// feature of its own; with 6.16 came growing.
    fn counts_unprivileged_only(self) -> bool {
        self.can_resize()
    }

    /// The first feature that is needed and absent.
    pub(super) fn missing(self) -> Option<&'static str> {
        Self::NEEDED.into_iter().find(|&(flag, _)| !self.has(flag)).map(|(_, name)| name)
    }

    /// The flags to make a device with. Those that the driver lacks it would drop in silence.
    pub(super) fn device_flags(self) -> u64 {
        let needed = Self::NEEDED.into_iter().fold(0, |flags, (flag, _)| flags | flag);
        u64::from(needed) | self.0 & u64::from(sys::UBLK_F_UPDATE_SIZE)
    }
}

/// What ublk offers here, or why it can't be used. Changes nothing on the node. Blocks briefly.
pub fn is_available() -> Result<Features, Unavailable> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if let Some(reason) = known_bad(release.trim()) {
        return Err(Unavailable::KnownBad { release: release.trim().to_owned(), reason });
    }
    match OpenOptions::new().read(true).write(true).open(CONTROL_PATH) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unavailable::NoDriver),
        Err(error) => return Err(Unavailable::NoAccess(error)),
    }
    let features = Features(UblkCtrl::get_features().ok_or(Unavailable::TooOld)?);
    match features.missing() {
        Some(name) => Err(Unavailable::MissingFeature(name)),
        None => Ok(features),
    }
}

/// How many devices there are, and how many the driver allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub used: u32,
    /// None: as many as fit into memory.
    pub most: Option<u32>,
}

impl Room {
    pub fn is_full(self) -> bool {
        self.most.is_some_and(|most| self.used >= most)
    }

    /// The next ones fit, but somebody should look.
    pub fn is_nearly_full(self) -> bool {
        self.most.is_some_and(|most| u64::from(self.used) * 10 >= u64::from(most) * 9)
    }
}

/// Looks at the driver's limit without trying it.
pub fn room(features: Features) -> Room {
    let used = fs::read_dir(DEVICES_PATH).map_or(0, Iterator::count);
    let most = fs::read_to_string(LIMIT_PATH).ok().and_then(|text| text.trim().parse().ok());
    Room {
        used: u32::try_from(used).unwrap_or(u32::MAX),
        most: most.filter(|_| !features.counts_unprivileged_only()),
    }
}

/// [`is_available`], and there is room for one more device.
pub fn has_room() -> Result<Features, Unavailable> {
    let features = is_available()?;
    match room(features) {
        room if room.is_full() => Err(Unavailable::Full { used: room.used }),
        _ => Ok(features),
    }
}

/// Kernels on which making a device was seen to panic or to fail, by others.
fn known_bad(release: &str) -> Option<&'static str> {
    if release.starts_with("6.17.0-") && release.ends_with("-aws") {
        return Some("adding a device panics in ublk_init_queues (longhorn/longhorn#13509)");
    }
    if release.starts_with("6.18.4") && release.contains("zabbly") {
        return Some("adding a device fails before its tag set is there (zabbly/linux#52)");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probing by adding a device would panic such a node.
    #[test]
    fn kernels_that_panic_are_refused_by_name_and_their_neighbours_are_not() {
        assert!(known_bad("6.17.0-1005-aws").is_some());
        assert!(known_bad("6.18.4-zabbly+").is_some());
        for good in ["6.12.117+deb13-cloud-amd64", "6.17.0-8-generic", "6.18.4", "6.14.0-1018-aws"]
        {
            assert_eq!(known_bad(good), None, "{good}");
        }
    }

    #[test]
    fn a_node_is_nearly_full_before_it_is_full_and_never_without_a_limit() {
        let room = |used, most| Room { used, most };
        let states = [room(57, Some(64)), room(58, Some(64)), room(64, Some(64)), room(999, None)];
        let states = states.map(|room| (room.is_nearly_full(), room.is_full()));
        assert_eq!(states, [(false, false), (true, false), (true, true), (false, false)]);
        assert!(!Features(0x1fe).counts_unprivileged_only());
        assert!(Features(0xfffff).counts_unprivileged_only());
    }

    /// Seen on Linux 6.12 (0x1fe) and 7.2 (0xfffff).
    #[test]
    fn features_of_known_kernels_suffice_and_only_the_newer_one_can_resize() {
        let (old, new) = (Features(0x1fe), Features(0xfffff));
        assert_eq!((old.missing(), new.missing()), (None, None));
        assert_eq!((old.can_resize(), new.can_resize()), (false, true));
        assert_eq!(old.device_flags(), 0x98);
        assert_eq!(new.device_flags(), 0x98 | 1 << 10);
        assert_eq!(Features(0x7e).missing(), Some("USER_COPY"));
    }
}
