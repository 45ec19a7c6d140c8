//! What only minor version 0 has: its clients, and owners that number their requests.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod client;
mod world;

use ankole_share::wire::status::Status;
use ankole_share::wire::types::StateId;
use client::minor0::{Client40, RESULT_CONFIRM, opened};
use client::{Carrier, Create, OK, Ops};
use world::{LEASE, World};

const READ: u32 = 1;
const WRITE: u32 = 2;
const BOTH: u32 = 3;
const UNCHECKED: Create = Create::Unchecked { truncate: false };

fn ops() -> Ops {
    Ops::default()
}

fn client40(world: &World, name: &str) -> Client40<impl Carrier + use<>> {
    Client40::new(world.carrier(), name)
}

#[test]
fn a_file_is_opened_confirmed_written_read_and_closed() {
    let mut client = client40(&World::new(), "a");
    let open = client.ops().put_root().open("owner", BOTH, 0, UNCHECKED, "file").get_handle();
    let mut reply = client.call(open);
    let (unconfirmed, flags) = opened(&mut reply);
    let file = reply.ok(10).opaque();
    assert_ne!(flags & RESULT_CONFIRM, 0);
    let write = |stateid| ops().put(&file).write(stateid, 0, 0, b"hello");
    assert_eq!(client.call(write(unconfirmed)).status, Status::BadStateId.number());
    client.seqid += 1;
    let confirm = client.ops().put(&file).confirm(unconfirmed);
    let open = client.call(confirm).ok(22).ok(20).stateid();
    assert_eq!((open.other, open.seqid), (unconfirmed.other, unconfirmed.seqid + 1));
    assert_eq!(client.call(write(open)).status, OK);
    assert_eq!(client.call(write(unconfirmed)).status, Status::OldStateId.number());
    let newest = StateId { seqid: 0, ..open };
    assert_eq!(client.call(write(newest)).status, Status::OldStateId.number(), "only later");
    let mut read = client.call(ops().put(&file).read(open, 1, 100));
    read.ok(22).ok(25).u32();
    assert_eq!(read.opaque(), b"ello");

    client.seqid += 1;
    let (_, again) = client.open("file", READ, 0);
    assert_eq!(again.other, open.other, "of an owner that is known, nothing is to be confirmed");
    let close = client.ops().put(&file).close(again);
    client.call(close).ok(22).ok(4);
    assert_eq!(client.call(write(again)).status, Status::BadStateId.number());
    let other_life = StateId { other: [9; 12], ..open };
    assert_eq!(client.call(write(other_life)).status, Status::StaleStateId.number());
}

/// The answer to each of these was lost: it is told again, though what it stands for may be gone.
#[test]
fn a_request_of_an_owner_that_comes_again_is_answered_and_not_done_again() {
    let mut client = client40(&World::new(), "a");
    let (file, open) = client.open("file", BOTH, 0);
    let mut twice = |ops: &dyn Fn(&Client40<_>) -> Ops| {
        let once = ops(&client);
        let first = client.call(once).bytes();
        let again = ops(&client);
        assert_eq!(client.call(again).bytes()[4..], first[4..], "but for the message's number");
        let (seqid, lock_seqid) = (client.seqid, client.lock_seqid);
        (client.seqid, client.lock_seqid) = (seqid + 1, lock_seqid + 1);
    };
    twice(&|c| c.ops().put_root().open("owner", READ, 0, Create::Guarded, "new").get_handle());
    twice(&|c| c.ops().put(&file).lock(open, "locks", true, 0, 10));
    client.seqid += 5;
    let jumps = client.ops().put_root().open("owner", READ, 0, UNCHECKED, "x");
    assert_eq!(client.call(jumps).status, Status::BadSeqId.number());
    client.seqid -= 6;
    let another = client.ops().put(&file).close(open);
    assert_eq!(client.call(another).status, Status::BadSeqId.number(), "the lock had this number");
    client.seqid += 1;
    let close = client.ops().put(&file).close(open);
    let closed = client.call(close).bytes();
    let again = client.ops().put(&file).close(open);
    assert_eq!(client.call(again).bytes()[4..], closed[4..]);
    client.seqid += 1;
    let twice = client.ops().put(&file).close(open);
    assert_eq!(client.call(twice).status, Status::BadStateId.number());
}

/// An old OPEN that the network kept back would otherwise leave a file open that nobody knows of.
#[test]
fn an_open_that_nobody_confirms_is_closed_by_the_next_of_its_owner() {
    let world = World::new();
    let (mut client, mut other) = (client40(&world, "a"), world.client("b"));
    let late = client.ops().put_root().open("owner", BOTH, BOTH, UNCHECKED, "file");
    opened(&mut client.call(late));
    let open = || ops().put_root().open("o", READ, 0, Create::No, "file");
    assert_eq!(other.call(open()).status, Status::ShareDenied.number());
    client.seqid = 77;
    client.open("another", READ, 0);
    assert_eq!(other.call(open()).status, OK);
}

#[test]
fn clients_of_all_versions_share_locks_and_denials() {
    let world = World::new();
    let (mut old, mut new) = (client40(&world, "a"), world.client("a"));
    let (file, open) = old.open("file", BOTH, 0);
    let lock = old.ops().put(&file).lock(open, "mine", true, 0, 10);
    let locks = old.call(lock).ok(22).ok(12).stateid();
    old.lock_seqid += 1;
    let (_, theirs) = new.open("file", BOTH, 0);
    let lock = || ops().put(&file).lock(theirs, "theirs", true, 5, 10);
    assert_eq!(new.call(lock()).status, Status::Denied.number());
    let unlock = old.ops().put(&file).unlock(locks, 0, 10);
    let locks = old.call(unlock).ok(22).ok(14).stateid();
    old.lock_seqid += 1;
    new.call(lock()).ok(22).ok(12);
    let more = old.ops().put(&file).lock_more(locks, false, 14, 1);
    let mut denied = old.call(more);
    assert_eq!(denied.ok(22).next(12), Status::Denied.number());
    assert_eq!((denied.u64(), denied.u64()), (5, 10));
    new.open("denied", READ, BOTH);
    old.seqid += 1;
    let open = old.ops().put_root().open("owner", READ, 0, Create::No, "denied");
    assert_eq!(old.call(open).status, Status::ShareDenied.number());
}

#[test]
fn a_lock_owner_is_released_when_it_has_no_locks() {
    let mut client = client40(&World::new(), "a");
    let (file, open) = client.open("file", BOTH, 0);
    let lock = client.ops().put(&file).lock(open, "locks", true, 0, 10);
    let locks = client.call(lock).ok(22).ok(12).stateid();
    let release = |client: &mut Client40<_>| {
        let release = client.ops().release_lock_owner("locks");
        client.call(release).status
    };
    assert_eq!(release(&mut client), Status::LocksHeld.number());
    client.lock_seqid += 1;
    let unlock = client.ops().put(&file).unlock(locks, 0, 10);
    client.call(unlock).ok(22).ok(14);
    assert_eq!(release(&mut client), OK);
    client.lock_seqid += 1;
    let unlock = client.ops().put(&file).unlock(locks, 0, 10);
    assert_eq!(client.call(unlock).status, Status::BadStateId.number());
    (client.seqid, client.lock_seqid) = (client.seqid + 1, 500);
    let anew = client.ops().put(&file).lock(open, "locks", true, 0, 10);
    client.call(anew).ok(22).ok(12);
}

/// Without a session only its number and its bytes tell that a message is the same.
#[test]
fn a_message_that_comes_again_is_answered_and_not_done_again() {
    let world = World::new();
    let (mut one, mut two) = (client40(&world, "a"), world.client("b"));
    let make = || ops().put_root().make_directory("directory");
    one.call(make()).ok(24).ok(6);
    one.repeat(make()).ok(24).ok(6);
    assert_eq!(one.call(make()).status, Status::Exist.number());
    let remove = || ops().put_root().remove("directory");
    one.call(remove()).ok(24).ok(28);
    two.call(make()).ok(24).ok(6);
    one.repeat(remove()).ok(24).ok(28);
    two.call(ops().put_root().lookup("directory")).ok(24).ok(15);
    let look = || ops().put_root().lookup("directory");
    one.call(look()).ok(24).ok(15);
    two.call(remove()).ok(24).ok(28);
    assert_eq!(one.repeat(look()).status, Status::NoEnt.number(), "who looks, looks again");
}

#[test]
fn a_client_is_one_when_it_has_confirmed_it_and_its_restart_ends_what_it_had() {
    let world = World::new();
    let mut old = client40(&world, "a");
    let (file, had) = old.open("file", BOTH, BOTH);
    let mut new = client40(&world, "b");
    let (id, confirm) = new.set_client_id("a", *b"restart!");
    assert_eq!(new.call(ops().renew(id)).status, Status::StaleClientId.number());
    let wrong = new.confirm_client_id(id, *b"nonsense");
    assert_eq!(wrong.status, Status::StaleClientId.number());
    let open = new.ops().put_root().open("owner", READ, 0, Create::No, "file");
    assert_eq!(new.call(open).status, Status::ShareDenied.number(), "it isn't confirmed yet");
    new.confirm_client_id(id, confirm).ok(36);
    new.confirm_client_id(id, confirm).ok(36);
    assert_eq!(new.call(ops().renew(id)).status, OK);
    new.seqid += 1;
    new.open("file", READ, 0);
    assert_eq!(old.call(ops().renew(old.id)).status, Status::Expired.number());
    let lost = old.ops().put(&file).close(had);
    assert_eq!(old.call(lost).status, Status::Expired.number());
    // The same again is for another way to call back, and changes nothing else.
    let (same, another) = new.set_client_id("a", *b"restart!");
    assert_eq!(same, id);
    new.confirm_client_id(id, another).ok(36);
    new.open("file", READ, 0);
}

#[test]
fn a_clients_name_is_not_taken_by_another_user_while_it_has_something() {
    let world = World::new();
    let (mut client, mut thief) = (client40(&world, "a"), client40(&world, "b"));
    client.open("file", BOTH, 0);
    thief.uid = 1000;
    let mut taken = thief.try_set_client_id("a", *b"verifier");
    assert_eq!(taken.next(35), Status::ClidInUse.number());
    assert_eq!((taken.opaque(), taken.opaque(), taken.is_at_end()), (vec![], vec![], true));
}

/// It never says that it is done with claiming, so it can do so as long as the grace lasts; what it has claimed
/// it can claim after the next restart too.
#[test]
fn what_was_had_before_a_restart_is_claimed() {
    let before = World::new();
    let mut client = client40(&before, "a");
    let (file, open) = client.open("file", BOTH, 0);
    let lock = client.ops().put(&file).lock(open, "locks", true, 0, 10);
    client.call(lock).ok(22).ok(12);
    let mut world = before;
    for _ in 0..2 {
        world = world.restarted();
        let mut lost = client40(&world, "x");
        lost.id = client.id;
        let stale = lost.ops().put_root().open("owner", BOTH, 0, Create::No, "file");
        assert_eq!(lost.call(stale).status, Status::StaleClientId.number());
        let mut other = world.client("other");
        let (_, theirs) = other.open("file", BOTH, 0);
        let take = || ops().put(&file).lock(theirs, "theirs", true, 0, 10);
        assert_eq!(other.call(take()).status, Status::Grace.number());

        let mut client = client40(&world, "a");
        let claim = client.ops().put(&file).reclaim("owner", BOTH);
        let mut claimed = client.call(claim);
        let open = claimed.ok(22).ok(18).stateid();
        claimed.decode(|d| d.array::<20>().unwrap());
        assert_eq!(claimed.u32() & RESULT_CONFIRM, 0, "who claims has nothing to confirm");
        client.seqid += 1;
        let claim = client.ops().put(&file).lock_or_claim(open, "locks", true, 0, 10, true);
        client.call(claim).ok(22).ok(12);
        client.seqid += 1;
        client.open("new", READ, 0);
        world.wait(LEASE);
        assert_eq!(client.call(ops().renew(client.id)).status, OK);
        world.wait(LEASE);
        assert_eq!(other.call(take()).status, Status::Denied.number(), "the claim holds");
        let late = client.ops().put(&file).reclaim("owner", BOTH);
        assert_eq!(client.call(late).status, Status::NoGrace.number());
    }
}

#[test]
fn an_owner_that_has_nothing_is_forgotten_after_a_lease() {
    let world = World::new();
    let mut client = client40(&world, "a");
    let (file, open) = client.open("file", BOTH, 0);
    let close = client.ops().put(&file).close(open);
    client.call(close).ok(22).ok(4);
    for _ in 0..3 {
        world.wait(LEASE * 3 / 4);
        let look = ops().renew(client.id);
        client.call(look).ok(30);
    }
    client.seqid = 900;
    let open = client.ops().put_root().open("owner", READ, 0, Create::No, "file");
    let (_, flags) = opened(&mut client.call(open));
    assert_ne!(flags & RESULT_CONFIRM, 0, "it begins anew");
}

#[test]
fn versions_have_their_own_operations_attributes_and_clients() {
    let world = World::new();
    let (mut old, mut new) = (client40(&world, "a"), world.client("b"));
    let sequence = ops().op(53, |e| e.fixed(&[0; 32]));
    assert_eq!(old.call(sequence).status, Status::OpIllegal.number());
    assert_eq!(new.call(ops().renew(old.id)).status, Status::NotSupp.number());
    let session = new.create_session(old.id, 1, 1 << 20);
    assert_eq!(session.status, Status::StaleClientId.number());
    let destroy = new.bare(ops().op(57, |e| e.u64(old.id)));
    assert_eq!(destroy.status, Status::StaleClientId.number());
    let mut none = old.call(ops().put_root().attributes(&[75]));
    none.ok(24).ok(9);
    assert_eq!((none.u32(), none.u32()), (0, 0), "of 4.1");
    assert_eq!(old.call(ops().op(31, |_| {})).status, Status::RestoreFh.number());
    let want = old.ops().put_root().open("owner", READ | 0x100, 0, UNCHECKED, "file");
    assert_eq!(old.call(want).status, Status::Inval.number(), "a wish of 4.1");
    let many = (0..100).fold(ops(), |ops, _| ops.put_root());
    assert_eq!(old.call(many).status, Status::Resource.number());
}

#[test]
fn only_to_what_was_asked_for_is_an_open_lowered() {
    let mut client = client40(&World::new(), "a");
    let (file, _) = client.open("file", READ, 0);
    let (_, open) = client.open("file", WRITE, 0);
    let lower = client.ops().put(&file).downgrade(open, READ, 0);
    let open = client.call(lower).ok(22).ok(21).stateid();
    let write = ops().put(&file).write(open, 0, 0, b"x");
    assert_eq!(client.call(write).status, Status::OpenMode.number());
    client.seqid += 1;
    let raise = client.ops().put(&file).downgrade(open, BOTH, 0);
    assert_eq!(client.call(raise).status, Status::Inval.number());
}
