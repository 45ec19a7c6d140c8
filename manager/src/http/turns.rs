//! How many requests are worked on at a time.
//!
//! ```text
//! quick   read or write the store             ─▶ 64 threads; the others take turns
//! slow    wait for an agent or an engine       ─▶ 128 threads, 16 for one volume; the others
//!         or read a target or directories        take turns, or are sent away (503)
//! ```
//! Owns nothing but the counts. All work blocks a thread of the manager's pool, which has 512: what
//! is left are the agents'. What may never happen: requests that wait for one volume keep
//! those for others, or the quick ones, from being answered.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{RawPathParams, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;

use super::{FAILED, Refusal};
use crate::api::{ApiError, ErrorKind};

const QUICK_MAX: usize = 64;
const SLOW_MAX: usize = 128;
const SLOW_OF_A_VOLUME_MAX: usize = 16;
/// For a turn.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub(super) struct Turns {
    free: Arc<Semaphore>,
    /// Requests that wait or are worked on; counted for slow ones only.
    volumes: Option<Arc<Mutex<BTreeMap<String, usize>>>>,
}

impl Turns {
    pub(super) fn quick() -> Self {
        Self { free: Arc::new(Semaphore::new(QUICK_MAX)), volumes: None }
    }

    pub(super) fn slow() -> Self {
        Self { free: Arc::new(Semaphore::new(SLOW_MAX)), volumes: Some(Arc::default()) }
    }

    /// A place among those of the volume.
    fn enter(&self, params: &RawPathParams) -> Result<Option<Place>, ApiError> {
        let volume = params.iter().find(|(name, _)| *name == "volume").map(|(_, value)| value);
        let (Some(volumes), Some(volume)) = (&self.volumes, volume) else { return Ok(None) };
        let mut counts = lock(volumes);
        let count = counts.entry(volume.into()).or_default();
        if *count >= SLOW_OF_A_VOLUME_MAX {
            return Err(busy(format!("{count} requests wait for volume {volume} already"))
                .next(format!("ankole volume why {volume} says what for; try again then")));
        }
        *count += 1;
        Ok(Some(Place { volumes: Arc::clone(volumes), volume: volume.into() }))
    }
}

struct Place {
    volumes: Arc<Mutex<BTreeMap<String, usize>>>,
    volume: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = lock(&self.volumes).entry(self.volume.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// No code panics while it holds the lock.
fn lock(volumes: &Mutex<BTreeMap<String, usize>>) -> MutexGuard<'_, BTreeMap<String, usize>> {
    volumes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn busy(message: String) -> ApiError {
    ApiError::new(ErrorKind::Busy, message)
}

/// Without its connection, whose place somebody else may need.
fn sent_away(error: ApiError) -> Response {
    ([(header::CONNECTION, "close")], Refusal(error)).into_response()
}

/// Middleware: lets the request through when it is its turn.
pub(super) async fn take(
    State(turns): State<Turns>,
    params: RawPathParams,
    request: Request,
    next: Next,
) -> Response {
    let place = match turns.enter(&params) {
        Ok(place) => place,
        Err(error) => return sent_away(error),
    };
    let Ok(turn) = tokio::time::timeout(PATIENCE, turns.free.acquire_owned()).await else {
        let error = busy("the server works on as many requests as it can".into());
        return sent_away(error.next("try again when some are done"));
    };
    // A task of its own: a client that goes away takes no thread with it, and gets no other one.
    let work = tokio::spawn(async move {
        let answer = next.run(request).await;
        drop((turn, place));
        answer
    });
    work.await.unwrap_or_else(|_| Refusal(ApiError::failed(FAILED)).into_response())
}
