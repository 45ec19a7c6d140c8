//! Readers: what a backup does. One says Hello to a replica, makes sure that its engine counts it as
//! in sync, asks what changed between two snapshots, and reads blocks of the newer one.
//!
//! Promises that a reader is shown what was reported of a snapshot, or refused, whatever happens to
//! the replica meanwhile; and that what changed is told whole.

use ankole_replica::message::{Hello, Role};
use ankole_replica::server::{Conversation, Peer};
use ankole_replica::store::crash::Disk;
use ankole_replica::types::Region;

use super::*;
use crate::machine::numbers;

/// Between two readers, at most.
const PAUSE_US: u64 = 40 * MS;
/// Between what one asks, at most.
const REST_US: u64 = 15 * MS;
/// How often one asks.
const ROUNDS: u8 = 20;
/// Blocks that one reads each time.
const BLOCKS: usize = 4;

/// What it is about.
#[derive(Clone, Copy)]
pub(super) struct Question {
    at: usize,
    /// When the replica's process was started.
    started: u64,
    rounds: u8,
    after: Option<LayerId>,
    upto: LayerId,
    blocks: [u64; BLOCKS],
}

/// How far one has come.
pub(super) enum Read {
    Welcomed(Question, Rc<Conversation<Disk>>),
    Answered(Question, Rc<Conversation<Disk>>),
    /// All that changed, unless it was refused.
    Changed(Question, BTreeSet<u64>),
    Block(Question, u64, Block),
}

pub(super) type Reads = Rc<RefCell<Vec<Read>>>;

impl World {
    pub(super) fn reader_step(&mut self) {
        let wait = 1 + self.readers_rng.below(PAUSE_US);
        self.after(wait, "reader", Self::reader_step);
        if let Some(question) = self.question()
            && let Some(process) = &self.machines[question.at].process
        {
            let reader = Conversation::with(process.replica.clone(), Peer::Unknown);
            let replica = self.machines[question.at].id.clone();
            let hello = Hello { volume: "v".into(), replica, role: Role::Reader, claim: None };
            let reads = self.reads.clone();
            self.machines[question.at].spawn(async move {
                if let Reply::Welcome(_) = reader.handle(Request::Hello(Box::new(hello))).await {
                    reads.borrow_mut().push(Read::Welcomed(question, reader));
                }
            });
        }
    }

    fn question(&mut self) -> Option<Question> {
        let layers: Vec<LayerId> = self.snapshots.keys().copied().collect();
        if layers.is_empty() || !self.faults {
            return None;
        }
        let at = self.readers_rng.below(self.machines.len() as u64) as usize;
        let upto = self.readers_rng.pick(&layers);
        let chain = &self.engines[&self.newest].core.status().chain;
        let below = std::iter::successors(chain.layer(upto)?.parent, |id| chain.layer(*id)?.parent);
        let below: Vec<_> = below.filter(|id| layers.contains(id)).map(Some).collect();
        let after = if below.is_empty() { None } else { self.readers_rng.pick(&below) };
        let after = after.filter(|_| self.readers_rng.percent(80));
        let touched = self.places.touched.clone();
        let blocks = [(); BLOCKS].map(|()| self.readers_rng.pick(&touched));
        let started = self.machines[at].started;
        Some(Question { at, started, rounds: ROUNDS, after, upto, blocks })
    }

    pub(super) fn take_reads(&mut self) {
        let reads = std::mem::take(&mut *self.reads.borrow_mut());
        for read in reads {
            match read {
                Read::Welcomed(question, reader) if self.counts_as_in_sync(question.at) => {
                    self.go_on_reading(question, reader);
                }
                Read::Welcomed(..) => {}
                Read::Answered(question, reader) => {
                    let rest = 1 + self.readers_rng.below(REST_US);
                    self.after(rest, "reader", move |world| world.go_on_reading(question, reader));
                }
                Read::Changed(question, told) => self.check_changed(question, &told),
                Read::Block(question, block, shown) => {
                    let Question { at, upto, .. } = question;
                    if let Some(content) = self.snapshots.get(&upto) {
                        assert_eq!(
                            shown, content[&block],
                            "a reader of r{at}: {upto}, block {block}"
                        );
                        self.tally.reads += 1;
                    }
                }
            }
        }
    }

    fn go_on_reading(&mut self, question: Question, reader: Rc<Conversation<Disk>>) {
        let machine = &self.machines[question.at];
        let is_there = machine.is_up() && machine.started == question.started;
        if let Some(rounds) = question.rounds.checked_sub(1).filter(|_| is_there) {
            let blocks = question.blocks.map(|_| self.readers_rng.pick(&self.places.touched));
            let question = Question { rounds, blocks, ..question };
            let reads = self.reads.clone();
            self.machines[question.at].spawn(ask(question, reader, reads));
        }
    }

    /// As the newest engine sees it now: after the session began.
    fn counts_as_in_sync(&self, at: usize) -> bool {
        let engine = &self.engines[&self.newest];
        let slot = engine.slots.iter().position(|of| *of == at);
        let status = engine.core.status();
        let is_live = |slot: usize| status.peers[slot].mode == ReplicaMode::ReadWrite;
        engine.alive && engine.opened && slot.is_some_and(is_live)
    }

    fn check_changed(&self, question: Question, told: &BTreeSet<u64>) {
        let Question { at, after, upto, .. } = question;
        let Some(newer) = self.snapshots.get(&upto) else { return };
        let older = match after {
            Some(after) => match self.snapshots.get(&after) {
                Some(older) => Some(older),
                None => return, // removed meanwhile
            },
            None => None,
        };
        for (block, content) in newer {
            let before = older.map_or([0; SECTORS], |older| older[block]);
            assert!(
                before == *content || told.contains(block),
                "a reader of r{at} isn't told that block {block} changed from {after:?} to {upto}"
            );
        }
    }
}

async fn ask(question: Question, reader: Rc<Conversation<Disk>>, reads: Reads) {
    let Question { after, upto, blocks, .. } = question;
    let (mut told, mut from) = (BTreeSet::new(), Region(0));
    loop {
        let request = Request::Changed { after, upto, from };
        let Reply::Changed { regions, next } = reader.handle(request).await else { return };
        for (region, blocks) in regions {
            told.extend(blocks.slots().map(|slot| region.0 * REGION_BLOCKS + slot as u64));
        }
        match next {
            Some(next) => from = next,
            None => break,
        }
    }
    reads.borrow_mut().push(Read::Changed(question, told));
    for block in blocks {
        let range = BlockRange::new(BlockIndex(block), 1);
        let request = Request::ReadSnapshot { layer: upto, range };
        let Reply::Data(payload) = reader.handle(request).await else { continue };
        let Payload::Blocks(data) = &*payload else { continue };
        reads.borrow_mut().push(Read::Block(question, block, numbers(&data.data)));
    }
    reads.borrow_mut().push(Read::Answered(question, reader));
}
