//! What must hold at every acknowledgement, change of the set, snapshot, and in the end.

use ankole_replica::store::View;

use super::*;
use crate::machine::shown;

impl World {
    /// Every member that hasn't lost power since has what is acknowledged (I1).
    pub(super) fn check_acknowledged(&mut self, id: u64, io: IoId) {
        let engine = self.engines.get_mut(&id).expect("engines are kept");
        let op = engine.ops.get_mut(&io).expect("submitted");
        if id != self.newest || !op.is_write() {
            return;
        }
        let start = op.start;
        let content = op.content();
        for (out, (generation, survivors)) in &self.removed {
            let durable = |at: &usize| {
                self.machines[*at].look(|store| store.membership().synced_gen) >= Some(*generation)
            };
            if survivors.iter().all(durable) {
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

    /// What the touched blocks of a replica look like; those that can't be told are left out.
    fn blocks(&self, at: usize, view: View) -> BTreeMap<u64, Block> {
        self.machines[at].look(|store| {
            let shown = |block: u64| Some((block, shown(store, view, block)?));
            TOUCHED.into_iter().filter_map(shown).collect()
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
            if other == at || state(other) != (true, last_op) || !state(at).0 {
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
        let members = self.members();
        members.into_iter().filter_map(whole).find(|content| content.len() == TOUCHED.len())
    }

    /// I8: a reported snapshot stays what it was.
    pub(super) fn check_snapshots(&self) {
        for at in self.members() {
            if !self.machines[at].look(|store| store.continuous()) {
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
            assert_eq!(blocks.len(), TOUCHED.len(), "member {at} can't show all blocks");
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
