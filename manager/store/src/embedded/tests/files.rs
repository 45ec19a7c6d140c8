//! Files: whole or refused.

use std::fs;
use std::path::Path;

use redb::{Database, ReadableTable};

use super::super::file::{self, FORMAT, StoredObject};
use super::super::{EmbeddedStore, OpenError, Verified, verify};
use super::{LAMP, all, create, delete, lumen, open, path_in, replace};
use crate::{Precondition, Selector, Store, StoreError};

fn refusal(path: &Path) -> OpenError {
    EmbeddedStore::open(path).err().expect("it is refused")
}

/// Writes into the file behind the store's back.
fn write_into(path: &Path, key: &str, version: u64, json: &str) {
    let database = Database::open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut objects = transaction.open_table(file::OBJECTS).unwrap();
        let object = StoredObject { key: key.into(), version, json: json.into() };
        objects.insert(key, file::value_of(&object).as_slice()).unwrap();
    }
    transaction.commit().unwrap();
}

fn set_format(path: &Path, format: u64) {
    let database = Database::open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(file::META).unwrap().insert("format", format).unwrap();
    transaction.commit().unwrap();
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart_and_versions_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    let store = open(&path);
    create(&store, "l1", 1).await;
    let last = create(&store, "l2", 2).await;
    delete(&store, "l2").await;
    let before = all(&store).await;
    drop(store);
    let store = open(&path);
    assert_eq!(all(&store).await, before);
    let next = create(&store, "l2", 2).await;
    assert!(next.0.parse::<u64>().unwrap() > last.0.parse::<u64>().unwrap() + 1);
}

#[tokio::test]
async fn a_watch_goes_on_over_a_restart_only_if_nothing_was_missed() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    let store = open(&path);
    let first = create(&store, "l1", 1).await;
    let last = create(&store, "l2", 2).await;
    drop(store);
    let store = open(&path);
    let next = async |from| {
        use futures_util::StreamExt;
        store.watch_raw(LAMP, &Selector::all(), from).await.unwrap().next().await
    };
    create(&store, "l3", 3).await;
    assert_eq!(next(&first).await, Some(crate::Event::Resync));
    assert!(matches!(next(&last).await, Some(crate::Event::Applied(raw)) if raw.name() == "l3"));
}

#[test]
fn a_store_of_a_newer_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    drop(open(&path));
    set_format(&path, FORMAT + 1);
    let refused = refusal(&path).to_string();
    assert!(refused.contains("has format 4; this program knows up to 3"), "{refused}");
}

#[test]
fn a_file_that_is_no_store_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    fs::write(&path, "not a database ".repeat(1000)).unwrap();
    let refused = refusal(&path).to_string();
    assert!(refused.contains("ankole.redb is damaged"), "{refused}");
    assert!(fs::read(&path).unwrap().starts_with(b"not a database"));
}

/// redb's own sums are of pages: who writes through redb, or a page that it doesn't compare when it
/// is read, changes an object unnoticed.
#[test]
fn an_object_that_was_changed_behind_the_stores_back_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    drop(open(&path));
    write_into(&path, "lamps/l1", 7, "{}");
    {
        let database = Database::open(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut objects = transaction.open_table(file::OBJECTS).unwrap();
            let mut value = objects.get("lamps/l1").unwrap().unwrap().value().to_vec();
            *value.last_mut().unwrap() ^= 1;
            objects.insert("lamps/l1", value.as_slice()).unwrap();
        }
        transaction.commit().unwrap();
    }
    let refused = refusal(&path).to_string();
    assert!(refused.contains("the sum of lamps/l1 isn't that of what it holds"), "{refused}");
}

/// Of a newer version, or by hand: it is kept, listed, and hides no other.
#[tokio::test]
async fn what_is_no_envelope_is_kept_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    let store = open(&path);
    create(&store, "l1", 1).await;
    drop(store);
    let strange = [
        ("lamps/l2", r#"{"spec": {}}"#),
        ("lamps/l3", "\"two\nlines\""),
        ("lamps/l4", r#"{"metadata": {"name": "l9"}, "spec": {}}"#),
        ("lamps/not.a.name", r#"{"metadata": {"name": "not.a.name"}, "spec": {}}"#),
        ("nothing", "{}"),
    ];
    for (key, json) in strange {
        write_into(&path, key, 7, json);
    }
    for _ in 0..2 {
        let store = open(&path);
        let list = store.list_raw(LAMP, &Selector::all()).await.unwrap();
        let kept: Vec<_> = list.unreadable.iter().map(|it| (&*it.name, &*it.text)).collect();
        let expected = strange[..4].iter().map(|(key, json)| (&key["lamps/".len()..], *json));
        assert_eq!(kept, expected.collect::<Vec<_>>());
        assert_eq!(list.unreadable[2].why, "it says that it is l9");
        let read = store.get_raw(LAMP, "l3").await;
        assert!(matches!(read, Err(StoreError::Unreadable { .. })), "{read:?}");
        replace(&store, "l1", lumen(&store, "l1").await.unwrap() + 1).await.unwrap();
    }
    // It is there also in a file that is made anew.
    let Ok(Verified::Sound(state)) = verify(&path) else { panic!("it is sound") };
    file::make(&path, state.revision(), file::stored(&state)).unwrap();
    let Ok(Verified::Sound(again)) = verify(&path) else { panic!("it is sound") };
    assert_eq!(again.unreadable().count(), strange.len());
    let store = open(&path);
    store.delete_raw(LAMP, "not.a.name", &Precondition::none()).await.unwrap();
    assert_eq!(store.list_raw(LAMP, &Selector::all()).await.unwrap().unreadable.len(), 3);
}

/// Another layout needs another number of the format.
#[test]
fn the_bytes_of_an_object_are_those_of_the_format() {
    let json = r#"{"metadata":{"name":"v1"},"spec":{}}"#.to_owned();
    let object = StoredObject { key: "volumes/v1".into(), version: 0x0102, json };
    let value = file::value_of(&object);
    assert_eq!((FORMAT, &value[..8]), (3, &[2, 1, 0, 0, 0, 0, 0, 0][..]));
    assert_eq!(format!("{:02x?}", &value[8..16]), "[55, 31, 54, bf, 00, 7a, 21, d9]");
    assert_eq!(&value[16..], object.json.as_bytes());
}
