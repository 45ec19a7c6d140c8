//! Directories of replicas that no volume knows, and volumes made of them.
//!
//! A store that was lost or begun anew leaves them. Which they are is told by what replicas name, and
//! what they hold is read only when somebody asks for it. What may never happen: a directory of a
//! volume that is there counts as nobody's, or a copy is taken that salvage wouldn't take.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ankole_api::objects::replica::{DIRECTORY_FINALIZER, Make};
use ankole_api::objects::volume::DATA_FINALIZER;
use ankole_api::objects::{Replica, ReplicaSpec, Volume, VolumeSpec};
use ankole_plan::volume::replicas::{folder_of, name_of};
use ankole_plan::volume::{Known, places_of_new};
use ankole_replica::inspect::{Found, inspect, pardon};
use ankole_replica::record::{Member, Record};
use ankole_replica::salvage::{Exhibit, Turn, choose};
use ankole_replica::types::{Generation, ReplicaId};
use ankole_store::StoreError;

use super::Service;
use super::salvage::{nothing_to_choose, refuse_doubts};
use crate::agent::node::Node;
use crate::agent::replica_folders;
use crate::agent::replica_folders::SET_ASIDE;
use crate::api::error::chain;
use crate::api::salvage::{RecoveryRequest, SalvageView};
use crate::api::volume::{REPLICAS_MAX, Transport, VolumeRequest};
use crate::api::{ApiError, Name};

impl Service {
    /// By path. Costs a listing of each disk's folder, and no look into any directory.
    pub fn orphans(&self) -> Result<Vec<PathBuf>, ApiError> {
        let mut known = BTreeSet::new();
        let mut unreadable = Vec::new();
        for replica in self.objects.list::<ReplicaSpec>()? {
            match replica {
                Ok(replica) => drop(known.insert(replica.spec.directory())),
                Err(StoreError::Unreadable { name, .. }) => unreadable.push(name),
                Err(error) => return Err(error.into()),
            }
        }
        // Which volume's an object is that can't be read, its name tells, and no more.
        for volume in self.objects.list::<VolumeSpec>()? {
            if let Err(StoreError::Unreadable { name, .. }) = volume {
                unreadable.push(name);
            }
        }
        let mut found = replica_folders::all(&self.agents.disks());
        found.retain(|path| {
            let whole = whole(path);
            !known.contains(&whole) && !unreadable.iter().any(|name| may_be_of(&whole, name))
        });
        Ok(found)
    }

    fn orphans_of(&self, volume: &Name) -> Result<Option<Vec<Exhibit>>, ApiError> {
        let mut orphans = self.orphans()?;
        orphans.retain(|path| may_be_of(path, volume));
        Ok(by_volume(orphans).remove(volume))
    }

    /// They may be all that is left of a volume of that name, which couldn't be made of them any more.
    pub(super) fn refuse_beside_orphans(&self, volume: &Name) -> Result<(), ApiError> {
        let mut folders = replica_folders::all(&self.agents.disks());
        folders.retain(|path| may_be_of(path, volume));
        if folders.is_empty() {
            return Ok(());
        }
        match self.orphans_of(volume)?.unwrap_or_default().first() {
            None => Ok(()),
            Some(exhibit) => {
                let directory = exhibit.evidence.directory.display();
                Err(ApiError::conflict(format!(
                    "volume {volume}: {directory} is there already, and no volume knows it"
                ))
                .next(format!("ankole volume recover {volume} --dry-run shows what it holds; or move it away, or choose another name")))
            }
        }
    }

    /// What volumes could be made of the orphans, by name. Reads every one of them.
    pub fn recoveries(&self) -> Result<Vec<SalvageView>, ApiError> {
        let volumes = by_volume(self.orphans()?);
        volumes.into_iter().map(|(name, found)| self.recovery(name, found, None)).collect()
    }

    pub fn recovery_view(
        &self,
        name: &Name,
        wanted: Option<&ReplicaId>,
    ) -> Result<SalvageView, ApiError> {
        let Some(found) = self.orphans_of(name)? else {
            return Err(ApiError::not_found(format!(
                "no directory on the disks is of a volume {name} that isn't there"
            ))
            .next("ankole volume recover shows what could be recovered"));
        };
        self.recovery(name.clone(), found, wanted)
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
        let spec = self.spec_of(&view, size_bytes, request)?;
        self.make_known(&view, spec, &record)?;
        tracing::warn!(volume = %name, replica = %member.replica, generation = %record.generation,
            doubts = ?view.choice.doubts, "recovered: this copy is the volume from now on");
        Ok(SalvageView { record: Some(record), done: true, ..view })
    }

    fn spec_of(
        &self,
        view: &SalvageView,
        size_bytes: u64,
        request: &RecoveryRequest,
    ) -> Result<VolumeSpec, ApiError> {
        let replicas = view.replicas.iter().filter(is_ours).count() + missing(view).len();
        let request = VolumeRequest {
            name: view.volume.clone(),
            size_bytes,
            replicas: u8::try_from(replicas).unwrap_or(REPLICAS_MAX),
            frontend: request.frontend,
            transport: Transport::default(),
            in_engine: false,
        };
        request.validate()
    }

    /// The volume has data and no record until all its replicas are there, and the record comes last:
    /// what a crash leaves says that it has lost its record, and salvage goes on from there.
    fn make_known(
        &self,
        view: &SalvageView,
        spec: VolumeSpec,
        record: &Record,
    ) -> Result<(), ApiError> {
        let mut volume = Volume::new(view.volume.clone(), spec);
        volume.metadata.finalizers.insert(DATA_FINALIZER.into());
        let volume = self.objects.create(&volume)?;
        for Exhibit { replica, evidence } in view.replicas.iter().filter(is_ours) {
            let agent = self.agent_with(&evidence.directory);
            let (disk, folder) = parts(&evidence.directory);
            let is_member = record.in_sync.iter().any(|member| member.replica == *replica);
            let make = if is_member { Make::Never } else { Make::IfNothing };
            self.make_replica(&volume, replica, &agent.name, disk, folder, make)?;
        }
        let missing = missing(view);
        for (member, (node, disk)) in missing.iter().zip(self.free_places(&volume, view, &missing))
        {
            let folder = folder_of(&volume, &member.replica);
            self.make_replica(&volume, &member.replica, &node, disk, folder, Make::IfNothing)?;
        }
        Ok(self.objects.modify_status::<VolumeSpec, _, StoreError>(
            volume.name(),
            |_, status| {
                status.record = Some(record.clone());
                Ok(())
            },
        )?)
    }

    fn make_replica(
        &self,
        volume: &Volume,
        id: &ReplicaId,
        node: &str,
        disk: PathBuf,
        folder: String,
        make: Make,
    ) -> Result<(), ApiError> {
        let spec = ReplicaSpec {
            volume: volume.name().clone(),
            volume_uid: volume.metadata.uid.clone(),
            id: id.clone(),
            node: node.into(),
            disk,
            folder,
            size_bytes: volume.spec.size_bytes,
            transport: volume.spec.transport,
            in_engine: false,
            served: false,
            make,
            keeps_data: false,
        };
        let mut replica = Replica::new(name_of(volume, id), spec).owned_by(volume);
        replica.metadata.finalizers.insert(DIRECTORY_FINALIZER.into());
        Ok(self.objects.create(&replica).map(drop)?)
    }

    /// Where members go that weren't found: on disks that have none of the others, if there are any.
    fn free_places(
        &self,
        volume: &Volume,
        view: &SalvageView,
        missing: &[Member],
    ) -> Vec<(String, PathBuf)> {
        let mut planned: Known = self.manager.known_with(volume.clone(), None, None);
        planned.volume.spec.replicas = u8::try_from(missing.len()).unwrap_or(REPLICAS_MAX);
        let used: Vec<_> = view.replicas.iter().filter(is_ours).map(|it| &it.evidence).collect();
        let nodes = Arc::make_mut(&mut planned.nodes);
        let is_free =
            |disk: &Path| !used.iter().any(|evidence| evidence.directory.starts_with(disk));
        if nodes.values().any(|node| node.disks.keys().any(|disk| is_free(disk))) {
            nodes.values_mut().for_each(|node| node.disks.retain(|disk, _| is_free(disk)));
        }
        places_of_new(&planned)
    }

    /// Whose disk it lies on.
    fn agent_with(&self, directory: &Path) -> &Node {
        let has = |agent: &&Arc<Node>| {
            agent.layout.disks().iter().any(|disk| directory.starts_with(disk))
        };
        self.agents.all().iter().find(has).unwrap_or_else(|| self.agents.first())
    }

    fn recovery(
        &self,
        name: Name,
        replicas: Vec<Exhibit>,
        wanted: Option<&ReplicaId>,
    ) -> Result<SalvageView, ApiError> {
        let choice = choose(&name, &replicas, None, wanted);
        let exists = !matches!(self.objects.find::<VolumeSpec>(&name), Ok(None));
        let refused = if exists {
            Some(format!("a volume {name} exists already: another one can't have its name"))
        } else if let Some(pair) = replicas.windows(2).find(|it| it[0].replica == it[1].replica) {
            let path = |exhibit: &Exhibit| exhibit.evidence.directory.display().to_string();
            let (one, other) = (path(&pair[0]), path(&pair[1]));
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
}

fn is_ours(exhibit: &&Exhibit) -> bool {
    !matches!(exhibit.evidence.found, Found::Foreign { .. })
}

/// Members that the evidence names and that weren't found.
fn missing(view: &SalvageView) -> Vec<Member> {
    let is_found =
        |member: &&Member| view.replicas.iter().any(|exhibit| exhibit.replica == member.replica);
    view.choice.missing.iter().filter(|member| !is_found(member)).cloned().collect()
}

/// Disk and folder of `DISK/replicas/FOLDER`.
fn parts(directory: &Path) -> (PathBuf, String) {
    let disk = directory.parent().and_then(Path::parent).unwrap_or(directory);
    (disk.into(), folder(directory))
}

fn folder(directory: &Path) -> String {
    directory.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What was set aside of a directory, `v1-r2.damaged-20261120-210244`, is known if that is.
fn whole(path: &Path) -> PathBuf {
    let name = folder(path);
    match name.split_once(SET_ASIDE) {
        Some((whole, _)) => path.with_file_name(whole),
        None => path.into(),
    }
}

/// By its name, which begins with that of its volume or of its object.
fn may_be_of(directory: &Path, name: &str) -> bool {
    folder(directory)
        .strip_prefix(name)
        .is_some_and(|rest| rest.starts_with('-') || rest.is_empty())
}

/// By what they hold; those that hold nothing of a replica by their names. Without those that were set
/// aside: who wants one of them renames it.
fn by_volume(orphans: Vec<PathBuf>) -> BTreeMap<Name, Vec<Exhibit>> {
    let mut volumes = BTreeMap::<Name, Vec<Exhibit>>::new();
    for directory in orphans.into_iter().filter(|path| whole(path) == *path) {
        let evidence = inspect(&directory);
        let told = match evidence.replica() {
            Some(held) => held.volume.parse().ok().map(|volume| (volume, held.replica.clone())),
            None => told_by_name(&folder(&directory)),
        };
        let Some((volume, replica)) = told else { continue };
        volumes.entry(volume).or_default().push(Exhibit { replica, evidence });
    }
    volumes.values_mut().for_each(|found| found.sort_by(|a, b| a.replica.cmp(&b.replica)));
    volumes
}

/// `VOLUME-UID-REPLICA`, and before there were uids `VOLUME-REPLICA`.
fn told_by_name(folder: &str) -> Option<(Name, ReplicaId)> {
    let (before, replica) = folder.rsplit_once('-')?;
    let is_uid = |it: &str| it.len() == 8 && it.bytes().all(|byte| byte.is_ascii_hexdigit());
    let volume = before.rsplit_once('-').filter(|(_, uid)| is_uid(uid)).map_or(before, |it| it.0);
    Some((volume.parse().ok()?, ReplicaId::from(replica)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_holds_nothing_is_of_the_volume_that_its_name_says() {
        let volume_of = |name: &str| told_by_name(name).map(|(volume, _)| volume.to_string());
        assert_eq!(volume_of("v1-r2").as_deref(), Some("v1"));
        assert_eq!(volume_of("v1-0f3a9c1d-r2").as_deref(), Some("v1"));
        assert_eq!(volume_of("a-b-r1").as_deref(), Some("a-b"));
        assert_eq!(volume_of("V-r1"), None);
    }

    #[test]
    fn what_was_set_aside_is_of_the_directory_that_it_was() {
        let aside = Path::new("/d/v1-0f3a9c1d-r2.damaged-20261120-210244");
        assert_eq!(whole(aside), Path::new("/d/v1-0f3a9c1d-r2"));
        assert_eq!(whole(Path::new("/d/v1-r2")), Path::new("/d/v1-r2"));
    }

    #[test]
    fn a_directory_may_be_of_a_volume_that_can_not_be_read() {
        for (path, name, may) in [
            ("/d/v1-0f3a9c1d-r2", "v1", true),
            ("/d/v1-r2", "v1-r2", true),
            ("/d/v1-r2", "v", false),
            ("/d/v11-r2", "v1", false),
        ] {
            assert_eq!(may_be_of(Path::new(path), name), may, "{path} {name}");
        }
    }
}
