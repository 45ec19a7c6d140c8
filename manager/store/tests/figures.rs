//! What many objects cost; measured, not judged.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::Arc;
use std::time::Instant;

use ankole_api::object::{Kind, Object, Spec};
use ankole_store::embedded::{Copies, copy_of};
use ankole_store::{Cache, EmbeddedStore, Selector, Store, StoreError};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

const OBJECTS: usize = 60_000;
const NODES: usize = 1000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Lamp {
    node: String,
    notes: Vec<String>,
    lumen: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Status {
    lumen: u64,
}

impl Spec for Lamp {
    const KIND: Kind = Kind { name: "Lamp", plural: "lamps" };
    type Status = Status;
}

/// Some 1.2 KB of JSON.
fn lamp(number: usize) -> Object<Lamp> {
    let node = format!("node-{}", number % NODES);
    let notes = (0..10).map(|note| format!("{note:0>90}")).collect();
    Object::new(format!("l{number}").parse().unwrap(), Lamp { node, notes, lumen: 0 })
}

fn resident_mib() -> String {
    format!("{} MiB, at most {} MiB", memory_mib("VmRSS"), memory_mib("VmHWM"))
}

fn memory_mib(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[tokio::test]
#[ignore = "figures for the README"]
async fn figures_of_60_000_objects() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ankole.redb");
    let start = Instant::now();
    let store = EmbeddedStore::open(&path).unwrap();
    {
        let store: &dyn Store = &store;
        for numbers in (0..OBJECTS).collect::<Vec<_>>().chunks(500) {
            let lamps: Vec<_> = numbers.iter().map(|number| lamp(*number)).collect();
            join_all(lamps.iter().map(|lamp| store.create(lamp))).await;
        }
    }
    println!("created, 500 at once: {:?}", start.elapsed());
    drop(store);
    println!("file {} MiB", std::fs::metadata(&path).unwrap().len() >> 20);
    let before = resident_mib();
    let start = Instant::now();
    let embedded = EmbeddedStore::open(&path).unwrap();
    println!("opened: {:?}, {}, from {before}", start.elapsed(), resident_mib());
    let start = Instant::now();
    let copies = Copies::new(&embedded, copy_of(&path));
    copies.take().unwrap();
    println!("copied: {:?}, {}", start.elapsed(), resident_mib());
    let store: Arc<dyn Store> = Arc::new(embedded);
    for _ in 0..3 {
        let start = Instant::now();
        let found = store.list_raw(Lamp::KIND, &Selector::on_node("node-7")).await.unwrap();
        println!("{} of a node: {:?}", found.objects.len(), start.elapsed());
    }
    let (cache, keep) = Cache::<Lamp>::new(Arc::clone(&store), Selector::all());
    let start = Instant::now();
    let keeping = tokio::spawn(keep);
    cache.filled().await;
    println!("cached: {:?}, {}", start.elapsed(), resident_mib());
    let mut changes = cache.changes();
    while changes.try_next().is_some() {}
    for number in 0..3 {
        let light = |_: &Object<Lamp>, status: &mut Status| {
            status.lumen = number + 1;
            Ok::<_, StoreError>(())
        };
        let start = Instant::now();
        store.modify_status("l7", light).await.unwrap();
        let written = start.elapsed();
        changes.next().await;
        println!("one change: {written:?}, told after {:?}", start.elapsed());
    }
    keeping.abort();
}
