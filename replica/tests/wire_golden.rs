//! What version 3 of the protocol says must stay what it is: programs of two releases talk to each
//! other while a node is upgraded.
//!
//! `tests/golden/wire-v3.txt` has a message of each kind as hexadecimal text, runs of one byte as
//! `byte*count`. To make one for a new version (never to make this test pass):
//! `ANKOLE_TEST_WRITE_WIRE=wire-v4 cargo test`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::num::NonZeroU64;
use std::rc::Rc;

use ankole_blockdev::disk::{Allocation, Buffer};
use ankole_replica::chain::index::{BlockSum, Blocks};
use ankole_replica::chain::{ChainChange, ChainInfo, ChainOp, LayerInfo, Seal};
use ankole_replica::checksum;
use ankole_replica::message::{
    Adopted, Advance, BadRegion, Claim, Contents, Departed, Hello, Refusal, RegionSums, Reply,
    Request, Role, Welcome,
};
use ankole_replica::payload::{BlockData, Patch, Payload, Run};
use ankole_replica::record::{InstanceId, Member};
use ankole_replica::regions::{RegionPage, RegionSet};
use ankole_replica::types::{
    BlockIndex, BlockRange, ChainOpId, Epoch, Fence, Generation, Incarnation, LayerId, Region,
    ReplicaId, Session,
};
use ankole_replica::wire::{self, HEADER_BYTES, Header};

const BLOCK: usize = 4096;
/// Oldest first; what is said today is in the last one.
const FILES: [&str; 1] = ["wire-v3"];
/// Replies have kinds from here on.
const FIRST_REPLY: u8 = 128;

enum Message {
    Request(Request<Rc<Payload>>),
    Reply(Reply<Rc<Payload>>),
}

impl Message {
    fn decode(bytes: &[u8]) -> Self {
        let (head, rest) = bytes.split_at(HEADER_BYTES);
        let header = Header::decode(head.try_into().expect("a header")).expect("it is known");
        let (meta, data) = rest.split_at(header.meta_bytes as usize);
        let data = Buffer::copy_of(data);
        if header.kind < FIRST_REPLY {
            Self::Request(wire::decode_request(&header, meta, data).expect("it is known"))
        } else {
            Self::Reply(wire::decode_reply(&header, meta, data).expect("it is known"))
        }
    }

    fn encode(&self) -> Vec<u8> {
        let frame = match self {
            Self::Request(request) => wire::encode_request(SEQ, request).expect("it is short"),
            Self::Reply(reply) => wire::encode_reply(SEQ, reply),
        };
        [&frame.head, frame.data()].concat()
    }

    fn show(&self) -> String {
        match self {
            Self::Request(request) => format!("{request:?}"),
            Self::Reply(reply) => format!("{reply:?}"),
        }
    }
}

const SEQ: u64 = 0x0102_0304_0506_0708;
const LAYER: LayerId = LayerId(5);
const REGION: Region = Region(0x0003_0201);

fn generation(number: u64) -> Generation {
    Generation(NonZeroU64::new(number).expect("not zero"))
}

fn fence() -> Fence {
    Fence { generation: generation(7), session: Session(3) }
}

fn member(replica: &str) -> Member {
    Member { replica: ReplicaId::from(replica), incarnation: Incarnation(0xabcd << 100) }
}

fn range() -> BlockRange {
    BlockRange::new(BlockIndex(0x4030_2010), 2)
}

fn blocks() -> Blocks {
    let mut blocks = Blocks::span(0..3);
    blocks.put(255, true);
    blocks
}

/// Blocks of one byte each.
fn data(bytes: &[u8]) -> Buffer {
    let mut data = Buffer::zeroed(bytes.len() * BLOCK);
    for (block, byte) in data.chunks_exact_mut(BLOCK).zip(bytes) {
        block.fill(*byte);
    }
    data
}

fn two_blocks() -> Rc<Payload> {
    Rc::new(Payload::Blocks(BlockData::from_client(data(&[0xa1, 0xa2]))))
}

fn patch() -> Rc<Payload> {
    let data = data(&[0xb1, 0xb2]);
    let sum = |index: usize| checksum::of_block(&data[index * BLOCK..][..BLOCK]);
    let sums = vec![
        BlockSum::Absent,
        BlockSum::Zero,
        BlockSum::Data { sum: sum(0), verified: true },
        BlockSum::Data { sum: sum(1), verified: false },
    ];
    let digest = 0x1234_5678;
    Rc::new(Payload::Patch(Patch { blocks: blocks(), sums, data: Rc::new(data), digest }))
}

fn set() -> RegionSet {
    [3, 4, 5, 0x0100_0000].map(Region).into_iter().collect()
}

fn page(next: Option<Region>) -> RegionPage {
    RegionPage { regions: set(), next }
}

fn seal() -> Seal {
    Seal {
        name: Some("before-upgrade".into()),
        created_unix_s: 1_800_000_000,
        user_created: true,
        labels: [("app".to_owned(), "db".to_owned())].into(),
        generation: Some(generation(6)),
    }
}

fn chain() -> ChainInfo {
    let size_bytes = 4 << 30;
    let layer = |id, parent, seal, removed, data_bytes| LayerInfo {
        id: LayerId(id),
        parent,
        seal,
        removed,
        size_bytes,
        data_bytes,
    };
    let layers = vec![
        layer(4, None, Some(Seal::default()), true, 4096),
        layer(5, Some(LayerId(4)), Some(seal()), false, 8192),
        layer(6, Some(LayerId(5)), None, false, 0),
    ];
    ChainInfo { layers, head: LayerId(6), last_op: ChainOpId(41) }
}

fn op(change: ChainChange) -> Box<ChainOp> {
    Box::new(ChainOp { id: ChainOpId(42), change })
}

fn sums(contents: bool) -> Box<RegionSums> {
    let mut sums = RegionSums::absent();
    sums.blocks[1] = BlockSum::Zero;
    sums.blocks[2] = BlockSum::Data { sum: 0xdead_beef, verified: true };
    sums.blocks[255] = BlockSum::Data { sum: 0x0bad_cafe, verified: false };
    if contents {
        let mut hashes = vec![0; sums.blocks.len()];
        hashes[2] = 0x0123_4567_89ab_cdef_u128 << 40;
        sums.contents = Some(Contents { hashes, unreadable: Blocks::span(255..256) });
    }
    Box::new(sums)
}

/// A message of each kind, and more where a kind says different things.
fn messages() -> Vec<(&'static str, Message)> {
    let claim = Claim {
        fence: fence(),
        instance: InstanceId("engine-1".into()),
        incarnation: Some(Incarnation(0xabcd << 100)),
        process: Some(4711),
    };
    let hello = |role, claim| {
        Request::Hello(Box::new(Hello {
            volume: "vol-1".into(),
            replica: "r1".into(),
            role,
            claim,
        }))
    };
    let (in_sync, departed) =
        (vec![member("r1"), member("r2")], vec![Departed { member: member("r3"), begun: 9 }]);
    let advance = Advance { generation: generation(8), in_sync, departed: departed.clone() };
    let (layer, region) = (LAYER, REGION);
    let requests = [
        ("Hello", hello(Role::Member, Some(claim))),
        ("Hello of a reader", hello(Role::Reader, None)),
        ("Advance", Request::Advance(Box::new(advance))),
        ("Write", Request::Write { range: range(), forced: true, payload: two_blocks() }),
        ("Zero", Request::Zero { range: range(), forced: false }),
        ("Read", Request::Read { range: range() }),
        ("ReadUnverified", Request::ReadUnverified { range: range() }),
        ("ReadSnapshot", Request::ReadSnapshot { layer, range: range() }),
        ("Map", Request::Map { range: range() }),
        ("Flush", Request::Flush),
        ("Sums", Request::Sums { layer, region, contents: false }),
        ("Sums with contents", Request::Sums { layer, region, contents: true }),
        ("Occupied", Request::Occupied { layer, from: region }),
        ("Fetch", Request::Fetch { layer, region, blocks: blocks() }),
        ("Copy", Request::Copy { layer, region, payload: patch() }),
        ("Verified", Request::Verified { layer, region }),
        ("Repair", Request::Repair { layer, region, payload: patch() }),
        ("Clear", Request::Clear { regions: vec![Region(3), region] }),
        ("Marked", Request::Marked { from: region }),
        ("Prepare", Request::Prepare(op(ChainChange::Expand { size_bytes: 8 << 30 }))),
        ("Abandon", Request::Abandon),
        (
            "Chain: snapshot",
            Request::Chain(op(ChainChange::Snapshot { seal: seal(), new_head: LayerId(7) })),
        ),
        (
            "Chain: revert",
            Request::Chain(op(ChainChange::Revert { to: LAYER, new_head: LayerId(7) })),
        ),
        ("Chain: remove", Request::Chain(op(ChainChange::Remove { layer: LAYER }))),
        ("DescribeChain", Request::DescribeChain),
        ("Changed", Request::Changed { after: Some(LayerId(4)), upto: layer, from: region }),
        ("Changed from the oldest on", Request::Changed { after: None, upto: layer, from: region }),
        ("Join", Request::Join { layer }),
        ("AdoptChain", Request::AdoptChain(Box::new(chain()))),
        ("Stamps", Request::Stamps { after: Some(generation(7)), from: region }),
        ("Stamps of all", Request::Stamps { after: None, from: region }),
        ("Mark", Request::Mark { regions: set() }),
        ("Ready", Request::Ready { generation: generation(8), begun: 9 }),
        ("Epoch", Request::Epoch(Epoch { begun: 10, agreed: 9 })),
        ("Ping", Request::Ping),
        ("Bye", Request::Bye),
    ];
    let welcome = Welcome {
        incarnation: Incarnation(0xabcd << 100),
        size_bytes: 4 << 30,
        continuous: true,
        synced_generation: Some(generation(6)),
        seen: Some(fence()),
        epoch: Epoch { begun: 10, agreed: 9 },
        departed,
        marked_regions: 12,
        unrecovered_regions: 3,
        chain: chain(),
        lease_ms: 3000,
    };
    let runs = vec![
        Run { blocks: 3, allocation: Allocation::Data },
        Run { blocks: 1 << 30, allocation: Allocation::Zero },
    ];
    let bad = BadRegion { layer, region, blocks: blocks(), index: true };
    let message = || "what the disk said".to_owned();
    let refusals = [
        (
            "Refused: staleGeneration",
            Refusal::StaleGeneration {
                seen: fence(),
                synced_generation: Some(generation(6)),
                synced_set: vec![member("r1")],
            },
        ),
        ("Refused: leaseBusy", Refusal::LeaseBusy { ms: 1500 }),
        (
            "Refused: wrongIdentity",
            Refusal::WrongIdentity { found: "r1 of vol-1".into(), expected: "r2 of vol-1".into() },
        ),
        ("Refused: failed", Refusal::Failed { message: message() }),
        ("Refused: noSpace", Refusal::NoSpace),
        ("Refused: badBlocks", Refusal::BadBlocks { message: message(), regions: vec![bad] }),
        ("Refused: unverified", Refusal::Unverified),
        ("Refused: io", Refusal::Io { message: message() }),
        ("Refused: invalid", Refusal::Invalid { message: message() }),
    ];
    let adopted = Adopted { in_the_set: vec![LayerId(6)], anywhere: vec![LayerId(4), LAYER] };
    let replies = [
        ("Done", Reply::Done),
        ("Welcome", Reply::Welcome(Box::new(welcome))),
        ("Blocks", Reply::Data(two_blocks())),
        ("Patch", Reply::Data(patch())),
        ("MapIs", Reply::Data(Rc::new(Payload::Map(runs)))),
        ("SumsAre", Reply::Sums(sums(false))),
        ("SumsAre with contents", Reply::Sums(sums(true))),
        ("RegionsAre", Reply::Regions(page(Some(region)))),
        ("RegionsAre, the last", Reply::Regions(page(None))),
        ("Digest", Reply::Digest(0x1234_5678)),
        ("ChainIs", Reply::Chain(Box::new(chain()))),
        (
            "ChangedAre",
            Reply::Changed { regions: vec![(region, blocks())], next: Some(Region(region.0 + 1)) },
        ),
        ("Adopted", Reply::Adopted(Box::new(adopted))),
    ];
    let refused = refusals.map(|(name, refusal)| (name, Reply::Refused(refusal)));
    let replies = replies.into_iter().chain(refused);
    let requests = requests.into_iter().map(|(name, request)| (name, Message::Request(request)));
    requests.chain(replies.map(|(name, reply)| (name, Message::Reply(reply)))).collect()
}

// ---- as text -----------------------------------------------------------------------------------

/// Runs of more than this are written as such.
const RUN: usize = 8;

fn to_text(messages: &[(&'static str, Message)]) -> String {
    let mut text = String::new();
    for (name, message) in messages {
        let bytes = message.encode();
        let mut parts: Vec<String> = Vec::new();
        let mut is_open = false;
        for run in bytes.chunk_by(|a, b| a == b) {
            let is_long = run.len() >= RUN;
            if is_long {
                parts.push(format!("{:02x}*{}", run[0], run.len()));
            } else {
                let hex: String = run.iter().map(|byte| format!("{byte:02x}")).collect();
                match parts.last_mut().filter(|_| is_open) {
                    Some(part) => part.push_str(&hex),
                    None => parts.push(hex),
                }
            }
            is_open = !is_long;
        }
        writeln!(text, "{name}\n{}", parts.join(" ")).expect("into memory");
    }
    text
}

fn from_text(text: &str) -> Vec<(String, Vec<u8>)> {
    let byte = |hex: &str| u8::from_str_radix(hex, 16).expect("hex");
    let mut messages = Vec::new();
    let mut lines = text.lines();
    while let (Some(name), Some(line)) = (lines.next(), lines.next()) {
        let mut bytes = Vec::new();
        for part in line.split_whitespace() {
            match part.split_once('*') {
                Some((hex, count)) => {
                    let end = bytes.len() + count.parse::<usize>().expect("a number");
                    bytes.resize(end, byte(hex));
                }
                None => bytes.extend((0..part.len()).step_by(2).map(|at| byte(&part[at..at + 2]))),
            }
        }
        messages.push((name.to_owned(), bytes));
    }
    messages
}

/// Kinds that the document lists, in its tables of requests and of replies.
fn documented_kinds() -> BTreeSet<u8> {
    let document = include_str!("../docs/wire.md");
    let (_, messages) = document.split_once("## Messages").expect("a chapter");
    let (messages, _) = messages.split_once("## Versions").expect("a chapter");
    messages.lines().filter_map(|line| line.split('|').nth(1)?.trim().parse().ok()).collect()
}

/// A field that moves, a name that changes, a number that gets another meaning: replicas and engines
/// of two releases would take each other's messages for damaged, or for something else.
#[test]
fn messages_of_each_kind_are_read_and_said_as_before() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let messages = messages();
    if let Ok(name) = std::env::var("ANKOLE_TEST_WRITE_WIRE") {
        std::fs::write(format!("{golden}/{name}.txt"), to_text(&messages)).expect("writable");
    }
    for file in FILES {
        let text = std::fs::read_to_string(format!("{golden}/{file}.txt"));
        let said = from_text(&text.expect("it is in the tree"));
        let names: Vec<&str> = said.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, messages.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        for ((name, bytes), (_, message)) in said.iter().zip(&messages) {
            let read = Message::decode(bytes);
            assert_eq!(read.show(), message.show(), "{name} means something else");
            if file == FILES[FILES.len() - 1] {
                assert_eq!(
                    read.encode(),
                    *bytes,
                    "{name} is said differently when it is passed on"
                );
                assert_eq!(message.encode(), *bytes, "{name} is said differently");
            }
        }
    }
}

#[test]
fn there_is_a_message_of_each_kind_that_the_document_lists() {
    let kinds = messages().iter().map(|(_, message)| message.encode()[5]).collect();
    assert_eq!(documented_kinds(), kinds);
}
