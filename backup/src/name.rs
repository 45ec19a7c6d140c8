//! Names of volumes and backups.
//!
//! A name becomes part of a path in the target and of a URL, so nothing but a checked [`Name`] is
//! ever put into either.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Longest name accepted. `backup_<name>.cfg.tmp.<nanoseconds>` must fit into the 255 bytes that
/// Linux filesystems give a file name.
pub const NAME_BYTES_MAX: usize = 200;

/// A name by Longhorn's rule for backup stores: `^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`.
///
/// The rule asks for two characters at least, so a volume named `a` can't be backed up: Longhorn
/// couldn't read the result.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} can't name a volume or backup in a backup store: \
     take 2 to {NAME_BYTES_MAX} of a-z A-Z 0-9 _ . - and begin with a letter or digit"
)]
pub struct NameError(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let well_formed = (2..=NAME_BYTES_MAX).contains(&text.len())
            && text.as_bytes()[0].is_ascii_alphanumeric()
            && text.bytes().all(is_plain);
        if well_formed { Ok(Self(text.to_owned())) } else { Err(NameError(text.to_owned())) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_not_leave_its_folder() {
        for bad in ["", "a", "..", ".hidden", "../../etc", "a/b", "a b", "-x", "ä1", "a\0b", "a%2e"]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} was accepted");
        }
        assert!("x".repeat(NAME_BYTES_MAX + 1).parse::<Name>().is_err());
        for good in ["v1", "pvc-0a.b_c", "A9", &"x".repeat(NAME_BYTES_MAX)] {
            assert!(good.parse::<Name>().is_ok(), "{good:?} was refused");
        }
    }
}
