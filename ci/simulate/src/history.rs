//! What clients did and saw, and whether a register per sector can explain it.
//!
//! Values are unique, so each value has a *zone*: from the first end to the last start of what
//! wrote and read it. A history of one register is linearizable exactly if no two zones that run
//! forward overlap and none that runs backward lies within a forward one (Gibbons and Korach,
//! "Testing shared memories", 1997). Zero isn't unique; its reads are only checked against writes
//! that surely lie between.

use std::collections::{BTreeMap, BTreeSet};

/// A sector of 512 bytes, counted from the start of the volume.
pub type Sector = u64;

#[derive(Clone, Debug)]
struct Write {
    value: u64,
    start: u64,
    end: Option<u64>,
    forced: bool,
    /// Its engine is gone: from here on it has been done or never will be.
    decided: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Register {
    /// What it may have held at the beginning, one of them.
    initial: BTreeSet<u64>,
    writes: Vec<Write>,
    /// Value, start, end.
    reads: Vec<(u64, u64, u64)>,
}

#[derive(Default)]
pub struct History {
    registers: BTreeMap<Sector, Register>,
    /// When the newest flush that was answered had begun.
    flushed: u64,
}

impl History {
    fn register(&mut self, sector: Sector) -> &mut Register {
        let initial = BTreeSet::from([0]);
        self.registers.entry(sector).or_insert(Register { initial, ..Register::default() })
    }

    pub fn write_begins(&mut self, sector: Sector, value: u64, start: u64, forced: bool) {
        let write = Write { value, start, end: None, forced, decided: None };
        self.register(sector).writes.push(write);
    }

    /// Acknowledged, or with `decided` given up.
    pub fn write_ends(&mut self, sector: Sector, start: u64, now: u64, acknowledged: bool) {
        let writes = &mut self.register(sector).writes;
        if let Some(write) = writes.iter_mut().rev().find(|write| write.start == start) {
            if acknowledged {
                write.end = Some(now);
            } else {
                write.decided.get_or_insert(now);
            }
        }
    }

    pub fn read(&mut self, sector: Sector, value: u64, start: u64, end: u64) {
        self.register(sector).reads.push((value, start, end));
    }

    pub fn flush_ends(&mut self, start: u64) {
        self.flushed = self.flushed.max(start);
    }

    pub fn sectors(&self) -> Vec<Sector> {
        self.registers.keys().copied().collect()
    }

    /// All members lost their caches: each sector holds what some flush covers, or anything newer.
    pub fn cut(&mut self) {
        self.check();
        let flushed = self.flushed;
        for register in self.registers.values_mut() {
            let writes = std::mem::take(&mut register.writes);
            let safe = |write: &&Write| write.end.is_some_and(|end| end < flushed || write.forced);
            let newest_safe = writes.iter().filter(safe).map(|write| write.start).max();
            let possible = |write: &&Write| {
                let end = write.end.or(write.decided).unwrap_or(u64::MAX);
                newest_safe.is_none_or(|newest| newest <= end)
            };
            register.initial.retain(|_| newest_safe.is_none());
            let values = writes.iter().filter(possible);
            register.initial.extend(values.map(|write| write.value));
            register.reads.clear();
        }
    }

    /// The volume was reverted: it holds `content`.
    pub fn reset(&mut self, content: impl Fn(Sector) -> u64) {
        self.check();
        for (sector, register) in &mut self.registers {
            let initial = BTreeSet::from([content(*sector)]);
            *register = Register { initial, ..Register::default() };
        }
    }

    /// A snapshot, seen between `start` and `end`, is what the volume was at one moment.
    pub fn snapshot(&mut self, content: impl Fn(Sector) -> u64, start: u64, end: u64) {
        let (mut newest_in, mut oldest_out) = (0, u64::MAX);
        for (sector, register) in &mut self.registers {
            let value = content(*sector);
            register.reads.push((value, start, end));
            if let Some(write) =
                register.writes.iter().find(|write| write.value == value && value != 0)
            {
                newest_in = newest_in.max(write.start);
                let newer = register
                    .writes
                    .iter()
                    .filter(|it| Some(it.start) > write.end && write.end.is_some());
                oldest_out =
                    newer.filter_map(|it| it.end).min().unwrap_or(u64::MAX).min(oldest_out);
            }
        }
        assert!(newest_in <= oldest_out, "a snapshot has a write and lacks one that ended before");
    }

    pub fn check(&self) {
        for (sector, register) in &self.registers {
            if let Err(why) = register.check() {
                panic!("sector {sector:?}: {why}\n{register:#?}");
            }
        }
    }
}

impl Register {
    fn check(&self) -> Result<(), String> {
        let mut began_as: Option<u64> = None;
        let mut zones: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let seen: BTreeSet<u64> = self.reads.iter().map(|read| read.0).collect();
        for write in self.writes.iter().filter(|write| write.value != 0) {
            match write.end.or(write.decided) {
                Some(end) if write.end.is_some() || seen.contains(&write.value) => {
                    zones.insert(write.value, (end, write.start));
                }
                _ if seen.contains(&write.value) => {
                    zones.insert(write.value, (u64::MAX, write.start));
                }
                _ => {}
            }
        }
        for &(value, start, end) in &self.reads {
            if value == 0 {
                self.check_zero(start, end)?;
                continue;
            }
            let write = self.writes.iter().find(|write| write.value == value);
            if write.is_none() {
                if !self.initial.contains(&value) {
                    return Err(format!("read {value}, which it can't hold"));
                }
                if began_as.is_some_and(|before| before != value) {
                    return Err(format!("it began as {began_as:?} and as {value}"));
                }
                began_as = Some(value);
            }
            if write.is_some_and(|write| write.start > end) {
                return Err(format!("read {value} before it was written"));
            }
            let zone = zones.entry(value).or_insert((0, 0));
            *zone = (zone.0.min(end), zone.1.max(start));
        }
        let zeroes = self.writes.iter().filter(|write| write.value == 0);
        let zeroes = zeroes.filter_map(|write| Some((0, (write.end?, write.start))));
        let all: Vec<_> = zones.iter().map(|(value, zone)| (*value, *zone)).chain(zeroes).collect();
        for &(value, (first_end, last_start)) in &all {
            if first_end >= last_start {
                continue;
            }
            for &(other, (end, start)) in &all {
                if other != value && first_end < start && end < last_start {
                    return Err(format!("{value} and {other} were there in turns"));
                }
            }
        }
        Ok(())
    }

    fn check_zero(&self, start: u64, end: u64) -> Result<(), String> {
        let surely = self.writes.iter().filter(|write| write.value != 0 && write.end < Some(start));
        let hidden =
            |from: u64| surely.clone().any(|write| write.end.is_some() && write.start > from);
        let zeroes = self.writes.iter().filter(|write| write.value == 0 && write.start < end);
        let mut ends = zeroes.map(|zero| zero.end.or(zero.decided).unwrap_or(u64::MAX));
        let began = self.initial.contains(&0) && !hidden(0);
        if began || ends.any(|zero| !hidden(zero)) {
            return Ok(());
        }
        Err("read zero, which was overwritten".into())
    }
}
