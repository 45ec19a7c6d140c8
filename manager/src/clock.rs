//! The time of day, as messages and answers tell it.

use std::time::{SystemTime, UNIX_EPOCH};

/// 0 if the clock is set before 1970.
pub fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
