//! A cache, over any store and over one whose watches break.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ankole_api::object::{Kind, Object, ResourceVersion};
use ankole_store::{
    Cache, Changes, Events, List, MemoryStore, Precondition, Raw, Selector, Store, StoreError,
};
use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::sync::watch;

use crate::lamp::{LAMP, Lamp, create, replace};

type Here = Arc<dyn Store>;

async fn cache(store: &Here, selector: Selector) -> Cache<Lamp> {
    let (cache, keep) = Cache::new(Arc::clone(store), selector);
    tokio::spawn(keep);
    cache.filled().await;
    cache
}

async fn until(cache: &Cache<Lamp>, is_so: impl Fn(&Cache<Lamp>) -> bool) {
    let mut changed = cache.changed();
    while !is_so(cache) {
        changed.changed().await.unwrap();
    }
}

fn drain(changes: &mut Changes) -> Vec<String> {
    std::iter::from_fn(|| changes.try_next()).collect()
}

async fn set(store: &dyn Store, name: &str, lumen: u64) {
    let seen = store.get::<Lamp>(name).await.unwrap();
    replace(store, &seen, lumen).await.unwrap();
}

fn lumen(cache: &Cache<Lamp>, name: &str) -> Option<u64> {
    cache.get(name).unwrap().map(|lamp| lamp.spec.lumen)
}

pub async fn a_cache_follows_the_store(store: Here) {
    create(&*store, "l1", 1).await;
    let cache = cache(&store, Selector::all()).await;
    let mut changes = cache.changes();
    assert_eq!(drain(&mut changes), ["l1"], "what is there is told first");
    create(&*store, "l2", 2).await;
    assert_eq!(changes.next().await, "l2");
    assert_eq!(*cache.get("l2").unwrap().unwrap(), store.get::<Lamp>("l2").await.unwrap());
    store.delete_raw(LAMP, "l1", &Precondition::none()).await.unwrap();
    assert_eq!(changes.next().await, "l1");
    assert_eq!((cache.get("l1").unwrap(), cache.all().len()), (None, 1));
    assert_eq!(cache.stale_since(), None);
}

/// A worker that is slow must not find a thousand names of one object, nor cost memory without end.
pub async fn what_changes_often_is_told_once(store: Here) {
    create(&*store, "l1", 0).await;
    create(&*store, "l2", 0).await;
    let cache = cache(&store, Selector::all()).await;
    let mut changes = cache.changes();
    drain(&mut changes);
    for lumen in 1..=100 {
        set(&*store, "l1", lumen).await;
    }
    set(&*store, "l2", 1).await;
    until(&cache, |cache| lumen(cache, "l2") == Some(1)).await;
    assert_eq!(
        (drain(&mut changes), lumen(&cache, "l1")),
        (vec!["l1".into(), "l2".into()], Some(100))
    );
}

/// Whoever took it for deleted would stop what it wants.
pub async fn what_cannot_be_read_is_not_gone(store: Here) {
    create(&*store, "l1", 1).await;
    create(&*store, "l2", 2).await;
    let cache = cache(&store, Selector::all()).await;
    let mut changes = cache.changes();
    drain(&mut changes);
    let metadata = store.get::<Lamp>("l1").await.unwrap().metadata;
    let strange = Raw::new(metadata, &serde_json::json!({ "lumen": "much" }), None);
    store.replace_raw(LAMP, strange).await.unwrap();
    assert_eq!(changes.next().await, "l1");
    assert!(matches!(cache.get("l1"), Err(StoreError::Unreadable { .. })));
    assert_eq!(cache.all().iter().filter(|lamp| lamp.is_ok()).count(), 1);
}

pub async fn a_cache_forgets_what_its_selector_no_longer_has(store: Here) {
    let mut on_a = crate::lamp::lamp("l1", 1);
    on_a.spec.node = Some("a".into());
    store.create(&on_a).await.unwrap();
    let cache = cache(&store, Selector::on_node("a")).await;
    assert!(cache.get("l1").unwrap().is_some());
    let away = |lamp: &mut Object<Lamp>| {
        lamp.spec.node = Some("b".into());
        Ok::<_, StoreError>(())
    };
    store.modify("l1", away).await.unwrap();
    until(&cache, |cache| cache.get("l1").unwrap().is_none()).await;
}

/// A store that can't be reached for a while, as over a network.
struct Breaking {
    store: MemoryStore,
    is_broken: AtomicBool,
    breaks: watch::Sender<u64>,
}

impl Breaking {
    fn new() -> Arc<Self> {
        let (store, is_broken) = (MemoryStore::default(), AtomicBool::new(false));
        Arc::new(Self { store, is_broken, breaks: watch::Sender::new(0) })
    }

    fn set_broken(&self, is_broken: bool) {
        self.is_broken.store(is_broken, Ordering::SeqCst);
        self.breaks.send_modify(|count| *count += 1);
    }
}

#[async_trait]
impl Store for Breaking {
    async fn get_raw(&self, kind: Kind, name: &str) -> Result<Option<Arc<Raw>>, StoreError> {
        self.store.get_raw(kind, name).await
    }

    async fn list_raw(&self, kind: Kind, selector: &Selector) -> Result<List, StoreError> {
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable { why: "it is broken".into() });
        }
        self.store.list_raw(kind, selector).await
    }

    async fn create_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError> {
        self.store.create_raw(kind, object).await
    }

    async fn replace_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError> {
        self.store.replace_raw(kind, object).await
    }

    async fn replace_status_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError> {
        self.store.replace_status_raw(kind, object).await
    }

    async fn delete_raw(
        &self,
        kind: Kind,
        name: &str,
        precondition: &Precondition,
    ) -> Result<Option<Arc<Raw>>, StoreError> {
        self.store.delete_raw(kind, name, precondition).await
    }

    /// Ends when it breaks.
    async fn watch_raw(
        &self,
        kind: Kind,
        selector: &Selector,
        from: &ResourceVersion,
    ) -> Result<Events, StoreError> {
        let mut breaks = self.breaks.subscribe();
        let broken = Box::pin(async move { breaks.changed().await });
        Ok(self.store.watch_raw(kind, selector, from).await?.take_until(broken).boxed())
    }
}

#[tokio::test]
async fn after_a_break_a_cache_tells_what_it_missed_and_was_stale_meanwhile() {
    let breaking = Breaking::new();
    let store: Here = Arc::clone(&breaking) as _;
    for name in ["l1", "l2", "l3"] {
        create(&*store, name, 1).await;
    }
    let cache = cache(&store, Selector::all()).await;
    let mut changes = cache.changes();
    drain(&mut changes);
    breaking.set_broken(true);
    until(&cache, |cache| cache.stale_since().is_some()).await;
    store.delete_raw(LAMP, "l1", &Precondition::none()).await.unwrap();
    set(&*store, "l2", 2).await;
    create(&*store, "l4", 4).await;
    assert_eq!(lumen(&cache, "l1"), Some(1), "what it had is shown");
    breaking.set_broken(false);
    until(&cache, |cache| cache.stale_since().is_none()).await;
    let told: BTreeSet<_> = drain(&mut changes).into_iter().collect();
    assert_eq!(told, ["l1", "l2", "l4"].map(str::to_owned).into());
    assert_eq!(lumen(&cache, "l1"), None);
}

/// Whatever happens in between, a worker that looks at what it is told knows in the end what is true.
#[tokio::test]
async fn through_breaks_and_changes_a_worker_ends_with_what_is_true() {
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for round in 0..20 {
        let breaking = Breaking::new();
        let store: Here = Arc::clone(&breaking) as _;
        let cache = cache(&store, Selector::all()).await;
        let mut changes = cache.changes();
        let mut known = std::collections::BTreeMap::new();
        let mut look = |changes: &mut Changes| {
            for name in drain(changes) {
                match lumen(&cache, &name) {
                    Some(lumen) => drop(known.insert(name, lumen)),
                    None => drop(known.remove(&name)),
                }
            }
            known.clone()
        };
        for step in 0..60 {
            let name = format!("l{}", random(4));
            match random(6) {
                0 => breaking.set_broken(random(2) == 0),
                1 => tokio::time::sleep(std::time::Duration::from_micros(random(2000))).await,
                2 => drop(look(&mut changes)),
                3 => drop(store.delete_raw(LAMP, &name, &Precondition::none()).await),
                _ if store.find::<Lamp>(&name).await.unwrap().is_some() => {
                    set(&*store, &name, step).await;
                }
                _ => drop(create(&*store, &name, step).await),
            }
            tokio::task::yield_now().await;
        }
        breaking.set_broken(false);
        create(&*store, "last", 0).await;
        until(&cache, |cache| cache.stale_since().is_none() && lumen(cache, "last").is_some())
            .await;
        let list = store.list::<Lamp>(&Selector::all()).await.unwrap().objects;
        let list = list.into_iter().map(|lamp| lamp.unwrap());
        let is = list.map(|lamp| (lamp.name().to_string(), lamp.spec.lumen)).collect();
        assert_eq!(look(&mut changes), is, "round {round}");
    }
}
