//! The last disk failed (rule 10).
//!
//! The last member stays in the record whatever happens. If its disk failed, nobody can say what of
//! the unflushed is there: whoever waits gets an error, nothing is tried again, and only a person
//! can go on from there (salvage).

use std::time::Instant;

use super::action::{Action, End, Failure};
use super::core::{Core, Phase};
use super::io::IoStage;

impl Core {
    /// Every replica of the record said that its disk failed.
    pub(super) fn has_failed(&self) -> bool {
        let set = self.set();
        !set.is_empty()
            && set.iter().all(|slot| self.peer(slot).failed && !self.peer(slot).is_live())
    }

    pub(super) fn drive_failed(&mut self, now: Instant) {
        if !self.has_failed() || self.changing.is_some() {
            return;
        }
        let waiting: Vec<_> =
            self.ios.iter().filter(|(_, io)| !io.answered).map(|(id, _)| *id).collect();
        for id in waiting {
            let Some(io) = self.ios.get(&id) else { continue }; // retired beside another
            match io.stage {
                IoStage::Writing | IoStage::Filling { .. } => self.fail_write(now, id),
                // It holds its lock when its turn comes, and fails then.
                IoStage::Locking | IoStage::Answered => continue,
                IoStage::Settling => {
                    if self.io(id).is_write() {
                        self.writes_in_flight -= 1;
                    }
                    self.settle.forget(id);
                    self.complete(id, Err(Failure::Io));
                }
                IoStage::Parked
                | IoStage::Reading { .. }
                | IoStage::Leasing
                | IoStage::Flushing => {
                    self.complete(id, Err(Failure::Io));
                }
            }
            self.retire_if_done(now, id);
        }
        self.parked.clear();
        self.repairs.forget_waiting();
        self.flushes.forget();
        for job in self.chain_work.abandon() {
            let result = Err("the disk of the last replica failed".into());
            self.act(Action::JobDone { job, result });
        }
        if matches!(self.phase, Phase::Closing(_)) {
            self.end(End::Detached);
        }
    }

    pub(super) fn failed_waits_for(&self) -> Option<String> {
        self.has_failed().then(|| {
            "no replica of the in-sync set has a disk that works: every request fails; see what \
             can be salvaged"
                .into()
        })
    }
}
