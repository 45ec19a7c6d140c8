//! Backup targets: names for URLs.

use ankole_api::objects::target::{self as object, BackupTargetSpec};
use ankole_store::StoreError;

use super::Service;
use crate::api::target::{BackupTarget, check_url, choose};
use crate::api::{ApiError, Name};
use crate::backup_job;

impl Service {
    pub fn targets(&self) -> Result<Vec<BackupTarget>, ApiError> {
        let targets = self.objects.readable::<BackupTargetSpec>()?;
        Ok(targets.into_iter().map(shown).collect())
    }

    /// Looks whether backups can be put there. The same again is fine; another URL under the same name isn't.
    pub fn add_target(&self, name: Name, url: String) -> Result<BackupTarget, ApiError> {
        check_url(&url)?;
        let target = object::BackupTarget::new(name, BackupTargetSpec { url });
        match self.objects.find::<BackupTargetSpec>(target.name())? {
            Some(found) if found.spec == target.spec => return Ok(shown(target)),
            Some(_) => {}
            None => backup_job::look_at_target(&target.spec.url)?,
        }
        self.objects.create(&target)?;
        Ok(shown(target))
    }

    pub fn remove_target(&self, name: &Name) -> Result<(), ApiError> {
        let deleted = self.objects.delete::<BackupTargetSpec, StoreError>(name, |_| Ok(()));
        Ok(deleted.map(drop)?)
    }

    /// See [`choose`].
    pub fn target_url(&self, target: Option<&str>) -> Result<String, ApiError> {
        choose(&self.targets()?, target)
    }
}

fn shown(target: object::BackupTarget) -> BackupTarget {
    BackupTarget { name: target.metadata.name, url: target.spec.url }
}
