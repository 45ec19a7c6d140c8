//! Who may talk to a replica, when several try.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ankole_blockdev::disk::Buffer;
use ankole_replica::lease::LEASE;
use ankole_replica::message::{Advance, Claim, Hello, Refusal, Reply, Request, Role};
use ankole_replica::payload::{BlockData, Payload};
use ankole_replica::record::InstanceId;
use ankole_replica::server::{Conversation, Peer, Replica, format, serve};
use ankole_replica::store::file::{Directory, DirectoryOptions};
use ankole_replica::store::{Store, StoreOptions};
use ankole_replica::types::{BlockIndex, BlockRange, Epoch, Fence, Generation, Session};
use ankole_replica::{listen::Address, wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;

const PATIENCE: Duration = Duration::from_secs(30);

fn generation(number: u64) -> Generation {
    Generation(NonZeroU64::new(number).expect("from 1"))
}

fn hello(number: u64, session: u64) -> Request<Rc<Payload>> {
    let fence = Fence { generation: generation(number), session: Session(session) };
    let instance = InstanceId(format!("e{number}"));
    let claim = Some(Claim { fence, instance, incarnation: None, process: None });
    let role = Role::Member;
    Request::Hello(Box::new(Hello { volume: "v1".into(), replica: "r1".into(), role, claim }))
}

fn write() -> Request<Rc<Payload>> {
    let data = BlockData::from_client(Buffer::copy_of(&[7; 4096]));
    let payload = Rc::new(Payload::Blocks(data));
    Request::Write { range: BlockRange::new(BlockIndex(3), 1), forced: false, payload }
}

fn is_busy(reply: &Reply<Rc<Payload>>) -> bool {
    matches!(reply, Reply::Refused(Refusal::LeaseBusy { .. }))
}

/// Opens the replica of a directory, with a clock that the test sets.
async fn open_at(dir: &Path, time: Rc<Cell<Duration>>) -> Rc<Replica> {
    let directory = Directory::open(dir, &DirectoryOptions::default()).expect("the directory");
    let store = Store::open(directory, StoreOptions::default()).await.expect("open");
    let start = Instant::now();
    Replica::new(store, Rc::new(move || start + time.get()))
}

/// A replica in a directory, and its clock.
fn run_timed(test: impl AsyncFnOnce(&Path, Rc<Replica>, Rc<Cell<Duration>>)) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("runtime"), async {
        format(dir.path(), "v1", &"r1".into(), 4 << 20).await.expect("format");
        let time = Rc::new(Cell::new(Duration::ZERO));
        let replica = open_at(dir.path(), time.clone()).await;
        test(dir.path(), replica, time).await;
    });
}

/// Engine e`number`, which is this very process.
fn local_hello(number: u64, session: u64) -> Request<Rc<Payload>> {
    let Request::Hello(mut hello) = hello(number, session) else { unreachable!("hello makes one") };
    if let Some(claim) = &mut hello.claim {
        claim.process = Some(77);
    }
    Request::Hello(hello)
}

fn run(test: impl AsyncFnOnce(Rc<Replica>)) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("runtime"), async {
        format(dir.path(), "v1", &"r1".into(), 4 << 20).await.expect("format");
        let replica = Replica::open(dir.path()).await.expect("open");
        tokio::time::timeout(PATIENCE, test(replica)).await.expect("nobody waits for ever");
    });
}

#[test]
fn an_older_session_is_refused_for_ever_once_a_newer_one_was_welcomed() {
    run(async |replica| {
        let (old, new) = (Conversation::new(replica.clone()), Conversation::new(replica));
        assert!(matches!(old.handle(hello(2, 1)).await, Reply::Welcome(_)));
        assert_eq!(old.handle(write()).await.without_data(), Some(Reply::Done));
        assert!(matches!(new.handle(hello(2, 2)).await, Reply::Welcome(_)));
        let stale = |reply| matches!(reply, Reply::Refused(Refusal::StaleGeneration { .. }));
        assert!(stale(old.handle(write()).await));
        assert!(stale(old.handle(hello(2, 2)).await));
        assert!(stale(old.handle(hello(1, 9)).await));
        assert_eq!(new.handle(write()).await.without_data(), Some(Reply::Done));
    });
}

/// The welcome waits until what the older session submitted has ended, and that may be an
/// `Advance`, which waits its turn behind the welcome: they once waited for each other.
#[test]
fn a_new_engine_is_welcomed_while_the_old_one_still_advances() {
    run(async |replica| {
        let (old, new) = (Conversation::new(replica.clone()), Conversation::new(replica));
        assert!(matches!(old.handle(hello(2, 1)).await, Reply::Welcome(_)));
        let advance =
            Box::new(Advance { generation: generation(2), in_sync: vec![], departed: vec![] });
        let (answer, _) =
            tokio::join!(new.handle(hello(3, 1)), old.handle(Request::Advance(advance)));
        assert!(is_busy(&answer)); // the old one is refused now, and may read for a while
    });
}

#[test]
fn nothing_is_carried_out_before_a_hello_and_a_reader_changes_nothing() {
    run(async |replica| {
        let engine = Conversation::new(replica.clone());
        assert!(matches!(engine.handle(hello(2, 1)).await, Reply::Welcome(_)));
        let conversation = Conversation::new(replica);
        let invalid = |reply| matches!(reply, Reply::Refused(Refusal::Invalid { .. }));
        assert!(invalid(conversation.handle(write()).await));
        let (volume, replica) = ("v1".to_owned(), "r1".into());
        let reader = Hello { volume, replica, role: Role::Reader, claim: None };
        let reader = Request::Hello(Box::new(reader));
        // It isn't a copy of anything yet: no engine has said that it is in sync.
        assert!(invalid(conversation.handle(reader.clone()).await));
        let advance =
            Box::new(Advance { generation: generation(2), in_sync: vec![], departed: vec![] });
        let advanced = engine.handle(Request::Advance(advance)).await;
        assert_eq!(advanced.without_data(), Some(Reply::Done));
        assert!(matches!(conversation.handle(reader).await, Reply::Welcome(_)));
        assert!(invalid(conversation.handle(write()).await));
        assert_eq!(conversation.handle(Request::Ping).await.without_data(), Some(Reply::Done));
    });
}

#[test]
fn a_replica_says_so_when_it_is_asked_for_another_volume() {
    run(async |replica| {
        let conversation = Conversation::new(replica);
        let Request::Hello(mut wrong) = hello(2, 1) else { unreachable!("hello makes one") };
        wrong.volume = "v2".into();
        let reply = conversation.handle(Request::Hello(wrong)).await;
        assert!(matches!(reply, Reply::Refused(Refusal::WrongIdentity { .. })));
    });
}

/// Rule 9: the older engine may be cut off from everybody else and still read here.
#[test]
fn the_next_engine_is_welcomed_when_nobody_can_read_under_the_last_one_any_more() {
    run_timed(async |_, replica, time| {
        let (old, new) = (Conversation::new(replica.clone()), Conversation::new(replica));
        assert!(matches!(old.handle(hello(2, 1)).await, Reply::Welcome(_)));
        time.set(LEASE / 2);
        assert_eq!(old.handle(Request::Ping).await.without_data(), Some(Reply::Done));
        time.set(LEASE + LEASE / 4);
        assert!(is_busy(&new.handle(hello(3, 1)).await));
        // Fenced already: what it asks renews nothing.
        let stale = |reply| matches!(reply, Reply::Refused(Refusal::StaleGeneration { .. }));
        assert!(stale(old.handle(Request::Ping).await));
        assert!(stale(new.handle(hello(3, 1)).await), "it asks again with a newer session");
        time.set(LEASE + LEASE / 2);
        assert!(matches!(new.handle(hello(3, 2)).await, Reply::Welcome(_)));
    });
}

/// Every take-over after a kill once would have taken three seconds.
#[test]
fn a_dead_engine_on_this_machine_keeps_nobody_waiting_but_the_end_of_a_proxy_does() {
    run_timed(async |_, replica, _| {
        let proxied = Conversation::with(replica.clone(), Peer::Process(78));
        assert!(matches!(proxied.handle(local_hello(2, 1)).await, Reply::Welcome(_)));
        proxied.closed_by_peer();
        let direct = Conversation::with(replica.clone(), Peer::Process(77));
        assert!(is_busy(&direct.handle(local_hello(3, 1)).await));
        assert!(matches!(direct.handle(local_hello(2, 2)).await, Reply::Refused(_)));
        // The same engine over a direct connection.
        let Request::Hello(mut again) = local_hello(2, 1) else { unreachable!("a hello") };
        if let Some(claim) = &mut again.claim {
            claim.fence = Fence { generation: generation(3), session: Session(2) };
        }
        assert!(matches!(direct.handle(Request::Hello(again)).await, Reply::Welcome(_)));
        let next = Conversation::new(replica);
        assert!(is_busy(&next.handle(hello(4, 1)).await));
        proxied.closed_by_peer(); // an older session of it
        assert!(is_busy(&next.handle(hello(4, 2)).await));
        direct.closed_by_peer();
        assert!(matches!(next.handle(hello(4, 3)).await, Reply::Welcome(_)));
    });
}

/// A killed replica may have lent until its last moment; only a goodbye is remembered.
#[test]
fn a_lease_outlives_the_replica_that_lent_it_but_not_a_goodbye() {
    run_timed(async |dir, replica, time| {
        let engine = Conversation::new(replica.clone());
        assert!(matches!(engine.handle(hello(2, 1)).await, Reply::Welcome(_)));
        drop((engine, replica));
        let replica = open_at(dir, time.clone()).await;
        let next = Conversation::new(replica.clone());
        assert!(is_busy(&next.handle(hello(3, 1)).await));
        time.set(LEASE);
        assert!(matches!(next.handle(hello(3, 2)).await, Reply::Welcome(_)));
        assert_eq!(next.handle(Request::Bye).await.without_data(), Some(Reply::Done));
        drop((next, replica));
        let next = Conversation::new(open_at(dir, time).await);
        assert!(matches!(next.handle(hello(4, 1)).await, Reply::Welcome(_)));
    });
}

/// All processes of a machine were killed: the replica that starts again looks whether the engine
/// of before still runs.
#[test]
fn after_a_restart_an_engine_whose_process_is_gone_keeps_nobody_waiting() {
    for is_killed in [false, true] {
        run_timed(async |dir, replica, time| {
            let mut process =
                std::process::Command::new("sleep").arg("60").spawn().expect("it is installed");
            let engine = Conversation::with(replica.clone(), Peer::Process(process.id()));
            let Request::Hello(mut hello) = local_hello(2, 1) else { unreachable!("a hello") };
            if let Some(claim) = &mut hello.claim {
                claim.process = Some(process.id());
            }
            assert!(matches!(engine.handle(Request::Hello(hello)).await, Reply::Welcome(_)));
            if is_killed {
                process.kill().expect("it runs");
                process.wait().expect("it is ours");
            }
            drop((engine, replica));
            let next = Conversation::new(open_at(dir, time).await);
            let welcomed = next.handle(local_hello(3, 1)).await;
            assert_eq!(matches!(welcomed, Reply::Welcome(_)), is_killed);
            assert_eq!(is_busy(&welcomed), !is_killed);
            let _ = process.kill();
            let _ = process.wait();
        });
    }
}

/// Its connections kept the store open: a stop left what a kill leaves.
#[test]
fn a_replica_that_is_stopped_with_an_engine_connected_closes_its_store() {
    let (dir, run) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("runtime"), async {
        format(dir.path(), "v1", &"r1".into(), 4 << 20).await.expect("format");
        let replica = Replica::open(dir.path()).await.expect("open");
        let socket = run.path().join("socket");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (served, address) = (replica.clone(), Address::Unix(socket.clone()));
        let serving = tokio::task::spawn_local(async move {
            serve(served, &address, async { drop(stopped.await) }).await
        });
        let mut engine = loop {
            match tokio::net::UnixStream::connect(&socket).await {
                Ok(engine) => break engine,
                Err(_) => tokio::task::yield_now().await, // it isn't listening yet
            }
        };
        let hello = wire::encode_request(1, &hello(1, 1)).expect("it fits");
        engine.write_all(&hello.head).await.expect("send");
        engine.read_u8().await.expect("an answer");
        stop.send(()).expect("it serves");
        serving.await.expect("no panic").expect("it served");
        replica.close().await.expect("close");
        Replica::open(dir.path()).await.expect("nobody has it any more");
    });
}

/// What `Advance` had read before it waited for the disk, it wrote back after: a round that had begun
/// meanwhile was forgotten, and a sound member counted as an older copy of itself.
#[test]
fn a_round_that_begins_while_a_replica_advances_is_remembered() {
    run(async |replica| {
        let engine = Conversation::new(replica.clone());
        assert!(matches!(engine.handle(hello(2, 1)).await, Reply::Welcome(_)));
        let advance = Advance { generation: generation(2), in_sync: vec![], departed: vec![] };
        let advance = Request::Advance(Box::new(advance));
        let epoch = Epoch { begun: 5, agreed: 4 };
        let (advanced, begun) =
            tokio::join!(engine.handle(advance), engine.handle(Request::Epoch(epoch)));
        assert!(matches!((advanced, begun), (Reply::Done, Reply::Done)));
        assert_eq!(replica.store().membership().epoch, epoch);
    });
}
