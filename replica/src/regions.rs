//! Sets of regions that take space by what they hold, never by the size of the volume, and the
//! pages in which such a set is told.

use std::ops::Range;

use roaring::RoaringBitmap;

use crate::types::{REGION_BYTES, Region, VOLUME_BYTES_MAX};

/// Regions of the largest volume.
pub const REGIONS_MAX: u64 = VOLUME_BYTES_MAX / REGION_BYTES;
const _: () = assert!(REGIONS_MAX <= u32::MAX as u64, "a set holds numbers of 32 bits");
/// Regions in one page.
pub const PAGE_REGIONS_MAX: usize = 64 << 10;

/// Regions of one volume. Every other one of 64 TiB takes 8 MiB, all of them a few kilobytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegionSet(RoaringBitmap);

impl RegionSet {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> u64 {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, region: Region) -> bool {
        u32::try_from(region.0).is_ok_and(|region| self.0.contains(region))
    }

    /// Whether it is new.
    pub fn insert(&mut self, region: Region) -> bool {
        self.0.insert(number(region.0))
    }

    /// Whether it was there.
    pub fn remove(&mut self, region: Region) -> bool {
        u32::try_from(region.0).is_ok_and(|region| self.0.remove(region))
    }

    /// A run of neighbours.
    pub fn insert_run(&mut self, run: Range<u64>) {
        if !run.is_empty() {
            self.0.insert_range(number(run.start)..=number(run.end - 1));
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.0 |= &other.0;
        self.pack();
    }

    /// Many runs that were put in one by one take more than a bit for each region.
    pub(crate) fn pack(&mut self) {
        self.0.optimize();
    }

    /// Drops what lies past the end of a volume of so many regions.
    pub fn truncate(&mut self, regions: u64) {
        if let Ok(end) = u32::try_from(regions) {
            self.0.remove_range(end..);
        }
    }

    pub fn first(&self) -> Option<Region> {
        self.0.min().map(region)
    }

    /// Ascending.
    pub fn iter(&self) -> impl Iterator<Item = Region> {
        self.0.iter().map(region)
    }

    /// Those of a range, ascending.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Region> {
        let clip = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
        self.0.range(clip(range.start)..clip(range.end)).map(region)
    }

    /// Those from one on, ascending.
    pub fn from(&self, first: Region) -> impl Iterator<Item = Region> {
        self.within(first.0..REGIONS_MAX)
    }

    /// Runs of neighbours, ascending, with gaps between them.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let mut rest = self.0.iter();
        let mut next = rest.next_range();
        std::iter::from_fn(move || {
            let run = next.take()?;
            let (start, mut end) = run.into_inner();
            // A run that crosses the border of two containers comes in pieces.
            loop {
                next = rest.next_range();
                match &next {
                    Some(more) if *more.start() == end + 1 => end = *more.end(),
                    _ => return Some(u64::from(start)..u64::from(end) + 1),
                }
            }
        })
    }
}

fn number(region: u64) -> u32 {
    assert!(region < REGIONS_MAX, "a region is checked where it comes in");
    region as u32
}

fn region(number: u32) -> Region {
    Region(number.into())
}

impl FromIterator<Region> for RegionSet {
    fn from_iter<T: IntoIterator<Item = Region>>(regions: T) -> Self {
        let mut set = Self::new();
        set.extend(regions);
        set
    }
}

impl Extend<Region> for RegionSet {
    fn extend<T: IntoIterator<Item = Region>>(&mut self, regions: T) {
        self.0.extend(regions.into_iter().map(|region| number(region.0)));
    }
}

/// A part of a list of regions: as much as one message takes, or one turn of work finds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegionPage {
    pub regions: RegionSet,
    /// Where the list goes on, if it does.
    pub next: Option<Region>,
}

impl RegionPage {
    /// The first of `regions`, which ascend.
    pub fn of(regions: impl Iterator<Item = Region>, at_most: usize) -> Self {
        let mut regions = regions.peekable();
        let page = regions.by_ref().take(at_most).collect();
        Self { regions: page, next: regions.next() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_run_over_the_border_of_two_containers_stays_one() {
        let mut set = RegionSet::new();
        set.insert_run(65_000..200_000);
        set.insert(Region(200_001));
        assert_eq!(set.runs().collect::<Vec<_>>(), [65_000..200_000, 200_001..200_002]);
    }

    #[test]
    fn every_other_region_takes_one_bit_for_each_and_neighbours_less() {
        let end = REGIONS_MAX / 16;
        let (mut other, mut all) = (RegionSet::new(), RegionSet::new());
        let part = PAGE_REGIONS_MAX as u64;
        for first in (0..end).step_by(part as usize) {
            let mut set = RegionSet::new();
            (first..first + part).step_by(2).for_each(|at| set.insert_run(at..at + 1));
            other.add(&set);
            all.add(&(first..first + part).map(Region).collect());
        }
        let size = other.0.statistics();
        assert_eq!(u64::from(size.n_bitset_containers), end / 65_536);
        assert_eq!(size.n_containers, size.n_bitset_containers);
        let size = all.0.statistics();
        assert_eq!(size.n_containers, size.n_run_containers);
    }

    proptest! {
        #[test]
        fn pages_are_the_whole_set_without_gaps(
            regions in prop::collection::btree_set(0u64..300_000, 0..500),
            at_most in 1usize..100,
        ) {
            let all: RegionSet = regions.iter().copied().map(Region).collect();
            let (mut found, mut from) = (RegionSet::new(), Some(Region(0)));
            while let Some(at) = from {
                let page = RegionPage::of(all.from(at), at_most);
                prop_assert!(page.regions.len() <= at_most as u64);
                found.add(&page.regions);
                from = page.next;
            }
            prop_assert_eq!(&found, &all);
            let runs: Vec<u64> = all.runs().flatten().collect();
            prop_assert_eq!(runs, regions.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn a_truncated_set_ends_there(end in 0u64..70_000) {
            let mut set = RegionSet::new();
            set.insert_run(0..70_000);
            set.truncate(end);
            prop_assert_eq!(set.len(), end);
        }
    }
}
