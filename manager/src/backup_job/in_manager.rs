//! Jobs on a thread of the manager, which attaches their volumes and makes those that are restored.

use ankole_backup::inventory;

use super::next::{About, Step, refused};
use super::work::{self, Observer};
use super::{failed, open, open_backup};
use crate::agent::layout::random_hex;
use crate::api::ApiError;
use crate::api::attachment::TicketKind;
use crate::api::backup::{BackupRequest, BackupView, JobProgress, RestoreRequest};
use crate::api::job::{BackupWork, VolumeAccess};
use crate::api::volume::{Frontend, Transport, VolumeRequest};
use crate::service::{Engaged, JobControl, Service};

struct InManager<'a> {
    service: &'a Service,
    control: &'a JobControl<'a>,
}

impl Observer for InManager<'_> {
    fn progress(&self, progress: JobProgress) {
        self.control.progress(progress);
    }
    fn is_stopping(&self) -> bool {
        self.service.is_stopping()
    }
}

pub fn create(
    service: &Service,
    control: &JobControl<'_>,
    request: &BackupRequest,
    target: &str,
) -> Result<BackupView, ApiError> {
    open(target)?; // before the volume is attached for it
    let engaged = service.engage(&request.volume, TicketKind::Backup)?;
    let random = random_hex::<8>().map_err(|error| failed(&error))?;
    let work = BackupWork {
        backup: format!("backup-{random}").parse().map_err(|error| failed(&error))?,
        snapshot: request.snapshot.clone(),
        target: target.into(),
        full: request.full,
    };
    let volume = access(&request.volume, &engaged);
    work::back_up(&volume, &work, &InManager { service, control })
}

/// Makes the volume and fills it. If that fails, the volume is removed again.
pub fn restore_to_volume(
    service: &Service,
    control: &JobControl<'_>,
    request: &RestoreRequest,
) -> Result<BackupView, ApiError> {
    let (url, target) = open_backup(&request.url)?;
    let refused = |error| refused(About::Backup(&url), &error);
    let details = inventory::inspect(&*target, &url.volume, &url.backup).map_err(refused)?;
    details.refuse_backing_image().map_err(refused)?;
    let volume = &request.volume;
    let wanted = VolumeRequest {
        name: volume.clone(),
        size_bytes: details.size_bytes,
        replicas: request.replicas,
        frontend: Frontend::default(),
        transport: Transport::default(),
        in_engine: false,
    };
    service.create_restored(&wanted, &request.url)?;
    let fill = || {
        let engaged = service.engage(volume, TicketKind::Restore)?;
        let access = access(volume, &engaged);
        let restored = work::restore(&access, &request.url, &InManager { service, control })?;
        service.note_restored(volume)?;
        Ok(restored)
    };
    fill().map_err(|error: ApiError| match service.delete_volume(volume) {
        Ok(_) => ApiError {
            message: format!(
                "{}; volume {volume}, filled in part, is removed again",
                error.message
            ),
            ..error
        },
        Err(left) => ApiError {
            message: format!("{}; volume {volume} is left, filled in part ({left})", error.message),
            next: Some(Step::RemoveVolume { volume: volume.to_string() }.to_string()),
            ..error
        },
    })
}

fn access(volume: &crate::api::Name, engaged: &Engaged<'_>) -> VolumeAccess {
    VolumeAccess {
        name: volume.clone(),
        uid: engaged.uid.clone(),
        admin: engaged.admin.clone(),
        nbd: engaged.nbd.clone(),
        replicas: engaged.replicas.clone(),
    }
}
