//! What goes into the core and what comes out of it.

use crate::chain::Seal;
use crate::message::Request;
use crate::record::Change;
use crate::replication::damage::{DamageNews, DamagedBlocks};
use crate::replication::slots::Slot;
use crate::types::{BlockIndex, BlockRange, Generation, LayerId};

/// One request of the frontend, from its submission until its range may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// One connection to a replica; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Blocks on their way from one replica to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(pub u64);

/// One change of the chain that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// What the frontend wants. Ranges are within the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read {
        range: BlockRange,
    },
    /// Which blocks are zero.
    Map {
        range: BlockRange,
    },
    /// `edges` are the blocks of which only a part is new: the first, the last, or both.
    Write {
        range: BlockRange,
        edges: [Option<BlockIndex>; 2],
        forced: bool,
    },
    Zero {
        range: BlockRange,
        forced: bool,
    },
    Flush,
}

/// A change of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    Snapshot { seal: Seal },
    Revert { to: LayerId },
    Remove { layer: LayerId },
    Expand { size_bytes: u64 },
}

/// Bulk data that the shell holds and a message refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadRef {
    /// What the frontend writes, as whole blocks.
    Of(IoId),
    /// What a replica gave.
    Transfer(TransferId),
}

/// Where the data of an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The frontend's buffer.
    Read(IoId),
    /// Around the bytes that the frontend writes into this block.
    Edge(IoId, BlockIndex),
    Transfer(TransferId),
}

/// Why the frontend's request failed, as the errno it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No replica can read or write it.
    Io,
    /// A disk had no room for it until the engine ended.
    NoSpace,
    /// The engine ends: the request may or may not have been done.
    Shutdown,
}

/// Why the engine ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Cleanly, as asked.
    Detached,
    /// Another engine has the volume: nothing may be answered any more, not even with an error.
    Fenced(String),
    /// The volume must be opened anew: a member came back that may have lost what it acknowledged.
    Reopen(String),
}

/// What the shell is to do. It hands work to thin tasks and never waits.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Connect, then say `connected` or `disconnected`.
    Connect {
        slot: Slot,
        link: LinkId,
    },
    /// Close it and forget what it was to bring; nothing is heard of it any more.
    Disconnect {
        slot: Slot,
        link: LinkId,
    },
    Send {
        slot: Slot,
        link: LinkId,
        seq: u64,
        request: Request<PayloadRef>,
        into: Option<Destination>,
    },
    /// Answer the frontend.
    Complete {
        io: IoId,
        result: Result<(), Failure>,
    },
    /// Nobody needs the request's data any more.
    Retire {
        io: IoId,
    },
    RetireTransfer {
        transfer: TransferId,
    },
    /// Read the volume's record from the arbiter, then say `record_read`.
    ReadRecord,
    /// Ask the arbiter until there is a definite answer, then say `change_answered`.
    Change {
        expected: Generation,
        change: Change,
    },
    /// The volume can be used, or has another size than before.
    Opened {
        size_bytes: u64,
    },
    JobDone {
        job: JobId,
        result: Result<(), String>,
    },
    /// For the log.
    Damage {
        damaged: DamagedBlocks,
        news: DamageNews,
    },
    End(End),
}
