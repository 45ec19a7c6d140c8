//! Backups and restores: objects, which the agent of their volume's node makes true.
//!
//! ```text
//! ticket ─▶ Backup, Restore ─▶ its agent works, tells what came of it, and takes the ticket back
//! ```
//! Whatever ends between ticket and object leaves a ticket without a job, which the next start takes
//! back.

use std::collections::BTreeSet;

use ankole_api::object::Object;
use ankole_api::objects::job::name;
use ankole_api::objects::{
    AttachmentSpec, BackupSpec, JobSpec, RestoreSpec, VolumeAttachment, VolumeSpec,
};
use ankole_plan::volume::{Known, Life};
use ankole_store::StoreError;

use super::Service;
use crate::agent::layout::random_hex;
use crate::api::attachment::{AttachRequest, TicketKind};
use crate::api::backup::{BackupRequest, Job, RestoreRequest};
use crate::api::volume::{Frontend, Transport, VolumeRequest};
use crate::api::{ApiError, Name};
use crate::backup_job;

const RUNNING_MAX: usize = 8;

impl Service {
    /// Answers when the volume can be read, or says why it can't.
    pub fn create_backup(&self, request: BackupRequest) -> Result<Job, ApiError> {
        let BackupRequest { volume, snapshot, target, full } = request;
        let target = self.target_url(target.as_deref())?;
        self.refuse_new_jobs()?;
        // Else the job would wait for what only a person can do.
        let _engaged = self.engage(&volume, TicketKind::Backup)?;
        let known = self.known(&volume)?;
        let node = self.node_for(&known);
        let volume_uid = known.volume.metadata.uid;
        self.begin(TicketKind::Backup, |ticket| BackupSpec {
            volume,
            volume_uid,
            node,
            snapshot,
            target,
            full,
            ticket,
        })
    }

    /// Makes the volume, and answers when it can be filled.
    pub fn restore_backup(&self, request: RestoreRequest) -> Result<Job, ApiError> {
        let RestoreRequest { url, volume, replicas } = request;
        if self.objects.find::<VolumeSpec>(&volume)?.is_some() {
            return Err(ApiError::conflict(format!("volume {volume} exists already"))
                .next("restore to a new name"));
        }
        self.refuse_new_jobs()?;
        let wanted = VolumeRequest {
            name: volume.clone(),
            size_bytes: backup_job::restored_bytes(&url)?,
            replicas,
            frontend: Frontend::default(),
            transport: Transport::default(),
            in_engine: false,
        };
        self.create_restored(&wanted, &url)?;
        let known = self.known(&volume)?;
        let (node, volume_uid) = (self.node_for(&known), known.volume.metadata.uid);
        let begun = self.begin(TicketKind::Restore, |ticket| RestoreSpec {
            volume: volume.clone(),
            volume_uid,
            node,
            url,
            ticket,
        });
        begun.inspect_err(|_| {
            // Nothing was written to it.
            if let Err(error) = self.delete_volume(&volume) {
                tracing::warn!(%volume, %error, "remove a volume that isn't restored");
            }
        })
    }

    pub fn job(&self, id: u64) -> Result<Job, ApiError> {
        let backup = self.objects.find::<BackupSpec>(&name::<BackupSpec>(id))?;
        let shown = match backup.as_ref().and_then(Object::shown) {
            Some(shown) => Some(shown),
            None => {
                let restore = self.objects.find::<RestoreSpec>(&name::<RestoreSpec>(id))?;
                restore.as_ref().and_then(Object::shown)
            }
        };
        shown.ok_or_else(|| {
            ApiError::not_found(format!("job {id} isn't known"))
                .next("those that ended last are remembered; ankole backup ls shows what there is")
        })
    }

    /// The volume is attached for the object from before it is there.
    fn begin<S: JobSpec>(
        &self,
        kind: TicketKind,
        spec: impl FnOnce(String) -> S,
    ) -> Result<Job, ApiError> {
        let random = random_hex::<8>().map_err(|error| ApiError::failed(error.to_string()))?;
        let number = u64::from_str_radix(&random, 16).expect("8 bytes as hexadecimal digits");
        let ticket = name::<S>(number).to_string();
        let job = Object::job(number, spec(ticket.clone()));
        let volume = job.spec.volume().clone();
        let read_only = self.is_read_only(&volume)?;
        let node = job.spec.node().map(str::to_owned);
        self.attach(&volume, &ticket, kind, &AttachRequest { read_only, node })?;
        let made = self.objects.create(&job).map_err(ApiError::from).and_then(|made| {
            made.shown().ok_or_else(|| ApiError::failed(format!("{ticket} has no number")))
        });
        made.inspect_err(|_| {
            if let Err(error) = self.drop_ticket(&volume, &ticket) {
                tracing::warn!(%volume, %error, "take back the ticket of a job");
            }
        })
    }

    /// Where the volume is, or can be attached.
    fn node_for(&self, known: &Known) -> String {
        let tickets = known.attachment.as_ref().map(|attachment| &attachment.spec);
        let is_wanted = tickets.is_some_and(|spec| !spec.tickets.is_empty());
        let last = known.volume.status.node.as_deref();
        let asked_for = tickets.and_then(|spec| spec.node()).or(last.filter(|_| is_wanted));
        let is_ready =
            |node: &&str| known.nodes.get(*node).is_some_and(|it| it.life == Life::Ready);
        let replicas = known.replicas.iter().map(|replica| &*replica.spec.node);
        let ready = || last.into_iter().chain(replicas).find(is_ready);
        asked_for.or_else(ready).unwrap_or(&self.agents.first().name).to_owned()
    }

    fn refuse_new_jobs(&self) -> Result<(), ApiError> {
        let running = self.running::<BackupSpec>()?.len() + self.running::<RestoreSpec>()?.len();
        if running >= RUNNING_MAX {
            return Err(ApiError::conflict(format!("{running} jobs run already"))
                .next("try again when one has ended"));
        }
        Ok(())
    }

    /// The names of those that aren't over, as far as can be told.
    fn running<S: JobSpec>(&self) -> Result<BTreeSet<String>, StoreError> {
        let names = self.objects.list::<S>()?.into_iter().filter_map(|job| match job {
            Ok(job) => (!job.is_over()).then(|| job.name().to_string()),
            Err(StoreError::Unreadable { name, .. }) => Some(name),
            Err(_) => None,
        });
        Ok(names.collect())
    }

    /// Takes back the tickets that nobody works for any more, of requests and of jobs that never
    /// came to be. A volume that was made for such a restore goes, if nothing was written to it.
    pub(super) fn drop_job_tickets(&self) -> Result<(), ApiError> {
        let mut working = self.running::<BackupSpec>()?;
        working.extend(self.running::<RestoreSpec>()?);
        let restores = self.objects.readable::<RestoreSpec>()?;
        for volume in self.objects.readable::<VolumeSpec>()? {
            let uid = &volume.metadata.uid;
            let has_job = restores.iter().any(|restore| restore.spec.volume_uid == *uid);
            let record = volume.status.record.as_ref();
            let is_empty = record.is_some_and(|record| record.engine.is_none());
            if volume.is_being_restored() && !volume.is_ending() && !has_job && is_empty {
                tracing::warn!(volume = %volume.name(), "its restore never began; it is removed");
                self.objects.delete::<VolumeSpec, StoreError>(volume.name(), |_| Ok(()))?;
            }
        }
        for attachment in self.objects.readable::<AttachmentSpec>()? {
            self.objects.modify(attachment.name(), |it: &mut VolumeAttachment| {
                let is_users = |kind| kind == TicketKind::User;
                it.spec.tickets.retain(|id, it| is_users(it.kind) || working.contains(id));
                Ok::<_, StoreError>(())
            })?;
        }
        Ok(())
    }

    /// Whether who joins those that have the volume attached has to be content with reading, as a
    /// job is: its own requests go to the engine, not through its frontend.
    pub(super) fn is_read_only(&self, volume: &Name) -> Result<bool, StoreError> {
        let present = self.objects.find::<AttachmentSpec>(volume)?.map(|it| it.spec);
        let present = present.unwrap_or_default();
        Ok(!present.tickets.is_empty() && present.is_read_only())
    }
}
