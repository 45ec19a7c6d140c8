//! Times as the store writes them.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// An RFC 3339 time in UTC with whole seconds, such as `2026-11-20T21:02:44Z`; empty for "not yet".
///
/// Kept as the text that was read: such texts sort like the times they name, nothing here computes
/// with them, and a store whose times are odd can still be restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub String);

impl Timestamp {
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<SystemTime> for Timestamp {
    /// A time before 1970, or after 9999, is written as 1970.
    fn from(time: SystemTime) -> Self {
        let time = jiff::Timestamp::try_from(time).unwrap_or_default();
        Self(time.max(jiff::Timestamp::UNIX_EPOCH).strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn at(seconds: u64) -> String {
        Timestamp::from(UNIX_EPOCH + Duration::from_secs(seconds)).0
    }

    #[test]
    fn times_are_written_as_longhorn_writes_them() {
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_208_564), "2026-11-20T21:02:44Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(at(13_574_563_200), "2400-02-29T00:00:00Z");
        assert_eq!(at(1 << 50), "1970-01-01T00:00:00Z", "no time of a clock");
        let before = Timestamp::from(UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(before.0, "1970-01-01T00:00:00Z");
    }
}
