//! What replicas take of their disks, for people who look. Counted by one thread of its own, so that
//! a disk that hangs costs one thread, and whoever looks waits for it once and shortly.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::disk_usage::used_bytes;

/// A count is told for so long before it is counted anew.
const FRESH: Duration = Duration::from_secs(10);
/// One that can't be counted anew is told for so long; then it is forgotten.
const BELIEVED: Duration = Duration::from_secs(60);
/// Whoever looks waits for so long; what takes longer hangs.
const PATIENCE: Duration = Duration::from_millis(500);

/// Bytes that a directory takes; may hang.
type Count = dyn Fn(&Path) -> io::Result<u64> + Send;

pub struct Usage(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Something is wanted, or it is over.
    wanted: Condvar,
    /// Nothing is wanted any more.
    done: Condvar,
}

#[derive(Default)]
struct State {
    counted: BTreeMap<PathBuf, Counted>,
    wanted: BTreeSet<PathBuf>,
    /// What the thread is at, and since when.
    counting: Option<(PathBuf, Instant)>,
    is_over: bool,
}

struct Counted {
    at: Instant,
    /// None: it couldn't be looked at.
    used_bytes: Option<u64>,
}

impl Usage {
    pub fn start() -> io::Result<Self> {
        Self::counted_by(Box::new(used_bytes))
    }

    fn counted_by(count: Box<Count>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        thread::Builder::new().name("usage".into()).spawn(move || of_thread.count_all(&*count))?;
        Ok(Self(shared))
    }

    /// Bytes that each takes of its disk; what isn't known is left out.
    pub fn of(&self, directories: &[PathBuf]) -> BTreeMap<PathBuf, u64> {
        let begun = Instant::now();
        let mut state = self.0.lock();
        state.counted.retain(|_, counted| begun.duration_since(counted.at) < BELIEVED);
        let missing = directories.iter().filter(|directory| !state.is_fresh(directory, begun));
        let missing: Vec<_> = missing.collect();
        if !missing.is_empty() {
            let wanted = missing.into_iter().filter(|it| !state.is_counting(it)).cloned();
            let wanted: Vec<_> = wanted.collect();
            state.wanted.extend(wanted);
            self.0.wanted.notify_one();
            state = self.0.wait_until_done(state, begun);
        }
        let known = |directory: &PathBuf| {
            let used_bytes = state.counted.get(directory)?.used_bytes?;
            Some((directory.clone(), used_bytes))
        };
        directories.iter().filter_map(known).collect()
    }
}

impl Drop for Usage {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.wanted.notify_one();
    }
}

impl State {
    fn is_fresh(&self, directory: &Path, now: Instant) -> bool {
        let counted = self.counted.get(directory);
        counted.is_some_and(|counted| now.saturating_duration_since(counted.at) < FRESH)
    }

    fn is_counting(&self, directory: &Path) -> bool {
        self.counting.as_ref().is_some_and(|(at, _)| at == directory)
    }

    fn is_done(&self) -> bool {
        self.wanted.is_empty() && self.counting.is_none()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Or as long as it is worth it: what hangs is waited for by whoever came first.
    fn wait_until_done<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        begun: Instant,
    ) -> MutexGuard<'a, State> {
        while !state.is_done() {
            let counting = state.counting.as_ref().map(|(_, since)| *since);
            let since = counting.unwrap_or(begun).min(begun);
            let left = PATIENCE.saturating_sub(since.elapsed());
            if left.is_zero() {
                break;
            }
            let waited = self.done.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    fn count_all(&self, count: &Count) {
        let mut state = self.lock();
        while !state.is_over {
            let Some(directory) = state.wanted.pop_first() else {
                state.counting = None;
                self.done.notify_all();
                state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.counting = Some((directory.clone(), Instant::now()));
            drop(state);
            let used_bytes = count(&directory).ok();
            state = self.lock();
            state.counted.insert(directory, Counted { at: Instant::now(), used_bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn one(directory: &str) -> [PathBuf; 1] {
        [directory.into()]
    }

    #[test]
    fn what_is_there_is_counted_and_what_is_not_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let directories = ["r1", "r2"].map(|name| folder.path().join(name));
        fs::create_dir(&directories[0]).unwrap();
        fs::write(directories[0].join("full"), vec![1; 4 << 20]).unwrap();
        let usage = Usage::start().unwrap();
        let used = usage.of(&directories);
        assert!(used[&directories[0]] >= 4 << 20, "{used:?}");
        assert_eq!(used.len(), 1, "{used:?}");
    }

    /// `volume ls` looked into each directory each time.
    #[test]
    fn who_looks_again_is_told_the_same_count() {
        let counts = Arc::new(AtomicUsize::new(0));
        let of_thread = Arc::clone(&counts);
        let count = move |_: &Path| Ok(of_thread.fetch_add(1, Ordering::SeqCst) as u64);
        let usage = Usage::counted_by(Box::new(count)).unwrap();
        let first = usage.of(&one("r1"));
        assert_eq!(usage.of(&one("r1")), first);
        assert_eq!(counts.load(Ordering::SeqCst), 1);
        usage.of(&["r1".into(), "r2".into()]);
        assert_eq!(counts.load(Ordering::SeqCst), 2);
    }

    /// A list of volumes must not hang with one of their disks.
    #[test]
    fn a_disk_that_hangs_is_waited_for_once_and_hides_no_count_that_is_known() {
        let (goes_on, hangs) = mpsc::channel::<()>();
        let count = move |directory: &Path| match directory.ends_with("hangs") {
            true => hangs.recv().map(|()| 7).map_err(io::Error::other),
            false => Ok(1),
        };
        let usage = Usage::counted_by(Box::new(count)).unwrap();
        let all = ["good".into(), "hangs".into(), "later".into()];
        assert_eq!(usage.of(&all).into_keys().collect::<Vec<_>>(), one("good"));
        let begun = Instant::now();
        for _ in 0..100 {
            assert_eq!(usage.of(&all).len(), 1);
        }
        assert!(begun.elapsed() < PATIENCE * 50, "each waited");
        goes_on.send(()).unwrap();
        let mut used = usage.of(&all);
        while used.len() < 3 {
            used = usage.of(&all);
        }
        assert_eq!(used[Path::new("hangs")], 7);
    }
}
