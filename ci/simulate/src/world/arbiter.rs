//! The arbiter: answers late, twice, or not at all.

use super::*;

impl World {
    /// The shell asks again and again until there is a definite answer.
    pub(super) fn ask(&mut self, id: u64, change: Option<(Generation, Change)>) {
        let engine = self.engine(id);
        engine.asks_for_change |= change.is_some();
        let asking = &mut engine.asking[usize::from(change.is_some())];
        *asking += 1;
        let number = *asking;
        self.ask_once(id, number, change);
    }

    fn ask_once(&mut self, id: u64, number: u64, change: Option<(Generation, Change)>) {
        let wait = 50 + self.rng.below(2 * MS);
        let kind = usize::from(change.is_some());
        self.after(wait, "arbiter", move |world| {
            if !world.engine(id).alive || world.engine(id).asking[kind] != number {
                return;
            }
            if world.engine(id).arbiter_cut_until < world.now_us() {
                let answer = world.arbitrate(change.clone());
                if !(world.faults && world.rng.percent(10)) {
                    let wait = 50 + world.rng.below(2 * MS);
                    return world.after(wait, "arbiter answers", move |world| {
                        world.arbiter_answers(id, change.is_some(), answer);
                    });
                }
                if world.rng.percent(30) {
                    let late = change.clone();
                    let wait = world.rng.below(50 * MS);
                    world.after(wait, "late duplicate", move |world| {
                        let _ = world.arbitrate(late);
                    });
                }
            }
            let wait = MS + world.rng.below(20 * MS);
            world.after(wait, "ask again", move |world| world.ask_once(id, number, change));
        });
    }

    fn arbiter_answers(&mut self, id: u64, to_change: bool, answer: Result<Record, Refused>) {
        if let Some(wait) = self.engines[&id].thread.busy_us() {
            return self.after(wait, "arbiter answers", move |world| {
                world.arbiter_answers(id, to_change, answer);
            });
        }
        self.engine(id).asks_for_change &= !to_change;
        self.tell(id, |core, now| match to_change {
            true => core.change_answered(now, answer),
            false => core.record_read(now, answer.expect("reads aren't refused")),
        });
    }

    fn arbitrate(&mut self, change: Option<(Generation, Change)>) -> Result<Record, Refused> {
        let Some((expected, change)) = change else { return Ok(self.record.clone()) };
        let after = self.record.after(expected, change)?;
        let before = std::mem::replace(&mut self.record, after);
        self.log(|| format!("record {:?}", self.members()));
        self.check_change_of_set(&before);
        let members = self.members();
        self.removed.values_mut().for_each(|(_, it)| it.retain(|it| members.contains(it)));
        for at in 0..self.machines.len() {
            let was = self.is_meant(&before, at);
            match (was, members.contains(&at)) {
                (false, true) => {
                    self.removed.remove(&at);
                    if self.engines[&self.newest].opened {
                        self.check_added(at); // before, it comes back, and nobody was made equal
                    }
                }
                (true, false) => {
                    self.check_leaves_for_a_fault(at);
                    self.removed.insert(at, (self.record.generation, members.clone()));
                }
                _ => {}
            }
        }
        Ok(self.record.clone())
    }
}
