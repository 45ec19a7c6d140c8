//! Who may talk to a replica, when several try.

use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Duration;

use ankole_blockdev::disk::Buffer;
use ankole_replica::arbiter::InstanceId;
use ankole_replica::message::{Advance, Claim, Hello, Refusal, Reply, Request, Role};
use ankole_replica::payload::{BlockData, Payload};
use ankole_replica::server::{Conversation, Replica, format};
use ankole_replica::types::{BlockIndex, BlockRange, Fence, Generation, Session};
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
        let advance = Box::new(Advance { generation: generation(2), in_sync: vec![] });
        let (welcome, _) =
            tokio::join!(new.handle(hello(3, 1)), old.handle(Request::Advance(advance)));
        assert!(matches!(welcome, Reply::Welcome(_)));
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
        let advance = Box::new(Advance { generation: generation(2), in_sync: vec![] });
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
