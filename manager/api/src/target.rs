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

/// The target that is meant when none is named.
const DEFAULT_TARGET: &str = "default";

/// The URL of a target that is given as a URL, by its name, or not at all: then it is the one named
/// `default`, or the only one there is.
pub fn choose(targets: &[BackupTarget], target: Option<&str>) -> Result<String, ApiError> {
    let named = |name: &str| targets.iter().find(|target| *target.name == *name);
    let Some(target) = target else {
        return match (named(DEFAULT_TARGET), targets) {
            (Some(target), _) | (None, [target]) => Ok(target.url.clone()),
            (None, []) => Err(ApiError::not_found("no target is named, and none is known")
                .next("name one by --target URL, or: ankole target add default URL")),
            (None, several) => {
                let names: Vec<_> = several.iter().map(|target| target.name.to_string()).collect();
                Err(ApiError::invalid(format!("which target is meant: {}?", names.join(", ")))
                    .next("name one by --target"))
            }
        };
    };
    match named(target) {
        _ if target.contains("://") => Ok(target.into()),
        Some(found) => Ok(found.url.clone()),
        None => Err(ApiError::not_found(format!("target {target} doesn't exist"))
            .next(format!("name one by --target URL, or: ankole target add {target} URL"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_needs_no_name_if_there_is_no_choice() {
        let target = |name: &str| BackupTarget {
            name: name.parse().unwrap(),
            url: format!("file:///{name}"),
        };
        let (one, two) = ([target("a")], [target("a"), target("default")]);
        assert_eq!(choose(&one, None).unwrap(), "file:///a");
        assert_eq!(choose(&two, None).unwrap(), "file:///default");
        assert_eq!(choose(&two, Some("a")).unwrap(), "file:///a");
        assert_eq!(choose(&[], Some("file:///x")).unwrap(), "file:///x");
        let which = choose(&[target("a"), target("b")], None).unwrap_err();
        assert!(which.message.contains("a, b"), "{which}");
        assert!(choose(&[], None).is_err() && choose(&one, Some("b")).is_err());
    }

    #[test]
    fn only_absolute_directories_are_targets_for_now() {
        assert!(check_url("file:///backups").is_ok());
        assert!(check_url("vfs:///backups").is_ok());
        assert!(check_url("file://backups").is_err());
        assert!(check_url("s3://bucket@region/").is_err());
        assert!(check_url("").is_err());
    }
}
