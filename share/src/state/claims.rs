//! What a client may claim after a restart: as much of what it had as tells what others have to wait for.

use crate::wire::types::FileHandle;
use sha2::{Digest, Sha256};

/// What a client had besides opens that deny nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claims {
    pub denials: bool,
    pub locks: LockedFiles,
}

impl Claims {
    pub const OPENS: Self = Self { denials: false, locks: LockedFiles::NONE };
    pub const DENIALS: Self = Self { denials: true, locks: LockedFiles::NONE };
    pub const ALL: Self = Self { denials: true, locks: LockedFiles::ANY };

    pub fn of_open(denies: bool) -> Self {
        if denies { Self::DENIALS } else { Self::OPENS }
    }

    pub fn of_lock(file: FileHandle) -> Self {
        Self { denials: false, locks: LockedFiles::of(file) }
    }

    pub fn with(self, other: Self) -> Self {
        Self { denials: self.denials || other.denials, locks: self.locks.with(other.locks) }
    }

    pub fn contains(self, other: Self) -> bool {
        (self.denials || !other.denials) && self.locks.contains(other.locks)
    }

    /// Whether a claim to some of this can stand against something that is new.
    pub fn contests(self, new: Self) -> bool {
        match new {
            Self { locks, .. } if locks != LockedFiles::NONE => self.locks.overlaps(locks),
            Self { denials, .. } => denials || self.denials,
        }
    }
}

/// More files aren't told apart.
pub const FEW: usize = 8;

/// A few files, in order, by numbers that stay the same as their handles do; or any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedFiles {
    any: bool,
    count: usize,
    few: [u64; FEW],
}

impl LockedFiles {
    pub const NONE: Self = Self { any: false, count: 0, few: [0; FEW] };
    pub const ANY: Self = Self { any: true, ..Self::NONE };

    pub fn of(file: FileHandle) -> Self {
        let digest = Sha256::digest(file.as_bytes());
        Self::few(&[u64::from_be_bytes(*digest.first_chunk().expect("it has 32 bytes"))])
    }

    /// Of more than a few it is any.
    pub fn few(numbers: &[u64]) -> Self {
        numbers.iter().fold(Self::NONE, |all, &number| all.with_one(number))
    }

    /// `None`: any.
    pub fn numbers(&self) -> Option<&[u64]> {
        (!self.any).then(|| &self.few[..self.count])
    }

    fn with_one(mut self, number: u64) -> Self {
        let Some(Err(at)) = self.numbers().map(|few| few.binary_search(&number)) else {
            return self;
        };
        if self.count == FEW {
            return Self::ANY;
        }
        self.few.copy_within(at..self.count, at + 1);
        self.few[at] = number;
        self.count += 1;
        self
    }

    fn with(self, other: Self) -> Self {
        match other.numbers() {
            Some(few) => few.iter().fold(self, |all, &number| all.with_one(number)),
            None => Self::ANY,
        }
    }

    fn contains(self, other: Self) -> bool {
        self.with(other) == self
    }

    fn overlaps(self, other: Self) -> bool {
        match (self.numbers(), other.numbers()) {
            (Some(mine), Some(theirs)) => theirs.iter().any(|number| mine.contains(number)),
            (None, Some([])) | (Some([]), None) => false,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn locked_files_are_a_set_until_they_are_too_many(
            one in prop::collection::vec(0..12u64, 0..12),
            other in prop::collection::vec(0..12u64, 0..12),
        ) {
            let set = |numbers: &[u64]| BTreeSet::from_iter(numbers.iter().copied());
            let (a, b) = (LockedFiles::few(&one), LockedFiles::few(&other));
            let (one, other) = (set(&one), set(&other));
            let both: Vec<u64> = one.union(&other).copied().collect();
            let few = (both.len() <= FEW).then_some(&both[..]);
            let joined = a.with(b);
            prop_assert_eq!(joined.numbers(), few);
            if few.is_some() {
                prop_assert_eq!(a.contains(b), other.is_subset(&one));
                prop_assert_eq!(a.overlaps(b), !one.is_disjoint(&other));
            }
            prop_assert!(LockedFiles::ANY.contains(a));
            prop_assert_eq!(LockedFiles::ANY.overlaps(a), !one.is_empty());
            prop_assert_eq!(a.overlaps(LockedFiles::ANY), !one.is_empty());
        }
    }
}
