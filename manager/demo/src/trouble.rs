//! Why a demo ends early, and how everybody hears that it shall.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use ankole_api::ApiError;

pub(super) type Result<T> = std::result::Result<T, Trouble>;

#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("a signal ended the demo")]
    Stopped,
    /// What the demo is there to rule out.
    #[error("MISMATCH: {0}")]
    Mismatch(String),
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// For `map_err`: what was done, and to which file.
pub(super) fn failed<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> Trouble + 'a {
    move |source| Trouble::Io { what, path: path.into(), source }
}

/// Says to every step that it shall end; set once, by a signal.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<Wish>);

#[derive(Debug, Default)]
struct Wish {
    signal: AtomicI32,
    in_haste: AtomicBool,
}

impl Stop {
    /// How often those who wait for something else look here.
    pub(super) const LOOK: Duration = Duration::from_millis(50);

    /// The second time, what can't be ended at once is killed.
    pub(super) fn request(&self, signal: i32) {
        let before =
            self.0.signal.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
        if before.is_err() {
            self.0.in_haste.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn in_haste(&self) -> bool {
        self.0.in_haste.load(Ordering::Relaxed)
    }

    /// The signal that asked for it.
    pub(super) fn requested(&self) -> Option<i32> {
        Some(self.0.signal.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.requested().is_some() { Err(Trouble::Stopped) } else { Ok(()) }
    }

    pub(super) fn pause(&self) -> Result<()> {
        self.check()?;
        std::thread::sleep(Self::LOOK);
        Ok(())
    }

    /// Ends when it is requested.
    pub(super) async fn wait(&self) -> Trouble {
        while self.requested().is_none() {
            tokio::time::sleep(Self::LOOK).await;
        }
        Trouble::Stopped
    }
}
