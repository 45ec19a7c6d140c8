//! Reading blocks, each of them checked.
//!
//! Promises that a byte whose checksum is wrong is never returned, and that what can't be read is
//! named block by block.

use std::ops::Range;
use std::rc::Rc;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};
use futures_util::StreamExt;

use super::error::{BadBlock, BlockProblem};
use super::resolve::Source;
use super::storage::{Storage, StorageFile};
use super::{OpenLayer, READ_ATTEMPTS, ReadError, Store, View};
use crate::checksum::{self, ZERO_BLOCK_SUM};
use crate::mutation::{self, Mutation};
use crate::types::{BlockIndex, BlockRange};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Pieces of one read that are asked for at once.
const PIECES_AT_ONCE: usize = 32;

/// What is known about the bytes of a read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Checksum of each block, as read.
    pub sums: Vec<u32>,
    /// Blocks whose checksum was rebuilt from the disk after a crash: nobody has compared them.
    pub unverified: Vec<BlockIndex>,
}

/// A run of one kind within a request.
struct Piece {
    blocks: Range<usize>,
    /// Position in the path; `None` for zeroes.
    layer: Option<usize>,
}

impl<S: Storage> Store<S> {
    /// Reads whole blocks as `view` shows them and checks each one. `into` has the range's length;
    /// on an error its content is undefined.
    pub async fn read(
        &self,
        view: View,
        range: BlockRange,
        into: Buffer,
    ) -> (Result<ReadReport, ReadError>, Buffer) {
        assert_eq!(into.len() as u64, range.length_bytes(), "the buffer has the range's length");
        let mut into = into;
        let mut before: Option<(Vec<u32>, Vec<Source>)> = None;
        for _ in 0..READ_ATTEMPTS {
            if let Err(error) = self.recover_all(range).await {
                return (Err(error.into()), into);
            }
            let (path, sources) = match self.resolve(view, range).await {
                Ok(resolved) => resolved,
                Err(error) => return (Err(error.into()), into),
            };
            let files: Vec<u32> = path.iter().map(|layer| layer.file).collect();
            let bad;
            (bad, into) = self.fetch(&path, range, &sources, into).await;
            if bad.is_empty() {
                return (Ok(report(range, &sources)), into);
            }
            // A join may have moved the block while it was read; then it is found elsewhere now.
            if before.as_ref().is_some_and(|(f, s)| *f == files && *s == sources) {
                self.note_bad_blocks(&bad);
                return (Err(ReadError::BadBlocks(bad)), into);
            }
            before = Some((files, sources));
        }
        let error = std::io::Error::other("the block moves all the time");
        (Err(self.io_error("read blocks", error).into()), into)
    }

    /// Reads the pieces and checks every block; what is bad is returned.
    async fn fetch(
        &self,
        path: &[Rc<OpenLayer<S::File>>],
        range: BlockRange,
        sources: &[Source],
        into: Buffer,
    ) -> (Vec<BadBlock>, Buffer) {
        let mut into = into;
        let mut bad = Vec::new();
        let mut several = Vec::new();
        for piece in pieces(sources) {
            let bytes = piece.blocks.start * BLOCK..piece.blocks.end * BLOCK;
            let Some(layer) = piece.layer else {
                into[bytes].fill(0);
                continue;
            };
            let at = (range.first.0 + piece.blocks.start as u64) * BLOCK_BYTES;
            let data = path[layer].data.clone();
            if bytes.len() == into.len() {
                let done;
                (done, into) = data.file.read(at, into).await;
                if let Err(error) = done {
                    self.doubt(&error).await;
                    bad.extend(self.unreadable(path, range, sources, piece.blocks, &error).await);
                }
            } else {
                several.push(async move {
                    let (done, part) = data.file.read(at, Buffer::for_data(bytes.len())).await;
                    (piece.blocks, done, part)
                });
            }
        }
        // Pieces of other layers don't wait for each other.
        let mut reading = futures_util::stream::iter(several).buffered(PIECES_AT_ONCE);
        while let Some((blocks, done, part)) = reading.next().await {
            into[blocks.start * BLOCK..blocks.end * BLOCK].copy_from_slice(&part);
            if let Err(error) = done {
                self.doubt(&error).await;
                bad.extend(self.unreadable(path, range, sources, blocks, &error).await);
            }
        }
        let is_bad = |block: BlockIndex| bad.iter().any(|bad: &BadBlock| bad.block == block);
        let mut wrong = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let block = BlockIndex(range.first.0 + index as u64);
            match source {
                Source::Zero => {}
                Source::Data { layer, sum, .. } if !is_bad(block) => {
                    let found = checksum::of_block(&into[index * BLOCK..][..BLOCK]);
                    if found != *sum && !mutation::is_on(Mutation::SumsUnchecked) {
                        let problem = BlockProblem::Checksum { expected: *sum, found };
                        wrong.push(BadBlock { block, layer: path[*layer].id, problem });
                    }
                }
                Source::Data { .. } => {}
                Source::Bad { layer, problem } => {
                    let problem = BlockProblem::Index(problem.clone());
                    wrong.push(BadBlock { block, layer: path[*layer].id, problem });
                }
            }
        }
        bad.append(&mut wrong);
        bad.sort_by_key(|bad| bad.block);
        (bad, into)
    }

    /// One block that can't be read fails the whole piece: finds out which.
    async fn unreadable(
        &self,
        path: &[Rc<OpenLayer<S::File>>],
        range: BlockRange,
        sources: &[Source],
        blocks: Range<usize>,
        error: &std::io::Error,
    ) -> Vec<BadBlock> {
        let mut bad = Vec::new();
        let alone = blocks.len() == 1;
        for index in blocks {
            let Source::Data { layer, sum, .. } = sources[index] else { continue };
            let block = BlockIndex(range.first.0 + index as u64);
            let problem = if alone {
                Some(error.to_string())
            } else {
                let buffer = Buffer::zeroed(BLOCK);
                let (done, buffer) = path[layer].data.file.read(block.offset_bytes(), buffer).await;
                // Readable alone, but the piece's bytes aren't in the buffer: a retry is needed.
                let sound = checksum::of_block(&buffer) == sum;
                done.err().map(|error| error.to_string()).or((!sound).then(|| error.to_string()))
            };
            if let Some(problem) = problem {
                let layer = path[layer].id;
                bad.push(BadBlock { block, layer, problem: BlockProblem::Unreadable(problem) });
            }
        }
        bad
    }

    fn note_bad_blocks(&self, bad: &[BadBlock]) {
        let first = &bad[0];
        tracing::warn!(place = self.place(), block = first.block.0, layer = %first.layer,
            problem = ?first.problem, count = bad.len(), "blocks can't be read");
    }
}

fn report(range: BlockRange, sources: &[Source]) -> ReadReport {
    let mut report = ReadReport { sums: Vec::with_capacity(sources.len()), unverified: Vec::new() };
    for (source, block) in sources.iter().zip(range.blocks()) {
        match source {
            Source::Data { sum, verified, .. } => {
                report.sums.push(*sum);
                if !verified {
                    report.unverified.push(block);
                }
            }
            Source::Zero | Source::Bad { .. } => report.sums.push(ZERO_BLOCK_SUM),
        }
    }
    report
}

fn pieces(sources: &[Source]) -> impl Iterator<Item = Piece> {
    let layer_of = |index: usize| match sources[index] {
        Source::Data { layer, .. } => Some(layer),
        Source::Zero | Source::Bad { .. } => None,
    };
    let mut start = 0;
    std::iter::from_fn(move || {
        let layer = (start < sources.len()).then(|| layer_of(start))?;
        let mut end = start + 1;
        while end < sources.len() && layer_of(end) == layer {
            end += 1;
        }
        let blocks = start..end;
        start = end;
        Some(Piece { blocks, layer })
    })
}
