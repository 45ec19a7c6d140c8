//! A copy of a kind's objects by type, kept by a list and a watch.
//!
//! ```text
//!              ┌────────────── told to list again, or an error ──────────────┐
//!              ▼                                                             │
//! stale ──▶ listed: what differs is told ──▶ fresh: each event is told ──────┘
//! ```
//! It may be behind the store: who decides on it is saved by the version that a write names. What may
//! never happen: an object that can't be read looks like one that is gone, or a change isn't told.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ankole_api::error::chain;
use ankole_api::object::{Object, ResourceVersion, Spec};
use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use crate::typed::{parse, pause};
use crate::{Event, List, Raw, Selector, Store, StoreError};

pub struct Cache<S: Spec> {
    kept: Arc<Kept<S>>,
}

impl<S: Spec> Clone for Cache<S> {
    fn clone(&self) -> Self {
        Self { kept: Arc::clone(&self.kept) }
    }
}

struct Kept<S: Spec> {
    view: RwLock<View<S>>,
    /// Counts changes, of objects and of being stale.
    changed: watch::Sender<u64>,
    queues: Mutex<Vec<Arc<Queue>>>,
}

struct View<S: Spec> {
    objects: BTreeMap<String, Entry<S>>,
    stale_since: Option<Timestamp>,
    is_filled: bool,
}

struct Entry<S: Spec> {
    version: ResourceVersion,
    object: Result<Arc<Object<S>>, StoreError>,
}

impl<S: Spec> Cache<S> {
    /// The cache, and what keeps it: to be run for as long as it is used.
    pub fn new(
        store: Arc<dyn Store>,
        selector: Selector,
    ) -> (Self, impl Future<Output = ()> + Send + use<S>) {
        let stale_since = Some(Timestamp::now());
        let view = View { objects: BTreeMap::new(), stale_since, is_filled: false };
        let kept = Arc::new(Kept {
            view: RwLock::new(view),
            changed: watch::Sender::new(0),
            queues: Mutex::default(),
        });
        let keep = keep(store, selector, Arc::clone(&kept));
        (Self { kept }, keep)
    }

    /// None: there is none, if the cache isn't stale.
    pub fn get(&self, name: &str) -> Result<Option<Arc<Object<S>>>, StoreError> {
        self.kept.read().objects.get(name).map(|entry| entry.object.clone()).transpose()
    }

    /// By name, each for itself.
    pub fn all(&self) -> Vec<Result<Arc<Object<S>>, StoreError>> {
        self.kept.read().objects.values().map(|entry| entry.object.clone()).collect()
    }

    /// Since when it may not follow the store; None: it does.
    pub fn stale_since(&self) -> Option<Timestamp> {
        self.kept.read().stale_since
    }

    /// Until it has had all objects once.
    pub async fn filled(&self) {
        let mut changed = self.changed();
        while !self.kept.read().is_filled {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Tells that anything has changed.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.kept.changed.subscribe()
    }

    /// A queue of names for one worker: all that there are, and then each that changes or goes.
    pub fn changes(&self) -> Changes {
        let queue = Arc::new(Queue::default());
        // Under the lock of the view, so that none is missed in between.
        let view = self.kept.read();
        view.objects.keys().for_each(|name| queue.push(name));
        self.kept.queues().push(Arc::clone(&queue));
        Changes { queue }
    }
}

impl<S: Spec> Kept<S> {
    fn read(&self) -> RwLockReadGuard<'_, View<S>> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, View<S>> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn queues(&self) -> MutexGuard<'_, Vec<Arc<Queue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `change` names is told.
    fn change(&self, change: impl FnOnce(&mut View<S>) -> Vec<String>) {
        let mut view = self.write();
        let names = change(&mut view);
        let mut queues = self.queues();
        queues.retain(|queue| Arc::strong_count(queue) > 1);
        for queue in queues.iter() {
            names.iter().for_each(|name| queue.push(name));
        }
        drop((queues, view));
        self.changed.send_modify(|count| *count += 1);
    }

    fn is_stale(&self) {
        self.change(|view| {
            view.stale_since.get_or_insert_with(Timestamp::now);
            Vec::new()
        });
    }

    fn fill(&self, list: &List) {
        let unreadable = list.unreadable.iter().map(|it| {
            let error = StoreError::Unreadable {
                kind: S::KIND,
                name: it.name.clone(),
                why: it.why.clone(),
            };
            let entry = Entry { version: it.version.clone(), object: Err(error) };
            (it.name.clone(), entry)
        });
        self.change(|view| {
            let mut before = std::mem::take(&mut view.objects);
            let mut names = Vec::new();
            for raw in &list.objects {
                let entry = match before.remove(raw.name()) {
                    Some(entry) if entry.version == raw.metadata.resource_version => entry,
                    _ => {
                        names.push(raw.name().to_owned());
                        Entry::of(raw)
                    }
                };
                view.objects.insert(raw.name().to_owned(), entry);
            }
            for (name, entry) in unreadable {
                match before.remove(&name) {
                    Some(same) if same.version == entry.version => {}
                    _ => names.push(name.clone()),
                }
                view.objects.insert(name, entry);
            }
            names.extend(before.into_keys());
            view.is_filled = true;
            view.stale_since = None;
            names
        });
    }

    fn apply(&self, event: &Event) {
        self.change(|view| match event {
            Event::Applied(raw) => {
                view.objects.insert(raw.name().to_owned(), Entry::of(raw));
                vec![raw.name().to_owned()]
            }
            Event::Deleted(raw) => {
                view.objects.remove(raw.name());
                vec![raw.name().to_owned()]
            }
            Event::Resync => Vec::new(),
        });
    }
}

impl<S: Spec> Entry<S> {
    fn of(raw: &Raw) -> Self {
        Self { version: raw.metadata.resource_version.clone(), object: parse(raw).map(Arc::new) }
    }
}

async fn keep<S: Spec>(store: Arc<dyn Store>, selector: Selector, kept: Arc<Kept<S>>) {
    let mut attempt = 0;
    loop {
        match follow(&*store, &selector, &kept).await {
            Ok(told) if told > 0 => attempt = 0,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(kind = %S::KIND, error = chain(&error), "objects can't be followed");
            }
        }
        kept.is_stale();
        pause(attempt).await;
        attempt += 1;
    }
}

/// Until something was missed; how many events there were.
async fn follow<S: Spec>(
    store: &dyn Store,
    selector: &Selector,
    kept: &Kept<S>,
) -> Result<u64, StoreError> {
    let list = store.list_raw(S::KIND, selector).await?;
    let mut events = store.watch_raw(S::KIND, selector, &list.version).await?;
    kept.fill(&list);
    drop(list);
    let mut told = 0;
    while let Some(event) = events.next().await {
        if event == Event::Resync {
            break;
        }
        kept.apply(&event);
        told += 1;
    }
    Ok(told)
}

/// Names to be looked at, each once however often it changed meanwhile: never more than there are.
pub struct Changes {
    queue: Arc<Queue>,
}

impl Changes {
    /// The one that waits longest. A call that is dropped takes none.
    pub async fn next(&mut self) -> String {
        loop {
            if let Some(name) = self.try_next() {
                return name;
            }
            self.queue.pushed.notified().await;
        }
    }

    pub fn try_next(&mut self) -> Option<String> {
        let mut waiting = self.queue.waiting();
        let name = waiting.order.pop_front()?;
        waiting.names.remove(&name);
        Some(name.to_string())
    }
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    pushed: Notify,
}

#[derive(Default)]
struct Waiting {
    order: VecDeque<Arc<str>>,
    names: HashSet<Arc<str>>,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, name: &str) {
        let mut waiting = self.waiting();
        if !waiting.names.contains(name) {
            let name: Arc<str> = name.into();
            waiting.names.insert(Arc::clone(&name));
            waiting.order.push_back(name);
        }
        drop(waiting);
        self.pushed.notify_one();
    }
}
