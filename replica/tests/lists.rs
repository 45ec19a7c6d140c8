//! What grows with the volume is told in pieces: no message, and no turn of work, is as long as the
//! volume is large.

mod store;

use std::cell::RefCell;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Instant;

use ankole_blockdev::disk::Buffer;
use ankole_replica::message::{Claim, Hello, Reply, Request, Role};
use ankole_replica::payload::Payload;
use ankole_replica::record::InstanceId;
use ankole_replica::regions::{RegionPage, RegionSet};
use ankole_replica::server::{Conversation, Replica};
use ankole_replica::store::crash::Disk;
use ankole_replica::store::{Store, StoreOptions};
use ankole_replica::types::{
    BlockIndex, BlockRange, Fence, Generation, LayerId, REGION_BYTES, Region, Session,
};
use ankole_replica::wire::{self, HEADER_BYTES, Header};
use store::{Fill, GENERATION, identity, run, write_fill};

const TEBIBYTE: u64 = 1 << 40;
/// No message is longer, whatever the volume.
const META_BYTES: usize = 1 << 20;

async fn replica_of(size_bytes: u64) -> Rc<Replica<Disk>> {
    let disk = Disk::new(1);
    Store::format(disk.clone(), identity(), size_bytes, LayerId(1)).await.expect("it is empty");
    let store = Store::open(disk, StoreOptions::default()).await.expect("it opens");
    Replica::new(store, Rc::new(Instant::now))
}

fn hello() -> Request<Rc<Payload>> {
    let generation = Generation(NonZeroU64::MIN.saturating_add(1));
    let fence = Fence { generation, session: Session(1) };
    let instance = InstanceId("e1".into());
    let claim = Some(Claim { fence, instance, incarnation: None, process: None });
    let identity = identity();
    Request::Hello(Box::new(Hello {
        volume: identity.volume,
        replica: identity.replica,
        role: Role::Member,
        claim,
    }))
}

/// An exchange as over a socket.
async fn ask(
    conversation: &Conversation<Disk>,
    request: &Request<Rc<Payload>>,
) -> Reply<Rc<Payload>> {
    let sent = wire::encode_request(1, request).expect("it is short enough");
    let (header, meta) = parts(&sent.head);
    let request = wire::decode_request(&header, meta, Buffer::zeroed(0)).expect("a message");
    let reply = conversation.handle(request).await;
    let sent = wire::encode_reply(1, &reply);
    let (header, meta) = parts(&sent.head);
    assert!(meta.len() <= META_BYTES, "{} bytes", meta.len());
    wire::decode_reply(&header, meta, Buffer::zeroed(0)).expect("a message")
}

fn parts(head: &[u8]) -> (Header, &[u8]) {
    let (header, meta) = head.split_first_chunk::<HEADER_BYTES>().expect("a whole header");
    (Header::decode(header).expect("we encoded it"), meta)
}

/// All pages of one list, and how many there were.
async fn all(
    conversation: &Conversation<Disk>,
    question: impl Fn(Region) -> Request<Rc<Payload>>,
) -> (RegionSet, u64) {
    let (mut found, mut pages, mut from) = (RegionSet::new(), 0, Some(Region(0)));
    while let Some(at) = from {
        let Reply::Regions(page) = ask(conversation, &question(at)).await else {
            panic!("it isn't a list")
        };
        found.add(&page.regions);
        pages += 1;
        from = page.next;
    }
    (found, pages)
}

/// Beyond some 1.4 TiB of marked regions the welcome was longer than a message may be, and the
/// volume couldn't be opened any more by anything.
#[test]
fn a_replica_of_2_tib_with_all_regions_marked_is_welcomed() {
    run(async {
        let replica = replica_of(2 * TEBIBYTE).await;
        let regions = 2 * TEBIBYTE / REGION_BYTES;
        let mut marked = RegionSet::new();
        // Every third is the worst that a list can be told.
        (0..regions).filter(|at| at % 3 != 1).for_each(|at| marked.insert_run(at..at + 1));
        let list: Vec<Region> = marked.iter().collect();
        replica.store().mark_regions(&list, GENERATION).await.expect("there is room");
        let conversation = Conversation::new(replica);
        let Reply::Welcome(welcome) = ask(&conversation, &hello()).await else {
            panic!("it isn't welcome")
        };
        assert_eq!(welcome.marked_regions, marked.len());
        let (found, pages) = all(&conversation, |from| Request::Marked { from }).await;
        assert_eq!(found, marked);
        assert!(pages <= 32, "{pages} pages");
        let (found, _) = all(&conversation, |from| Request::Stamps { after: None, from }).await;
        assert_eq!(found, marked);
    });
}

/// While a source looked for what its layers hold, or where a volume is zero, it answered nobody: it was thrown out, then the
/// next one was asked.
#[test]
fn a_ping_does_not_wait_for_a_list() {
    run(async {
        let replica = replica_of(16 * TEBIBYTE).await;
        // As much as a list looks at before it is told in pages.
        for region in 0..2000 {
            let block = BlockRange::new(BlockIndex(region * 256 + 7), 1);
            write_fill(replica.store(), block, Fill(1)).await.expect("there is room");
        }
        let conversation = Conversation::new(replica);
        ask(&conversation, &hello()).await;
        let layer = LayerId(1);
        let lists = [
            Request::Changed { after: None, upto: layer, from: Region(0) },
            Request::Map { range: BlockRange::new(BlockIndex(0), 2000 * 256) },
        ];
        for list in lists {
            let order = RefCell::new(Vec::new());
            let noted = async |request: Request<Rc<Payload>>, what: &'static str| {
                let reply = ask(&conversation, &request).await;
                order.borrow_mut().push(what);
                reply
            };
            // Many are asked for at once, and don't add up.
            let lists = (0..50).map(|_| noted(list.clone(), "list"));
            let lists = futures_util::future::join_all(lists);
            let (_, pong) = tokio::join!(lists, noted(Request::Ping, "ping"));
            assert!(matches!(pong, Reply::Done));
            assert_eq!(order.borrow().first(), Some(&"ping"), "{list:?}");
        }
    });
}

#[test]
fn what_a_layer_holds_is_told_to_its_end() {
    run(async {
        let replica = replica_of(64 << 30).await;
        let expected: RegionSet = [0, 4095, 4096, 65_535].map(Region).into_iter().collect();
        for region in expected.iter() {
            let block = BlockRange::new(BlockIndex(region.0 * 256), 1);
            write_fill(replica.store(), block, Fill(1)).await.expect("there is room");
        }
        let conversation = Conversation::new(replica);
        ask(&conversation, &hello()).await;
        let layer = LayerId(1);
        let (found, _) = all(&conversation, |from| Request::Occupied { layer, from }).await;
        assert_eq!(found, expected);
        let (mut changed, mut next) = (RegionSet::new(), Some(Region(0)));
        while let Some(from) = next {
            let question = Request::Changed { after: None, upto: layer, from };
            let Reply::Changed { regions, next: then } = ask(&conversation, &question).await else {
                panic!("it isn't a list")
            };
            changed.extend(regions.into_iter().map(|(region, _)| region));
            next = then;
        }
        assert_eq!(changed, expected);
    });
}

/// A peer can't be made to end the connection by what it is sent, nor to keep more than it got.
#[test]
fn a_list_that_is_too_long_is_refused_by_who_would_send_it() {
    let mut regions = RegionSet::new();
    regions.insert_run(0..1 << 20);
    let mark = Request::Mark { regions: regions.clone() };
    assert!(wire::encode_request(1, &mark).is_err());
    let sent = wire::encode_reply(1, &Reply::Regions(RegionPage { regions, next: None }));
    let (header, meta) = parts(&sent.head);
    let reply = wire::decode_reply(&header, meta, Buffer::zeroed(0)).expect("a message");
    let Reply::Refused(refusal) = reply else { panic!("it is sent") };
    assert!(refusal.to_string().contains("longer than allowed"), "{refusal}");
}
