//! Telling a watcher what changes, so that nobody has to ask: an agent has hundreds of engines.
//!
//! ```text
//! watch ─▶ status ─▶ alive ─▶ alive ─▶ status ─▶ …    a line at least each second
//! ```
//! A status is told at once when a replica comes, leaves or is recorded, when a change is done and
//! when the volume can be used; of whatever else differs, within a second; for counters alone seldom.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::Engine;
use crate::admin::{Answer, EngineStatus, ErrorKind, RequestCounts};

/// A watcher that hears nothing for twice as long may say that it knows nothing.
const BEAT: Duration = Duration::from_secs(1);
/// Engines speak at the same tenths of a second: who hears hundreds wakes ten times in each.
const GRID_MS: u128 = 100;
/// An agent, the one that takes over from it, and a person or two.
const WATCHERS_MAX: usize = 8;
/// One that reads nothing for so long is dropped.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5000 });
/// What differs in counters alone is told so often: whoever wants to see them run asks.
const COUNTERS_EVERY: Duration = Duration::from_secs(5);

impl Engine {
    /// Until the watcher is gone, or reads nothing.
    pub(super) async fn tell(&self, watcher: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        if self.0.news.receiver_count() >= WATCHERS_MAX {
            let message = format!(
                "{WATCHERS_MAX} watch volume {} already, the most there can be",
                self.0.volume
            );
            return say(watcher, &Answer::Error { kind: ErrorKind::Conflict, message }).await;
        }
        let mut news = self.0.news.subscribe();
        let mut beat = next_beat();
        let mut told: Option<(EngineStatus, Instant)> = None;
        let mut is_beat = false;
        loop {
            let status = self.status();
            if told.as_ref().is_none_or(|(before, at)| is_news(before, *at, &status)) {
                say(watcher, &Answer::Status(Box::new(status.clone()))).await?;
                told = Some((status, Instant::now()));
                beat = next_beat();
            } else if is_beat {
                say(watcher, &Answer::Alive).await?;
                beat = next_beat();
            }
            is_beat = tokio::select! {
                changed = news.changed() => changed.is_err(),
                () = sleep_until(beat) => true,
            };
        }
    }

    /// Watchers look what is new.
    pub(super) fn tell_news(&self) {
        self.0.news.send_replace(());
    }
}

/// Within a second, by the wall clock, which all of a machine share.
fn next_beat() -> Instant {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let beside_grid_ms = u32::try_from(unix_ms % GRID_MS).unwrap_or_default();
    Instant::now() + BEAT - Duration::from_millis(1) * beside_grid_ms
}

async fn say(watcher: &mut (impl AsyncWrite + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    timeout(PATIENCE, watcher.write_all(&line)).await?
}

fn is_news(before: &EngineStatus, told: Instant, now: &EngineStatus) -> bool {
    let is_due = told.elapsed() >= COUNTERS_EVERY;
    before != now && (is_due || without_counters(before) != without_counters(now))
}

/// These change all the time.
fn without_counters(status: &EngineStatus) -> EngineStatus {
    let mut status = status.clone();
    status.requests = RequestCounts::default();
    status.head_bytes = 0;
    status.snapshots.iter_mut().for_each(|snapshot| snapshot.data_bytes = 0);
    status.damage.replicas.iter_mut().for_each(|replica| replica.ago_s = 0);
    status
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use super::super::MemoryArbiter;
    use super::*;
    use crate::record::{InstanceId, Record};
    use crate::replication::Config;

    /// Its lines would be kept for ever.
    #[test]
    fn a_watcher_that_reads_nothing_is_dropped() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let config = Config::new("v1", InstanceId("0".into()), vec!["r1".into()]);
            let record = Record::first(Vec::new());
            let arbiter = Box::new(MemoryArbiter(Rc::new(RefCell::new(record))));
            let engine = Engine::start(config, BTreeMap::new(), arbiter);
            let (mut watcher, _reads_nothing) = tokio::io::duplex(16);
            let dropped = engine.tell(&mut watcher).await.unwrap_err();
            assert_eq!(dropped.kind(), io::ErrorKind::TimedOut);
            assert_eq!(engine.0.news.receiver_count(), 0);
        });
    }
}
