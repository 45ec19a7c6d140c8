//! URLs of targets and of backups.
//!
//! A backup's URL is its target's URL with the query `backup=<name>&volume=<volume>`, as Longhorn
//! writes it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::name::{Name, NameError};
use crate::target::{DirectoryTarget, Target, TargetError};

/// A place for backups. `file:///path` and `vfs:///path` are the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TargetUrl {
    scheme: &'static str,
    path: PathBuf,
    /// Parameters that aren't ours; kept and printed.
    query: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    #[error("{0:?} is no URL of a backup target; one looks like file:///backups")]
    Malformed(String),
    #[error("{scheme}:// targets are not supported yet; use file:///path")]
    NotYet { scheme: String },
    #[error("{scheme:?} is no kind of backup target; use file:///path")]
    UnknownScheme { scheme: String },
    #[error(
        "{0:?} names a host or a relative path; a file URL has three slashes and then the path"
    )]
    NotAbsolute(String),
    #[error(
        "{url:?} doesn't say which {parameter}; a backup's URL ends in ?backup=NAME&volume=NAME"
    )]
    Missing { url: String, parameter: &'static str },
    #[error(transparent)]
    Name(#[from] NameError),
}

impl TargetUrl {
    /// The directory of a `file` or `vfs` target.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn open(&self) -> Result<Box<dyn Target>, TargetError> {
        Ok(Box::new(DirectoryTarget::open(self.to_string(), self.path.clone())?))
    }

    pub fn backup(&self, volume: &Name, backup: &Name) -> BackupUrl {
        BackupUrl { target: self.clone(), volume: volume.clone(), backup: backup.clone() }
    }
}

impl FromStr for TargetUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let malformed = || UrlError::Malformed(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(malformed)?;
        let scheme = match scheme {
            "file" => "file",
            "vfs" => "vfs",
            "s3" | "nfs" | "cifs" | "azblob" => {
                return Err(UrlError::NotYet { scheme: scheme.to_owned() });
            }
            other => return Err(UrlError::UnknownScheme { scheme: other.to_owned() }),
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if !path.starts_with('/') {
            return Err(UrlError::NotAbsolute(text.to_owned()));
        }
        let path = PathBuf::from(decode(path).ok_or_else(malformed)?);
        let mut pairs = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let both = decode(key).zip(decode(value));
            pairs.push(both.ok_or_else(malformed)?);
        }
        pairs.sort();
        Ok(Self { scheme, path, query: pairs })
    }
}

impl fmt::Display for TargetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_url(f, self, &self.query)
    }
}

/// One backup in a target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackupUrl {
    pub target: TargetUrl,
    pub volume: Name,
    pub backup: Name,
}

impl FromStr for BackupUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let mut target: TargetUrl = text.parse()?;
        let mut take = |parameter: &'static str| {
            let missing = || UrlError::Missing { url: text.to_owned(), parameter };
            let at = target.query.iter().position(|(key, _)| key == parameter);
            let (_, value) = target.query.remove(at.ok_or_else(missing)?);
            Ok::<Name, UrlError>(value.parse()?)
        };
        let (backup, volume) = (take("backup")?, take("volume")?);
        Ok(Self { target, volume, backup })
    }
}

impl fmt::Display for BackupUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut query = self.target.query.clone();
        query.push(("backup".to_owned(), self.backup.to_string()));
        query.push(("volume".to_owned(), self.volume.to_string()));
        query.sort();
        write_url(f, &self.target, &query)
    }
}

fn write_url(
    f: &mut fmt::Formatter<'_>,
    target: &TargetUrl,
    query: &[(String, String)],
) -> fmt::Result {
    let path = target.path.to_str().expect("a URL's path was parsed from text");
    write!(f, "{}://{}", target.scheme, encode(path, "/"))?;
    for (index, (key, value)) in query.iter().enumerate() {
        let separator = if index == 0 { '?' } else { '&' };
        write!(f, "{separator}{}={}", encode(key, ""), encode(value, ""))?;
    }
    Ok(())
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let [high, low, tail @ ..] = tail else { return None };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push((digit(*high)? * 16 + digit(*low)?) as u8);
        rest = tail;
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

fn encode(text: &str, also_plain: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-_.~".contains(c) || also_plain.contains(c) {
            encoded.push(c);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_backup_url_is_the_targets_with_a_sorted_query() {
        let text = "file:///backups?backup=b1&volume=v1";
        let url: BackupUrl = text.parse().unwrap();
        assert_eq!(url.target.path(), Path::new("/backups"));
        assert_eq!((url.backup.as_str(), url.volume.as_str()), ("b1", "v1"));
        assert_eq!(url.to_string(), text);
        let turned: BackupUrl = "vfs:///a%20b/?volume=v1&x=1&backup=b1".parse().unwrap();
        assert_eq!(turned.target.path(), Path::new("/a b/"));
        assert_eq!(turned.to_string(), "vfs:///a%20b/?backup=b1&volume=v1&x=1");
        assert_eq!(url.target.backup(&url.volume, &url.backup), url);
    }

    #[test]
    fn kinds_that_are_not_there_yet_say_what_to_use() {
        for url in ["s3://b@r/p", "nfs://h:/p", "cifs://h/p", "azblob://c@s/p"] {
            let error = url.parse::<TargetUrl>().unwrap_err().to_string();
            assert!(error.contains("not supported yet; use file://"), "{error}");
        }
        assert!(matches!("ftp://h/p".parse::<TargetUrl>(), Err(UrlError::UnknownScheme { .. })));
        assert!(matches!("file://host/p".parse::<TargetUrl>(), Err(UrlError::NotAbsolute(_))));
        assert!(matches!("/backups".parse::<TargetUrl>(), Err(UrlError::Malformed(_))));
        assert!(matches!("file:///%zz".parse::<TargetUrl>(), Err(UrlError::Malformed(_))));
    }

    #[test]
    fn a_backup_url_must_name_both() {
        for url in ["file:///b", "file:///b?backup=b1", "file:///b?volume=v1&backup="] {
            assert!(url.parse::<BackupUrl>().is_err(), "{url}");
        }
        assert!("file:///b?backup=../x&volume=v1".parse::<BackupUrl>().is_err());
    }

    proptest! {
        #[test]
        fn any_path_survives_its_url(path in "/[^\0]{0,40}") {
            let url = TargetUrl { scheme: "file", path: path.clone().into(), query: Vec::new() };
            prop_assert_eq!(url.to_string().parse::<TargetUrl>().unwrap(), url);
        }

        #[test]
        fn any_text_parses_or_fails_without_a_panic(text in ".*", tail in ".*") {
            let _ = text.parse::<BackupUrl>();
            let _ = format!("file:///{tail}").parse::<BackupUrl>();
        }
    }
}
