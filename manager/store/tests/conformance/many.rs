//! Writers at once, and typed access.

use std::sync::Arc;

use ankole_api::object::Object;
use ankole_store::{Selector, Store, StoreError};

use crate::lamp::{LAMP, Lamp, at_once, create, lamp};

type Here = Arc<dyn Store>;

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("no")]
    No,
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub async fn no_update_of_64_writers_is_lost(store: Here) {
    create(&*store, "l1", 0).await;
    at_once(64, |_| {
        let store = Arc::clone(&store);
        async move {
            let brighter = |lamp: &mut Object<Lamp>| {
                lamp.spec.lumen += 1;
                Ok::<_, StoreError>(())
            };
            for _ in 0..4 {
                store.modify("l1", brighter).await.unwrap();
            }
        }
    })
    .await;
    let lamp = store.get::<Lamp>("l1").await.unwrap();
    assert_eq!((lamp.spec.lumen, lamp.metadata.generation), (256, 257));
}

pub async fn of_many_who_create_one_succeeds(store: Here) {
    let each = at_once(64, |number| {
        let store = Arc::clone(&store);
        async move { store.create(&lamp("l1", number)).await }
    })
    .await;
    let mut made = Vec::new();
    for result in each {
        match result {
            Ok(lamp) => made.push(lamp),
            Err(error) => assert!(matches!(error, StoreError::Exists { .. }), "{error}"),
        }
    }
    assert_eq!(made, [store.get::<Lamp>("l1").await.unwrap()]);
}

pub async fn what_was_answered_is_read(store: Here) {
    at_once(16, |client| {
        let store = Arc::clone(&store);
        async move {
            for number in 0..8 {
                let name = format!("l{client}-{number}");
                let made = create(&*store, &name, number).await;
                assert_eq!(store.get::<Lamp>(&name).await.unwrap(), made);
                let all = store.list_raw(LAMP, &Selector::all()).await.unwrap();
                assert!(all.objects.iter().any(|raw| raw.name() == name));
            }
        }
    })
    .await;
}

pub async fn a_change_that_is_refused_writes_nothing(store: Here) {
    let made = create(&*store, "l1", 1).await;
    let refuse = |lamp: &mut Object<Lamp>| {
        lamp.spec.lumen = 2;
        Err::<(), _>(Refused::No)
    };
    assert!(matches!(store.modify("l1", refuse).await, Err(Refused::No)));
    assert_eq!(store.get::<Lamp>("l1").await.unwrap(), made);
}

pub async fn a_delete_asks_whom_it_deletes(store: Here) {
    create(&*store, "l1", 1).await;
    let if_dark = |lamp: &Object<Lamp>| match lamp.spec.lumen {
        0 => Ok(()),
        _ => Err(Refused::No),
    };
    assert!(matches!(store.delete("l1", if_dark).await, Err(Refused::No)));
    create(&*store, "l2", 0).await;
    assert_eq!(store.delete("l2", if_dark).await.unwrap(), None);
    let missing = store.delete("l2", if_dark).await;
    assert!(matches!(missing, Err(Refused::Store(StoreError::NotFound { .. }))), "{missing:?}");
}
