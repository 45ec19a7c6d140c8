//! A named place for backups.

use serde::{Deserialize, Serialize};

use super::{ApiError, Name};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupTarget {
    pub name: Name,
    pub url: String,
}

/// What `PUT /v1/targets/T` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRequest {
    pub url: String,
}

/// What can be a target now. `vfs:` is Longhorn's older word for `file:`.
pub fn check_url(url: &str) -> Result<(), ApiError> {
    let path = url.strip_prefix("file://").or_else(|| url.strip_prefix("vfs://"));
    match path {
        Some(path) if path.starts_with('/') => Ok(()),
        Some(_) => Err(ApiError::invalid(format!("the target {url} has no absolute path"))
            .next("write it with three slashes, as in file:///backups")),
        None => Err(ApiError::invalid(format!("{url} isn't a target that is built yet"))
            .next("use a directory, as in file:///backups")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_directories_are_targets_for_now() {
        assert!(check_url("file:///backups").is_ok());
        assert!(check_url("vfs:///backups").is_ok());
        assert!(check_url("file://backups").is_err());
        assert!(check_url("s3://bucket@region/").is_err());
        assert!(check_url("").is_err());
    }
}
