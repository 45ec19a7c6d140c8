//! What must hold at every acknowledgement, change of the set, snapshot, and in the end.

use ankole_replica::store::View;
use ankole_replica::types::Region;

use super::*;
use crate::machine::{look_at, shown};
use crate::tasks::at_once;

impl World {
    /// No member has answered a newer engine (P4), and every one that hasn't lost power since has what
    /// is acknowledged (I1).
    pub(super) fn check_acknowledged(&mut self, id: u64, io: IoId) {
        for at in self.members() {
            let newest = self.machines[at].welcomed_engine;
            assert!(newest <= Some(id), "acknowledged after {at} has answered a newer engine (P4)");
        }
        let engine = self.engines.get_mut(&id).expect("engines are kept");
        let op = engine.ops.get_mut(&io).expect("submitted");
        if id != self.newest || !op.is_write() {
            return;
        }
        let start = op.start;
        let content = op.content();
        // What is rotten there is found when it is rebuilt, not by looking.
        let sound = |out: &usize| {
            self.machines[*out].rotten.is_none() && !self.machines[*out].is_rolled_back
        };
        for (out, (generation, survivors)) in self.removed.iter().filter(|it| sound(it.0)) {
            let durable = |at: &usize| {
                let machine = &self.machines[*at];
                // An older copy has forgotten it, and counts as a member no more.
                machine.is_rolled_back
                    || machine.look(|store| store.membership().synced_gen) >= Some(*generation)
            };
            if survivors.iter().all(durable) {
                self.check_remembered(*out, &content);
                continue;
            }
            self.machines[*out].look(|store| {
                let lacks = |(block, expected): &(u64, Block)| {
                    shown(store, View::Top, *block).is_some_and(|held| held != *expected)
                };
                assert!(
                    !store.continuous() || !content.iter().any(lacks),
                    "acknowledged without {out} before {survivors:?} know that it is out"
                );
            });
        }
        self.tally.checks += 1;
        for at in self.members() {
            let machine = &self.machines[at];
            if !machine.is_up() || machine.started > start {
                continue; // looking would do what the replica has yet to do
            }
            machine.look(|store| {
                for (block, expected) in content.iter().filter(|_| store.continuous()) {
                    if let Some(held) = shown(store, View::Top, *block) {
                        assert_eq!(
                            held, *expected,
                            "acknowledged, and member {at} lacks block {block}"
                        );
                    }
                }
            });
        }
    }

    /// I7: what an absent replica lacks is in what a rebuild would bring it.
    fn check_remembered(&self, out: usize, content: &[(u64, Block)]) {
        let (synced, own) = self.machines[out].look(|store| {
            let marked = store.marked_regions().unwrap_or_default();
            (store.membership().synced_gen, marked.into_iter().map(|it| it.0).collect::<Vec<_>>())
        });
        let lacks = |(block, expected): &&(u64, Block)| {
            let held = |store: &_| shown(store, View::Top, *block);
            self.machines[out].look(held).is_some_and(|held| held != *expected)
        };
        for (block, _) in content.iter().filter(lacks) {
            let region = BlockIndex(*block).region();
            let stamped = |at: usize| {
                let stamped = self.machines[at].look(|store| store.regions_since(synced));
                stamped.is_ok_and(|regions| regions.iter().any(|it| it.0 == region))
            };
            assert!(
                own.contains(&region) || self.members().into_iter().any(stamped),
                "nobody remembers that {out} lacks block {block} (I7)"
            );
        }
    }

    /// Now and then: what holds at any time.
    pub(super) fn inspect(&mut self) {
        if self.pending.is_some() || self.wants_revert || !self.undecided.is_empty() {
            return;
        }
        let engine = &self.engines[&self.newest];
        if !engine.alive || !engine.opened {
            return;
        }
        let members = self.members();
        for at in members.iter().copied() {
            let seed = self.rng.number();
            self.check_flushed(at, seed);
        }
        self.check_unmarked(&members);
    }

    /// I2: whatever a power cut takes from a member, what was flushed is left.
    fn check_flushed(&self, at: usize, seed: u64) {
        let machine = &self.machines[at];
        // A directory that was made anew isn't the member that the record names.
        let is_it = |member: &Member| member.incarnation == machine.incarnation;
        let is_member = self.record.in_sync.iter().any(is_it);
        if !is_member || machine.rotten.is_some() || machine.is_rolled_back || machine.has_failed()
        {
            return;
        }
        machine.look_after_power_cut(seed, |store| {
            let chain = store.chain();
            let holds_any = |layer: LayerId| {
                at_once(store.occupied(layer, Region(0), 1))
                    .is_none_or(|found| found.is_ok_and(|(regions, _)| !regions.is_empty()))
            };
            let sealed = chain.layers.iter().filter(|layer| layer.id != chain.head);
            for layer in sealed.filter(|layer| holds_any(layer.id)) {
                for block in self.places.touched.iter().copied() {
                    if let Some(Err(why)) = look_at(store, View::Own(layer.id), block) {
                        panic!("a power cut of {at} leaves of {}: {why} (I3)", layer.id);
                    }
                }
            }
            let marked = store.marked_regions().unwrap_or_default();
            let is_marked = |block: u64| {
                let region = BlockIndex(block).region();
                marked.iter().any(|(marked, _)| *marked == region)
            };
            for block in self.places.touched.iter().copied() {
                let left = match look_at(store, View::Top, block) {
                    Some(Ok(left)) => left,
                    Some(Err(why)) if !is_marked(block) => {
                        panic!("after a power cut of {at}: {why} (I3)")
                    }
                    _ => continue,
                };
                for (sector, number) in (block * SECTORS as u64..).zip(left) {
                    assert!(
                        self.history.may_be_left(sector, number),
                        "a power cut of {at} leaves {number} in sector {sector}, \
                         and a flush was answered since (I2)"
                    );
                }
            }
        });
    }

    /// I3: where nothing is marked, all members are alike, and all sums are right.
    fn check_unmarked(&self, members: &[usize]) {
        let marked: BTreeSet<_> = members
            .iter()
            .flat_map(|at| self.machines[*at].look(|store| store.marked_regions()))
            .flatten()
            .map(|(region, _)| region)
            .collect();
        let touched = self.places.touched.iter().copied();
        for block in touched.filter(|it| !marked.contains(&BlockIndex(*it).region())) {
            let mut seen: Option<(usize, Block)> = None;
            let as_it_was = |at: &usize| {
                let machine = &self.machines[*at];
                machine.rotten.is_none() && !machine.is_rolled_back
            };
            for at in members.iter().copied().filter(as_it_was) {
                let looked = self.machines[at].look(|store| look_at(store, View::Top, block));
                let Some(held) = looked else { continue };
                let held = held.unwrap_or_else(|why| panic!("member {at}: {why} (I3)"));
                if let Some((other, before)) = seen {
                    assert_eq!(held, before, "{at} and {other} differ in block {block} (I3)");
                }
                seen = Some((at, held));
            }
        }
    }

    /// What the touched blocks of a replica look like; those that can't be told are left out.
    fn blocks(&self, at: usize, view: View) -> BTreeMap<u64, Block> {
        self.machines[at].look(|store| {
            let shown = |block: u64| Some((block, shown(store, view, block)?));
            self.places.touched.iter().copied().filter_map(shown).collect()
        })
    }

    /// A new member differs from the others in nothing but writes that are under way.
    pub(super) fn check_added(&self, at: usize) {
        let engine = &self.engines[&self.newest];
        let under_way = |block: u64| {
            let touches = |op: &ClientOp| {
                op.range().is_some_and(|range| range.blocks().any(|it| it.0 == block))
            };
            engine.ops.values().any(|op| !op.answered && op.is_write() && touches(op))
        };
        let state =
            |at: usize| self.machines[at].look(|store| (store.continuous(), store.chain().last_op));
        let (_, last_op) = state(at);
        let new = self.blocks(at, View::Top);
        for other in self.members() {
            let is_older = self.machines[other].is_rolled_back;
            if other == at || is_older || state(other) != (true, last_op) || !state(at).0 {
                continue;
            }
            let old = self.blocks(other, View::Top);
            for (block, held) in new.iter().filter(|(block, _)| !under_way(**block)) {
                if let Some(old) = old.get(block) {
                    assert_eq!(held, old, "added {at} differs from {other} in block {block}");
                }
            }
        }
    }

    /// I9: never empty.
    pub(super) fn check_change_of_set(&self, before: &Record) {
        assert!(!self.record.in_sync.is_empty(), "the set became empty");
        assert!(self.record.generation > before.generation, "the record went back");
    }

    /// What a snapshot holds, from a member that can tell.
    pub(super) fn content_of(&self, layer: LayerId) -> Option<BTreeMap<u64, Block>> {
        let whole = |at: usize| Some(self.blocks(at, View::Layer(layer)));
        let as_it_was = |at: &usize| !self.machines[*at].is_rolled_back;
        let members = self.members().into_iter().filter(as_it_was);
        members.filter_map(whole).find(|content| content.len() == self.places.touched.len())
    }

    /// I8: a reported snapshot stays what it was.
    pub(super) fn check_snapshots(&self) {
        for at in self.members() {
            let machine = &self.machines[at];
            if machine.is_rolled_back || !machine.look(|store| store.continuous()) {
                continue;
            }
            for (layer, content) in &self.snapshots {
                for (block, held) in self.blocks(at, View::Layer(*layer)) {
                    assert_eq!(held, content[&block], "member {at}, {layer}, block {block}");
                }
            }
        }
    }

    pub(super) fn check_all_equal(&mut self) {
        self.tick += 1;
        self.check_snapshots();
        let all: Vec<_> =
            self.members().into_iter().map(|at| (at, self.blocks(at, View::Top))).collect();
        for (at, blocks) in &all {
            assert_eq!(
                blocks.len(),
                self.places.touched.len(),
                "member {at} can't show all blocks"
            );
            for (block, numbers) in blocks {
                for (sector, number) in (block * SECTORS as u64..).zip(numbers) {
                    self.history.read(sector, *number, self.tick, self.tick);
                }
            }
        }
        self.history.check();
        let equal = all.windows(2).all(|pair| pair[0].1 == pair[1].1);
        assert!(equal, "members differ when all is done");
    }
}
