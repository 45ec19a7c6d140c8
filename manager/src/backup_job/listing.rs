//! What a target holds, as people see it: each thing for itself, so that a damaged one hides no
//! other.

use std::path::Path;

use ankole_backup::inventory::{
    self, BackupDetails, BackupEntry, BackupState as Found, Place, Surroundings, Volumes,
    look_around,
};
use ankole_backup::{self as backup, Target, TargetUrl};

use super::next::{About, refused};
use super::{backup_name, open, open_backup};
use crate::api::ApiError;
use crate::api::backup::{BackupState, BackupView};
use crate::api::error::chain;

/// Names of backing images that are told; their number is told too.
const IMAGES_NAMED: usize = 3;

/// A list, and what a person should know besides.
pub struct Listing {
    /// By volume and time. One that is being made comes last.
    pub backups: Vec<BackupView>,
    pub remarks: Vec<String>,
}

/// All backups of a target, of one volume or of all; also those that can't be restored.
pub fn list(target: &str, volume: Option<&str>) -> Result<Listing, ApiError> {
    let (url, target) = open(target)?;
    let refused = |error| refused(About::Target(&url), &error);
    let mut listing = Listing { backups: Vec::new(), remarks: Vec::new() };
    let (volumes, problems) = match volume {
        Some(volume) => (vec![backup_name(volume)?], Vec::new()),
        None => {
            let Volumes { names, problems } = inventory::volumes(&*target).map_err(refused)?;
            (names, problems)
        }
    };
    listing.remarks.extend(problems.iter().map(|problem| chain(problem)));
    for volume in &volumes {
        match inventory::backups(&*target, volume) {
            Ok(entries) => {
                listing.backups.extend(entries.into_iter().map(|entry| shown(&url, volume, entry)));
            }
            Err(error) => listing.remarks.push(format!("volume {volume}: {}", chain(&error))),
        }
    }
    listing.backups.sort_by(|a, b| {
        let key = |view: &BackupView| (view.volume.clone(), view.created.is_empty());
        (key(a), &a.created, &a.name).cmp(&(key(b), &b.created, &b.name))
    });
    for unreadable in listing.backups.iter().filter(|view| !view.problem.is_empty()) {
        let BackupView { volume, name, problem, .. } = unreadable;
        listing.remarks.push(format!("backup {name} of volume {volume}: {problem}"));
    }
    if volume.is_none() {
        listing.remarks.extend(around(&url, &*target, volumes.is_empty()).map_err(refused)?);
    } else if listing.backups.is_empty() && listing.remarks.is_empty() {
        let volume = &volumes[0];
        listing.remarks.push(format!("{url} holds no backup of a volume {volume}"));
    }
    Ok(listing)
}

/// One backup, by its URL.
pub fn inspect(url: &str) -> Result<BackupView, ApiError> {
    let (url, target) = open_backup(url)?;
    let details = inventory::inspect(&*target, &url.volume, &url.backup)
        .map_err(|error| refused(About::Backup(&url), &error))?;
    Ok(complete(&url.target, &url.volume, &url.backup, details))
}

fn shown(target: &TargetUrl, volume: &backup::Name, entry: BackupEntry) -> BackupView {
    let BackupEntry { name, state } = entry;
    match state {
        Found::Complete(details) => complete(target, volume, &name, *details),
        Found::InProgress => bare(target, volume, &name, BackupState::InProgress),
        Found::Unreadable(error) => BackupView {
            problem: chain(&error),
            ..bare(target, volume, &name, BackupState::Unreadable)
        },
    }
}

pub(super) fn complete(
    target: &TargetUrl,
    volume: &backup::Name,
    backup: &backup::Name,
    details: BackupDetails,
) -> BackupView {
    let BackupDetails { manifest, size_bytes, backing_image } = details;
    let state = match &backing_image {
        Some(_) => BackupState::NeedsImage,
        None => BackupState::Complete,
    };
    BackupView {
        snapshot: manifest.snapshot_name,
        created: manifest.created_time.0,
        size_bytes,
        new_bytes: manifest.newly_uploaded_bytes,
        labels: manifest.labels.unwrap_or_default(),
        backing_image: backing_image.unwrap_or_default(),
        ..bare(target, volume, backup, state)
    }
}

fn bare(
    target: &TargetUrl,
    volume: &backup::Name,
    backup: &backup::Name,
    state: BackupState,
) -> BackupView {
    BackupView {
        name: backup.to_string(),
        volume: volume.to_string(),
        state,
        url: target.backup(volume, backup).to_string(),
        snapshot: String::new(),
        created: String::new(),
        size_bytes: 0,
        new_bytes: 0,
        labels: Default::default(),
        backing_image: String::new(),
        problem: String::new(),
    }
}

/// What else is there; why there is no backup, if there is none.
fn around(
    url: &TargetUrl,
    target: &dyn Target,
    is_empty: bool,
) -> Result<Option<String>, backup::Error> {
    let Surroundings { place, backing_images: images } = look_around(target)?;
    if let Place::Store = place
        && !images.is_empty()
    {
        let named = images.iter().take(IMAGES_NAMED).cloned().collect::<Vec<_>>().join(", ");
        let (number, more) = (images.len(), if images.len() > IMAGES_NAMED { ", …" } else { "" });
        return Ok(Some(format!(
            "{url} also holds {number} backing images ({named}{more}), which Longhorn can restore and this version can't"
        )));
    }
    let why_empty = || match &place {
        Place::NoStore(names) => {
            format!("{url} is no backup store; it holds other things ({})", names.join(", "))
        }
        Place::Empty => format!("{url} is empty"),
        place => misplaced(url, place)
            .unwrap_or_else(|| format!("{url} is a backup store without a backup of a volume")),
    };
    Ok(is_empty.then(why_empty))
}

/// Where the store is instead, if the target lies too deep or too high.
pub(super) fn misplaced(url: &TargetUrl, place: &Place) -> Option<String> {
    match place {
        Place::InsideAStore => Some(match above_the_store(url.path()) {
            Some(root) => format!(
                "{url} lies inside of a backup store; name the folder that holds it: file://{}",
                root.display()
            ),
            None => format!("{url} is the inside of a backup store; name the folder that holds it"),
        }),
        Place::AboveAStore(folder) => Some(format!(
            "{url} is no backup store, but its folder {folder} is one; name that: {}/{folder}",
            url.to_string().trim_end_matches('/')
        )),
        Place::Store | Place::Empty | Place::NoStore(_) => None,
    }
}

fn above_the_store(path: &Path) -> Option<&Path> {
    let is_store = |path: &&Path| path.file_name().is_some_and(|name| name == "backupstore");
    path.ancestors().find(is_store)?.parent()
}
