//! Below the head: what all sealed layers say together of a region, as one page.
//!
//! Owns which of these views are kept, within the memory for pages. With one of them a read looks at
//! the head's page and at this one, however many snapshots there are; a region of which no sealed
//! layer has a page needs neither. Promises that what is kept is what the layers say: a change of a
//! sealed page drops its region, sealing the head drops those that it has, and any other change of
//! the path drops all.
//!
//! ```text
//! head      ▒   ▒          one page                     ┐
//! sealed      ▒    ▒       ┐                            ├▶ what the volume shows
//! sealed    ▒▒▒▒    ▒▒     ├▶ merged, newest first, once ┘
//! sealed    ▒▒▒▒▒▒▒▒▒▒     ┘
//! ```

use std::collections::HashMap;
use std::rc::Rc;

use roaring::RoaringBitmap;

use super::pages::FileNumber;
use crate::chain::index::{Blocks, Page};
use crate::types::{BLOCKS_PER_REGION, Region};

const BLOCKS: usize = BLOCKS_PER_REGION as usize;
/// Counts of changes; a region has one of them, so that a join disturbs few who look elsewhere.
const COUNTS: usize = 256;

/// What several layers of a path say together of one region.
#[derive(Clone)]
pub(super) struct Merged {
    data: Blocks,
    unverified: Blocks,
    /// Blocks that no layer looked at so far has, and that are asked for.
    left: Blocks,
    /// Per block with data: how many layers lie below the one that has it.
    depths: [u16; BLOCKS],
    sums: [u32; BLOCKS],
    /// A page that can't be believed decides the blocks that are left.
    bad: Option<(u16, String)>,
}

/// What the layers below say of a block.
pub(super) enum Found<'a> {
    Nothing,
    Data { depth: usize, sum: u32, verified: bool },
    Bad { depth: usize, problem: &'a str },
}

impl Merged {
    pub(super) fn new(wanted: Blocks) -> Self {
        let none = Blocks::NONE;
        let (depths, sums) = ([0; BLOCKS], [0; BLOCKS]);
        Self { data: none, unverified: none, left: wanted, depths, sums, bad: None }
    }

    /// Nothing more can be learned from older layers.
    pub(super) fn is_complete(&self) -> bool {
        self.left.is_empty() || self.bad.is_some()
    }

    pub(super) fn is_sound(&self) -> bool {
        self.bad.is_none()
    }

    /// Adds what the next older layer has.
    pub(super) fn add(&mut self, depth: usize, page: &Page) {
        let new = page.present() & self.left;
        for slot in new.slots() {
            self.depths[slot] = depth as u16;
            self.sums[slot] = page.sum(slot);
        }
        self.data = self.data | new;
        self.unverified = self.unverified | (new & page.unverified());
        self.left = self.left & !page.owned();
    }

    pub(super) fn add_bad(&mut self, depth: usize, problem: String) {
        self.bad = Some((depth as u16, problem));
    }

    pub(super) fn block(&self, slot: usize) -> Found<'_> {
        if self.data.has(slot) {
            let verified = !self.unverified.has(slot);
            return Found::Data { depth: self.depths[slot].into(), sum: self.sums[slot], verified };
        }
        match &self.bad {
            Some((depth, problem)) if self.left.has(slot) => {
                Found::Bad { depth: (*depth).into(), problem }
            }
            _ => Found::Nothing,
        }
    }
}

/// What is kept of the live path.
pub(super) struct Below {
    /// Its pages don't matter here.
    head: FileNumber,
    kept: HashMap<u64, Kept>,
    /// Regions of which some sealed layer has a page; unknown until it is asked for.
    regions: Option<RoaringBitmap>,
    counts: [u64; COUNTS],
    paths: u64,
}

#[derive(Default)]
struct Kept {
    /// `None`: it has changed since.
    merged: Option<Rc<Merged>>,
    used: bool,
}

/// When something was looked at: if it is the same afterwards, nothing has changed there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(u64, u64);

/// What is known of a region at once.
pub(super) enum Known {
    Nothing,
    Merged(Rc<Merged>),
    Unknown,
}

impl Below {
    pub(super) fn new() -> Self {
        Self { head: 0, kept: HashMap::new(), regions: None, counts: [0; COUNTS], paths: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn moment(&self, region: Region) -> Moment {
        Moment(self.paths, self.counts[region.0 as usize % COUNTS])
    }

    pub(super) fn paths(&self) -> u64 {
        self.paths
    }

    pub(super) fn known(&mut self, region: Region) -> Known {
        let id = u32::try_from(region.0).unwrap_or(u32::MAX);
        if self.regions.as_ref().is_some_and(|regions| !regions.contains(id)) {
            return Known::Nothing;
        }
        match self.kept.get_mut(&region.0) {
            Some(Kept { merged: Some(merged), used }) => {
                *used = true;
                Known::Merged(merged.clone())
            }
            _ => Known::Unknown,
        }
    }

    /// Says whether it has a place already; a new one counts against the memory.
    pub(super) fn keep(&mut self, region: Region, merged: Rc<Merged>) -> bool {
        let had = self.kept.contains_key(&region.0);
        self.kept.entry(region.0).or_default().merged = Some(merged);
        had
    }

    /// Room is needed: says whether it goes, or was used lately and may stay once more.
    pub(super) fn evict(&mut self, region: u64) -> bool {
        let stays = self
            .kept
            .get_mut(&region)
            .is_some_and(|kept| std::mem::take(&mut kept.used) && kept.merged.is_some());
        if !stays {
            self.kept.remove(&region);
        }
        !stays
    }

    pub(super) fn has_regions(&self) -> bool {
        self.regions.is_some()
    }

    pub(super) fn set_regions(&mut self, regions: RoaringBitmap) {
        self.regions = Some(regions);
    }

    /// A page of some layer has changed.
    pub(super) fn page_changed(&mut self, file: FileNumber, region: u64) {
        if file == self.head {
            return;
        }
        self.counts[region as usize % COUNTS] += 1;
        if let Some(kept) = self.kept.get_mut(&region) {
            kept.merged = None;
        }
        if let Some(regions) = &mut self.regions {
            regions.insert(u32::try_from(region).unwrap_or(u32::MAX));
        }
    }

    /// Layers were changed, none of them on the live path.
    pub(super) fn layers_changed(&mut self) {
        self.paths += 1;
    }

    /// The path is another one. `sealed`: it is the one before under a new head, and these are the
    /// regions that the old head has.
    pub(super) fn path_changed(&mut self, head: FileNumber, sealed: Option<&RoaringBitmap>) {
        self.head = head;
        self.paths += 1;
        match sealed {
            Some(sealed) => {
                let has = |region: &u64| u32::try_from(*region).is_ok_and(|id| sealed.contains(id));
                let changed = self.kept.iter_mut().filter(|(region, _)| has(region));
                changed.for_each(|(_, kept)| kept.merged = None);
                if let Some(regions) = &mut self.regions {
                    *regions |= sealed;
                }
            }
            None => {
                self.kept.values_mut().for_each(|kept| kept.merged = None);
                self.regions = None;
            }
        }
    }
}
