//! What a backup may see of a replica that is served.

use std::rc::Rc;

use ankole_blockdev::disk::Buffer;
use ankole_replica::chain::{ChainChange, ChainOp, Seal};
use ankole_replica::listen::Address;
use ankole_replica::message::{Advance, Claim, Hello, Reply, Request, Role};
use ankole_replica::payload::{BlockData, Payload};
use ankole_replica::reader::{ReaderError, ReplicaReader};
use ankole_replica::record::InstanceId;
use ankole_replica::server::{Conversation, Replica, format, serve};
use ankole_replica::types::{
    BLOCK_BYTES, BlockIndex, BlockRange, ChainOpId, Fence, Generation, LayerId, ReplicaId, Session,
};
use tokio::task::{LocalSet, spawn_blocking};

const SIZE_BYTES: u64 = 4 << 20;
const BLOCK: usize = BLOCK_BYTES as usize;

/// What the engine asks, which must be done.
async fn order(engine: &Conversation, request: Request<Rc<Payload>>) {
    match engine.handle(request).await {
        Reply::Done | Reply::Welcome(_) | Reply::Adopted(_) => {}
        reply => panic!("{reply:?}"),
    }
}

fn blocks(value: u8) -> Rc<Payload> {
    let mut data = Buffer::zeroed(BLOCK);
    data.fill(value);
    Rc::new(Payload::Blocks(BlockData::from_client(data)))
}

fn is_rebuilding(error: &ReaderError) -> bool {
    error.is_refusal() && error.to_string().contains("rebuilt")
}

/// A rebuild empties the layers and then fills them: a backup that went on reading would store
/// zeroes for what isn't there yet, and call them the snapshot.
#[test]
fn a_reader_sees_a_snapshot_as_it_was_and_nothing_once_a_rebuild_began() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, replica) = (dir.path().join("r1"), ReplicaId::from("r1"));
        format(&path, "v1", &replica, SIZE_BYTES).await.expect("format");
        let served = Replica::open(&path).await.expect("open");
        let address = Address::Unix(dir.path().join("r1.sock"));
        let serving = {
            let (served, address) = (served.clone(), address.clone());
            async move { serve(served, &address, std::future::pending()).await }
        };
        tokio::task::spawn_local(serving);

        let engine = Conversation::new(served);
        let fence = Fence { generation: Generation::FIRST, session: Session(1) };
        let claim =
            Claim { fence, instance: InstanceId("e1".into()), incarnation: None, process: None };
        let hello = Hello {
            volume: "v1".into(),
            replica: replica.clone(),
            role: Role::Member,
            claim: Some(claim),
        };
        order(&engine, Request::Hello(Box::new(hello))).await;
        let advance =
            Advance { generation: Generation::FIRST, in_sync: Vec::new(), departed: Vec::new() };
        order(&engine, Request::Advance(Box::new(advance))).await;
        let range = BlockRange::new(BlockIndex(3), 1);
        let write = |value| Request::Write { range, forced: false, payload: blocks(value) };
        order(&engine, write(1)).await;
        let seal = Seal { name: Some("s1".into()), ..Seal::default() };
        let change = ChainChange::Snapshot { seal, new_head: LayerId(2) };
        order(&engine, Request::Chain(Box::new(ChainOp { id: ChainOpId(1), change }))).await;
        order(&engine, write(2)).await;

        let open = {
            let (address, replica) = (address.clone(), replica.clone());
            move || ReplicaReader::connect(&address, "v1", &replica)
        };
        let read = spawn_blocking({
            let open = open.clone();
            move || {
                let mut reader = open().expect("a member can be read");
                reader.ping().expect("it answers");
                let mut bytes = vec![9; 2 * BLOCK];
                reader.read(LayerId(1), 2 * BLOCK_BYTES, &mut bytes).expect("read");
                assert!(bytes[..BLOCK] == [0; BLOCK] && bytes[BLOCK..] == [1; BLOCK]);
                let changed = reader.changed(None, LayerId(1)).expect("changed");
                assert_eq!(changed, [BlockRange::new(BlockIndex(3), 1)]);
                let chain = reader.chain().expect("chain");
                (reader, chain)
            }
        });
        let (mut reader, chain) = read.await.expect("the thread ends well");

        order(&engine, Request::AdoptChain(Box::new(chain))).await;
        let refused = spawn_blocking(move || {
            let mut bytes = vec![9; BLOCK];
            let error = reader.read(LayerId(1), 3 * BLOCK_BYTES, &mut bytes);
            assert!(is_rebuilding(&error.expect_err("the layer is empty now")));
            assert_eq!(bytes, [9; BLOCK]);
            let error = open().err().expect("it has no whole copy");
            assert!(error.is_refusal(), "{error}");
        });
        refused.await.expect("the thread ends well");
    });
}

/// A process that listens on the address but isn't the replica must not be read.
#[test]
fn a_reader_is_refused_by_another_volumes_replica() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, replica) = (dir.path().join("r1"), ReplicaId::from("r1"));
        format(&path, "v1", &replica, SIZE_BYTES).await.expect("format");
        let served = Replica::open(&path).await.expect("open");
        let address = Address::Unix(dir.path().join("r1.sock"));
        let serving = {
            let address = address.clone();
            async move { serve(served, &address, std::future::pending()).await }
        };
        tokio::task::spawn_local(serving);
        let open = move || ReplicaReader::connect(&address, "v2", &replica).err();
        let mut error = spawn_blocking(open.clone()).await.expect("the thread ends well");
        if matches!(error, Some(ReaderError::Connect { .. })) {
            tokio::task::yield_now().await; // it didn't listen yet
            error = spawn_blocking(open).await.expect("the thread ends well");
        }
        let error = error.expect("it is v1's");
        assert!(error.is_refusal() && error.to_string().contains("of volume v1"), "{error}");
    });
}
