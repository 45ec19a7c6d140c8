//! Names of volumes, snapshots and targets: `[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?`, as Kubernetes
//! wants them, so that a name can be part of a path, a socket, a device link and a label.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub const NAME_LENGTH_MAX: usize = 63;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name can't be empty")]
    Empty,
    #[error("a name has at most {NAME_LENGTH_MAX} characters, this one has {length}")]
    TooLong { length: usize },
    #[error("{character:?} can't be in the name {name:?}: use a-z, 0-9 and -")]
    Character { name: String, character: char },
    #[error("the name {name:?} can't begin or end with -")]
    Edge { name: String },
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let length = text.chars().count();
        if length > NAME_LENGTH_MAX {
            return Err(NameError::TooLong { length });
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if let Some(character) = text.chars().find(|c| !allowed(*c)) {
            return Err(NameError::Character { name: text.into(), character });
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(NameError::Edge { name: text.into() });
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().into()
    }
}

impl Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_name_of_the_grammar_is_taken(text in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?") {
            let name: Name = text.parse().unwrap();
            prop_assert_eq!(&*name, &text);
        }

        /// A name becomes part of paths: nothing that the grammar doesn't know may get through.
        #[test]
        fn what_is_taken_is_in_the_grammar(text in "\\PC{0,70}") {
            if text.parse::<Name>().is_ok() {
                let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
                prop_assert!(text.len() <= NAME_LENGTH_MAX && text.starts_with(inner) && text.ends_with(inner));
                prop_assert!(text.chars().all(|c| inner(c) || c == '-'));
            }
        }
    }

    #[test]
    fn each_fault_of_a_name_is_named() {
        assert_eq!("".parse::<Name>(), Err(NameError::Empty));
        assert_eq!("a".repeat(64).parse::<Name>(), Err(NameError::TooLong { length: 64 }));
        assert!(matches!("../x".parse::<Name>(), Err(NameError::Character { .. })));
        assert!(matches!("Vol".parse::<Name>(), Err(NameError::Character { .. })));
        assert!(matches!("v-".parse::<Name>(), Err(NameError::Edge { .. })));
    }
}
