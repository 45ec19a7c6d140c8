//! Reading the snapshots of a served replica: what a backup does.
//!
//! Owns one connection, on which one request is in flight. Who wants several opens several: a
//! reader may be used by any thread, one at a time. The calls block, each at most [`PATIENCE`];
//! they mustn't be made from within an async task. After [`ReaderError::Lost`] the reader is of no
//! more use. What may never happen: bytes of a replica that isn't whole; the replica ends the
//! session when a rebuild begins to fill it anew.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::chain::ChainInfo;
use crate::listen::{self, Address};
use crate::message::{Hello, Refusal, Reply, Request, Role};
use crate::payload::Payload;
use crate::stream::{FrameReader, write_frame};
use crate::types::{
    BLOCK_BYTES, BLOCKS_PER_REGION, BlockIndex, BlockRange, LayerId, Region, ReplicaId,
};
use crate::wire;

/// The longest wait for one answer. A slow disk answers by then, a hanging one doesn't.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Most that one [`ReplicaReader::read`] may ask for, in bytes.
pub const READ_BYTES_MAX: u64 = 32 << 20;

/// A connection to one replica, to read its sealed layers.
pub struct ReplicaReader {
    replica: ReplicaId,
    runtime: Runtime,
    frames: FrameReader<listen::Reader>,
    writer: listen::Writer,
    last_seq: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    #[error("connect to replica {replica} of volume {volume} at {address}")]
    Connect { replica: ReplicaId, volume: String, address: Address, source: io::Error },
    #[error("the connection to replica {replica} was lost")]
    Lost { replica: ReplicaId, source: io::Error },
    #[error("replica {replica}: {refusal}")]
    Refused { replica: ReplicaId, refusal: Refusal },
    #[error("replica {replica} gave an answer to another question")]
    Unexpected { replica: ReplicaId },
}

impl ReaderError {
    /// Whether the reader can be asked again.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

impl ReplicaReader {
    /// Connects to a replica that is served. One inside an engine's process has to be served there,
    /// see `Engine::serve_local`.
    pub fn connect(
        address: &Address,
        volume: &str,
        replica: &ReplicaId,
    ) -> Result<Self, ReaderError> {
        let failed = |source| ReaderError::Connect {
            replica: replica.clone(),
            volume: volume.to_owned(),
            address: address.clone(),
            source,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let streams = runtime.block_on(in_time(listen::connect(address)));
        let (reader, writer) = streams.map_err(failed)?;
        let frames = FrameReader::new(reader);
        let mut connected = Self { replica: replica.clone(), runtime, frames, writer, last_seq: 0 };
        let (volume, role) = (volume.to_owned(), Role::Reader);
        let hello = Hello { volume, replica: replica.clone(), role, claim: None };
        match connected.ask(&Request::Hello(Box::new(hello)))? {
            Reply::Welcome(_) => Ok(connected),
            _ => Err(connected.unexpected()),
        }
    }

    /// The layers, as they are now.
    pub fn chain(&mut self) -> Result<ChainInfo, ReaderError> {
        match self.ask(&Request::DescribeChain)? {
            Reply::Chain(chain) => Ok(*chain),
            _ => Err(self.unexpected()),
        }
    }

    /// Blocks that the layers after `after` up to `upto` hold, as data or as zeroes; with `None`
    /// those that any layer up to `upto` holds. Ascending; neighbouring runs may touch.
    pub fn changed(
        &mut self,
        after: Option<LayerId>,
        upto: LayerId,
    ) -> Result<Vec<BlockRange>, ReaderError> {
        let mut ranges = Vec::new();
        let mut from = Region(0);
        loop {
            let Reply::Changed { regions, next } =
                self.ask(&Request::Changed { after, upto, from })?
            else {
                return Err(self.unexpected());
            };
            for (region, blocks) in regions {
                ranges.extend(blocks.runs().map(|run| {
                    let first = BlockIndex(region.0 * BLOCKS_PER_REGION + run.start as u64);
                    BlockRange::new(first, run.len() as u64)
                }));
            }
            match next {
                None => return Ok(ranges),
                Some(next) if next > from => from = next,
                // A replica that goes in circles would keep us for ever.
                Some(_) => return Err(self.unexpected()),
            }
        }
    }

    /// Fills `into` with the volume's bytes as they were at a sealed layer. Offset and length are
    /// whole blocks; the length is at most [`READ_BYTES_MAX`]. The checksums were verified by the
    /// replica's store and, on their way, here.
    pub fn read(
        &mut self,
        layer: LayerId,
        offset_bytes: u64,
        into: &mut [u8],
    ) -> Result<(), ReaderError> {
        let length_bytes = into.len() as u64;
        let is_whole = |bytes: u64| bytes.is_multiple_of(BLOCK_BYTES);
        assert!(is_whole(offset_bytes) && is_whole(length_bytes), "a reader reads whole blocks");
        assert!((1..=READ_BYTES_MAX).contains(&length_bytes), "a read has a limit");
        let first = BlockIndex(offset_bytes / BLOCK_BYTES);
        let range = BlockRange::new(first, length_bytes / BLOCK_BYTES);
        match self.ask(&Request::ReadSnapshot { layer, range })? {
            Reply::Data(payload) => match &*payload {
                Payload::Blocks(blocks) if blocks.data.len() == into.len() => {
                    into.copy_from_slice(&blocks.data);
                    Ok(())
                }
                _ => Err(self.unexpected()),
            },
            _ => Err(self.unexpected()),
        }
    }

    /// Whether the replica still answers.
    pub fn ping(&mut self) -> Result<(), ReaderError> {
        match self.ask(&Request::Ping)? {
            Reply::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    fn ask(&mut self, request: &Request<Rc<Payload>>) -> Result<Reply<Rc<Payload>>, ReaderError> {
        self.last_seq += 1;
        let seq = self.last_seq;
        let Self { runtime, frames, writer, .. } = self;
        let exchange = async {
            let frame = wire::encode_request(seq, request).map_err(io::Error::other)?;
            write_frame(writer, &frame).await?;
            match frames.next_reply().await? {
                Some((answered, reply)) if answered == seq => Ok(reply),
                Some(_) => Err(io::ErrorKind::InvalidData.into()),
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        };
        match runtime.block_on(in_time(exchange)) {
            Ok(Reply::Refused(refusal)) => {
                Err(ReaderError::Refused { replica: self.replica.clone(), refusal })
            }
            Ok(reply) => Ok(reply),
            Err(source) => Err(ReaderError::Lost { replica: self.replica.clone(), source }),
        }
    }

    fn unexpected(&self) -> ReaderError {
        ReaderError::Unexpected { replica: self.replica.clone() }
    }
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| {
        let seconds = PATIENCE.as_secs();
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer for {seconds} s")))
    })
}
