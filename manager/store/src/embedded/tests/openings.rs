//! A store that is gone or damaged: said, and recovered as somebody chooses.

use std::fs;

use super::super::{Copies, EmbeddedStore, OpenError, Opening, Recover, StoredObject, copy_of};
use super::{LAMP, all, block_on, create, delete, path_in};
use crate::{Selector, Store};

const LAMPS: u64 = 40;

struct Place {
    folder: tempfile::TempDir,
    sound: Vec<u8>,
    objects: Vec<String>,
}

impl Place {
    /// A store with objects and its copy. `is_clean`: its process ended well.
    fn new(is_clean: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = path_in(&folder);
        let store = EmbeddedStore::open(&path).unwrap();
        let objects = block_on(async {
            for number in 0..LAMPS {
                create(&store, &format!("l{number}"), number).await;
            }
            delete(&store, "l0").await;
            all(&store).await
        });
        let killed = fs::read(&path).unwrap();
        Copies::new(&store, copy_of(&path)).take().unwrap();
        drop(store);
        let sound = if is_clean { fs::read(&path).unwrap() } else { killed };
        Self { folder, sound, objects }
    }

    fn path(&self) -> std::path::PathBuf {
        path_in(&self.folder)
    }

    fn replace(&self, bytes: &[u8]) {
        fs::write(self.path(), bytes).unwrap();
    }

    fn open(&self, recover: Option<Recover>) -> Result<Vec<String>, OpenError> {
        let elsewhere = Some("the disks have v1-r1".into());
        let opening = Opening { elsewhere, recover, ..Opening::default() };
        let store = EmbeddedStore::open_as(&self.path(), &opening)?;
        Ok(block_on(all(&store)))
    }

    fn set_aside(&self, part: &str) -> usize {
        let names = fs::read_dir(self.folder.path()).unwrap();
        names.filter(|it| it.as_ref().unwrap().file_name().to_str().unwrap().contains(part)).count()
    }
}

#[test]
fn a_first_start_makes_a_store_and_the_second_opens_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    for _ in 0..2 {
        EmbeddedStore::open(&path).unwrap();
    }
    let opening = Opening { recover: Some(Recover::Empty), ..Opening::default() };
    let refused = EmbeddedStore::open_as(&path, &opening).err().expect("it is sound");
    assert!(refused.next().contains("without --recover-store"), "{refused}");
}

/// It was made anew without a word, and every volume was gone.
#[test]
fn a_store_that_is_gone_is_refused_while_something_shows_that_there_was_one() {
    let place = Place::new(true);
    for bytes in [None, Some(&b""[..])] {
        fs::remove_file(place.path()).unwrap();
        bytes.into_iter().for_each(|bytes| place.replace(bytes));
        let refused = place.open(None).expect_err("it is gone");
        assert!(refused.to_string().contains("v1-r1"), "{refused}");
        assert!(refused.next().contains("--recover-store copy"), "{}", refused.next());
        let by_the_copy = EmbeddedStore::open(&place.path()).err().expect("it is gone");
        assert!(by_the_copy.to_string().contains("there is a copy of it"), "{by_the_copy}");
        assert_eq!(place.open(Some(Recover::Copy)).unwrap(), place.objects);
        assert_eq!(place.open(None).unwrap(), place.objects);
    }
    fs::remove_file(place.path()).unwrap();
    fs::remove_file(copy_of(&place.path())).unwrap();
    let refused = place.open(None).expect_err("it is gone");
    assert!(refused.next().contains("--recover-store empty"), "{}", refused.next());
    let refused = place.open(Some(Recover::Copy)).expect_err("there is none");
    assert!(matches!(refused, OpenError::NoCopy { .. }), "{refused}");
    assert_eq!(place.open(Some(Recover::Empty)).unwrap(), [""; 0]);
}

/// Never a panic, never silently empty, never silently older: what isn't noticed does no harm.
#[test]
fn a_store_with_a_page_of_garbage_or_cut_short_is_whole_or_refused() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    };
    let mut refusals = 0;
    for place in [Place::new(true), Place::new(false)] {
        place.replace(&place.sound);
        assert_eq!(place.open(None).expect("it is sound"), place.objects);
        let length = place.sound.len();
        for page in 0..length.div_ceil(4096) {
            let mut garbage = place.sound.clone();
            let end = length.min((page + 1) * 4096);
            garbage[page * 4096..end].chunks_mut(8).for_each(|part| {
                part.copy_from_slice(&random()[..part.len()]);
            });
            let mut flipped = place.sound.clone();
            flipped[page * 4096 + usize::from(random()[0]) * 8] ^= 1;
            for bytes in [garbage, flipped, place.sound[..page * 4096 + 1].to_vec()] {
                place.replace(&bytes);
                match place.open(None) {
                    Ok(found) => assert_eq!(found, place.objects, "page {page}"),
                    Err(OpenError::Lost { .. }) => {
                        refusals += 1;
                        assert!(fs::read(place.path()).unwrap() == bytes, "page {page}: touched");
                    }
                    Err(error) => panic!("page {page}: {error}"),
                }
            }
        }
        place.replace(&place.sound[..4096]);
        assert_eq!(place.open(Some(Recover::Copy)).unwrap(), place.objects);
        assert_eq!(place.set_aside("redb.damaged"), 1, "it is kept");
    }
    assert!(refusals > 20, "{refusals} refusals");
}

/// One that was brought back from a backup, or a disk that forgot.
#[test]
fn a_store_that_is_older_than_its_copy_is_refused() {
    let place = Place::new(true);
    let older = place.sound.clone();
    let store = EmbeddedStore::open(&place.path()).unwrap();
    block_on(create(&store, "l99", 1));
    Copies::new(&store, copy_of(&place.path())).take().unwrap();
    drop(store);
    place.replace(&older);
    let refused = place.open(None).expect_err("it is older");
    assert!(refused.to_string().contains("has lost changes: its last is 41"), "{refused}");
    assert!(refused.next().contains("if the older one is meant, move"), "{}", refused.next());
    let copied = place.open(Some(Recover::Copy)).unwrap();
    assert_eq!(copied.len(), place.objects.len() + 1);
}

/// A record of who is in sync may be older than what a replica has seen.
#[test]
fn of_a_copy_only_what_can_be_believed_is_taken_and_versions_go_on() {
    let place = Place::new(true);
    place.replace(b"");
    let believable = |mut objects: Vec<StoredObject>| {
        for object in &mut objects {
            object.json = object.json.replace(r#""lumen":7"#, r#""lumen":0"#);
        }
        objects
    };
    let opening =
        Opening { recover: Some(Recover::Copy), believable: &believable, ..Opening::default() };
    let store = EmbeddedStore::open_as(&place.path(), &opening).unwrap();
    block_on(async {
        assert_eq!(super::lumen(&store, "l7").await, Some(0));
        assert_eq!(super::lumen(&store, "l8").await, Some(8));
        let version = store.list_raw(LAMP, &Selector::all()).await.unwrap().version;
        assert_eq!(version.0, (LAMPS + 2).to_string());
    });
}

#[test]
fn a_copy_that_is_damaged_is_kept_aside_when_the_store_begins_anew() {
    let place = Place::new(true);
    place.replace(b"");
    fs::write(copy_of(&place.path()), "damaged").unwrap();
    let refused = place.open(Some(Recover::Copy)).expect_err("it is damaged");
    assert!(refused.to_string().contains("its sum isn't"), "{refused}");
    assert_eq!(place.open(Some(Recover::Empty)).unwrap(), [""; 0]);
    assert_eq!(place.set_aside("copy.damaged"), 1, "it is kept");
}
