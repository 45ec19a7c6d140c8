//! Backup targets: names for URLs.

use super::Service;
use crate::api::target::{BackupTarget, check_url, choose};
use crate::api::{ApiError, Name};
use crate::backup_job;

impl Service {
    pub fn targets(&self) -> Result<Vec<BackupTarget>, ApiError> {
        Ok(self.context.store.readable()?)
    }

    /// Looks whether backups can be put there. The same again is fine; another URL under the same name isn't.
    pub fn add_target(&self, name: Name, url: String) -> Result<BackupTarget, ApiError> {
        check_url(&url)?;
        let target = BackupTarget { name, url };
        match self.context.store.find::<BackupTarget>(&target.name)? {
            Some(found) if found == target => return Ok(target),
            Some(_) => {}
            None => backup_job::look_at_target(&target.url)?,
        }
        self.context.store.add(&target)?;
        Ok(target)
    }

    pub fn remove_target(&self, name: &Name) -> Result<(), ApiError> {
        self.context.store.remove::<BackupTarget, ApiError>(name, |_| Ok(()))
    }

    /// See [`choose`].
    pub fn target_url(&self, target: Option<&str>) -> Result<String, ApiError> {
        choose(&self.targets()?, target)
    }
}
