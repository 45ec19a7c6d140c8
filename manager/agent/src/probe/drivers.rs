//! The drivers that could make one more device now: asked once for all volumes that want to know it at
//! the same time, as after a start.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ankole_blockdev::device::Driver;

use super::can_serve;

/// Best first.
pub const DRIVERS: [Driver; 3] = [Driver::Ublk, Driver::Nbd, Driver::Tgt];

/// One that was loaded, or filled up, since then is met by the next attempt.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Drivers(Mutex<Option<(Instant, Vec<Driver>)>>);

impl Drivers {
    /// Waits for the kernel, and for whoever asks it already.
    pub fn now(&self) -> Vec<Driver> {
        self.known(|| DRIVERS.into_iter().filter(|driver| can_serve(*driver)).collect())
    }

    fn known(&self, ask: impl FnOnce() -> Vec<Driver>) -> Vec<Driver> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = known.take().filter(|(at, _)| at.elapsed() < FRESH);
        known.insert(fresh.unwrap_or_else(|| (Instant::now(), ask()))).1.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of hundreds of volumes asked three drivers, and looked for their programs.
    #[test]
    fn many_volumes_at_once_ask_once_and_one_that_comes_later_asks_anew() {
        let drivers = Drivers::default();
        assert_eq!(drivers.known(|| vec![Driver::Nbd]), [Driver::Nbd]);
        assert_eq!(drivers.known(|| unreachable!("it is known")), [Driver::Nbd]);
        let long_ago = Instant::now().checked_sub(FRESH).unwrap();
        *drivers.0.lock().unwrap() = Some((long_ago, vec![Driver::Nbd]));
        assert_eq!(drivers.known(|| vec![Driver::Ublk]), [Driver::Ublk]);
    }
}
