//! Watches.

use std::sync::Arc;

use ankole_api::object::{Object, ResourceVersion};
use ankole_store::{Event, HISTORY_CHANGES_MAX, Precondition, Selector, Store, StoreError};
use futures_util::StreamExt;

use crate::lamp::{LAMP, Lamp, LampStatus, Switch, at_once, create, lamp, next, read, replace};

type Here = Arc<dyn Store>;

async fn version(store: &dyn Store) -> ResourceVersion {
    store.list_raw(LAMP, &Selector::all()).await.unwrap().version
}

pub async fn a_watch_tells_all_that_changes_after_a_list_in_order(store: Here) {
    create(&*store, "before", 0).await;
    let from = version(&*store).await;
    let made = create(&*store, "l1", 1).await;
    let mut watch = store.watch_raw(LAMP, &Selector::all(), &from).await.unwrap();
    let changed = replace(&*store, &made, 2).await.unwrap();
    create(&*store, "l2", 5).await;
    replace(&*store, &changed, 3).await.unwrap();
    store.delete_raw(LAMP, "l1", &Precondition::none()).await.unwrap();
    create(&*store, "l1", 4).await;
    for expected in ["+l1 1", "+l1 2", "+l2 5", "+l1 3", "-l1", "+l1 4"] {
        assert_eq!(next(&mut watch).await, expected);
    }
}

/// Who has to do something before an end hears that it was asked for, and all hear of it.
pub async fn an_end_is_told_when_it_is_asked_for_and_when_it_comes(store: Here) {
    let from = version(&*store).await;
    let mut guarded = lamp("l1", 1);
    guarded.metadata.finalizers.insert("a.io/1".into());
    store.create(&guarded).await.unwrap();
    let ending = store.delete_raw(LAMP, "l1", &Precondition::none()).await.unwrap();
    let mut ending = read(&ending.unwrap());
    ending.metadata.finalizers.clear();
    replace(&*store, &ending, 1).await.unwrap();
    let mut watch = store.watch_raw(LAMP, &Selector::all(), &from).await.unwrap();
    assert_eq!(next(&mut watch).await, "+l1 1");
    let Some(Event::Applied(asked)) = watch.next().await else { panic!("it was asked for") };
    assert!(read(&asked).is_ending());
    let Some(Event::Deleted(last)) = watch.next().await else { panic!("it came") };
    assert!(read(&last).is_ending() && last.metadata.finalizers.is_empty());
}

/// Also from one that told of an end.
pub async fn a_watch_goes_on_from_an_event(store: Here) {
    let from = version(&*store).await;
    create(&*store, "l1", 1).await;
    store.delete_raw(LAMP, "l1", &Precondition::none()).await.unwrap();
    create(&*store, "l2", 2).await;
    let mut watch = store.watch_raw(LAMP, &Selector::all(), &from).await.unwrap();
    let mut told = Vec::new();
    for _ in 0..3 {
        let (Event::Applied(raw) | Event::Deleted(raw)) = watch.next().await.unwrap() else {
            panic!("nothing was missed");
        };
        told.push(raw.metadata.resource_version.clone());
    }
    let expected = [&["-l1", "+l2 2"][..], &["+l2 2"]];
    for (from, expected) in told.iter().zip(expected) {
        let mut watch = store.watch_raw(LAMP, &Selector::all(), from).await.unwrap();
        for expected in expected {
            assert_eq!(next(&mut watch).await, *expected);
        }
    }
}

pub async fn a_watch_is_of_its_kind(store: Here) {
    let from = version(&*store).await;
    let switch = Object::new("l1".parse().unwrap(), Switch {});
    store.create(&switch).await.unwrap();
    create(&*store, "l1", 1).await;
    store.delete::<Switch, StoreError>("l1", |_| Ok(())).await.unwrap();
    create(&*store, "l2", 2).await;
    let mut watch = store.watch_raw(LAMP, &Selector::all(), &from).await.unwrap();
    assert_eq!(next(&mut watch).await, "+l1 1");
    assert_eq!(next(&mut watch).await, "+l2 2");
}

/// An agent forgets a replica that was given to another node.
pub async fn what_no_longer_matches_is_told_as_deleted(store: Here) {
    let from = version(&*store).await;
    let mut watch = store.watch_raw(LAMP, &Selector::on_node("a"), &from).await.unwrap();
    create(&*store, "l1", 1).await;
    for (node, lumen) in [(Some("a"), 2), (Some("b"), 3), (Some("b"), 4), (Some("a"), 5), (None, 6)]
    {
        let place = |object: &mut Object<Lamp>| {
            object.spec = Lamp { lumen, node: node.map(str::to_owned) };
            Ok::<_, StoreError>(())
        };
        store.modify("l1", place).await.unwrap();
    }
    create(&*store, "l2", 7).await;
    let mut on_a = lamp("l3", 8);
    on_a.spec.node = Some("a".into());
    store.create(&on_a).await.unwrap();
    for expected in ["+l1 2", "-l1", "+l1 5", "-l1", "+l3 8"] {
        assert_eq!(next(&mut watch).await, expected);
    }
}

pub async fn a_watch_from_where_nothing_is_known_lists_again(store: Here) {
    create(&*store, "l1", 1).await;
    for from in ["", "what", "-1", "99999999999999999999999999", "1000000"] {
        let from = ResourceVersion(from.into());
        let mut watch = store.watch_raw(LAMP, &Selector::all(), &from).await.unwrap();
        assert_eq!(next(&mut watch).await, "resync", "{from:?}");
        assert_eq!(next(&mut watch).await, "end");
    }
}

/// It must cost neither memory without end nor anybody's time.
pub async fn a_slow_watcher_is_told_to_list_again_and_holds_up_nobody(store: Here) {
    create(&*store, "l1", 1).await;
    let from = version(&*store).await;
    let mut slow = store.watch_raw(LAMP, &Selector::all(), &from).await.unwrap();
    at_once(16, |writer| {
        let store = Arc::clone(&store);
        async move {
            let name = format!("w{writer}");
            create(&*store, &name, 0).await;
            for number in 0..=HISTORY_CHANGES_MAX / 16 {
                let blink = |_: &Object<Lamp>, status: &mut LampStatus| {
                    status.is_lit = number.is_multiple_of(2);
                    Ok::<_, StoreError>(())
                };
                store.modify_status(&name, blink).await.unwrap();
            }
        }
    })
    .await;
    assert_eq!(next(&mut slow).await, "resync");
    let from = version(&*store).await;
    let mut again = store.watch_raw(LAMP, &Selector::all(), &from).await.unwrap();
    create(&*store, "l2", 2).await;
    assert_eq!(next(&mut again).await, "+l2 2");
}

pub async fn a_waiting_watcher_wakes(store: Here) {
    let from = version(&*store).await;
    let mut watch = store.watch_raw(LAMP, &Selector::all(), &from).await.unwrap();
    let waiting = tokio::spawn(async move { next(&mut watch).await });
    tokio::task::yield_now().await;
    create(&*store, "l1", 1).await;
    assert_eq!(waiting.await.unwrap(), "+l1 1");
}
