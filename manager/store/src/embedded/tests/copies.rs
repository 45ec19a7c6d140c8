//! The copy beside the store.

use std::fs;
use std::sync::Arc;

use super::super::{Copies, CopyError, StoreCopy, copy_of};
use super::{create, delete, open, path_in};

#[tokio::test]
async fn a_copy_has_all_objects_as_of_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    let store = open(&path);
    create(&store, "l1", 1).await;
    create(&store, "l2", 2).await;
    delete(&store, "l1").await;
    let copies = Copies::new(&store, copy_of(&path));
    copies.take().unwrap();
    let copy = StoreCopy::read(&copy_of(&path)).unwrap().expect("it was taken");
    let keys: Vec<_> = copy.objects.iter().map(|object| object.key.as_str()).collect();
    assert_eq!((copy.version, keys), (3, vec!["lamps/l2"]));
    assert!(copy.objects[0].json.contains(r#""lumen":2"#));
    let before = fs::metadata(copy_of(&path)).unwrap().modified().unwrap();
    copies.take().unwrap();
    let after = fs::metadata(copy_of(&path)).unwrap().modified().unwrap();
    assert_eq!(before, after, "nothing has changed");
}

#[tokio::test]
async fn a_copy_that_is_damaged_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = copy_of(&path_in(&folder));
    assert_eq!(StoreCopy::read(&path).unwrap(), None);
    let store = open(&path_in(&folder));
    create(&store, "l1", 1).await;
    Copies::new(&store, path.clone()).take().unwrap();
    let sound = fs::read(&path).unwrap();
    for place in 0..sound.len() {
        let mut flipped = sound.clone();
        flipped[place] ^= 4;
        fs::write(&path, &flipped).unwrap();
        let read = StoreCopy::read(&path);
        assert!(matches!(read, Err(CopyError::Damaged { .. })), "byte {place}: {read:?}");
        fs::write(&path, &sound[..place]).unwrap();
        let read = StoreCopy::read(&path);
        assert!(matches!(read, Err(CopyError::Damaged { .. })), "{place} bytes: {read:?}");
    }
}

#[tokio::test]
async fn changes_are_copied_soon_and_a_burst_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = copy_of(&path_in(&folder));
    let store = open(&path_in(&folder));
    let copies = Arc::new(Copies::new(&store, path.clone()));
    let following = tokio::spawn(Arc::clone(&copies).follow());
    tokio::task::yield_now().await;
    for number in 0..20 {
        create(&store, &format!("l{number}"), 1).await;
    }
    let copied = loop {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        if let Some(copy) = StoreCopy::read(&path).unwrap()
            && copy.objects.len() == 20
        {
            break copy;
        }
    };
    assert_eq!(copied.version, 20);
    following.abort();
}
