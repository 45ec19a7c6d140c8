//! What clients were told, and whether one register could have answered so (P3).
//!
//! The block has the value 0 at first; clients write 1 and then 2, each once. The register's past is
//! the order in which writes took effect; this keeps *all* pasts that agree with every answer so
//! far. When none is left, an answer was wrong.

use crate::pack::{Packer, Unpacker};
use crate::values::{Value, Values};

/// The pasts: no write took effect, only the first, only the second, and both ways around.
const PASTS: [&[Value]; 5] = [&[], &[1], &[2], &[1, 2], &[2, 1]];
/// The past in which a write takes effect next: `AFTER[past][write - 1]`; itself if it already has.
const AFTER: [[usize; 2]; 5] = [[1, 2], [1, 3], [4, 2], [3, 3], [4, 4]];
/// For each past, what the read that is under way has seen: nothing yet, or one of the values.
const VIEWS: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct History {
    possible: u32,
    submitted: Values,
    acknowledged: Values,
    reading: bool,
}

impl Default for History {
    fn default() -> Self {
        Self {
            possible: 1,
            submitted: Values::default(),
            acknowledged: Values::default(),
            reading: false,
        }
    }
}

impl History {
    /// The write that a client would send next.
    pub fn next_write(&self, writes: Value) -> Option<Value> {
        (1..=writes).find(|&write| !self.submitted.has(write))
    }

    pub fn submit(&mut self, write: Value) {
        self.submitted.add(write);
        self.close();
    }

    pub fn acknowledge(&mut self, write: Value) {
        self.acknowledged.add(write);
        self.keep(|past, _| past.contains(&write));
    }

    pub fn begin_read(&mut self) {
        self.reading = true;
        self.close();
    }

    pub fn answer_read(&mut self, value: Value) {
        self.keep(|_, view| view == 1 + usize::from(value));
        self.abandon_read();
    }

    /// The read has no answer, so what it might have seen doesn't matter.
    pub fn abandon_read(&mut self) {
        self.reading = false;
        self.replace(|past, _| bit(past, 0));
    }

    /// All members lost power. Only that something not older than the last FLUSH is there is
    /// promised then (P1), so each past that ends so is possible, whatever was answered before.
    pub fn cut_back(&mut self, flushed: Values) {
        self.replace(|_, view| {
            let ends_well = (0..PASTS.len()).filter(|&past| flushed.has(last(past)));
            ends_well.fold(0, |all, past| all | bit(past, view))
        });
        let submitted = self.submitted;
        self.keep(|past, _| past.iter().all(|&write| submitted.has(write)));
        self.close();
    }

    pub fn is_possible(&self) -> bool {
        self.possible != 0
    }

    /// What may take effect without anybody's noticing: a write that has no answer yet, the read.
    fn close(&mut self) {
        loop {
            let before = self.possible;
            let (submitted, acknowledged, reading) =
                (self.submitted, self.acknowledged, self.reading);
            self.replace(|past, view| {
                let mut after = bit(past, view);
                for write in [1, 2] {
                    if submitted.has(write) && !acknowledged.has(write) {
                        after |= bit(AFTER[past][usize::from(write) - 1], view);
                    }
                }
                if reading && view == 0 {
                    after |= bit(past, 1 + usize::from(last(past)));
                }
                after
            });
            if self.possible == before {
                return;
            }
        }
    }

    fn keep(&mut self, holds: impl Fn(&[Value], usize) -> bool) {
        self.replace(|past, view| if holds(PASTS[past], view) { bit(past, view) } else { 0 });
    }

    fn replace(&mut self, by: impl Fn(usize, usize) -> u32) {
        let (mut left, mut after) = (self.possible, 0);
        while left != 0 {
            let index = left.trailing_zeros() as usize;
            after |= by(index / VIEWS, index % VIEWS);
            left &= left - 1;
        }
        self.possible = after;
    }

    /// In 25 bits.
    pub fn pack(&self, bits: &mut Packer) {
        bits.put(u64::from(self.possible), 20);
        bits.put(self.submitted.bits() >> 1, 2);
        bits.put(self.acknowledged.bits() >> 1, 2);
        bits.put(u64::from(self.reading), 1);
    }

    pub fn unpack(bits: &mut Unpacker) -> Self {
        Self {
            possible: bits.take(20) as u32,
            submitted: Values::from_bits(bits.take(2) << 1),
            acknowledged: Values::from_bits(bits.take(2) << 1),
            reading: bits.take(1) != 0,
        }
    }
}

const fn bit(past: usize, view: usize) -> u32 {
    1 << (past * VIEWS + view)
}

fn last(past: usize) -> Value {
    PASTS[past].last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(history: &mut History, value: Value) -> bool {
        history.begin_read();
        history.answer_read(value);
        history.is_possible()
    }

    /// What was acknowledged is there for every later read.
    #[test]
    fn acknowledged_write_is_read() {
        let mut history = History::default();
        history.submit(1);
        history.acknowledge(1);
        assert!(read(&mut history.clone(), 1));
        assert!(!read(&mut history, 0));
    }

    /// A write without an answer is old or new, once: two reads never disagree.
    #[test]
    fn unanswered_write_is_decided_by_the_first_read() {
        let mut history = History::default();
        history.submit(1);
        assert!(read(&mut history.clone(), 0));
        assert!(read(&mut history, 1));
        assert!(!read(&mut history, 0));
    }

    /// A read that began before an acknowledgement may see what was before it.
    #[test]
    fn read_sees_a_value_from_while_it_ran() {
        let mut history = History::default();
        history.begin_read();
        history.submit(1);
        history.acknowledge(1);
        let mut old = history;
        old.answer_read(0);
        assert!(old.is_possible());
        assert!(!read(&mut old, 0), "the next read began after the acknowledgement");
        history.answer_read(1);
        assert!(history.is_possible());
    }

    /// After all members lost power, what was flushed must be there, and nothing else.
    #[test]
    fn power_loss_cuts_back_to_the_last_flush() {
        let mut history = History::default();
        history.submit(1);
        history.acknowledge(1);
        let mut flushed = history;
        flushed.cut_back(Values::only(1));
        assert!(!read(&mut flushed, 0));
        let mut values = Values::only(0);
        values.add(1);
        history.cut_back(values);
        assert!(read(&mut history, 0));
    }
}
