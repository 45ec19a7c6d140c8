//! Small numbers for replicas, and sets of them, so that the hot path compares one word.

use std::fmt;

/// A replica's number within this engine. Given once and kept while the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u8);

/// An engine refuses more replicas than this.
pub const SLOTS_MAX: usize = 32;

/// A set of replicas.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Slots(u32);

impl Slots {
    pub const NONE: Self = Self(0);

    pub fn contains(self, slot: Slot) -> bool {
        self.0 >> slot.0 & 1 == 1
    }
    pub fn insert(&mut self, slot: Slot) {
        self.0 |= 1 << slot.0;
    }
    pub fn remove(&mut self, slot: Slot) {
        self.0 &= !(1 << slot.0);
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// Ascending.
    pub fn iter(self) -> impl Iterator<Item = Slot> {
        (0..SLOTS_MAX as u8).map(Slot).filter(move |&slot| self.contains(slot))
    }
}

impl FromIterator<Slot> for Slots {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut set = Self::NONE;
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|slot| slot.0)).finish()
    }
}
