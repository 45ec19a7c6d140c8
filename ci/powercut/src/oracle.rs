//! What may be in a volume, judged from what its client asked for and was told. Pure.
//!
//! Owns the client's history: every write, flush and snapshot with the moments of its question and
//! its answer on one clock. Promises to accept every outcome that the promises P1 to P3 and P6 of
//! the design allow, and no other. One rule decides everything:
//!
//! ```text
//! a sector may show write W  ⟺  W was asked for before the end of the look, and no write that
//!                               must be there was asked for after W had been answered
//! ```
//!
//! Which writes *must be there* depends on the look: for a read and a snapshot those that were
//! answered before it was asked for; after a power cut of all machines those that a flush covers;
//! after one that a replica outlived, all that were answered.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering as Memory};

use ankole_blockdev::disk::{Durability, Extent, SECTOR_BYTES};
use serde::{Deserialize, Serialize};

use crate::sector::{Content, WriteId, recognise};

/// A point in the order of everything that happens in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

/// Gives out moments, each later than all before it. Clones are the same clock.
#[derive(Clone, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    pub fn now(&self) -> Moment {
        Moment(self.0.fetch_add(1, Memory::SeqCst) + 1)
    }
}

/// From the question to the answer, if there was one.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub asked: Moment,
    pub answered: Option<Moment>,
}

impl Span {
    /// As it looked at a moment; `None` if nobody had asked yet.
    fn seen_at(self, at: Moment) -> Option<Self> {
        let answered = self.answered.filter(|answered| *answered <= at);
        (self.asked <= at).then_some(Self { asked: self.asked, answered })
    }

    fn was_answered_before(self, at: Moment) -> bool {
        self.answered.is_some_and(|answered| answered < at)
    }
}

struct Write {
    span: Span,
    is_zeroes: bool,
    durability: Durability,
}

struct Snapshot {
    name: String,
    span: Span,
    removal_asked: Option<Moment>,
}

/// How much a power cut may have taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Floor {
    /// All machines lost power: what no flush had covered (P1).
    Flushed,
    /// A replica's machine ran on: nothing that was answered (P2, P3).
    Answered,
}

/// What a client asked for and was told.
pub struct History {
    run: u64,
    clock: Clock,
    /// The first one is the volume's zeroes, before anything happened.
    writes: Vec<Write>,
    /// Writes to each sector, in the order in which they were asked for.
    sectors: Vec<Vec<WriteId>>,
    flushes: Vec<Span>,
    snapshots: Vec<Snapshot>,
}

/// A question that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushId(usize);
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotId(usize);

pub fn sectors_of(extent: Extent) -> Range<u64> {
    extent.offset_bytes / SECTOR_BYTES..extent.end_bytes() / SECTOR_BYTES
}

impl History {
    /// Of a volume that is all zeroes.
    pub fn new(run: u64, size_bytes: u64, clock: Clock) -> Self {
        let beginning = Span { asked: Moment(0), answered: Some(Moment(0)) };
        let zeroes =
            Write { span: beginning, is_zeroes: true, durability: Durability::ForcedUnitAccess };
        let sectors = vec![vec![WriteId(0)]; (size_bytes / SECTOR_BYTES) as usize];
        let (flushes, snapshots) = (Vec::new(), Vec::new());
        Self { run, clock, writes: vec![zeroes], sectors, flushes, snapshots }
    }

    pub fn run(&self) -> u64 {
        self.run
    }

    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    pub fn size_bytes(&self) -> u64 {
        self.sectors.len() as u64 * SECTOR_BYTES
    }

    fn span_from_now(&self) -> Span {
        Span { asked: self.clock.now(), answered: None }
    }

    pub fn ask_write(&mut self, at: Extent, durability: Durability, is_zeroes: bool) -> WriteId {
        let id = WriteId(u32::try_from(self.writes.len()).expect("a run ends before 2^32 writes"));
        self.writes.push(Write { span: self.span_from_now(), is_zeroes, durability });
        for sector in sectors_of(at) {
            self.sectors[sector as usize].push(id);
        }
        id
    }

    pub fn answer_write(&mut self, id: WriteId) {
        self.writes[id.0 as usize].span.answered = Some(self.clock.now());
    }

    pub fn ask_flush(&mut self) -> FlushId {
        self.flushes.push(self.span_from_now());
        FlushId(self.flushes.len() - 1)
    }

    pub fn answer_flush(&mut self, id: FlushId) {
        self.flushes[id.0].answered = Some(self.clock.now());
    }

    pub fn ask_snapshot(&mut self, name: &str) -> SnapshotId {
        let span = self.span_from_now();
        self.snapshots.push(Snapshot { name: name.into(), span, removal_asked: None });
        SnapshotId(self.snapshots.len() - 1)
    }

    pub fn answer_snapshot(&mut self, id: SnapshotId) {
        self.snapshots[id.0].span.answered = Some(self.clock.now());
    }

    pub fn ask_removal(&mut self, id: SnapshotId) {
        self.snapshots[id.0].removal_asked = Some(self.clock.now());
    }

    pub fn counts(&self) -> (usize, usize, usize) {
        (self.writes.len() - 1, self.flushes.len(), self.snapshots.len())
    }

    /// Moments at which a promise had just been made: a flush, a forced write or a snapshot was
    /// answered. A cut right after one hurts most.
    pub fn promises(&self) -> Vec<Moment> {
        let forced = |write: &&Write| write.durability == Durability::ForcedUnitAccess;
        let writes = self.writes[1..].iter().filter(forced).map(|write| write.span);
        let others = self.flushes.iter().copied();
        let snapshots = self.snapshots.iter().map(|snapshot| snapshot.span);
        writes.chain(others).chain(snapshots).filter_map(|span| span.answered).collect()
    }

    /// Whether a read that began at `asked` and ends now may have got these bytes.
    pub fn check_read(&self, asked: Moment, at: Extent, bytes: &[u8]) -> Vec<Wrong> {
        let until = self.clock.now();
        let must = |write: &Write| write.span.was_answered_before(asked);
        let mut found = Vec::new();
        for (sector, bytes) in sectors_of(at).zip(bytes.chunks_exact(SECTOR_BYTES as usize)) {
            let allowed = self.allowed(sector, until, must);
            found.extend(allowed.judge(self.run, &View::Volume, sector, bytes));
        }
        found
    }

    /// What may be found after the power was cut at `at`.
    pub fn after_cut(&self, at: Moment, floor: Floor) -> Expectation {
        let answered = self.flushes.iter().filter_map(|flush| flush.seen_at(at));
        let newest = answered.filter(|flush| flush.answered.is_some()).map(|flush| flush.asked);
        let newest = newest.max().unwrap_or(Moment(0));
        let must = |write: &Write| match (floor, write.durability) {
            (Floor::Answered, _) | (_, Durability::ForcedUnitAccess) => {
                write.span.answered.is_some_and(|answered| answered <= at)
            }
            (Floor::Flushed, Durability::Volatile) => write.span.was_answered_before(newest),
        };
        let snapshots = self.snapshots.iter().filter_map(|snapshot| self.snapshot_at(snapshot, at));
        Expectation {
            run: self.run,
            volume: self.all_sectors(at, must),
            snapshots: snapshots.collect(),
        }
    }

    fn snapshot_at(&self, snapshot: &Snapshot, at: Moment) -> Option<ExpectedSnapshot> {
        let span = snapshot.span.seen_at(at)?;
        let is_removed = snapshot.removal_asked.is_some_and(|asked| asked <= at);
        let until = span.answered.unwrap_or(at);
        let must = |write: &Write| write.span.was_answered_before(span.asked);
        Some(ExpectedSnapshot {
            name: snapshot.name.clone(),
            is_required: span.answered.is_some() && !is_removed,
            sectors: self.all_sectors(until, must),
        })
    }

    fn all_sectors(&self, until: Moment, must: impl Fn(&Write) -> bool + Copy) -> Vec<Allowed> {
        (0..self.sectors.len() as u64).map(|sector| self.allowed(sector, until, must)).collect()
    }

    /// The one rule.
    fn allowed(&self, sector: u64, until: Moment, must: impl Fn(&Write) -> bool) -> Allowed {
        let versions = || {
            let ids = self.sectors[sector as usize].iter();
            let writes = ids.map(|&id| (id, &self.writes[id.0 as usize]));
            writes.filter(|(_, write)| write.span.asked <= until)
        };
        let required = versions().filter(|(_, write)| must(write));
        let newest = required.max_by_key(|(_, write)| write.span.asked);
        let (expected, since) =
            newest.map_or((WriteId(0), Moment(0)), |(id, write)| (id, write.span.asked));
        let mut allowed = Allowed { expected, writes: Vec::new(), zeroes: false };
        for (id, write) in versions().filter(|(_, write)| !write.span.was_answered_before(since)) {
            if write.is_zeroes {
                allowed.zeroes = true;
            } else {
                allowed.writes.push(id);
            }
        }
        allowed
    }
}

/// What one sector may hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// The newest that must be there, unless something newer is: for the message.
    expected: WriteId,
    writes: Vec<WriteId>,
    zeroes: bool,
}

impl Allowed {
    fn judge(&self, run: u64, view: &View, sector: u64, bytes: &[u8]) -> Option<Wrong> {
        let content = recognise(run, sector, bytes);
        let is_allowed = match content {
            Content::Zeroes => self.zeroes,
            Content::Of(id) => self.writes.contains(&id),
            Content::Foreign => false,
        };
        let wrong = || Wrong { view: view.clone(), sector, content, expected: self.expected };
        (!is_allowed).then(wrong)
    }
}

/// What may be found in a volume, or in one of its replicas, after a power cut.
#[derive(Clone, Serialize, Deserialize)]
pub struct Expectation {
    run: u64,
    volume: Vec<Allowed>,
    pub snapshots: Vec<ExpectedSnapshot>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct ExpectedSnapshot {
    pub name: String,
    /// It had been reported, and nobody had asked for its removal.
    pub is_required: bool,
    sectors: Vec<Allowed>,
}

/// Which bytes were looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    Volume,
    Snapshot(String),
}

/// A sector that holds what it may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub view: View,
    pub sector: u64,
    content: Content,
    expected: WriteId,
}

impl Expectation {
    pub fn size_bytes(&self) -> u64 {
        self.volume.len() as u64 * SECTOR_BYTES
    }

    /// What is wrong about `bytes`, read from `offset_bytes` on. A snapshot that nobody had asked
    /// for is wrong as a whole, see [`knows`](Self::knows).
    pub fn check(&self, view: &View, offset_bytes: u64, bytes: &[u8]) -> Vec<Wrong> {
        let first = offset_bytes / SECTOR_BYTES;
        let sectors = match view {
            View::Volume => &self.volume,
            View::Snapshot(name) => match self.snapshots.iter().find(|known| known.name == *name) {
                Some(snapshot) => &snapshot.sectors,
                None => return Vec::new(),
            },
        };
        let pieces = (first..).zip(bytes.chunks_exact(SECTOR_BYTES as usize));
        let judged = pieces.filter_map(|(sector, bytes)| {
            sectors[sector as usize].judge(self.run, view, sector, bytes)
        });
        judged.collect()
    }

    /// Whether somebody had asked for a snapshot of this name.
    pub fn knows(&self, name: &str) -> bool {
        self.snapshots.iter().any(|snapshot| snapshot.name == name)
    }

    /// Reported snapshots that `names` lacks.
    pub fn missing<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = &'a str> {
        let required = self.snapshots.iter().filter(|snapshot| snapshot.is_required);
        required.map(|snapshot| &*snapshot.name).filter(|name| !names.iter().any(|n| n == name))
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume => f.write_str("the volume"),
            Self::Snapshot(name) => write!(f, "snapshot {name}"),
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { view, sector, content, expected } = self;
        write!(f, "sector {sector} of {view}: ")?;
        match content {
            Content::Foreign => return f.write_str("bytes that nobody wrote there"),
            Content::Zeroes => f.write_str("zeroes are there, and must not be: ")?,
            Content::Of(id) => write!(f, "write {} is there, and must not be: ", id.0)?,
        }
        match content {
            Content::Of(id) if id.cmp(expected) == Ordering::Greater => {
                write!(f, "it came later than write {}", expected.0)
            }
            _ => write!(f, "write {} or a newer one has to be", expected.0),
        }
    }
}

#[cfg(test)]
mod tests;
