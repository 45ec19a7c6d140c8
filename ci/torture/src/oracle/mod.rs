//! What the volume may hold: every sector a register, every access of it on record.
//!
//! Pure: time is a count of what happened. A round begins with a known value in each sector; what
//! the client does is recorded; at the end, when everything was read twice, each sector's history
//! must be that of one register ([`register`]). Since no power is cut, what was acknowledged may
//! never be lost, flushed or not.

pub mod register;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use self::register::{Access, End, Impossible, Kind};
use crate::sector::Number;

/// Position in the order of all that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

/// A write on record.
#[derive(Clone, Copy, Debug)]
pub struct WriteId {
    round: u64,
    index: usize,
}

/// Number of an engine: each process that was started has its own, later ones have higher ones.
pub type EngineNumber = u32;

struct Operation {
    is_write: bool,
    began: Moment,
    end: End,
    engine: EngineNumber,
}

/// What a sector saw: the operation, and what it wrote or read there.
type Touch = (usize, Number);

#[derive(Default)]
pub struct Oracle {
    round: u64,
    round_began: u64,
    now: u64,
    initial: Vec<Number>,
    touched: Vec<Vec<Touch>>,
    operations: Vec<Operation>,
    notes: Vec<(Moment, String)>,
}

/// What a round's check looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checked {
    pub accesses: u64,
    pub sectors_written: u64,
}

/// A history that no register has.
#[derive(Debug)]
pub struct Violation {
    sector: u64,
    saw: String,
    possible: BTreeSet<Number>,
    history: String,
}

impl std::error::Error for Violation {}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let possible: Vec<_> = self.possible.iter().map(Number::to_string).collect();
        writeln!(f, "sector {}: {}", self.sector, self.saw)?;
        writeln!(f, "it can have held only: {}", possible.join(", "))?;
        write!(f, "its history in this round:\n{}", self.history)
    }
}

impl Oracle {
    /// A volume of zeroes.
    pub fn new(sectors: u64) -> Self {
        let mut oracle = Self::default();
        oracle.grow(sectors);
        oracle
    }

    /// New sectors are zero.
    pub fn grow(&mut self, sectors: u64) {
        let sectors = (sectors as usize).max(self.initial.len());
        self.initial.resize(sectors, Number::ZEROES);
        self.touched.resize(sectors, Vec::new());
    }

    pub fn sectors(&self) -> u64 {
        self.initial.len() as u64
    }

    /// What each sector holds, as known from the end of the last round.
    pub fn known(&self) -> &[Number] {
        &self.initial
    }

    pub fn now(&mut self) -> Moment {
        self.now += 1;
        Moment(self.now)
    }

    /// Said among a failing sector's accesses.
    pub fn note(&mut self, text: impl Into<String>) {
        let at = self.now();
        self.notes.push((at, text.into()));
    }

    pub fn write_begins(
        &mut self,
        engine: EngineNumber,
        sectors: Range<u64>,
        number: Number,
    ) -> WriteId {
        let began = self.now();
        let index = self.record(Operation { is_write: true, began, end: End::Open, engine });
        for sector in sectors {
            self.touched[sector as usize].push((index, number));
        }
        WriteId { round: self.round, index }
    }

    /// It was acknowledged. One whose engine had a successor by then must have happened before.
    pub fn write_answered(&mut self, id: WriteId) {
        let now = self.now();
        if id.round == self.round {
            let end = &mut self.operations[id.index].end;
            *end = End::Answered(if let End::Decided(at) = *end { at } else { now });
        }
    }

    /// A newer engine serves: what an older one hasn't answered has happened, or never will.
    pub fn succeeds(&mut self, engine: EngineNumber) {
        let now = self.now();
        for operation in &mut self.operations {
            if operation.end == End::Open && operation.engine < engine {
                operation.end = End::Decided(now);
            }
        }
    }

    /// The sectors from `first` on were seen as `numbers`, at some moment since `began`. An answer
    /// from an earlier round says nothing about this one.
    pub fn read(&mut self, engine: EngineNumber, began: Moment, first: u64, numbers: &[Number]) {
        let ended = self.now();
        if began.0 < self.round_began {
            return;
        }
        self.read_between(engine, began, ended, first, numbers);
    }

    fn read_between(
        &mut self,
        engine: EngineNumber,
        began: Moment,
        ended: Moment,
        first: u64,
        numbers: &[Number],
    ) {
        let end = End::Answered(ended);
        let index = self.record(Operation { is_write: false, began, end, engine });
        for (touched, number) in self.touched[first as usize..].iter_mut().zip(numbers) {
            touched.push((index, *number));
        }
    }

    /// A snapshot that was made between these moments shows `numbers`: that is a read of every
    /// sector, and all of them at one moment.
    pub fn snapshot(
        &mut self,
        began: Moment,
        ended: Moment,
        numbers: &[Number],
    ) -> Result<(), Violation> {
        // The cut is after the beginning of all that it has, and before the end of what it lacks.
        let mut has = (Moment(0), 0);
        let mut lacks = (Moment(u64::MAX), 0);
        for (sector, number) in numbers.iter().enumerate() {
            let writes = || {
                let writes =
                    self.touched[sector].iter().map(|touch| (touch.1, &self.operations[touch.0]));
                writes.filter(|(_, operation)| operation.is_write)
            };
            let is_shown = |(written, _): &(Number, &Operation)| written == number;
            let shown = writes().find(is_shown).filter(|_| *number != Number::ZEROES);
            let was_there = self.initial[sector] == *number && *number != Number::ZEROES;
            let since = match shown {
                Some((_, operation)) => {
                    has = has.max((operation.began, sector));
                    operation.end
                }
                None if was_there => End::Answered(Moment(0)),
                None => continue,
            };
            for (_, later) in writes() {
                if let (End::Answered(shown), End::Answered(end)) = (since, later.end)
                    && later.began > shown
                {
                    lacks = lacks.min((end, sector));
                }
            }
        }
        if has.0 > lacks.0 {
            let saw = format!(
                "a snapshot lacks a write here, though it has a later one of sector {}",
                has.1
            );
            return Err(self.violation(lacks.1, saw, BTreeSet::new()));
        }
        self.read_between(0, began, ended, 0, numbers);
        Ok(())
    }

    /// Checks the round, which ended with a reading of all sectors, and begins the next.
    pub fn finish_round(&mut self) -> Result<Checked, Violation> {
        let mut checked = Checked::default();
        let mut values = Vec::with_capacity(self.initial.len());
        for (sector, touched) in self.touched.iter().enumerate() {
            let initial = self.initial[sector];
            let accesses = self.accesses(touched);
            let is_write = |access: &Access| matches!(access.kind, Kind::Write(_));
            checked.accesses += accesses.len() as u64;
            checked.sectors_written += u64::from(accesses.iter().any(is_write));
            let possible = register::explain(initial, &accesses)
                .map_err(|impossible| self.explain(sector, &accesses, impossible))?;
            let mut possible = possible.into_iter();
            let (Some(value), None) = (possible.next(), possible.next()) else {
                let saw = "nobody has read it since its last write".into();
                return Err(self.violation(sector, saw, BTreeSet::new()));
            };
            values.push(value);
        }
        self.initial = values;
        self.touched.iter_mut().for_each(Vec::clear);
        self.operations.clear();
        self.notes.clear();
        self.round += 1;
        self.round_began = self.now().0;
        Ok(checked)
    }

    fn record(&mut self, operation: Operation) -> usize {
        self.operations.push(operation);
        self.operations.len() - 1
    }

    fn accesses(&self, touched: &[Touch]) -> Vec<Access> {
        let access = |&(operation, number): &Touch| {
            let operation = &self.operations[operation];
            let kind = if operation.is_write { Kind::Write(number) } else { Kind::Read(number) };
            Access { kind, began: operation.began, end: operation.end }
        };
        touched.iter().map(access).collect()
    }

    fn explain(&self, sector: usize, accesses: &[Access], impossible: Impossible) -> Violation {
        let saw = match accesses[impossible.access].kind {
            Kind::Read(number) => format!("{number} was read"),
            Kind::Write(number) => format!("{number} was acknowledged, and can't be explained"),
        };
        self.violation(sector, saw, impossible.possible)
    }

    fn violation(&self, sector: usize, saw: String, possible: BTreeSet<Number>) -> Violation {
        Violation { sector: sector as u64, saw, possible, history: self.history(sector) }
    }

    /// What happened to a sector in this round, for people.
    pub fn history(&self, sector: usize) -> String {
        let mut lines: Vec<(Moment, String)> = self.notes.clone();
        for &(index, number) in &self.touched[sector] {
            let Operation { is_write, began, end, engine } = &self.operations[index];
            let what = if *is_write { "write" } else { "read" };
            let end = match end {
                End::Answered(at) => format!("answered at {}", at.0),
                End::Decided(at) => format!("not answered, decided at {}", at.0),
                End::Open => "not answered".to_owned(),
            };
            lines.push((*began, format!("{what} {number} by engine {engine}, {end}")));
        }
        lines.sort();
        let mut history = format!("{:>10}  it held {}\n", 0, self.initial[sector]);
        for (at, text) in lines {
            history.push_str(&format!("{:>10}  {text}\n", at.0));
        }
        history
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(oracle: &mut Oracle, sectors: Range<u64>, number: u64) {
        let id = oracle.write_begins(1, sectors, Number(number));
        oracle.write_answered(id);
    }

    fn read(oracle: &mut Oracle, first: u64, numbers: &[u64]) {
        let began = oracle.now();
        let numbers: Vec<_> = numbers.iter().copied().map(Number).collect();
        oracle.read(1, began, first, &numbers);
    }

    #[test]
    fn what_was_read_at_the_end_of_a_round_is_what_the_next_one_begins_with() {
        let mut oracle = Oracle::new(3);
        write(&mut oracle, 0..2, 5);
        read(&mut oracle, 0, &[5, 5, 0]);
        let checked = oracle.finish_round().expect("as written");
        assert_eq!((checked.sectors_written, checked.accesses), (2, 5));
        read(&mut oracle, 0, &[5, 0, 0]);
        let violation = oracle.finish_round().expect_err("sector 1 lost its write").to_string();
        assert!(violation.contains("sector 1: zeroes was read"), "{violation}");
        assert!(violation.contains("only: #5"), "{violation}");
    }

    /// Another engine answered: what the older one was asked and didn't answer can't come later.
    #[test]
    fn a_write_of_a_fenced_engine_does_not_appear_after_its_successor_was_read() {
        let mut oracle = Oracle::new(1);
        oracle.write_begins(1, 0..1, Number(5));
        oracle.succeeds(2);
        read(&mut oracle, 0, &[0]);
        read(&mut oracle, 0, &[5]);
        oracle.finish_round().expect_err("it came late");
    }

    #[test]
    fn an_answer_that_was_read_late_counts_from_the_successor_on() {
        let mut oracle = Oracle::new(1);
        let id = oracle.write_begins(1, 0..1, Number(5));
        oracle.succeeds(2);
        oracle.write_answered(id);
        read(&mut oracle, 0, &[0]);
        oracle.finish_round().expect_err("it was answered and isn't there");
    }

    /// P6: each sector alone may be explained, all of them together not.
    #[test]
    fn a_snapshot_that_has_a_write_has_all_that_ended_before_it() {
        let mut oracle = Oracle::new(2);
        let began = oracle.now();
        write(&mut oracle, 0..1, 5);
        write(&mut oracle, 1..2, 6);
        let ended = oracle.now();
        let shows = |numbers: [u64; 2]| numbers.map(Number).to_vec();
        oracle.snapshot(began, ended, &shows([5, 0])).expect("between the two");
        oracle.snapshot(began, ended, &shows([5, 6])).expect("after both");
        write(&mut oracle, 0..1, 7);
        let ended = oracle.now();
        oracle.snapshot(began, ended, &shows([7, 6])).expect("after all");
        oracle.snapshot(began, ended, &shows([5, 6])).expect("before the last");
        write(&mut oracle, 1..2, 8);
        let ended = oracle.now();
        oracle.snapshot(began, ended, &shows([5, 8])).expect_err("8 began after 7 had ended");
    }
}
