//! The embedded store against the one in memory, which is the state alone: the same answers, and
//! after each restart the same objects.

use std::collections::BTreeSet;

use ankole_api::object::ResourceVersion;
use futures_util::future::join_all;
use jiff::Timestamp;
use proptest::prelude::*;

use super::super::EmbeddedStore;
use super::super::writer::Outside;
use super::{LAMP, block_on, lamp, path_in};
use crate::{MemoryStore, Precondition, Raw, Selector, Stamp, Store, StoreError};

#[derive(Clone, Debug)]
enum Op {
    Create { name: u8, lumen: u64, finalizers: u8 },
    Replace { name: u8, lumen: u64, finalizers: u8, is_stale: bool },
    Status { name: u8, lumen: u64, is_stale: bool },
    Delete { name: u8, is_stale: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let (name, lumen, few) = (0..3_u8, 0..3_u64, 0..3_u8);
    let is_stale = prop::bool::weighted(0.1);
    prop_oneof![
        (name.clone(), lumen.clone(), few.clone())
            .prop_map(|(name, lumen, finalizers)| Op::Create { name, lumen, finalizers }),
        (name.clone(), lumen.clone(), few, is_stale).prop_map(
            |(name, lumen, finalizers, is_stale)| Op::Replace { name, lumen, finalizers, is_stale }
        ),
        (name.clone(), lumen, is_stale).prop_map(|(name, lumen, is_stale)| Op::Status {
            name,
            lumen,
            is_stale
        }),
        (name, is_stale).prop_map(|(name, is_stale)| Op::Delete { name, is_stale }),
    ]
}

fn stamps() -> impl FnMut() -> Stamp + Send {
    let mut count = 0;
    move || {
        count += 1;
        let now = Timestamp::from_second(count).unwrap();
        Stamp { now, uid: format!("u{count}") }
    }
}

fn finalizers(count: u8) -> BTreeSet<String> {
    (0..count).map(|number| format!("a.io/{number}")).collect()
}

async fn apply(
    store: &dyn Store,
    op: &Op,
    seen: &[Option<ResourceVersion>],
) -> Result<String, StoreError> {
    let (Op::Create { name, .. }
    | Op::Replace { name, .. }
    | Op::Status { name, .. }
    | Op::Delete { name, .. }) = op;
    let text = format!("l{name}");
    let version = |is_stale: bool| match (is_stale, &seen[usize::from(*name)]) {
        (false, Some(version)) => version.clone(),
        _ => ResourceVersion("1".into()),
    };
    let shown = |raw: std::sync::Arc<Raw>| raw.to_json();
    match *op {
        Op::Create { lumen, finalizers: count, .. } => {
            let mut object = lamp(&text, lumen);
            object.metadata.finalizers = finalizers(count);
            store.create_raw(LAMP, object).await.map(shown)
        }
        Op::Replace { lumen, finalizers: count, is_stale, .. } => {
            let mut object = lamp(&text, lumen);
            object.metadata.finalizers = finalizers(count);
            object.metadata.resource_version = version(is_stale);
            store.replace_raw(LAMP, object).await.map(shown)
        }
        Op::Status { lumen, is_stale, .. } => {
            let mut metadata = lamp(&text, 0).metadata;
            metadata.resource_version = version(is_stale);
            let status = serde_json::json!({ "lumen": lumen });
            let object = Raw::new(metadata, &serde_json::json!({}), Some(&status));
            store.replace_status_raw(LAMP, object).await.map(shown)
        }
        Op::Delete { is_stale, .. } => {
            let resource_version = Some(version(is_stale));
            let precondition = Precondition { uid: None, resource_version };
            let deleted = store.delete_raw(LAMP, &text, &precondition).await;
            deleted.map(|ending| ending.map_or("gone".into(), shown))
        }
    }
}

async fn versions(store: &dyn Store) -> Vec<Option<ResourceVersion>> {
    let mut versions = Vec::new();
    for name in 0..3 {
        let object = store.get_raw(LAMP, &format!("l{name}")).await.unwrap();
        versions.push(object.map(|object| object.metadata.resource_version.clone()));
    }
    versions
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Groups are sent at once, so that many are in one transaction.
    #[test]
    fn the_file_and_memory_agree(groups in prop::collection::vec(prop::collection::vec(op(), 1..12), 1..6)) {
        let folder = tempfile::tempdir().unwrap();
        let path = path_in(&folder);
        let memory = MemoryStore::with_stamps(stamps());
        let mut count = 0;
        for group in groups {
            let mut given = stamps();
            for _ in 0..count {
                given();
            }
            count += group.len();
            let outside = Outside { stamps: Box::new(given), ..Outside::default() };
            let store = EmbeddedStore::open_with(&path, outside).unwrap();
            block_on(async {
                let seen = versions(&memory).await;
                let theirs = join_all(group.iter().map(|op| apply(&store, op, &seen))).await;
                let ours = join_all(group.iter().map(|op| apply(&memory, op, &seen))).await;
                prop_assert_eq!(theirs, ours);
                let all = Selector::all();
                let (is, wanted) = (store.list_raw(LAMP, &all).await, memory.list_raw(LAMP, &all).await);
                prop_assert_eq!(is.unwrap(), wanted.unwrap());
                Ok(())
            })?;
        }
    }
}
