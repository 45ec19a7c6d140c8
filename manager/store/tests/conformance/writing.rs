//! One writer, one object.

use std::sync::Arc;

use ankole_api::object::{Object, ResourceVersion};
use ankole_store::{OBJECT_BYTES_MAX, Precondition, Raw, Selector, Store, StoreError};

use crate::lamp::{LAMP, Lamp, LampStatus, create, lamp, read, replace};

type Here = Arc<dyn Store>;

fn is_conflict<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Conflict { .. }))
}

pub async fn what_is_created_has_uid_version_generation_and_time(store: Here) {
    let made = create(&*store, "l1", 7).await;
    let is = &made.metadata;
    assert!(!is.uid.is_empty() && is.creation_timestamp.is_some(), "{is:?}");
    assert!(is.resource_version != ResourceVersion::default() && is.generation == 1, "{is:?}");
    assert_eq!(store.get::<Lamp>("l1").await.unwrap(), made);
    assert_ne!(create(&*store, "l2", 7).await.metadata.uid, is.uid);
    assert_eq!(store.find::<Lamp>("l3").await.unwrap(), None);
    let missing = store.get::<Lamp>("l3").await.unwrap_err();
    assert_eq!(missing.to_string(), "Lamp l3 doesn't exist");
}

pub async fn an_object_is_created_once(store: Here) {
    create(&*store, "l1", 1).await;
    let again = store.create(&lamp("l1", 2)).await;
    assert!(matches!(again, Err(StoreError::Exists { .. })), "{again:?}");
    assert_eq!(store.get::<Lamp>("l1").await.unwrap().spec.lumen, 1);
}

/// Lost updates are how an in-sync set would forget a removal.
pub async fn of_two_writers_who_saw_the_same_the_second_looks_again(store: Here) {
    let seen = create(&*store, "l1", 1).await;
    let first = replace(&*store, &seen, 2).await.unwrap();
    assert!(is_conflict(&replace(&*store, &seen, 3).await));
    let status = Object { status: LampStatus { is_lit: true }, ..seen };
    assert!(is_conflict(&store.replace_status_raw(LAMP, Raw::of(&status)).await));
    assert_eq!(store.get::<Lamp>("l1").await.unwrap(), first);
    replace(&*store, &first, 3).await.unwrap();
}

/// A writer that slept while the object was deleted and made anew must not hit the new one.
pub async fn a_version_is_not_used_again_for_an_object_that_is_made_anew(store: Here) {
    let first = create(&*store, "l1", 1).await;
    assert_eq!(store.delete_raw(LAMP, "l1", &Precondition::none()).await.unwrap(), None);
    let gone = replace(&*store, &first, 2).await;
    assert!(matches!(gone, Err(StoreError::NotFound { .. })), "{gone:?}");
    create(&*store, "l1", 1).await;
    assert!(is_conflict(&replace(&*store, &first, 2).await));
    let unchanged = Precondition::unchanged(&first.metadata);
    assert!(is_conflict(&store.delete_raw(LAMP, "l1", &unchanged).await));
}

/// Whoever knows only name and uid (an owner, a job) must not act on the next of that name.
pub async fn an_object_of_the_same_name_is_another_by_its_uid(store: Here) {
    let first = create(&*store, "l1", 1).await;
    store.delete_raw(LAMP, "l1", &Precondition::none()).await.unwrap();
    let mut second = create(&*store, "l1", 1).await;
    assert_ne!(second.metadata.uid, first.metadata.uid);
    assert!(is_conflict(&store.delete_raw(LAMP, "l1", &Precondition::same(&first.metadata)).await));
    second.metadata.uid = first.metadata.uid;
    assert!(is_conflict(&replace(&*store, &second, 2).await));
}

pub async fn a_write_without_a_version_is_refused(store: Here) {
    create(&*store, "l1", 1).await;
    for result in [
        store.replace_raw(LAMP, Raw::of(&lamp("l1", 2))).await,
        store.replace_status_raw(LAMP, Raw::of(&lamp("l1", 2))).await,
    ] {
        assert!(matches!(result, Err(StoreError::Invalid { .. })), "{result:?}");
    }
    let made = store.get::<Lamp>("l1").await.unwrap();
    let mut another = lamp("l2", 2);
    another.metadata.resource_version = made.metadata.resource_version;
    let with_one = store.create(&another).await;
    assert!(matches!(with_one, Err(StoreError::Invalid { .. })), "{with_one:?}");
}

pub async fn a_status_is_written_alone(store: Here) {
    let mut dark = lamp("l1", 1);
    dark.status.is_lit = true;
    let made = store.create(&dark).await.unwrap();
    assert!(!made.status.is_lit, "a status is written when something is true");
    let mut seen = made.clone();
    seen.status.is_lit = true;
    seen.spec.lumen = 9;
    seen.metadata.labels.insert("a".into(), "b".into());
    let now = read(&store.replace_status_raw(LAMP, Raw::of(&seen)).await.unwrap());
    assert!(now.status.is_lit);
    assert_eq!((now.spec, now.metadata.generation), (made.spec, 1));
    assert!(now.metadata.labels.is_empty());
    assert_ne!(now.metadata.resource_version, made.metadata.resource_version);
}

/// An agent's report must not be undone by whoever changes what is wanted.
pub async fn a_writer_of_the_spec_does_not_touch_the_status(store: Here) {
    create(&*store, "l1", 1).await;
    let light = |_: &Object<Lamp>, status: &mut LampStatus| {
        status.is_lit = true;
        Ok::<_, StoreError>(())
    };
    store.modify_status("l1", light).await.unwrap();
    let mut seen = store.get::<Lamp>("l1").await.unwrap();
    seen.status.is_lit = false;
    let now = replace(&*store, &seen, 2).await.unwrap();
    assert!(now.status.is_lit && now.spec.lumen == 2);
}

pub async fn the_generation_tells_changes_of_the_spec(store: Here) {
    let made = create(&*store, "l1", 1).await;
    let changed = replace(&*store, &made, 2).await.unwrap();
    assert_eq!(changed.metadata.generation, 2);
    let label = |lamp: &mut Object<Lamp>| {
        lamp.metadata.labels.insert("a".into(), "b".into());
        lamp.metadata.annotations.insert("c".into(), "d".into());
        Ok::<_, StoreError>(())
    };
    store.modify("l1", label).await.unwrap();
    let labelled = store.get::<Lamp>("l1").await.unwrap();
    assert_eq!((labelled.metadata.generation, labelled.metadata.labels.len()), (2, 1));
    assert_eq!(labelled.metadata.annotations["c"], "d");
    assert_ne!(labelled.metadata.resource_version, changed.metadata.resource_version);
}

/// Level-triggered controllers say again what they said; an idle system must write nothing.
pub async fn a_write_that_changes_nothing_is_none(store: Here) {
    let made = create(&*store, "l1", 1).await;
    let lit = Object { status: LampStatus { is_lit: true }, ..made };
    let lit = read(&store.replace_status_raw(LAMP, Raw::of(&lit)).await.unwrap());
    let before = store.list_raw(LAMP, &Selector::all()).await.unwrap().version;
    assert_eq!(replace(&*store, &lit, 1).await.unwrap(), lit);
    let same = store.replace_status_raw(LAMP, Raw::of(&lit)).await.unwrap();
    assert_eq!(read(&same), lit);
    assert_eq!(store.list_raw(LAMP, &Selector::all()).await.unwrap().version, before);
}

pub async fn the_store_s_own_fields_are_not_the_writers(store: Here) {
    let made = create(&*store, "l1", 1).await;
    let mut forged = made.clone();
    forged.metadata.generation = 99;
    forged.metadata.creation_timestamp = None;
    forged.metadata.deletion_timestamp = made.metadata.creation_timestamp;
    let is = replace(&*store, &forged, 1).await.unwrap();
    assert_eq!(is, made);
}

pub async fn an_object_with_finalizers_ends_when_the_last_is_gone(store: Here) {
    let mut guarded = lamp("l1", 1);
    guarded.metadata.finalizers = ["a.io/1".to_owned(), "a.io/2".to_owned()].into();
    let made = store.create(&guarded).await.unwrap();
    let ending = store.delete_raw(LAMP, "l1", &Precondition::none()).await.unwrap();
    let mut ending = read(&ending.expect("it waits for its finalizers"));
    assert!(ending.is_ending() && ending.metadata.uid == made.metadata.uid);
    let again = store.delete_raw(LAMP, "l1", &Precondition::none()).await.unwrap();
    assert_eq!(again.map(|raw| read(&raw)).as_ref(), Some(&ending), "it says so already");
    ending.metadata.finalizers.remove("a.io/1");
    let mut ending = replace(&*store, &ending, 2).await.unwrap();
    assert!(ending.is_ending(), "{ending:?}");
    ending.metadata.finalizers.clear();
    let last = replace(&*store, &ending, 2).await.unwrap();
    assert!(last.metadata.finalizers.is_empty());
    assert_eq!(store.find::<Lamp>("l1").await.unwrap(), None);
}

/// Else an end would never come.
pub async fn what_is_ending_gets_no_new_finalizer(store: Here) {
    let mut guarded = lamp("l1", 1);
    guarded.metadata.finalizers = ["a.io/1".to_owned()].into();
    store.create(&guarded).await.unwrap();
    let ending = store.delete_raw(LAMP, "l1", &Precondition::none()).await.unwrap();
    let mut ending = read(&ending.unwrap());
    ending.metadata.finalizers.insert("a.io/2".into());
    let refused = replace(&*store, &ending, 1).await;
    assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
}

pub async fn an_object_is_deleted_only_if_it_is_the_one_that_was_meant(store: Here) {
    let missing = store.delete_raw(LAMP, "l1", &Precondition::none()).await;
    assert!(matches!(missing, Err(StoreError::NotFound { .. })), "{missing:?}");
    let made = create(&*store, "l1", 1).await;
    replace(&*store, &made, 2).await.unwrap();
    let unchanged = Precondition::unchanged(&made.metadata);
    assert!(is_conflict(&store.delete_raw(LAMP, "l1", &unchanged).await));
    let same = Precondition::same(&made.metadata);
    assert_eq!(store.delete_raw(LAMP, "l1", &same).await.unwrap(), None);
}

pub async fn names_at_the_limit(store: Here) {
    for name in ["a", &"b".repeat(63), "0-9"] {
        create(&*store, name, 1).await;
        assert_eq!(store.get::<Lamp>(name).await.unwrap().name().to_string(), name);
    }
    for name in ["", "l/1", "../l", &"b".repeat(64), "L"] {
        assert_eq!(store.find::<Lamp>(name).await.unwrap(), None, "{name:?}");
    }
    let names = store.list::<Lamp>(&Selector::all()).await.unwrap().objects;
    let names: Vec<_> = names.into_iter().map(|lamp| lamp.unwrap().name().to_string()).collect();
    assert_eq!(names, ["0-9", "a", &"b".repeat(63)]);
}

pub async fn an_object_that_is_too_large_is_refused_and_one_at_the_limit_can_be_deleted(
    store: Here,
) {
    let with = |bytes: usize| {
        let mut large = lamp("l1", 1);
        large.metadata.finalizers.insert("a.io/1".into());
        large.metadata.labels.insert("blob".into(), "x".repeat(bytes));
        large
    };
    let refused = store.create(&with(OBJECT_BYTES_MAX)).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
    assert_eq!(store.find::<Lamp>("l1").await.unwrap(), None);
    let made = create_as_large_as_it_may_be(&*store, with).await;
    let mut larger = made.clone();
    larger.metadata.labels.insert("more".into(), "x".repeat(1000));
    let refused = replace(&*store, &larger, 1).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
    let ending = store.delete_raw(LAMP, "l1", &Precondition::none()).await.unwrap();
    let mut ending = read(&ending.unwrap());
    ending.metadata.finalizers.clear();
    replace(&*store, &ending, 1).await.unwrap();
    assert_eq!(store.find::<Lamp>("l1").await.unwrap(), None);
}

async fn create_as_large_as_it_may_be(
    store: &dyn Store,
    with: impl Fn(usize) -> Object<Lamp>,
) -> Object<Lamp> {
    for less in (100..).step_by(8) {
        match store.create(&with(OBJECT_BYTES_MAX - less)).await {
            Err(StoreError::TooLarge { .. }) => assert!(less < 2000, "what else is so large?"),
            made => return made.unwrap(),
        }
    }
    unreachable!()
}

/// One volume that a newer version had written stopped the start of all.
pub async fn an_object_that_has_another_shape_hides_no_other(store: Here) {
    create(&*store, "l1", 1).await;
    create(&*store, "l3", 3).await;
    let strange = r#"{"metadata": {"name": "l2"}, "spec": {"lumen": "much"}}"#;
    store.create_raw(LAMP, Raw::from_json(strange).unwrap()).await.unwrap();
    let list = store.list::<Lamp>(&Selector::all()).await.unwrap();
    let each: Vec<_> = list
        .objects
        .iter()
        .map(|lamp| match lamp {
            Ok(lamp) => format!("{} {}", lamp.name(), lamp.spec.lumen),
            Err(error) => error.to_string(),
        })
        .collect();
    assert_eq!((each[0].as_str(), each[2].as_str()), ("l1 1", "l3 3"));
    assert!(each[1].starts_with("Lamp l2 in the store can't be read: invalid type"), "{}", each[1]);
    let get = store.get::<Lamp>("l2").await;
    assert!(matches!(get, Err(StoreError::Unreadable { .. })), "{get:?}");
    store.delete_raw(LAMP, "l2", &Precondition::none()).await.unwrap();
}

pub async fn labels_and_node_select(store: Here) {
    for (number, node, colour) in [(1, "a", "red"), (2, "b", "red"), (3, "a", "blue")] {
        let mut object = lamp(&format!("l{number}"), number);
        object.spec.node = Some(node.into());
        object.metadata.labels.insert("colour".into(), colour.into());
        store.create(&object).await.unwrap();
    }
    create(&*store, "l4", 4).await;
    let cases = [
        (Selector::all(), "l1 l2 l3 l4"),
        (Selector::on_node("a"), "l1 l3"),
        (Selector::all().with_label("colour", "red"), "l1 l2"),
        (Selector::on_node("a").with_label("colour", "red"), "l1"),
        (Selector::on_node("c"), ""),
        (Selector::all().with_label("form", "red"), ""),
    ];
    for (selector, expected) in cases {
        let found = store.list_raw(LAMP, &selector).await.unwrap().objects;
        let names: Vec<_> = found.iter().map(|raw| raw.name()).collect();
        assert_eq!(names.join(" "), expected, "{selector:?}");
    }
}
