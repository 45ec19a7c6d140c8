//! A store of format 1 or 2: converted whole, or left as it is.

use std::fs;
use std::path::{Path, PathBuf};

use redb::{Database, TableDefinition};
use twox_hash::XxHash3_64;

use super::super::file::{self, StoredObject};
use super::super::{
    Convert, EmbeddedStore, FileError, OpenError, Opening, Recover, StoreCopy, Unconverted,
    copy_of, read_older,
};
use super::{LAMP, block_on, create, lumen, path_in};
use crate::{Selector, Store, StoreError};

/// Two that can be read, and one that can't.
const LAMPS: [(&str, &str); 3] = [("l1", "1"), ("l2", "2"), ("l3", "{?")];
const VERSION: u64 = 9;

fn write_older(path: &Path, format: u64) -> Vec<u8> {
    {
        let database = Database::create(path).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let table: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("volumes");
            let mut table = transaction.open_table(table).unwrap();
            for (name, json) in LAMPS {
                let key = format!("volumes/{name}");
                let value = match format {
                    1 => [&7_u64.to_le_bytes()[..], json.as_bytes()].concat(),
                    _ => file::value_of(&StoredObject { key, version: 7, json: json.into() }),
                };
                table.insert(name, value.as_slice()).unwrap();
            }
            let mut meta = transaction.open_table(file::META).unwrap();
            meta.insert("format", format).unwrap();
            meta.insert("version", VERSION).unwrap();
        }
        transaction.commit().unwrap();
    }
    fs::read(path).unwrap()
}

fn write_older_copy(path: &Path, version: u64) {
    let object = |(name, json)| serde_json::json!({"kind": "volume", "name": name, "json": json});
    let objects = LAMPS.map(object);
    let body = serde_json::json!({"version": version, "takenUnixS": 1, "objects": objects});
    let body = body.to_string();
    let sum = XxHash3_64::oneshot(body.as_bytes());
    fs::write(copy_of(path), format!("ankole store copy 1 {sum:016x}\n{body}")).unwrap();
}

/// A number becomes a lamp and another one beside it.
fn lamps(older: &[StoredObject]) -> Result<Vec<StoredObject>, Unconverted> {
    let mut lamps = Vec::new();
    for older in older {
        let name = older.key.strip_prefix("volumes/").ok_or("no volume")?;
        let new =
            |name: &str, json| StoredObject { key: format!("lamps/{name}"), version: 0, json };
        match older.json.parse::<u64>() {
            Ok(number) => {
                let lamp = |name: &str| new(name, super::lamp(name, number).to_json());
                lamps.extend([lamp(name), lamp(&format!("{name}-twin"))]);
            }
            Err(_) => lamps.push(new(name, older.json.clone())),
        }
    }
    Ok(lamps)
}

fn open(path: &Path, convert: &Convert<'_>) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open_as(path, &Opening { convert: Some(convert), ..Opening::default() })
}

fn kept(path: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(path.parent().unwrap()).unwrap().map(|it| it.unwrap().path());
    let mut kept: Vec<_> =
        names.filter(|it| it.to_str().unwrap().contains(".redb.format-")).collect();
    kept.sort();
    kept
}

async fn has_the_lamps(store: &EmbeddedStore) {
    let list = store.list_raw(LAMP, &Selector::all()).await.unwrap();
    let names: Vec<_> = list.objects.iter().map(|raw| raw.name()).collect();
    assert_eq!(names, ["l1", "l1-twin", "l2", "l2-twin"]);
    assert_eq!(lumen(store, "l2-twin").await, Some(2));
    let read = store.get_raw(LAMP, "l3").await;
    assert!(matches!(read, Err(StoreError::Unreadable { .. })), "{read:?}");
    assert_eq!(list.unreadable[0].text.as_ref(), "{?");
}

#[test]
fn it_is_converted_once_and_the_older_file_is_kept() {
    for format in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let path = path_in(&folder);
        let before = write_older(&path, format);
        let store = open(&path, &lamps).unwrap();
        block_on(async {
            has_the_lamps(&store).await;
            let version = create(&store, "l4", 4).await;
            assert_eq!(version.0, (VERSION + 2).to_string(), "they go on");
        });
        drop(store);
        let again = open(&path, &|_| unreachable!("it was converted")).unwrap();
        block_on(has_lamp_4(&again));
        let kept = kept(&path);
        assert_eq!(kept, [folder.path().join(format!("ankole.redb.format-{format}"))]);
        assert!(fs::read(&kept[0]).unwrap() == before, "it is as it was");
    }
}

async fn has_lamp_4(store: &EmbeddedStore) {
    assert_eq!(lumen(store, "l4").await, Some(4));
}

/// Whoever doesn't know how to convert it leaves it alone, and so does whoever can't.
#[test]
fn what_can_not_be_converted_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    let before = write_older(&path, 2);
    let failing = |_: &[StoredObject]| Err("volume v1: no place".into());
    let same = |older: &[StoredObject]| Ok([&older[..1], &older[..1]].concat());
    let refused = open(&path, &failing).err().expect("it fails");
    assert!(ankole_api::error::chain(&refused).contains("volume v1: no place"), "{refused}");
    assert!(refused.next().contains("nothing was changed"), "{}", refused.next());
    let refused = open(&path, &same).err().expect("one would be lost");
    assert!(ankole_api::error::chain(&refused).contains("two objects would be volumes/l1"));
    let refused = EmbeddedStore::open(&path).err().expect("nobody knows how");
    assert!(matches!(refused, OpenError::File(FileError::Older { found: 2, .. })), "{refused}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(fs::read(&path).unwrap() == before);
    assert_eq!(read_older(&path).unwrap().1.len(), LAMPS.len());
}

#[test]
fn formats_that_nobody_knows_are_refused_untouched() {
    for format in [0, file::FORMAT + 1] {
        let folder = tempfile::tempdir().unwrap();
        let path = path_in(&folder);
        let before = write_older(&path, format);
        let refused = open(&path, &lamps).err().expect("it isn't known");
        assert!(refused.to_string().contains(&format!("has format {format}")), "{refused}");
        assert!(fs::read(&path).unwrap() == before && kept(&path).is_empty());
    }
}

/// The disk fails, or the power does, at each of the files that are written: the older one is there
/// until the new one is.
#[test]
fn it_is_the_older_one_or_the_new_one_wherever_it_is_broken_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    let before = write_older(&path, 2);
    for broken in ["ankole.redb.format-2.new", "ankole.redb.new"] {
        let in_the_way = folder.path().join(broken);
        fs::create_dir(&in_the_way).unwrap();
        open(&path, &lamps).err().expect("it can't be written");
        assert!(fs::read(&path).unwrap() == before, "{broken}");
        fs::remove_dir(&in_the_way).unwrap();
    }
    fs::write(folder.path().join("ankole.redb.new"), "half of one").unwrap();
    block_on(has_the_lamps(&open(&path, &lamps).unwrap()));
    assert_eq!(kept(&path).len(), 1, "it was kept at the first attempt");
    // Somebody went back to the version before, and comes again.
    let other = write_older_again(&path);
    block_on(has_the_lamps(&open(&path, &lamps).unwrap()));
    let kept = kept(&path);
    assert!(fs::read(&kept[0]).unwrap() == before && fs::read(&kept[1]).unwrap() == other);
}

fn write_older_again(path: &Path) -> Vec<u8> {
    fs::remove_file(path).unwrap();
    let mut bytes = write_older(path, 2);
    bytes.extend([0; 4096]);
    fs::write(path, &bytes).unwrap();
    bytes
}

/// Nothing of it is lost in silence on the way.
#[test]
fn one_with_a_page_of_garbage_is_converted_whole_or_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    let sound = write_older(&path, 2);
    let mut refusals = 0;
    let written = |page: &usize| sound[page * 4096..(page + 1) * 4096].iter().any(|it| *it != 0);
    for page in (0..sound.len() / 4096).filter(written) {
        let mut bytes = sound.clone();
        bytes[page * 4096..(page + 1) * 4096].fill(0xa5);
        let mut flipped = sound.clone();
        flipped[page * 4096 + 40] ^= 1;
        for bytes in [bytes, flipped] {
            fs::write(&path, &bytes).unwrap();
            match open(&path, &lamps) {
                Ok(store) => block_on(has_the_lamps(&store)),
                Err(OpenError::Lost { .. }) => {
                    refusals += 1;
                    assert!(fs::read(&path).unwrap() == bytes, "page {page}: touched");
                }
                Err(error) => panic!("page {page}: {error}"),
            }
        }
    }
    assert!(refusals > 4, "{refusals} refusals");
}

#[test]
fn a_damaged_one_is_recovered_from_its_copy() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    fs::write(&path, "garbage").unwrap();
    write_older_copy(&path, VERSION);
    let refused = open(&path, &lamps).err().expect("it is damaged");
    assert!(refused.next().contains("--recover-store copy"), "{}", refused.next());
    let believable = |mut objects: Vec<StoredObject>| {
        assert!(objects.iter().all(|it| it.key.starts_with("lamps/")), "they are converted");
        objects.retain(|it| !it.key.ends_with("l1"));
        objects
    };
    let recover = Some(Recover::Copy);
    let failing = |_: &[StoredObject]| Err("volume v1: no place".into());
    let refused = Opening { recover, convert: Some(&failing), ..Opening::default() };
    EmbeddedStore::open_as(&path, &refused).err().expect("it fails");
    assert_eq!(fs::read(&path).unwrap(), b"garbage", "it is where it was");
    let opening =
        Opening { recover, believable: &believable, convert: Some(&lamps), ..Opening::default() };
    let store = EmbeddedStore::open_as(&path, &opening).unwrap();
    block_on(async {
        let list = store.list_raw(LAMP, &Selector::all()).await.unwrap();
        assert_eq!((list.objects.len(), list.unreadable.len()), (3, 1));
        assert_eq!(list.version.0, (VERSION + 1).to_string());
    });
}

#[test]
fn one_that_is_older_than_its_copy_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    write_older(&path, 2);
    write_older_copy(&path, VERSION + 1);
    let refused = open(&path, &lamps).err().expect("it is older");
    assert!(refused.to_string().contains("has lost changes"), "{refused}");
    assert!(kept(&path).is_empty());
    write_older_copy(&path, VERSION);
    block_on(has_the_lamps(&open(&path, &lamps).unwrap()));
    // Nobody has taken a new copy yet.
    block_on(has_the_lamps(&open(&path, &lamps).unwrap()));
}

#[test]
fn a_copy_of_which_a_byte_was_changed_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    write_older_copy(&path, VERSION);
    let sound = fs::read(copy_of(&path)).unwrap();
    for place in 0..sound.len() {
        let mut flipped = sound.clone();
        flipped[place] ^= 4;
        for bytes in [&flipped[..], &sound[..place]] {
            fs::write(copy_of(&path), bytes).unwrap();
            assert!(StoreCopy::read(&copy_of(&path)).is_err(), "byte {place}");
        }
    }
}
