//! The state as many see it at once: readers never wait for a disk, watchers hold nothing of their own.
//!
//! A watcher is a place in the history, so one that doesn't read costs nothing, and is told to list
//! again when the history has gone past its place.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use ankole_api::object::{Kind, ResourceVersion};
use futures_util::stream::{self, StreamExt};
use tokio::sync::watch;

use crate::state::{Since, State};
use crate::{Event, Events, Selector};

#[derive(Debug)]
pub(crate) struct Shared {
    /// Held for work in memory only.
    state: RwLock<State>,
    /// Of the last change.
    revision: watch::Sender<u64>,
}

impl Shared {
    pub fn new(state: State) -> Arc<Self> {
        let revision = watch::Sender::new(state.revision());
        Arc::new(Self { state: RwLock::new(state), revision })
    }

    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// `change` is told to watchers when it is done.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        let revision = state.revision();
        drop(state);
        self.revision.send_if_modified(|told| std::mem::replace(told, revision) != revision);
        result
    }

    /// Tells the revision of the last change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    pub fn watch(
        self: &Arc<Self>,
        kind: Kind,
        selector: &Selector,
        from: &ResourceVersion,
    ) -> Events {
        let Ok(seen) = from.0.parse() else {
            return stream::iter([Event::Resync]).boxed();
        };
        let watcher = Watcher {
            shared: Arc::clone(self),
            told: self.revision.subscribe(),
            kind,
            selector: selector.clone(),
            seen,
            ready: VecDeque::new(),
            is_over: false,
        };
        stream::unfold(watcher, |mut watcher| async {
            let event = watcher.next().await?;
            Some((event, watcher))
        })
        .boxed()
    }
}

struct Watcher {
    shared: Arc<Shared>,
    told: watch::Receiver<u64>,
    kind: Kind,
    selector: Selector,
    /// All up to this revision is in `ready` or was taken.
    seen: u64,
    ready: VecDeque<Event>,
    is_over: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            self.told.borrow_and_update();
            let since = self.shared.read().since(self.seen, self.kind, &self.selector);
            match since {
                Since::Lost => {
                    self.is_over = true;
                    return Some(Event::Resync);
                }
                Since::Changes { until, .. } if until == self.seen => {
                    self.told.changed().await.ok()?;
                }
                Since::Changes { events, until } => {
                    self.ready = events.into();
                    self.seen = until;
                }
            }
        }
    }
}
