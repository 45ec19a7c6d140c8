//! The engine's idea of which regions the members have marked, and whose turn it is to lose them.
//!
//! Counts by groups, as the members mark: one region that is written is one mark, two of a group
//! are marks for all of it. Never counts too few of what this engine had written.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::types::{BlockRange, Group, REGIONS_PER_GROUP, Region};

/// Groups in one batch, and marks in them: one flush and one sync of the index for all.
const BATCH_GROUPS: usize = 64;
const BATCH_MARKS: u64 = 1024;
/// Groups that are kept in mind; what is marked beyond that is asked for later.
const KNOWN_MAX: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Marks {
    groups: HashMap<Group, Written>,
    /// The same by time, but not newer than when it was looked at last. Without those whose turn
    /// it is.
    by_age: BTreeSet<(Instant, Group)>,
    count: u64,
}

#[derive(Clone, Copy, Debug)]
struct Written {
    last: Instant,
    /// One bit for each region that was.
    regions: u64,
}

impl Written {
    fn marks(self) -> u64 {
        if self.regions.is_power_of_two() { 1 } else { REGIONS_PER_GROUP }
    }
}

/// When a group's marks may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// So long after its last write.
    pub(super) quiet: Duration,
    /// Beyond so many marks sooner, the least recently written first.
    pub(super) budget: u64,
}

impl Marks {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub(super) fn has(&self, region: Region) -> bool {
        let written = self.groups.get(&region.group());
        written.is_some_and(|written| written.regions & bit(region) != 0)
    }

    pub(super) fn note(&mut self, now: Instant, range: BlockRange) {
        let mut regions = range.regions().peekable();
        while let Some(first) = regions.next() {
            let group = first.group();
            let mut touched = bit(first);
            while let Some(next) = regions.next_if(|next| next.group() == group) {
                touched |= bit(next);
            }
            self.note_group(now, group, touched);
        }
    }

    fn note_group(&mut self, now: Instant, group: Group, regions: u64) {
        if let Some(written) = self.groups.get_mut(&group) {
            self.count -= written.marks();
            *written = Written { last: now, regions: written.regions | regions };
            self.count += written.marks();
        } else if self.groups.len() < KNOWN_MAX {
            let written = Written { last: now, regions };
            self.groups.insert(group, written);
            self.by_age.insert((now, group));
            self.count += written.marks();
        }
    }

    /// Groups whose turn it is, taken out of the order until they are [`forgotten`](Self::forget)
    /// or [`put back`](Self::put_back). Once one is due, those that will be soon go with it.
    pub(super) fn take_due(&mut self, now: Instant, patience: Patience) -> BTreeSet<Group> {
        let (mut due, mut marks) = (BTreeSet::new(), 0);
        while due.len() < BATCH_GROUPS
            && marks < BATCH_MARKS
            && let Some(&(seen, group)) = self.by_age.first()
        {
            let written = self.groups[&group];
            if written.last > seen {
                self.by_age.pop_first();
                self.by_age.insert((written.last, group));
                continue;
            }
            let Patience { quiet, budget } = patience;
            let (quiet, budget) =
                if due.is_empty() { (quiet, budget) } else { (quiet / 2, budget - budget / 8) };
            let age = now.saturating_duration_since(written.last);
            if age < quiet && self.count - marks <= budget {
                break;
            }
            self.by_age.pop_first();
            due.insert(group);
            marks += written.marks();
        }
        due
    }

    /// It keeps its marks for now.
    pub(super) fn put_back(&mut self, group: Group) {
        if let Some(written) = self.groups.get(&group) {
            self.by_age.insert((written.last, group));
        }
    }

    /// It isn't its turn after all: it is in use.
    pub(super) fn renew(&mut self, now: Instant, group: Group) {
        if let Some(written) = self.groups.get_mut(&group) {
            written.last = now;
            self.by_age.insert((now, group));
        }
    }

    /// Its marks are gone.
    pub(super) fn forget(&mut self, group: Group) {
        if let Some(written) = self.groups.remove(&group) {
            self.count -= written.marks();
        }
    }

    /// The earliest time at which one may be due. `None`: nothing is marked.
    pub(super) fn due_at(&self, patience: Patience) -> Option<Instant> {
        let (seen, _) = self.by_age.first()?;
        Some(if self.count > patience.budget { *seen } else { *seen + patience.quiet })
    }
}

fn bit(region: Region) -> u64 {
    1 << (region.0 % REGIONS_PER_GROUP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BLOCKS_PER_REGION, BlockIndex};

    const PATIENCE: Patience = Patience { quiet: Duration::from_secs(10), budget: 4 };

    fn seconds(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    /// The first block of a group's `n`-th region.
    fn write(marks: &mut Marks, now: Instant, group: u64, n: u64) {
        let region = Region(group * REGIONS_PER_GROUP + n);
        marks.note(now, BlockRange::new(region.range().first, 1));
    }

    fn groups(of: impl IntoIterator<Item = u64>) -> BTreeSet<Group> {
        of.into_iter().map(Group).collect()
    }

    /// Marking it again would cost a sync, for a mark that the next write needs anyway.
    #[test]
    fn a_group_that_is_written_all_the_time_keeps_its_marks() {
        let start = Instant::now();
        let mut marks = Marks::default();
        write(&mut marks, start, 1, 0);
        write(&mut marks, start, 2, 0);
        for second in 1..100 {
            write(&mut marks, seconds(start, second), 1, 0);
        }
        assert_eq!(marks.take_due(seconds(start, 99), PATIENCE), groups([2]));
        assert_eq!(marks.due_at(PATIENCE), Some(seconds(start, 109)));
    }

    #[test]
    fn beyond_the_budget_the_least_recently_written_go_first_and_no_more_than_that() {
        let start = Instant::now();
        let mut marks = Marks::default();
        for group in 0..7 {
            write(&mut marks, seconds(start, group), group, 0);
        }
        write(&mut marks, seconds(start, 7), 0, 0);
        assert_eq!(marks.take_due(seconds(start, 8), PATIENCE), groups([1, 2, 3]));
    }

    /// The members mark a whole group for the second region that is written of it: whoever counted
    /// writes alone would promise a settling that takes 62 times as long.
    #[test]
    fn a_second_region_counts_as_the_whole_group_and_goes_with_it() {
        let start = Instant::now();
        let mut marks = Marks::default();
        write(&mut marks, start, 5, 3);
        write(&mut marks, start, 5, 3);
        assert_eq!(marks.count(), 1);
        write(&mut marks, start, 5, 61);
        assert_eq!(marks.count(), REGIONS_PER_GROUP);
        marks.note(start, BlockRange::new(BlockIndex(0), 2 * BLOCKS_PER_REGION));
        assert_eq!(marks.count(), 2 * REGIONS_PER_GROUP);
        for group in marks.take_due(start, PATIENCE) {
            marks.forget(group);
        }
        assert_eq!((marks.count(), marks.is_empty()), (0, true));
    }

    /// One flush for what gets quiet about the same time.
    #[test]
    fn those_that_will_soon_be_due_go_with_the_first_that_is() {
        let start = Instant::now();
        let mut marks = Marks::default();
        for group in 0..4 {
            write(&mut marks, seconds(start, group * 3), group, 0);
        }
        let due = marks.take_due(seconds(start, 10), PATIENCE);
        assert_eq!(due, groups([0, 1]));
        due.into_iter().for_each(|group| marks.put_back(group));
        assert_eq!(marks.take_due(seconds(start, 19), PATIENCE).len(), 4);
    }

    /// Whatever is written in whichever order: what stays is within the budget, and every mark is
    /// counted once.
    #[test]
    fn what_is_left_after_clearing_is_within_the_budget() {
        for seed in 0..50 {
            println!("seed {seed}");
            let mut random = crate::store::crash::Random::new(seed);
            let start = Instant::now();
            let patience = Patience { quiet: Duration::from_secs(600), budget: 500 };
            let mut marks = Marks::default();
            for millis in 0..2000 {
                let now = start + Duration::from_millis(millis);
                write(&mut marks, now, random.below(300), random.below(REGIONS_PER_GROUP));
                assert!(marks.count() <= patience.budget + REGIONS_PER_GROUP);
                for group in marks.take_due(now, patience) {
                    marks.forget(group);
                }
                let counted: u64 = marks.groups.values().map(|written| written.marks()).sum();
                assert_eq!(marks.count(), counted);
            }
        }
    }

    /// What the bound is worth while clearing takes its time. A load that begins to use as many groups
    /// in a batch's turn as a batch clears stays within two turns' worth of the budget; what a faster
    /// one has beyond that goes, a batch a turn, once it is over.
    #[test]
    fn marks_beyond_the_budget_are_those_of_groups_begun_within_two_batches() {
        const GROUPS_A_TURN: u64 = BATCH_MARKS / REGIONS_PER_GROUP;
        let beyond_max = 2 * GROUPS_A_TURN * REGIONS_PER_GROUP;
        for seed in 0..20 {
            println!("seed {seed}");
            let mut random = crate::store::crash::Random::new(seed);
            let start = Instant::now();
            let patience = Patience { quiet: Duration::from_secs(3600), budget: 5000 };
            let mut marks = Marks::default();
            let mut next_group = 0;
            let mut turn = |marks: &mut Marks, now: Instant, groups: u64| {
                let due = marks.take_due(now, patience);
                for group in next_group..next_group + groups {
                    write(marks, now, group, 0);
                    write(marks, now, group, 1 + random.below(REGIONS_PER_GROUP - 1));
                }
                next_group += groups;
                // Whatever else is written lies in groups that are in use already.
                for _ in 0..random.below(100) {
                    let back = random.below(GROUPS_A_TURN);
                    write(marks, now, next_group.saturating_sub(back + 1), 0);
                }
                due.into_iter().for_each(|group| marks.forget(group));
                marks.count()
            };
            for second in 0..500 {
                let count = turn(&mut marks, seconds(start, second), GROUPS_A_TURN);
                assert!(count <= patience.budget + beyond_max, "{count} marks in turn {second}");
            }
            let burst = turn(&mut marks, seconds(start, 500), 20 * GROUPS_A_TURN);
            assert!(burst > patience.budget + beyond_max, "{burst} marks");
            let turns = (burst - patience.budget).div_ceil(BATCH_MARKS);
            let rest = (501..501 + turns).map(|second| turn(&mut marks, seconds(start, second), 0));
            assert!(rest.last().is_some_and(|count| count <= patience.budget));
        }
    }
}
