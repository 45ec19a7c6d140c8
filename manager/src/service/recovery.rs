//! Directories of replicas that no volume knows, and volumes made of them.
//!
//! A store that was lost or begun anew leaves them. They are told apart by their names, which are
//! `VOLUME-REPLICA`; what they hold is read only when somebody asks for it. What may never happen: a
//! directory of a volume that is there counts as nobody's, or a copy is taken that salvage wouldn't
//! take.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use ankole_replica::inspect::{Found, inspect, pardon};
use ankole_replica::record::{Member, Record};
use ankole_replica::salvage::{Exhibit, Turn, choose};
use ankole_replica::types::{Generation, ReplicaId};

use super::Service;
use super::salvage::{nothing_to_choose, refuse_doubts};
use crate::agent::layout::random_hex;
use crate::agent::replica_folders::SET_ASIDE;
use crate::agent::{Layout, probe, replica_folders};
use crate::api::error::chain;
use crate::api::replica::Place;
use crate::api::salvage::{RecoveryRequest, SalvageView};
use crate::api::volume::{REPLICAS_MAX, Transport, Volume, VolumeRequest, VolumeStatus};
use crate::api::{ApiError, Name};
use crate::schedule::{self, Disk};

impl Service {
    /// By path. Costs a listing of each disk's folder, and no look into any directory.
    pub fn orphans(&self) -> Result<Vec<PathBuf>, ApiError> {
        let volumes = self.context.store.each::<Volume>()?;
        let mut places = Vec::new();
        let mut unreadable = Vec::new();
        for (name, volume) in volumes {
            match volume {
                Ok(volume) => places.extend(volume.status.places),
                Err(_) => unreadable.push(name),
            }
        }
        // Where the directories of a volume that can't be read are, its object would say.
        let may_be_its = |path: &Path| {
            unreadable.iter().any(|volume| path.file_name().is_some_and(|it| is_of(it, volume)))
        };
        let is_known = |path: &Path| {
            places
                .iter()
                .any(|Place { directory, .. }| path == directory || is_beside(path, directory))
        };
        let mut found = replica_folders::all(self.context.layout.disks());
        found.retain(|path| !is_known(path) && !may_be_its(path));
        Ok(found)
    }

    /// What volumes could be made of the orphans, by name. Reads every one of them.
    pub fn recoveries(&self) -> Result<Vec<SalvageView>, ApiError> {
        let volumes = by_volume(self.orphans()?);
        volumes.into_iter().map(|(name, found)| self.recovery(name, &found, None)).collect()
    }

    pub fn recovery_view(
        &self,
        name: &Name,
        wanted: Option<&ReplicaId>,
    ) -> Result<SalvageView, ApiError> {
        let Some(found) = by_volume(self.orphans()?).remove(name) else {
            return Err(ApiError::not_found(format!(
                "no directory on the disks is of a volume {name} that isn't there"
            ))
            .next("ankole volume recover shows what could be recovered"));
        };
        self.recovery(name.clone(), &found, wanted)
    }

    /// Makes a volume of what the chosen directory holds; the others are rebuilt from it once it is
    /// attached.
    pub fn recover(&self, name: &Name, request: &RecoveryRequest) -> Result<SalvageView, ApiError> {
        self.refuse_while_stopping()?;
        let view = self.recovery_view(name, request.replica.as_ref())?;
        if let Some(refused) = &view.refused {
            return Err(ApiError::conflict(refused.clone())
                .next(format!("look at all of it with ankole volume recover {name} --dry-run")));
        }
        refuse_doubts(&view, request.accept_stale, "recover")?;
        let chosen = view.choice.chosen.as_ref().and_then(|member| {
            let mut exhibits = view.replicas.iter();
            let exhibit = exhibits.find(|exhibit| exhibit.replica == member.replica)?;
            let content = exhibit.evidence.replica()?.content.as_ref()?;
            Some((member, &exhibit.evidence.directory, content.size_bytes))
        });
        let Some((member, directory, size_bytes)) = chosen else {
            return Err(nothing_to_choose(&view));
        };
        pardon(directory).map_err(|error| {
            ApiError::failed(format!("volume {name}: {}", chain(&error)))
                .next("nothing was changed: repair the disk, or choose another --replica")
        })?;
        let above = view.choice.above.unwrap_or(Generation::FIRST);
        let record = Record::anew(member.clone(), above);
        let places = self.places_of(&view);
        let request = VolumeRequest {
            name: name.clone(),
            size_bytes,
            replicas: u8::try_from(places.len()).unwrap_or(REPLICAS_MAX),
            frontend: request.frontend,
            transport: Transport::default(),
            in_engine: false,
        };
        let spec = request.validate()?;
        let status =
            VolumeStatus { record: Some(record.clone()), places, ..VolumeStatus::default() };
        let uid = random_hex::<16>().map_err(|error| ApiError::failed(error.to_string()))?;
        self.context.store.add(&Volume { name: name.clone(), uid, spec, status })?;
        tracing::warn!(volume = %name, replica = %member.replica, generation = %record.generation,
            doubts = ?view.choice.doubts, "recovered: this copy is the volume from now on");
        Ok(SalvageView { record: Some(record), done: true, ..view })
    }

    fn recovery(
        &self,
        name: Name,
        found: &[(ReplicaId, PathBuf)],
        wanted: Option<&ReplicaId>,
    ) -> Result<SalvageView, ApiError> {
        let exhibit = |(replica, directory): &(ReplicaId, PathBuf)| Exhibit {
            replica: replica.clone(),
            evidence: inspect(directory),
        };
        let replicas: Vec<_> = found.iter().map(exhibit).collect();
        let choice = choose(&name, &replicas, None, wanted);
        let exists = self.context.store.get(crate::store::Kind::Volume, &name)?.is_some();
        let refused = if exists {
            Some(format!("a volume {name} exists already: another one can't have its name"))
        } else if let Some(pair) = found.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let (one, other) = (pair[0].1.display(), pair[1].1.display());
            Some(format!(
                "volume {name}: two directories are of one replica, {one} and {other}: move one away"
            ))
        } else if let Some(held) = replicas.iter().find(|it| it.evidence.held.is_some()) {
            let directory = held.evidence.directory.display();
            Some(format!("volume {name}: {directory} is in use by a process: end it"))
        } else if replicas.iter().all(|exhibit| exhibit.evidence.holds_nothing()) {
            Some(format!(
                "volume {name}: nothing was ever written to its directories; if no other disk has its data, remove them"
            ))
        } else if choice.chosen.is_none() {
            Some(format!("volume {name}: {}", choice.why))
        } else {
            None
        };
        let turn = Turn::RecordLost;
        Ok(SalvageView { volume: name, record: None, replicas, turn, refused, choice, done: false })
    }

    /// The directories that were found, but what isn't ours; and new ones for members that weren't.
    fn places_of(&self, view: &SalvageView) -> Vec<Place> {
        let is_ours = |exhibit: &&Exhibit| !matches!(exhibit.evidence.found, Found::Foreign { .. });
        let mut places: Vec<Place> = view
            .replicas
            .iter()
            .filter(is_ours)
            .map(|Exhibit { replica, evidence }| Place {
                replica: replica.clone(),
                directory: evidence.directory.clone(),
                port: None,
            })
            .collect();
        let is_placed = |member: &&Member| {
            view.replicas.iter().any(|exhibit| exhibit.replica == member.replica)
        };
        let missing: Vec<_> =
            view.choice.missing.iter().filter(|member| !is_placed(member)).collect();
        let disks = self.context.layout.disks().iter().map(|path| Disk {
            path: path.clone(),
            free_bytes: probe::free_bytes(path).unwrap_or(0),
        });
        let mut disks: Vec<_> = disks.collect();
        let is_used = |disk: &Disk| places.iter().any(|it| it.directory.starts_with(&disk.path));
        if disks.iter().any(|disk| !is_used(disk)) {
            disks.retain(|disk| !is_used(disk));
        }
        let count = u8::try_from(missing.len()).unwrap_or(REPLICAS_MAX);
        for (member, disk) in missing.into_iter().zip(schedule::place(count, &disks)) {
            let replica = member.replica.clone();
            let directory = Layout::replica_directory(&disk, &view.volume, &replica);
            places.push(Place { replica, directory, port: None });
        }
        places
    }
}

/// `v1-r2` of v1; not `v1-r2-r3`, which is of a volume v1-r2.
fn is_of(directory: &OsStr, volume: &str) -> bool {
    parts(directory).is_some_and(|(of, _)| of == volume)
}

/// What was set aside of a directory: `v1-r2.damaged-20261120-210244`.
fn is_beside(path: &Path, directory: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let (Some(own), Some(of)) = (name(path), name(directory)) else { return false };
    path.parent() == directory.parent() && own.starts_with(&format!("{of}{SET_ASIDE}"))
}

fn parts(directory: &OsStr) -> Option<(String, String)> {
    let name = directory.to_str()?;
    // What was set aside has a dot, and is of the same volume.
    let name = name.split_once('.').map_or(name, |(name, _)| name);
    let (volume, replica) = name.rsplit_once('-')?;
    Some((volume.into(), replica.into()))
}

/// Without those that were set aside: who wants one of them renames it.
fn by_volume(orphans: Vec<PathBuf>) -> BTreeMap<Name, Vec<(ReplicaId, PathBuf)>> {
    let mut volumes = BTreeMap::<Name, Vec<_>>::new();
    for path in orphans {
        let Some(name) = path.file_name().filter(|it| !it.to_string_lossy().contains('.')) else {
            continue;
        };
        let Some((volume, replica)) = parts(name) else { continue };
        let Ok(volume) = volume.parse() else { continue };
        volumes.entry(volume).or_default().push((ReplicaId::from(replica.as_str()), path));
    }
    volumes.values_mut().for_each(|found| found.sort_by(|a, b| a.0.cmp(&b.0)));
    volumes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_of_the_volume_that_its_name_says() {
        let volume_of = |name: &str| parts(OsStr::new(name)).map(|(volume, _)| volume);
        assert_eq!(volume_of("v1-r2").as_deref(), Some("v1"));
        assert_eq!(volume_of("a-b-r1").as_deref(), Some("a-b"));
        assert_eq!(volume_of("a-b-r1.damaged-20261120-210244").as_deref(), Some("a-b"));
        assert_eq!(volume_of("lost+found"), None);
        let found = ["/d/v1-r2", "/d/v1-r1", "/d/V-r1", "/d/v1-r3.damaged-2026", "/e/v2-r1"];
        let volumes = by_volume(found.map(PathBuf::from).into());
        let names: Vec<_> = volumes.iter().map(|(name, found)| (&**name, found.len())).collect();
        assert_eq!(names, [("v1", 2), ("v2", 1)]);
        assert!(is_beside(Path::new("/d/v1-r2.damaged-2026"), Path::new("/d/v1-r2")));
        assert!(!is_beside(Path::new("/e/v1-r2.damaged-2026"), Path::new("/d/v1-r2")));
    }
}
