//! Whether the history of one sector is that of one register: the writes and reads can be put into
//! one order, each between its beginning and its end, in which every read sees the last write.
//!
//! Exact, also for values that aren't unique (zeroes). Walks through the history in the order of
//! time and keeps every state in which the register may be: its value, and which of the operations
//! under way have happened already. Operations are made to happen only when one of them ends, which
//! is enough (Lowe: "Testing for linearizability", 2016). Under way at once are at most the few
//! requests that overlap in one sector.

use std::collections::BTreeSet;

use super::Moment;
use crate::sector::Number;

/// One read or write of one sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub kind: Kind,
    pub began: Moment,
    pub end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write(Number),
    Read(Number),
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Answered(Moment),
    /// Never answered. It happened before this moment, or never will.
    Decided(Moment),
    /// Nothing is known yet.
    Open,
}

/// No order explains what this access saw, or that it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impossible {
    /// Which of the accesses.
    pub access: usize,
    /// What the register may have held just before its end.
    pub possible: BTreeSet<Number>,
}

/// Bit n: the access in seat n has happened.
type Done = u128;
type States = BTreeSet<(Number, Done)>;

enum Event {
    Begins,
    Answered,
    Decided,
}

/// What the register may hold at the end, when it held `initial` at the beginning.
pub fn explain(initial: Number, accesses: &[Access]) -> Result<BTreeSet<Number>, Impossible> {
    let mut walk = Walk { accesses, seats: Vec::new(), states: States::from([(initial, 0)]) };
    for (event, access) in events(accesses) {
        match event {
            Event::Begins => walk.begins(access),
            Event::Answered => walk.answered(access)?,
            Event::Decided => walk.decided(access),
        }
    }
    walk.states = walk.reachable(&walk.states);
    Ok(walk.states.iter().map(|state| state.0).collect())
}

/// In the order of time. A write without an answer that no read saw, and after which there was a
/// read, explains nothing: leaving it out keeps the states few.
fn events(accesses: &[Access]) -> Vec<(Event, usize)> {
    let is_hidden = |access: &Access| match (access.kind, access.end) {
        (Kind::Write(number), End::Decided(at)) => {
            let mut reads = accesses.iter().filter(|it| matches!(it.kind, Kind::Read(_)));
            reads.clone().any(|read| read.began > at)
                && reads.all(|read| read.kind != Kind::Read(number))
        }
        _ => false,
    };
    let mut events = Vec::new();
    for (index, access) in accesses.iter().enumerate().filter(|(_, access)| !is_hidden(access)) {
        events.push((access.began, Event::Begins, index));
        match access.end {
            End::Answered(at) => events.push((at, Event::Answered, index)),
            End::Decided(at) => events.push((at, Event::Decided, index)),
            End::Open => {}
        }
    }
    // Of two events at one moment the beginning comes first: then they overlap.
    events.sort_by_key(|(at, event, _)| (*at, !matches!(event, Event::Begins)));
    events.into_iter().map(|(_, event, index)| (event, index)).collect()
}

struct Walk<'a> {
    accesses: &'a [Access],
    /// Accesses under way; an empty seat is taken by the next.
    seats: Vec<Option<usize>>,
    states: States,
}

impl Walk<'_> {
    fn begins(&mut self, access: usize) {
        let free = self.seats.iter().position(Option::is_none);
        let seat = free.unwrap_or_else(|| {
            self.seats.push(None);
            self.seats.len() - 1
        });
        assert!(seat < Done::BITS as usize, "a client has fewer requests under way");
        self.seats[seat] = Some(access);
        let states = std::mem::take(&mut self.states);
        self.states = states.into_iter().map(|state| self.with_reads(state)).collect();
    }

    fn answered(&mut self, access: usize) -> Result<(), Impossible> {
        let seat = self.seat_of(access);
        let reachable = self.reachable(&self.states);
        let happened: States =
            reachable.iter().filter(|state| state.1 & seat != 0).copied().collect();
        if happened.is_empty() {
            let possible = reachable.iter().map(|state| state.0).collect();
            return Err(Impossible { access, possible });
        }
        self.leaves(seat, happened);
        Ok(())
    }

    fn decided(&mut self, access: usize) {
        let seat = self.seat_of(access);
        let states = self.reachable(&self.states);
        self.leaves(seat, states);
    }

    fn leaves(&mut self, seat: Done, states: States) {
        self.seats[seat.trailing_zeros() as usize] = None;
        self.states = states.into_iter().map(|(value, done)| (value, done & !seat)).collect();
    }

    fn seat_of(&self, access: usize) -> Done {
        let seat = self.seats.iter().position(|seat| *seat == Some(access));
        1 << seat.expect("it has begun")
    }

    /// All states to which writes under way may lead, the present ones among them.
    fn reachable(&self, states: &States) -> States {
        let mut found = states.clone();
        let mut open: Vec<_> = states.iter().copied().collect();
        while let Some((_, done)) = open.pop() {
            for (seat, access) in self.under_way(done) {
                if let Kind::Write(number) = self.accesses[access].kind {
                    let next = self.with_reads((number, done | seat));
                    if found.insert(next) {
                        open.push(next);
                    }
                }
            }
        }
        found
    }

    /// A read that fits happens at once: it changes nothing, so nothing is lost by that.
    fn with_reads(&self, (value, done): (Number, Done)) -> (Number, Done) {
        let fits = |access: usize| self.accesses[access].kind == Kind::Read(value);
        let reads = self.under_way(done).filter(|(_, access)| fits(*access));
        (value, reads.fold(done, |done, (seat, _)| done | seat))
    }

    fn under_way(&self, done: Done) -> impl Iterator<Item = (Done, usize)> {
        let seats = self.seats.iter().enumerate();
        let taken = seats.filter_map(|(seat, access)| Some((1 << seat, (*access)?)));
        taken.filter(move |(seat, _)| done & seat == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(number: u64, began: u64, answered: u64) -> Access {
        let end = End::Answered(Moment(answered));
        Access { kind: Kind::Write(Number(number)), began: Moment(began), end }
    }

    fn lost(number: u64, began: u64, decided: u64) -> Access {
        Access { end: End::Decided(Moment(decided)), ..write(number, began, 0) }
    }

    fn read(number: u64, began: u64, answered: u64) -> Access {
        Access { kind: Kind::Read(Number(number)), ..write(0, began, answered) }
    }

    fn held(accesses: &[Access]) -> Result<Vec<u64>, usize> {
        match explain(Number::ZEROES, accesses) {
            Ok(values) => Ok(values.iter().map(|value| value.0).collect()),
            Err(impossible) => Err(impossible.access),
        }
    }

    #[test]
    fn an_answered_write_is_what_is_read_and_nothing_older() {
        assert_eq!(held(&[write(1, 1, 2), read(1, 3, 4)]), Ok(vec![1]));
        assert_eq!(held(&[write(1, 1, 2), read(0, 3, 4)]), Err(1));
        assert_eq!(held(&[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)]), Err(2));
    }

    #[test]
    fn a_write_under_way_may_be_read_or_not_but_never_come_and_go() {
        assert_eq!(held(&[write(1, 1, 9), read(0, 2, 3), read(1, 4, 5)]), Ok(vec![1]));
        assert_eq!(held(&[write(1, 1, 9), read(1, 2, 3), read(0, 4, 5)]), Err(2));
    }

    /// A write that wasn't acknowledged becomes old or new, once, and stays so.
    #[test]
    fn a_write_without_an_answer_happens_before_it_is_decided_or_never() {
        assert_eq!(held(&[lost(1, 1, 5), read(1, 6, 7), read(1, 8, 9)]), Ok(vec![1]));
        assert_eq!(held(&[lost(1, 1, 5), read(0, 6, 7), read(0, 8, 9)]), Ok(vec![0]));
        assert_eq!(held(&[lost(1, 1, 5), read(0, 6, 7), read(1, 8, 9)]), Err(2));
        assert_eq!(held(&[lost(1, 1, 5), read(1, 6, 7), read(0, 8, 9)]), Err(2));
    }

    /// An engine's late write that lands on its successor's acknowledged one.
    #[test]
    fn a_decided_write_does_not_land_on_a_newer_one() {
        assert_eq!(held(&[lost(1, 1, 5), write(2, 6, 7), read(1, 8, 9)]), Err(2));
        assert_eq!(
            held(&[lost(1, 1, 5), read(1, 6, 7), write(2, 8, 9), read(2, 10, 11)]),
            Ok(vec![2])
        );
    }

    #[test]
    fn zeroes_can_be_written_more_than_once() {
        let twice = [write(1, 1, 2), write(0, 3, 4), write(2, 5, 6), write(0, 7, 8)];
        assert_eq!(held(&[&twice[..], &[read(0, 9, 10)]].concat()), Ok(vec![0]));
        assert_eq!(held(&[&twice[..3], &[read(0, 9, 10)]].concat()), Err(3));
    }

    #[test]
    fn two_writes_at_once_leave_either_and_two_reads_agree() {
        let both = [write(1, 1, 5), write(2, 1, 5)];
        assert_eq!(held(&both), Ok(vec![1, 2]));
        assert_eq!(held(&[&both[..], &[read(2, 6, 7), read(2, 8, 9)]].concat()), Ok(vec![2]));
        assert_eq!(held(&[&both[..], &[read(2, 6, 7), read(1, 8, 9)]].concat()), Err(3));
    }

    /// What is answered though nothing of it is there is found by the next reader, whoever it is.
    #[test]
    fn an_answer_that_came_late_still_means_that_it_happened() {
        assert_eq!(held(&[lost(1, 1, 5), write(1, 1, 5), read(0, 6, 7)]), Err(2));
    }
}
