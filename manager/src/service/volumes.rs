//! Volumes: made, resized, shown, removed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ankole_api::object::{Object, Spec};
use ankole_api::objects::replica::REPLICAS;
use ankole_api::objects::{
    AttachmentSpec, EngineSpec, Replica, Volume, VolumeAttachment, VolumeSpec,
};
use ankole_plan::volume::Known;
use ankole_plan::volume::replicas::REBUILD;
use ankole_replica::types::ReplicaId;
use ankole_store::StoreError;

use super::attaching::refuse_deleting;
use super::view::{Said, Used, conditions};
use super::{Service, program};
use crate::agent::growth::Growth;
use crate::api::attachment::TicketKind;
use crate::api::error::chain;
use crate::api::replica::{Mode, ReplicaView};
use crate::api::size::{VolumeSize, human};
use crate::api::volume::{Reason, State, UpgradeRequest, VolumeRequest, VolumeView};
use crate::api::{ApiError, Name};

const FORMAT_PATIENCE: Duration = Duration::from_secs(60);

impl Service {
    /// Also those that can't be read, with the reason. Asks no engine: who looks after it has asked
    /// lately, and each that doesn't answer would be waited for.
    pub fn volumes(&self) -> Result<Vec<VolumeView>, ApiError> {
        let mut attachments = by_name(self.objects.readable::<AttachmentSpec>()?);
        let mut engines = by_name(self.objects.readable::<EngineSpec>()?);
        let mut known = |volume: Volume| {
            let name = volume.name().clone();
            self.manager.known_with(volume, attachments.remove(&name), engines.remove(&name))
        };
        let volumes = self.objects.list::<VolumeSpec>()?.into_iter();
        let all: Vec<_> = volumes.map(|volume| volume.map(&mut known)).collect();
        let used = self.used(&all.iter().flatten().collect::<Vec<_>>());
        let view = |known: Result<Known, StoreError>| match known {
            Ok(known) => Some(self.view(&known, &self.remember(&known), &used)),
            Err(error) => unreadable(error),
        };
        Ok(all.into_iter().filter_map(view).collect())
    }

    pub fn volume(&self, name: &Name) -> Result<VolumeView, ApiError> {
        match self.known(name) {
            Ok(known) => {
                let said = self.ask_or_remember(&known);
                Ok(self.view(&known, &said, &self.used(&[&known])))
            }
            Err(error) => unreadable(error.clone()).ok_or_else(|| error.into()),
        }
    }

    /// Answers when the replicas are formatted. If they can't be, nothing is left of the volume.
    pub fn create_volume(&self, request: &VolumeRequest) -> Result<VolumeView, ApiError> {
        self.create(&request.name, request.validate()?)
    }

    /// To be filled from a backup: nobody else gets in before it has been.
    pub fn create_restored(
        &self,
        request: &VolumeRequest,
        backup: &str,
    ) -> Result<VolumeView, ApiError> {
        let spec = VolumeSpec { from_backup: Some(backup.into()), ..request.validate()? };
        self.create(&request.name, spec)
    }

    fn create(&self, name: &Name, spec: VolumeSpec) -> Result<VolumeView, ApiError> {
        self.refuse_while_stopping()?;
        self.refuse_beside_orphans(name)?;
        let volume = Volume::new(name.clone(), spec);
        let to_bytes = volume.spec.size_bytes;
        let directories = self.places_of_new(&volume);
        Growth { volume: name, directories: &directories, from_bytes: 0, to_bytes }
            .refuse_impossible()?;
        match self.objects.create(&volume) {
            Err(StoreError::Exists { .. }) => {
                return Err(ApiError::conflict(format!("volume {name} exists already"))
                    .next("choose another name"));
            }
            made => drop(made?),
        }
        let failed = self.wait(name, FORMAT_PATIENCE, |known| {
            let Some(known) = known else { return Some(None) };
            if known.volume.is_ending() || known.volume.status.record.is_some() {
                return Some(None);
            }
            let told = conditions(known, None);
            told.iter().any(|it| is_obstacle(it.reason)).then_some(Some(told))
        })?;
        let Some(conditions) = failed.flatten() else { return self.volume(name) };
        self.objects.delete::<VolumeSpec, StoreError>(name, |_| Ok(()))?;
        let is_gone = |known: Option<&Known>| known.is_none().then_some(());
        let next = match self.wait(name, FORMAT_PATIENCE, is_gone)? {
            Some(()) => "nothing was left behind: repair the cause and create it again".into(),
            None => format!("it is being removed; ankole volume why {name} says how far that is"),
        };
        let causes: Vec<_> = conditions.into_iter().map(|condition| condition.message).collect();
        Err(ApiError::failed(format!("volume {name}: {}", causes.join("; "))).next(next))
    }

    /// Where its replicas on this machine would be made now, by any name.
    fn places_of_new(&self, volume: &Volume) -> Vec<PathBuf> {
        let known = self.manager.known_with(volume.clone(), None, None);
        ankole_plan::volume::places_of_new(&known)
            .into_iter()
            .filter(|(node, _)| self.agents.of(node).is_some())
            .map(|(_, disk)| disk.join(REPLICAS).join(&**volume.name()))
            .collect()
    }

    /// A volume only grows; what it hasn't become yet can be taken back. An attached one follows at
    /// once, another when it is attached.
    pub fn resize_volume(&self, name: &Name, size_bytes: u64) -> Result<VolumeView, ApiError> {
        let size = VolumeSize::of(size_bytes)
            .map_err(|error| ApiError::invalid(format!("volume {name}: {error}")))?;
        let present = self.known(name)?;
        // Its engine may have grown it a moment ago.
        let from_bytes = self.volume(name)?.size_bytes.max(present.volume.size_bytes());
        let to_bytes = size.bytes.max(from_bytes);
        let here = present.replicas.iter().filter(|it| self.agents.of(&it.spec.node).is_some());
        let directories: Vec<_> = here.map(|replica| replica.spec.directory()).collect();
        Growth { volume: name, directories: &directories, from_bytes, to_bytes }
            .refuse_impossible()?;
        self.objects.modify(name, |volume: &mut Volume| {
            refuse_deleting(volume)?;
            let present_bytes = from_bytes.max(volume.size_bytes());
            if size.bytes < present_bytes {
                let present = human(present_bytes);
                let wanted = human(size.bytes);
                return Err(ApiError::conflict(format!(
                    "volume {name} has {present} and would shrink to {wanted}"
                ))
                .next("create a smaller volume and copy the files"));
            }
            volume.spec.size_bytes = size.bytes;
            Ok(())
        })?;
        self.volume(name)
    }

    /// The engine hands over to one of another program, or of the same one anew.
    pub fn upgrade_engine(
        &self,
        name: &Name,
        request: &UpgradeRequest,
    ) -> Result<VolumeView, ApiError> {
        let checked = |path: &PathBuf| {
            program::check(path).map_err(|why| {
                ApiError::invalid(format!("volume {name}: {}: {why}", path.display()))
                    .next("name the absolute path of an ankole that runs on this node")
            })
        };
        let program = request.program.as_ref().map(checked).transpose()?;
        let attachment = self.objects.find::<AttachmentSpec>(name)?;
        let tickets = attachment.iter().flat_map(|it| it.spec.tickets.values());
        let mut jobs = tickets.filter(|ticket| ticket.kind != TicketKind::User);
        if let Some(job) = jobs.next() {
            return Err(ApiError::conflict(format!("volume {name} has a running {}", job.kind))
                .next("wait until it is done: it reads from the engine"));
        }
        self.objects.modify(name, |volume: &mut Volume| {
            refuse_deleting(volume)?;
            volume.spec.engine.program.clone_from(&program);
            volume.spec.engine.turn += 1;
            Ok::<_, ApiError>(())
        })?;
        self.volume(name)
    }

    /// Makes a replica anew from the others; its directory is set aside. Answers at once.
    pub fn rebuild_replica(
        &self,
        name: &Name,
        replica: &ReplicaId,
    ) -> Result<VolumeView, ApiError> {
        self.refuse_while_stopping()?;
        let view = self.volume(name)?;
        if !view.replicas.iter().any(|it| it.replica == *replica) {
            return Err(ApiError::not_found(format!("volume {name} has no replica {replica}"))
                .next(format!("ankole replica ls {name}")));
        }
        let is_other = |it: &&ReplicaView| it.replica != *replica && it.mode == Mode::ReadWrite;
        if view.state != State::Attached {
            return Err(ApiError::conflict(format!(
                "volume {name} is {}: only an engine can rebuild a replica",
                view.state
            ))
            .next(format!("ankole volume attach {name}")));
        }
        if view.replicas.iter().find(is_other).is_none() {
            return Err(ApiError::conflict(format!(
                "replica {replica} of volume {name}: no other copy is in sync to rebuild it from"
            ))
            .next(format!("ankole volume why {name}")));
        }
        let known = self.known(name)?;
        let of = |it: &&Replica| it.spec.id == *replica;
        if let Some(object) = known.replicas.iter().find(of) {
            self.objects.modify(object.name(), |object: &mut Replica| {
                // None lies there: it is made anew anyway.
                if let Some(present) = object.status.incarnation {
                    object.metadata.annotations.insert(REBUILD.into(), present.to_string());
                }
                Ok::<_, StoreError>(())
            })?;
        }
        self.volume(name)
    }

    /// Marks it; manager and agents remove everything and then the object.
    pub fn delete_volume(&self, name: &Name) -> Result<VolumeView, ApiError> {
        let attachment = self.objects.find::<AttachmentSpec>(name)?;
        let tickets = |it: VolumeAttachment| it.spec.tickets.into_values();
        let tickets: Vec<_> =
            attachment.into_iter().flat_map(tickets).map(|it| it.kind.to_string()).collect();
        if !tickets.is_empty() {
            let tickets = tickets.join(", ");
            return Err(ApiError::conflict(format!("volume {name} is attached ({tickets})"))
                .next(format!("ankole volume detach {name}")));
        }
        let before = self.known(name)?;
        let gone = self.objects.delete::<VolumeSpec, StoreError>(name, |_| Ok(()))?.is_none();
        let view = if gone { None } else { self.volume(name).ok() };
        Ok(view.unwrap_or_else(|| VolumeView {
            state: State::Deleting,
            ..self.view(&before, &Said::default(), &Used::new())
        }))
    }

    pub fn replicas(&self, volume: Option<&Name>) -> Result<Vec<ReplicaView>, ApiError> {
        let volumes = match volume {
            Some(name) => vec![self.volume(name)?],
            None => self.volumes()?,
        };
        Ok(volumes.into_iter().flat_map(|volume| volume.replicas).collect())
    }
}

fn by_name<S: Spec>(objects: Vec<Object<S>>) -> BTreeMap<Name, Object<S>> {
    objects.into_iter().map(|object| (object.name().clone(), object)).collect()
}

/// None if it isn't that.
fn unreadable(error: StoreError) -> Option<VolumeView> {
    match &error {
        StoreError::Unreadable { name, .. } => {
            Some(VolumeView::unreadable(name.parse().ok()?, chain(&error)))
        }
        _ => None,
    }
}

/// A new volume won't come to be.
fn is_obstacle(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ActionFailed | Reason::NoNode | Reason::ReplicaOccupied | Reason::ReplicaUnreadable
    )
}
