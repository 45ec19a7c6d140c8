//! Where a target may differ, and isn't known to be equal yet; and what is looked at next.

use std::collections::BTreeMap;

use crate::regions::RegionSet;
use crate::types::{LayerId, Region};

/// Regions that aren't ready yet and are passed over at a time.
const LOOKS_MAX: usize = 32;

/// Goes round, in the order of layers and regions.
#[derive(Debug)]
pub(super) struct Todo {
    /// None is empty.
    by_layer: BTreeMap<LayerId, RegionSet>,
    /// What is looked at next.
    at: (LayerId, Region),
}

impl Default for Todo {
    fn default() -> Self {
        Self { by_layer: BTreeMap::new(), at: START }
    }
}

const START: (LayerId, Region) = (LayerId(0), Region(0));

impl Todo {
    pub(super) fn new(mut by_layer: BTreeMap<LayerId, RegionSet>) -> Self {
        by_layer.retain(|_, regions| !regions.is_empty());
        Self { by_layer, at: START }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_layer.is_empty()
    }

    /// Regions, each as often as there are layers in which it may differ.
    pub(super) fn len(&self) -> u64 {
        self.by_layer.values().map(RegionSet::len).sum()
    }

    /// The next one that is ready. `None`: none of the next few is.
    pub(super) fn take(
        &mut self,
        is_ready: impl Fn(LayerId, Region) -> bool,
    ) -> Option<(LayerId, Region)> {
        for _ in 0..LOOKS_MAX {
            let (layer, region) = self.next(self.at).or_else(|| self.next(START))?;
            self.at = (layer, Region(region.0 + 1));
            if is_ready(layer, region) {
                if let Some(regions) = self.by_layer.get_mut(&layer) {
                    regions.remove(region);
                    if regions.is_empty() {
                        self.by_layer.remove(&layer);
                    }
                }
                return Some((layer, region));
            }
        }
        None
    }

    /// It was taken, and comes first again.
    pub(super) fn put_back(&mut self, layer: LayerId, region: Region) {
        self.by_layer.entry(layer).or_default().insert(region);
        self.at = self.at.min((layer, region));
    }

    fn next(&self, from: (LayerId, Region)) -> Option<(LayerId, Region)> {
        self.by_layer.range(from.0..).find_map(|(layer, regions)| {
            let first = if *layer == from.0 { from.1 } else { Region(0) };
            regions.from(first).next().map(|region| (*layer, region))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn todo(of: &[(u32, &[u64])]) -> Todo {
        let sets = of.iter().map(|(layer, regions)| {
            (LayerId(*layer), regions.iter().copied().map(Region).collect())
        });
        Todo::new(sets.collect())
    }

    #[test]
    fn each_region_of_each_layer_is_taken_once() {
        let mut todo = todo(&[(1, &[3, 9]), (2, &[]), (7, &[3])]);
        assert_eq!(todo.len(), 3);
        let taken: Vec<_> = std::iter::from_fn(|| todo.take(|_, _| true)).collect();
        let expected = [(1, 3), (1, 9), (7, 3)];
        assert_eq!(taken, expected.map(|(layer, region)| (LayerId(layer), Region(region))));
        assert!(todo.is_empty());
    }

    /// A region that is settled only later must not hold up those behind it, and isn't forgotten.
    #[test]
    fn what_is_not_ready_is_passed_over_and_comes_again() {
        let regions: Vec<u64> = (0..100).collect();
        let mut todo = todo(&[(1, &regions)]);
        let ready = |_: LayerId, region: Region| region.0 == 99;
        let found: Vec<_> = (0..4).map(|_| todo.take(ready)).collect();
        assert_eq!(found, [None, None, None, Some((LayerId(1), Region(99)))]);
        assert_eq!(todo.take(|_, _| true), Some((LayerId(1), Region(0))));
        todo.put_back(LayerId(1), Region(0));
        assert_eq!(todo.take(|_, _| true), Some((LayerId(1), Region(0))));
        assert_eq!(todo.len(), 98);
    }
}
