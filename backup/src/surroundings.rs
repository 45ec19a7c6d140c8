//! What lies in a target besides backups of volumes: for who looks for backups and finds none.

use crate::error::Error;
use crate::layout::{BACKING_IMAGES_FOLDER, STORE_FOLDER};
use crate::target::Target;

/// Folders that are looked into for a store; more than a person would keep beside one.
const LOOKED_INTO_MAX: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    pub place: Place,
    /// Names of backups of backing images, which Longhorn makes.
    pub backing_images: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Store,
    Empty,
    /// The target begins too deep: a folder above it is the store's.
    InsideAStore,
    /// The target begins too high: this folder in it has a store.
    AboveAStore(String),
    /// It has other things only; some of their names.
    NoStore(Vec<String>),
}

pub fn look_around(target: &dyn Target) -> Result<Surroundings, Error> {
    let mut names = target.children("")?;
    names.sort();
    let place = place(target, names)?;
    let mut backing_images = match place {
        Place::Store => target.children(BACKING_IMAGES_FOLDER)?,
        _ => Vec::new(),
    };
    backing_images.sort();
    Ok(Surroundings { place, backing_images })
}

fn place(target: &dyn Target, names: Vec<String>) -> Result<Place, Error> {
    let has = |name: &str| names.iter().any(|found| found == name);
    if has(STORE_FOLDER) {
        return Ok(Place::Store);
    }
    if names.is_empty() {
        return Ok(Place::Empty);
    }
    let of_a_store = ["volumes", "backing-images", "system-backups", "volume.cfg"];
    let is_hash = |name: &String| name.len() == 2 && name.bytes().all(|b| b.is_ascii_hexdigit());
    if of_a_store.into_iter().any(has) || names.iter().all(is_hash) {
        return Ok(Place::InsideAStore);
    }
    for name in names.iter().take(LOOKED_INTO_MAX) {
        // A file can't be listed, nor a folder of somebody else: neither has the store.
        if target.children(name).is_ok_and(|below| below.iter().any(|found| found == STORE_FOLDER))
        {
            return Ok(Place::AboveAStore(name.clone()));
        }
    }
    Ok(Place::NoStore(names.into_iter().take(3).collect()))
}
