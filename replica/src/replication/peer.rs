//! One replica as the engine sees it.
//!
//! ```text
//!                      ┌──────────────── link lost, refused, no progress ───────────────┐
//!                      ▼                                                                │
//! Down ──time──▶ Connecting ──▶ Greeting ──Welcome──▶ Welcomed ──Advance──▶ Live (RW) ──┤
//!                                                        │                     ▲        │
//!                                                        └──AdoptChain──▶ WriteOnly ────┘
//!                                                          compared, made equal, added
//! ```
//! Whether it is *in the set* is another matter: that is what the arbiter's record says. A member
//! that isn't live holds up every acknowledgement until it is removed or back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::chain::ChainOp;
use crate::message::Welcome;
use crate::replication::action::{IoId, LinkId};
use crate::replication::epoch::Confirmed;
use crate::replication::latency::Latencies;
use crate::replication::lease::Lease;
use crate::replication::rebuild::StepId;
use crate::replication::slots::Slot;
use crate::types::{BlockIndex, Epoch, Fence, Generation, Incarnation, LayerId, Region, ReplicaId};

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: ReplicaId,
    pub(super) slot: Slot,
    /// Of the directory that the record names; `None`: not in the set.
    pub(super) in_set: Option<Incarnation>,
    /// The same when this engine was granted the volume; `None` once it is open.
    pub(super) granted: Option<Incarnation>,
    /// Whether the volume should have it.
    pub(super) wanted: bool,
    pub(super) state: PeerState,
    pub(super) link: LinkId,
    next_seq: u64,
    pub(super) outstanding: BTreeMap<u64, Asked>,
    /// Data of these requests, which is in memory until they are answered.
    pub(super) owed_bytes: u64,
    /// Last answer, or the last request after which nothing was outstanding before.
    pub(super) progress_at: Instant,
    /// Why it isn't live, in words.
    pub(super) reason: Option<String>,
    /// Its directory was found to be an older copy of itself, since it was last live (rule 10b).
    pub(super) is_older: bool,
    /// What is to be expected of it while it isn't live.
    pub(super) absence: Absence,
    /// When the present connection was begun.
    pub(super) begun_at: Instant,
    /// Its disk failed, for good (rule 10).
    pub(super) failed: bool,
    pub(super) lease: Lease,
    pub(super) latencies: Latencies,
    /// The last pause of its rebuild, since it was last a member.
    pub(super) pause: Option<Duration>,
    /// Of the present connection's `Hello`.
    pub(super) greeted: Option<Fence>,
    pub(super) confirmed: Confirmed,
}

/// A request that hasn't been answered.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) purpose: Purpose,
    pub(super) sent: Instant,
    bytes: u64,
}

/// Why a member isn't live, as far as it decides whether it may come back (rule 10a).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// Its link broke, or it hasn't answered yet: it may be back at once.
    Brief { since: Instant },
    /// It answers, and lends to another engine for a while yet.
    Lending { since: Instant },
    /// It hangs, or nobody listens there. It may still be back before it is removed.
    Gone,
    /// It may lack what was acknowledged, or doesn't do what it is asked: it comes back as a member
    /// only if there is no other.
    Unfit,
}

#[derive(Debug)]
pub(super) enum PeerState {
    Down {
        retry_at: Instant,
    },
    Connecting,
    Greeting,
    /// Found; waits for the open or the rebuild to go on.
    Welcomed(Box<Welcome>),
    /// A member that takes everything. `advanced` is the generation it has made durable.
    Live {
        advanced: Generation,
    },
    /// Takes writes, is being rebuilt.
    WriteOnly,
}

/// Why a request was sent, so that its answer finds its way.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Purpose {
    Hello,
    Advance(Generation),
    Epoch(Epoch),
    /// Where it may not be like the others: when the volume opens, and when it is back.
    OpenMarks(Region),
    Write(IoId),
    Read(IoId),
    Edge(IoId, BlockIndex),
    Flush(FlushFor),
    SettleSums(Region),
    SettleFetch(Region),
    SettleCopy(Region),
    Verified,
    /// Numbered, since an answer may come when its rebuild was given up.
    RebuildDescribe(u64),
    /// Lists are asked for from a region on.
    RebuildMarks(u64, Region),
    RebuildAdopt,
    RebuildOccupied(u64, LayerId, Region),
    RebuildStamps(u64, Region),
    RebuildMark,
    RebuildStep(StepId),
    /// With the epoch that it has begun.
    Ready(u64),
    Equalize(Box<ChainOp>),
    Prepare,
    Abandon,
    Chain,
    DescribeChain,
    RefreshChain,
    Join(LayerId),
    /// Numbered: only one that was sent after the failure tells anything.
    Ping(u64),
    /// Renews the read lease.
    Lease,
    /// Shows that a replica which works on something long still lives.
    Alive,
    Bye,
    /// Numbered by batch.
    Clear(u64),
    Marked(Region),
    RepairSums,
    RepairFetch,
    Repair,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlushFor {
    /// The frontend's flushes of the running round.
    Round(u64),
    Chain,
    Closing,
    Clear(u64),
}

impl Purpose {
    /// Whether the answer may take longer than a disk does.
    fn is_long(&self) -> bool {
        matches!(
            self,
            Self::Join(_) | Self::RebuildAdopt | Self::RebuildMark | Self::Ready(_) | Self::Bye
        )
    }
}

impl Peer {
    pub(super) fn new(id: ReplicaId, slot: Slot, now: Instant) -> Self {
        Self {
            id,
            slot,
            in_set: None,
            granted: None,
            wanted: true,
            state: PeerState::Down { retry_at: now },
            link: LinkId(0),
            next_seq: 0,
            outstanding: BTreeMap::new(),
            owed_bytes: 0,
            progress_at: now,
            reason: None,
            is_older: false,
            absence: Absence::Brief { since: now },
            begun_at: now,
            failed: false,
            lease: Lease::default(),
            latencies: Latencies::default(),
            pause: None,
            greeted: None,
            confirmed: Confirmed::default(),
        }
    }

    /// The directory that has all acknowledged writes, unless it lost some.
    pub(super) fn meant(&self) -> Option<Incarnation> {
        self.in_set.or(self.granted)
    }

    pub(super) fn is_down(&self) -> bool {
        matches!(self.state, PeerState::Down { .. })
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, PeerState::Live { .. })
    }

    pub(super) fn is_write_only(&self) -> bool {
        matches!(self.state, PeerState::WriteOnly)
    }

    pub(super) fn welcome(&self) -> Option<&Welcome> {
        match &self.state {
            PeerState::Welcomed(welcome) => Some(welcome),
            _ => None,
        }
    }

    /// Notes what an answer will mean, and the data that goes out; returns its number.
    pub(super) fn expect(&mut self, now: Instant, purpose: Purpose, bytes: u64) -> u64 {
        if self.outstanding.is_empty() {
            self.progress_at = now;
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        self.outstanding.insert(seq, Asked { purpose, sent: now, bytes });
        self.owed_bytes += bytes;
        seq
    }

    pub(super) fn answered(&mut self, now: Instant, seq: u64) -> Option<Asked> {
        self.progress_at = now;
        let asked = self.outstanding.remove(&seq)?;
        self.owed_bytes -= asked.bytes;
        Some(asked)
    }

    /// Its connection is gone.
    pub(super) fn expect_nothing(&mut self) {
        self.outstanding.clear();
        self.owed_bytes = 0;
    }

    /// When the oldest of these that it owes was sent.
    pub(super) fn oldest(&self, which: impl Fn(&Purpose) -> bool) -> Option<Instant> {
        self.outstanding.values().find(|asked| which(&asked.purpose)).map(|asked| asked.sent)
    }

    /// A new connection: requests are numbered from 1 again.
    pub(super) fn begin(&mut self, now: Instant, link: LinkId) {
        self.state = PeerState::Connecting;
        self.link = link;
        self.begun_at = now;
        self.next_seq = 1;
        self.expect_nothing();
        self.progress_at = now;
    }

    /// Whether an answer is due for which a disk's patience is the measure.
    pub(super) fn owes_answer(&self) -> bool {
        matches!(self.state, PeerState::Connecting | PeerState::Greeting)
            || self.outstanding.values().any(|asked| !asked.purpose.is_long())
    }
}
