//! Backup targets: names for URLs.

use super::Service;
use crate::api::target::{BackupTarget, check_url};
use crate::api::{ApiError, Name};
use crate::store::StoreError;

/// The target that is meant when none is named.
const DEFAULT_TARGET: &str = "default";

impl Service {
    pub fn targets(&self) -> Result<Vec<BackupTarget>, ApiError> {
        Ok(self.context.store.all()?)
    }

    /// The same again is fine; another URL under the same name isn't.
    pub fn add_target(&self, name: Name, url: String) -> Result<BackupTarget, ApiError> {
        check_url(&url)?;
        let target = BackupTarget { name, url };
        match self.context.store.add(&target) {
            Err(StoreError::Exists { .. })
                if self.context.store.find(&target.name)?.as_ref() == Some(&target) => {}
            outcome => outcome?,
        }
        Ok(target)
    }

    pub fn remove_target(&self, name: &Name) -> Result<(), ApiError> {
        self.context.store.remove::<BackupTarget, ApiError>(name, |_| Ok(()))
    }

    /// The URL of a target that is given as a URL, by its name, or not at all.
    pub fn target_url(&self, target: Option<&str>) -> Result<String, ApiError> {
        let target = target.unwrap_or(DEFAULT_TARGET);
        if target.contains("://") {
            return Ok(target.into());
        }
        match self.context.store.find::<BackupTarget>(target)? {
            Some(found) => Ok(found.url),
            None => Err(ApiError::not_found(format!("target {target} doesn't exist"))
                .next(format!("name one by --target URL, or: ankole target add {target} URL"))),
        }
    }
}
