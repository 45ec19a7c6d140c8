//! How many threads of a node wait for its kernel and its disks at once: many parts at once, as
//! after a start, take turns, in the order in which they came.
//!
//! What waits for a disk takes a place of that disk: one that hangs keeps its own, and the parts that
//! have something there, for as long as it hangs, and nobody else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::part::PassError;

/// Looking at a process or a device takes the kernel a moment; more at once only wait for the CPU.
const OF_NODE: usize = 8;
/// Enough to keep a disk busy.
const OF_DISK: usize = 4;

pub(super) struct Places {
    node: Arc<Semaphore>,
    /// Disks that are gone are few, and stay.
    disks: Mutex<BTreeMap<PathBuf, Arc<Semaphore>>>,
}

impl Default for Places {
    fn default() -> Self {
        Self { node: Arc::new(Semaphore::new(OF_NODE)), disks: Mutex::default() }
    }
}

impl Places {
    /// What asks the kernel.
    pub(super) async fn of_node<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PassError> {
        run(Arc::clone(&self.node), work).await
    }

    /// What waits for the disk of this folder.
    pub(super) async fn of_disk<T: Send + 'static>(
        &self,
        disk: &Path,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PassError> {
        let of_disk = {
            let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(OF_DISK));
            Arc::clone(disks.entry(disk.into()).or_insert_with(new))
        };
        run(of_disk, work).await
    }
}

/// The place is the thread's: who waits may go, and it is still taken.
async fn run<T: Send + 'static>(
    places: Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PassError> {
    let place = places.acquire_owned().await.expect("it is never closed");
    let worked = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(place);
        done
    });
    worked.await.map_err(|_| PassError::Panicked)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// Each part had a thread of its own.
    #[tokio::test]
    async fn three_hundred_parts_at_once_take_turns() {
        let places = Arc::new(Places::default());
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let part = |_| {
            let (places, now, most) = (Arc::clone(&places), Arc::clone(&now), Arc::clone(&most));
            tokio::spawn(async move {
                let look = move || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    now.fetch_sub(1, Ordering::SeqCst);
                };
                places.of_node(look).await
            })
        };
        for part in (0..300).map(part).collect::<Vec<_>>() {
            part.await.unwrap().unwrap();
        }
        assert!((1..=OF_NODE).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    }

    /// One volume's bad disk would have stopped the node.
    #[tokio::test]
    async fn a_disk_that_hangs_keeps_its_own_places_alone_even_if_nobody_waits_any_more() {
        let places = Arc::new(Places::default());
        let (goes_on, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let hang = || {
            let (places, hangs) = (Arc::clone(&places), Arc::clone(&hangs));
            tokio::spawn(async move {
                places.of_disk(Path::new("bad"), move || hangs.lock().unwrap().recv()).await
            })
        };
        let hung: Vec<_> = (0..OF_DISK + 1).map(|_| hang()).collect();
        let is_taken = || places.disks.lock().unwrap()[Path::new("bad")].available_permits() == 0;
        while places.disks.lock().unwrap().is_empty() || !is_taken() {
            tokio::task::yield_now().await;
        }
        assert_eq!(places.of_disk(Path::new("good"), || 1).await.unwrap(), 1);
        assert_eq!(places.of_node(|| 2).await.unwrap(), 2);
        hung.iter().for_each(tokio::task::JoinHandle::abort);
        tokio::task::yield_now().await;
        assert!(is_taken(), "the threads hang still");
        drop(goes_on);
        assert_eq!(places.of_disk(Path::new("bad"), || 3).await.unwrap(), 3);
    }
}
