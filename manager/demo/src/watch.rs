//! Looks on while a replica that was killed comes back, which may be while the load still runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ankole_api::Name;
use ankole_api::volume::{Robustness, VolumeView};
use ankole_client::Client;

/// A rebuild of a small volume takes less than a second.
const LOOK: Duration = Duration::from_millis(20);

/// What was seen so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rebuild {
    pub(super) done_bytes: u64,
    pub(super) total_bytes: u64,
    /// When the volume was healthy again, with another process in the killed one's place.
    pub(super) back: Option<Instant>,
}

/// Ends when the replica is back, or when this is dropped.
pub(super) struct Watch {
    seen: Arc<Mutex<Rebuild>>,
    is_dropped: Arc<AtomicBool>,
}

impl Watch {
    pub(super) fn start(client: Arc<Client>, volume: Name, replica: String, pid: u32) -> Self {
        let watch = Self { seen: Arc::default(), is_dropped: Arc::default() };
        let (seen, is_dropped) = (Arc::clone(&watch.seen), Arc::clone(&watch.is_dropped));
        thread::spawn(move || {
            while !is_dropped.load(Ordering::Relaxed) {
                if let Ok(view) = client.volume(&volume) {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.note(&view, &replica, pid);
                    if seen.back.is_some() {
                        return;
                    }
                }
                thread::sleep(LOOK);
            }
        });
        watch
    }

    pub(super) fn seen(&self) -> Rebuild {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_dropped.store(true, Ordering::Relaxed);
    }
}

impl Rebuild {
    fn note(&mut self, view: &VolumeView, replica: &str, killed: u32) {
        let Some(replica) = view.replicas.iter().find(|r| *r.replica.0 == *replica) else { return };
        if let Some(rebuild) = replica.rebuild {
            self.done_bytes = self.done_bytes.max(rebuild.done_bytes);
            self.total_bytes = rebuild.total_bytes;
        }
        let is_new = replica.pid.is_some_and(|pid| pid != killed);
        if is_new && replica.in_sync && view.robustness == Robustness::Healthy {
            self.back = Some(Instant::now());
        }
    }
}
