//! What must hold at every acknowledgement, change of the set, snapshot, and in the end.

use super::*;

impl World {
    /// Every member that hasn't lost power since has what is acknowledged.
    pub(super) fn check_acknowledged(&self, id: u64, io: IoId) {
        if id != self.newest {
            return;
        }
        let op = &self.engines[&id].ops[&io];
        let members = self.members();
        let value = |at: &Sector| op.cells.get(&at.0).map_or(0, |it| it[at.1].expect("filled"));
        let sound = |out: &usize| self.replicas[*out].is_continuous();
        for (out, (generation, survivors)) in self.removed.iter().filter(|it| sound(it.0)) {
            let lacks = |at: &Sector| self.replicas[*out].head_shows(at.0)[at.1] != value(at);
            let durable = |at: &usize| self.replicas[*at].synced >= Some(*generation);
            assert!(
                survivors.iter().all(durable) || !op.written.iter().any(lacks),
                "acknowledged without {out} before {survivors:?} know that it is out"
            );
        }
        for at in members {
            let replica = &self.replicas[at];
            for (block, half) in op.written.iter().filter(|_| replica.is_continuous()) {
                let value = op.cells.get(block).map_or(0, |it| it[*half].expect("filled"));
                let held = replica.head_shows(*block)[*half];
                assert_eq!(held, value, "acknowledged, and member {at} lacks block {block}");
            }
        }
    }

    /// What isn't marked is the same on all members, for good.
    pub(super) fn check_cleared(&self, regions: &[Region]) {
        let sound = |at: &usize| self.replicas[*at].is_continuous();
        let members: Vec<_> = self.members().into_iter().filter(sound).collect();
        for block in self.history.sectors().iter().map(|it| it.0) {
            let cleared = regions.iter().any(|region| region.blocks().contains(&block));
            for pair in members.windows(2).filter(|_| cleared) {
                let [one, other] = [pair[0], pair[1]].map(|at| self.replicas[at].head_shows(block));
                assert_eq!(one, other, "cleared, and members {pair:?} differ in block {block}");
            }
        }
    }

    /// A new member differs from the others in nothing but writes that are under way.
    pub(super) fn check_added(&self, at: usize) {
        let engine = &self.engines[&self.newest];
        let under_way = |block: u64| {
            engine.ops.values().any(|op| !op.answered && op.written.iter().any(|it| it.0 == block))
        };
        let alike = |other: &usize| {
            let (new, old) = (&self.replicas[at], &self.replicas[*other]);
            old.is_continuous() && new.is_continuous() && old.chain.last_op == new.chain.last_op
        };
        for other in self.members().into_iter().filter(alike) {
            for block in self.history.sectors().iter().map(|it| it.0).filter(|it| !under_way(*it)) {
                let (new, old) = (&self.replicas[at], &self.replicas[other]);
                let (new, old) = (new.head_shows(block), old.head_shows(block));
                assert_eq!(new, old, "added {at} differs from {other} in block {block}");
            }
        }
    }

    pub(super) fn check_snapshots(&self) {
        let members = self.members();
        for at in members.into_iter().filter(|at| self.replicas[*at].is_continuous()) {
            for (layer, content) in &self.snapshots {
                for (block, expected) in content {
                    let shown = self.replicas[at].shown(*layer, *block);
                    assert_eq!(shown, *expected, "member {at}, {layer}, block {block}");
                }
            }
        }
    }

    pub(super) fn check_all_equal(&mut self) {
        self.tick += 1;
        self.check_snapshots();
        for at in self.members() {
            for (block, half) in self.history.sectors() {
                let value = self.replicas[at].head_shows(block)[half];
                self.history.read((block, half), value, self.tick, self.tick);
            }
        }
        self.history.check();
        let shown: Vec<_> = self
            .members()
            .into_iter()
            .map(|at| {
                (0..2 * REGION_BLOCKS)
                    .map(|block| self.replicas[at].head_shows(block))
                    .collect::<Vec<_>>()
            })
            .collect();
        assert!(shown.windows(2).all(|pair| pair[0] == pair[1]), "members differ when all is done");
    }
}
