//! The locked ranges of one file, as POSIX wants them: an owner's new lock replaces what it had there.

use super::table::Place;
use crate::wire::arguments::LockRange;
use crate::wire::status::Status;

/// Both ends are inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u64,
    pub last: u64,
}

impl Range {
    pub const ALL: Range = Range { first: 0, last: u64::MAX };

    pub fn new(asked: LockRange) -> Result<Self, Status> {
        let LockRange { offset, length } = asked;
        let last = match length {
            0 => return Err(Status::Inval),
            u64::MAX => u64::MAX,
            _ => offset.checked_add(length - 1).ok_or(Status::Inval)?,
        };
        Ok(Self { first: offset, last })
    }

    /// As the protocol writes it.
    pub fn length(&self) -> u64 {
        if self.last == u64::MAX { u64::MAX } else { self.last - self.first + 1 }
    }

    pub fn overlaps(&self, other: &Range) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Next to each other, with nothing between.
    fn touches(&self, other: &Range) -> bool {
        self.last.checked_add(1) == Some(other.first)
            || other.last.checked_add(1) == Some(self.first)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub range: Range,
    pub exclusive: bool,
    pub holder: Place,
}

#[derive(Debug, Default)]
pub struct Ranges(Vec<Held>);

impl Ranges {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn has_any(&self, holder: Place) -> bool {
        self.0.iter().any(|held| held.holder == holder)
    }

    pub fn conflict(&self, range: Range, exclusive: bool, except: Option<Place>) -> Option<Held> {
        self.0.iter().copied().find(|held| {
            Some(held.holder) != except
                && held.range.overlaps(&range)
                && (held.exclusive || exclusive)
        })
    }

    /// The caller has seen that there is no conflict.
    pub fn lock(&mut self, range: Range, exclusive: bool, holder: Place) {
        self.unlock(range, holder);
        let mut whole = range;
        self.0.retain(|held| {
            let joins =
                held.holder == holder && held.exclusive == exclusive && held.range.touches(&whole);
            if joins {
                whole.first = whole.first.min(held.range.first);
                whole.last = whole.last.max(held.range.last);
            }
            !joins
        });
        self.0.push(Held { range: whole, exclusive, holder });
    }

    pub fn unlock(&mut self, range: Range, holder: Place) {
        let mut cut = Vec::new();
        self.0.retain(|held| {
            if held.holder != holder || !held.range.overlaps(&range) {
                return true;
            }
            if held.range.first < range.first {
                let before = Range { first: held.range.first, last: range.first - 1 };
                cut.push(Held { range: before, ..*held });
            }
            if held.range.last > range.last {
                let after = Range { first: range.last + 1, last: held.range.last };
                cut.push(Held { range: after, ..*held });
            }
            false
        });
        self.0.append(&mut cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: usize = 24;

    proptest! {
        /// The model has one entry for each byte and holder.
        #[test]
        fn ranges_lock_what_a_byte_by_byte_model_locks(
            steps in prop::collection::vec((0..BYTES as u64, 1..10u64, 0..3usize, 0..3u8), 1..60)
        ) {
            let mut ranges = Ranges::default();
            let mut model = [[None::<bool>; 3]; BYTES];
            for (first, length, holder, what) in steps {
                let range = Range { first, last: (first + length - 1).min(BYTES as u64 - 1) };
                let bytes = range.first as usize..=range.last as usize;
                if what == 2 {
                    ranges.unlock(range, holder);
                    model[bytes].iter_mut().for_each(|byte| byte[holder] = None);
                } else {
                    let exclusive = what == 1;
                    let conflict = model[bytes.clone()].iter().any(|byte| {
                        (0..3).any(|other| other != holder && byte[other].is_some_and(|e| e || exclusive))
                    });
                    prop_assert_eq!(ranges.conflict(range, exclusive, Some(holder)).is_some(), conflict);
                    if !conflict {
                        ranges.lock(range, exclusive, holder);
                        model[bytes].iter_mut().for_each(|byte| byte[holder] = Some(exclusive));
                    }
                }
                for (at, byte) in model.iter().enumerate() {
                    for (holder, &locked) in byte.iter().enumerate() {
                        let one = Range { first: at as u64, last: at as u64 };
                        let held = ranges.0.iter().filter(|h| h.holder == holder && h.range.overlaps(&one));
                        prop_assert_eq!(held.map(|h| h.exclusive).collect::<Vec<_>>(), Vec::from_iter(locked));
                    }
                }
            }
        }
    }

    #[test]
    fn a_range_that_ends_beyond_all_bytes_is_invalid() {
        let range = |offset, length| Range::new(LockRange { offset, length });
        assert_eq!(range(0, 0), Err(Status::Inval));
        assert_eq!(range(3, u64::MAX - 1), Err(Status::Inval));
        assert_eq!(range(1, u64::MAX - 1), Ok(Range { first: 1, last: u64::MAX - 1 }));
        assert_eq!(range(5, u64::MAX), Ok(Range { first: 5, last: u64::MAX }));
        assert_eq!(Range { first: 5, last: u64::MAX }.length(), u64::MAX);
    }
}
