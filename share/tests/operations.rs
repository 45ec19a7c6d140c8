//! What the operations do and refuse, by compounds on a tree in memory.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod client;
mod world;

use ankole_share::ops::Export;
use ankole_share::policy::{Anonymous, Policy, Squash};
use ankole_share::state::Claims;
use ankole_share::tree::Tree;
use ankole_share::wire::attributes::AttributeSet;
use ankole_share::wire::status::Status;
use ankole_share::wire::types::StateId;
use client::{Client, Create, OK, Ops};
use std::sync::Arc;
use std::time::Duration;
use world::{LEASE, World};

const READ: u32 = 1;
const WRITE: u32 = 2;
const BOTH: u32 = 3;

fn status(status: Status) -> u32 {
    status.number()
}

fn ops() -> Ops {
    Ops::default()
}

#[test]
fn a_file_is_made_written_and_read_again() {
    let mut client = World::new().client("a");
    let (file, open) = client.open("file", BOTH, 0);
    let mut written = client.call(ops().put(&file).write(open, 3, 0, b"hello").commit());
    written.ok(22).ok(38);
    assert_eq!((written.u32(), written.u32()), (5, 0));
    let verifier = written.u64();
    assert_eq!(written.ok(5).u64(), verifier);
    let mut read = client.call(ops().put(&file).read(open, 0, 100).close(open));
    assert_eq!(read.ok(22).ok(25).u32(), 1, "the file ends there");
    assert_eq!(read.opaque(), b"\0\0\0hello");
    assert_eq!(read.ok(4).stateid(), StateId::INVALID);
    assert!(read.is_at_end());
}

/// A client that doesn't hear the answer asks again. A file removed by the first request and made anew by
/// somebody else must not be removed by the second.
#[test]
fn a_request_that_is_repeated_is_answered_and_not_done_again() {
    let world = World::new();
    let (mut one, mut two) = (world.client("a"), world.client("b"));
    one.open("file", BOTH, 0);
    one.cache_this = true;
    let remove = || ops().put_root().remove("file");
    one.call(remove()).ok(24).ok(28);
    two.open("file", BOTH, 0);
    one.repeat(remove()).ok(24).ok(28);
    two.call(ops().put_root().lookup("file")).ok(24).ok(15);
    one.sequence += 5;
    assert_eq!(one.call(remove()).status, status(Status::SeqMisordered));
}

#[test]
fn what_is_too_large_to_be_kept_is_not_begun() {
    let mut client = World::new().client("a");
    let (file, open) = client.open("file", BOTH, 0);
    client.call(ops().put(&file).write(open, 0, 2, &[1; 8000])).ok(22).ok(38);
    client.cache_this = true;
    let mut reply =
        client.call(ops().put(&file).read(open, 0, 4000).read(open, 4000, 4000).remove("x"));
    reply.ok(22).ok(25);
    assert_eq!(reply.status, status(Status::RepTooBigToCache));
}

#[test]
fn a_name_is_one_component_and_nothing_else() {
    let mut client = World::new().client("a");
    let mut lookup = |name: &str| client.call(ops().put_root().lookup(name)).status;
    assert_eq!(lookup(""), status(Status::Inval));
    assert_eq!(lookup("."), status(Status::BadName));
    assert_eq!(lookup(".."), status(Status::BadName));
    assert_eq!(lookup("a/b"), status(Status::BadChar));
    assert_eq!(lookup("a\0b"), status(Status::BadChar));
    assert_eq!(lookup(&"x".repeat(256)), status(Status::NameTooLong));
    assert_eq!(lookup(&"x".repeat(255)), status(Status::NoEnt));
    assert_eq!(client.call(ops().put_root().parent()).status, status(Status::NoEnt));
}

#[test]
fn a_directory_is_listed_in_pieces_without_a_gap() {
    let mut client = World::new().client("a");
    let names: Vec<String> = (0..50).map(|i| format!("name{i}")).collect();
    for name in &names {
        client.call(ops().put_root().make_directory(name)).ok(24).ok(6);
    }
    let (mut after, mut seen) = (0, Vec::new());
    loop {
        let mut reply = client.call(ops().put_root().read_directory(after, 300));
        reply.ok(24).ok(26).u64();
        while reply.u32() == 1 {
            after = reply.u64();
            seen.push(String::from_utf8(reply.opaque()).unwrap());
            reply.decode(|d| d.array::<8>().unwrap()); // one word of numbers
            assert_eq!(reply.opaque().len(), 8);
        }
        if reply.u32() == 1 {
            break;
        }
    }
    assert_eq!(seen, names);
    let mut too_small =
        |cookie, bytes| client.call(ops().put_root().read_directory(cookie, bytes)).status;
    assert_eq!(too_small(0, 20), status(Status::TooSmall));
    assert_eq!(too_small(1, 300), status(Status::BadCookie));
}

#[test]
fn an_exclusive_creation_is_repeated_by_its_verifier_only() {
    let mut client = World::new().client("a");
    let mut create = |verifier| {
        client.call(ops().put_root().open("o", BOTH, 0, Create::Exclusive(verifier), "file")).status
    };
    assert_eq!(create(b"verifier"), OK);
    assert_eq!(create(b"verifier"), OK);
    assert_eq!(create(b"another1"), status(Status::Exist));
    let guarded = ops().put_root().open("o", BOTH, 0, Create::Guarded, "file");
    assert_eq!(client.call(guarded).status, status(Status::Exist));
}

#[test]
fn opening_to_empty_a_file_empties_it() {
    let mut client = World::new().client("a");
    let (file, open) = client.open("file", BOTH, 0);
    client.call(ops().put(&file).write(open, 0, 0, b"full")).ok(22).ok(38);
    let truncate = Create::Unchecked { truncate: true };
    client.call(ops().put_root().open("o", WRITE, 0, truncate, "file")).ok(24).ok(18);
    let mut size = client.call(ops().put(&file).attributes(&[4]));
    size.ok(22).ok(9).decode(|d| d.array::<8>().unwrap());
    assert_eq!(size.opaque(), [0; 8]);
}

#[test]
fn a_share_reservation_keeps_others_out_until_it_is_lowered() {
    let world = World::new();
    let (mut one, mut two) = (world.client("a"), world.client("b"));
    let (file, open) = one.open("file", READ, 0);
    one.open("file", READ, WRITE);
    let write = || ops().put_root().open("o", WRITE, 0, Create::No, "file");
    assert_eq!(two.call(write()).status, status(Status::ShareDenied));
    // Also an access without any open.
    let anonymous = ops().put(&file).write(StateId::ANONYMOUS, 0, 0, b"x");
    assert_eq!(two.call(anonymous).status, status(Status::Locked));
    let newest = StateId { seqid: 0, ..open };
    let nonsense = one.call(ops().put(&file).downgrade(newest, WRITE, WRITE));
    assert_eq!(nonsense.status, status(Status::Inval), "no open asked for that");
    assert_eq!(one.call(write()).status, status(Status::ShareDenied), "it denies it to itself");
    one.call(ops().put(&file).downgrade(newest, READ, 0)).ok(22).ok(21);
    two.call(write()).ok(24).ok(18);
}

#[test]
fn a_stateid_is_its_clients_own_and_has_an_age() {
    let world = World::new();
    let (mut one, mut two) = (world.client("a"), world.client("b"));
    let (file, old) = one.open("file", READ, 0);
    let (_, new) = one.open("file", BOTH, 0);
    assert_eq!((new.other, new.seqid), (old.other, old.seqid + 1));
    let read = |stateid| ops().put(&file).read(stateid, 0, 1);
    assert_eq!(one.call(read(new)).status, OK);
    assert_eq!(one.call(read(old)).status, status(Status::OldStateId));
    let future = StateId { seqid: new.seqid + 1, ..new };
    assert_eq!(one.call(read(future)).status, status(Status::BadStateId));
    assert_eq!(two.call(read(new)).status, status(Status::BadStateId));
    one.call(ops().put(&file).close(new)).ok(22).ok(4);
    assert_eq!(one.call(read(new)).status, status(Status::BadStateId));
}

#[test]
fn a_file_opened_to_be_read_is_not_written() {
    let mut client = World::new().client("a");
    let (file, open) = client.open("file", READ, 0);
    let write = ops().put(&file).write(open, 0, 0, b"x");
    assert_eq!(client.call(write).status, status(Status::OpenMode));
    assert_eq!(client.call(ops().put(&file).set_size(open, 1)).status, status(Status::OpenMode));
    let lock = ops().put(&file).lock(open, "l", true, 0, 1);
    assert_eq!(client.call(lock).status, status(Status::OpenMode));
}

#[test]
fn a_lock_keeps_others_out_says_whose_it_is_and_goes_with_its_open() {
    let world = World::new();
    let (mut one, mut two) = (world.client("a"), world.client("b"));
    let (file, open) = one.open("file", BOTH, 0);
    let (_, other) = two.open("file", BOTH, 0);
    let locks = one.call(ops().put(&file).lock(open, "mine", true, 10, 10)).ok(22).ok(12).stateid();
    let try_lock = |first| ops().put(&file).lock(other, "theirs", false, first, 5);
    two.call(try_lock(0)).ok(22).ok(12);
    let mut denied = two.call(try_lock(15));
    assert_eq!(denied.ok(22).next(12), status(Status::Denied));
    assert_eq!((denied.u64(), denied.u64(), denied.u32()), (10, 10, 2));
    denied.u64();
    assert_eq!(denied.opaque(), b"mine");
    assert_eq!(one.call(ops().free(locks)).status, status(Status::LocksHeld));
    one.call(ops().put(&file).unlock(locks, 10, 7)).ok(22).ok(14);
    two.call(try_lock(12)).ok(22).ok(12);
    assert_eq!(two.call(try_lock(17)).status, status(Status::Denied));
    one.call(ops().put(&file).close(open)).ok(22).ok(4);
    two.call(try_lock(17)).ok(22).ok(12);
}

/// A network that is away for a minute costs nothing, unless somebody else wants what it kept.
#[test]
fn a_silent_client_keeps_its_locks_until_they_are_in_the_way() {
    let world = World::new();
    let mut silent = world.client("a");
    let (file, open) = silent.open("file", BOTH, 0);
    silent.call(ops().put(&file).lock(open, "l", true, 0, 9)).ok(22).ok(12);
    world.wait(2 * LEASE);
    assert_eq!(silent.call(ops().put(&file).read(open, 0, 1)).status, OK, "it is back");
    world.wait(2 * LEASE);
    let mut other = world.client("b");
    let (_, theirs) = other.open("file", BOTH, 0);
    other.call(ops().put(&file).lock(theirs, "l", true, 0, 9)).ok(22).ok(12);
    let late = silent.call(ops().put(&file).read(open, 0, 1));
    assert_eq!(late.status, status(Status::BadSession), "it has to begin anew");
}

/// The clients that are remembered may claim first; new locks wait, but not longer than for the last claim.
#[test]
fn after_a_restart_locks_are_claimed_before_new_ones_are_granted() {
    let before = World::new();
    let (mut one, mut two) = (before.client("a"), before.client("b"));
    let (file, open) = one.open("file", BOTH, 0);
    one.call(ops().put(&file).lock(open, "l", true, 0, 9)).ok(22).ok(12);
    two.open("file", BOTH, 0);

    let world = before.restarted();
    let mut lost = Client::before_claims(world.carrier(), "x");
    lost.session = one.session;
    assert_eq!(lost.call(ops().put_root()).status, status(Status::BadSession));
    let mut new = world.client("new");
    let (other, open_other) = new.open("other", BOTH, 0);
    new.call(ops().put(&other).lock(open_other, "n", true, 0, 9)).ok(22).ok(12);
    let (_, open_new) = new.open("file", BOTH, 0);
    let lock = || ops().put(&file).lock(open_new, "n", true, 0, 9);
    assert_eq!(new.call(lock()).status, status(Status::Grace));
    let never = new.call(ops().put(&file).reclaim("o", BOTH));
    assert_eq!(never.status, status(Status::NoGrace), "it had nothing before");

    let mut one = Client::before_claims(world.carrier(), "a");
    let open = one.call(ops().put(&file).reclaim("owner", BOTH)).ok(22).ok(18).stateid();
    one.call(ops().put(&file).lock_or_claim(open, "l", true, 0, 9, true)).ok(22).ok(12);
    one.call(ops().reclaim_complete()).ok(58);
    assert_eq!(one.call(ops().reclaim_complete()).status, status(Status::CompleteAlready));
    assert_eq!(new.call(lock()).status, status(Status::Denied), "the claim holds");
    let denies = || ops().put_root().open("o", BOTH, READ, Create::No, "file");
    assert_eq!(new.call(denies()).status, status(Status::Grace), "another's open may still come");
    let mut two = Client::before_claims(world.carrier(), "b");
    let locks_now = two.call(ops().put(&file).reclaim("o", BOTH)).ok(22).ok(18).stateid();
    let claim = ops().put(&file).lock_or_claim(locks_now, "l", true, 50, 9, true);
    assert_eq!(two.call(claim).status, status(Status::NoGrace), "it had no lock");
    two.call(ops().reclaim_complete()).ok(58);
    assert_eq!(new.call(denies()).status, status(Status::ShareDenied));
}

/// An open that denies something stands against all others, so while it may be claimed none is granted, and
/// nothing is read without one.
#[test]
fn who_had_denied_others_something_is_waited_for_by_all() {
    let before = World::new();
    let (file, _) = before.client("a").open("file", BOTH, WRITE);
    let world = before.restarted();
    let mut new = world.client("new");
    let open = || ops().put_root().open("o", READ, 0, Create::No, "file");
    assert_eq!(new.call(open()).status, status(Status::Grace));
    let write = || ops().put(&file).write(StateId::ANONYMOUS, 0, 0, b"x");
    assert_eq!(new.call(write()).status, status(Status::Grace));
    world.client("a");
    assert_eq!(new.call(open()).status, OK);
    assert_eq!(new.call(write()).status, OK);
}

/// They would be waited for after a restart, for nothing.
#[test]
fn who_has_nothing_open_any_more_is_not_remembered() {
    let world = World::new();
    world.client("looks around");
    let mut closes = world.client("closes");
    let (file, open) = closes.open("file", BOTH, BOTH);
    closes.call(ops().put(&file).close(open)).ok(22).ok(4);
    let mut keeps = world.client("keeps");
    let (other, open) = keeps.open("other", BOTH, 0);
    let locks = keeps.call(ops().put(&other).lock(open, "l", true, 0, 9)).ok(22).ok(12).stateid();
    let unlock = ops().put(&other).unlock(locks, 0, 9);
    let locks = keeps.call(unlock).ok(22).ok(14).stateid();
    keeps.call(ops().free(locks)).ok(45);
    let remembered = |world: &World| {
        let mut all = world.tree.remembered();
        all.sort();
        all
    };
    let keeps_as = |claims| (Box::from(&b"keeps"[..]), claims);
    let closed = (Box::from(&b"closes"[..]), Claims::DENIALS);
    let locks = Claims { denials: false, locks: remembered(&world)[1].1.locks };
    assert_eq!(locks.locks.numbers().map(<[u64]>::len), Some(1));
    assert_eq!(remembered(&world), [closed, keeps_as(locks)], "it may open it again");
    for _ in 0..8 {
        world.wait(LEASE * 9 / 10);
        closes.call(ops().put_root()).ok(24);
        keeps.call(ops().put_root()).ok(24);
    }
    assert_eq!(remembered(&world), [keeps_as(Claims::OPENS)]);
}

/// A planned restart is a pause for those only who have something.
#[test]
fn at_a_clean_stop_only_who_has_something_stays_remembered() {
    let before = World::new();
    let mut closes = before.client("a");
    let (file, open) = closes.open("file", BOTH, BOTH);
    closes.call(ops().put(&file).close(open)).ok(22).ok(4);
    before.export.stop();
    before.restarted().client("new").open("file", BOTH, BOTH);
}

/// Linux asks again after 0.1 s, 0.2 s, … 12.8 s: one answer "not yet" too many costs seconds.
#[test]
fn what_is_new_waits_for_the_last_claim_instead_of_asking_again() {
    let before = World::new();
    before.client("a").open("file", BOTH, WRITE);
    let now = before.now.get();
    let patient = Export::new(Box::new(before.tree.clone()), now, 2, LEASE);
    let world = World { export: Arc::new(patient.with_patience(Duration::MAX)), ..before };
    let mut one = Client::before_claims(world.carrier(), "a");
    let export = world.export.clone();
    let waits = std::thread::spawn(move || {
        let carrier = move |message: &[u8]| {
            let mut reply = Vec::new();
            export.answer(now, message, &mut reply).expect("it is a call");
            reply
        };
        Client::new(carrier, "new").open("other", BOTH, 0)
    });
    while world.export.waiting() == 0 && !waits.is_finished() {
        std::thread::yield_now();
    }
    one.call(ops().reclaim_complete()).ok(58);
    waits.join().expect("it was granted");
}

/// Who comes after the grace has lost what it had: somebody else may have got it. One more restart must not
/// bring it back.
#[test]
fn who_missed_the_grace_can_not_claim_after_the_next_restart() {
    let before = World::new();
    let (file, _) = before.client("late").open("file", BOTH, 0);
    let world = before.restarted();
    world.wait(2 * LEASE);
    world.client("other").open("file", BOTH, BOTH);
    let again = world.restarted();
    let mut late = Client::before_claims(again.carrier(), "late");
    assert_eq!(late.call(ops().put(&file).reclaim("o", BOTH)).status, status(Status::NoGrace));
}

/// On a disk that doesn't take it: it could claim its lock after a restart, when somebody else has it.
#[test]
fn who_can_not_be_forgotten_durably_keeps_others_from_what_it_could_claim() {
    let world = World::new();
    let mut silent = world.client("a");
    let (file, open) = silent.open("file", BOTH, 0);
    silent.call(ops().put(&file).lock(open, "l", true, 0, 9)).ok(22).ok(12);
    world.wait(2 * LEASE);
    world.tree.never_forget(true);
    let mut other = world.client("b");
    let (_, theirs) = other.open("file", BOTH, 0);
    let lock = || ops().put(&file).lock(theirs, "l", true, 0, 9);
    assert_eq!(other.call(lock()).status, status(Status::Grace));
    assert_eq!(other.call(lock()).status, status(Status::Grace));
    world.tree.never_forget(false);
    world.wait(Duration::from_secs(1));
    other.call(lock()).ok(22).ok(12);
    assert!(!world.tree.remembered().iter().any(|(owner, _)| **owner == *b"a"));
}

#[test]
fn a_client_that_was_restarted_has_nothing_open_any_more() {
    let world = World::new();
    let mut old = world.client("a");
    old.open("file", BOTH, BOTH);
    let mut new = world.client("b");
    let (id, sequence) = new.exchange_id("a", *b"restart!");
    let denied = || ops().put_root().open("o", READ, 0, Create::No, "file");
    assert_eq!(new.call(denied()).status, status(Status::ShareDenied), "it isn't confirmed yet");
    new.create_session(id, sequence, 1 << 20).ok(43);
    new.create_session(id, sequence, 1 << 20).ok(43); // an answer that was lost
    assert_eq!(new.call(denied()).status, OK);
}

#[test]
fn a_compound_that_does_not_begin_with_its_session_is_refused() {
    let mut client = World::new().client("a");
    assert_eq!(client.bare(ops().put_root()).status, status(Status::OpNotInSession));
    let unknown = client.call(ops().op(200, |_| {}));
    assert_eq!((unknown.status, unknown.results), (status(Status::OpIllegal), 2));
    let xattrs = || ops().put_root().list_xattrs(0, 100);
    assert_eq!(client.call(xattrs()).status, status(Status::OpIllegal), "not in 4.1");
    client.minor = 2;
    assert_eq!(client.call(xattrs()).status, OK);
    let unserved = client.call(ops().put_root().op(61, |_| {}));
    assert_eq!(unserved.status, status(Status::NotSupp), "COPY_NOTIFY");
    client.minor = 9;
    assert_eq!(client.bare(ops()).status, status(Status::MinorVersMismatch));
}

#[test]
fn a_file_that_is_renamed_to_itself_stays_as_it_is() {
    let mut client = World::new().client("a");
    client.open("file", BOTH, 0);
    let mut reply = client.call(ops().put_root().save().rename("file", "file"));
    reply.ok(24).ok(32).ok(29);
    let (_, before, after) = (reply.u32(), reply.u64(), reply.u64());
    assert_eq!(before, after);
    client.call(ops().put_root().lookup("file")).ok(24).ok(15);
}

/// A client that asks for no delegation, or for one, is told why it has none.
#[test]
fn a_wish_for_a_delegation_is_answered_with_a_reason() {
    let mut client = World::new().client("a");
    client.open("file", BOTH, 0);
    for (want, reason) in [(0x400, 0), (0x100, 3)] {
        let open = ops().put_root().open("o", READ | want, 0, Create::No, "file");
        let mut reply = client.call(open);
        reply.ok(24).ok(18).stateid();
        reply.decode(|d| d.array::<28>().unwrap()); // change numbers, flags, nothing was set
        assert_eq!((reply.u32(), reply.u32()), (3, reason));
    }
}

#[test]
fn a_session_in_which_nothing_would_fit_is_refused() {
    let world = World::new();
    let mut client = world.client("a");
    let (id, sequence) = client.exchange_id("b", *b"verifier");
    let small = client.create_session(id, sequence, 100);
    assert_eq!(small.status, status(Status::TooSmall));
    client.create_session(id, sequence, 300).ok(43);
}

/// Nobody but root and the owner may change a file, and what a client says of itself is what counts.
#[test]
fn a_caller_has_the_rights_of_its_user() {
    let mut client = World::new().client("a");
    let (file, open) = client.open("file", BOTH, 0);
    client.call(ops().put(&file).close(open)).ok(22).ok(4);
    client.uid = 1000;
    let write = ops().put_root().open("o", WRITE, 0, Create::No, "file");
    assert_eq!(client.call(write).status, status(Status::Access));
    assert_eq!(client.call(ops().put_root().remove("file")).status, status(Status::Access));
    let mut access = client.call(ops().put(&file).access(0x3f));
    assert_eq!((access.ok(22).ok(3).u32(), access.u32()), (0x2d, 0x01));
}

#[test]
fn an_export_to_be_read_is_changed_by_nobody() {
    let before = World::new();
    let mut client = before.client("a");
    let (file, open) = client.open("file", BOTH, 0);
    client.call(ops().put(&file).write(open, 0, 0, b"x")).ok(22).ok(38);
    client.call(ops().put(&file).close(open)).ok(22).ok(4);
    before.export.stop();
    let world = before.again(Policy { read_only: true, ..Policy::default() });
    let mut client = world.client("a");
    let read_only = status(Status::RoFs);
    let mut open = client.call(ops().put_root().open("o", READ, 0, Create::No, "file"));
    let open = open.ok(24).ok(18).stateid();
    let mut read = client.call(ops().put(&file).read(open, 0, 9));
    read.ok(22).ok(25).u32();
    assert_eq!(read.opaque(), b"x");
    let creates = Create::Unchecked { truncate: false };
    for changes in [
        ops().put(&file).write(open, 0, 0, b"y"),
        ops().put(&file).write(StateId::ANONYMOUS, 0, 0, b"y"),
        ops().put(&file).set_size(open, 0),
        ops().put_root().open("o", WRITE, 0, Create::No, "file"),
        ops().put_root().open("o", READ, 0, creates, "new"),
        ops().put_root().make_directory("new"),
        ops().put_root().remove("file"),
        ops().put_root().save().rename("file", "new"),
    ] {
        assert_eq!(client.call(changes).status, read_only);
    }
    let mut access = client.call(ops().put(&file).access(0x3f));
    access.ok(22).ok(3).u32();
    assert_eq!(access.u32() & (4 | 8 | 16), 0, "modify, extend, delete");
}

#[test]
fn root_is_taken_for_the_anonymous_user() {
    let anonymous = Anonymous { uid: 7, gid: 8 };
    let world = World::with_policy(Policy { squash: Squash::Root, anonymous, ..Policy::default() });
    let mut root = world.client("a");
    let created = root.call(ops().put_root().make_directory("d")).status;
    assert_eq!(created, status(Status::Access), "the root directory is another user's");
}

/// Values of a length that no values have made a debug build panic.
#[test]
fn values_are_the_same_only_with_the_same_length() {
    let mut client = World::new().client("a");
    let mut verify = |bytes: &[u8]| {
        let verify = ops().put_root().op(37, |e| {
            AttributeSet::of(&[1]).encode(e);
            e.opaque(bytes);
        });
        client.call(verify).status
    };
    assert_eq!(verify(&[0, 0, 0, 2]), OK, "a directory");
    for other in [&[0, 0, 0, 2, 0][..], &[0, 0, 0], &[0, 0, 0, 2, 0, 0, 0, 0], &[]] {
        assert_eq!(verify(other), status(Status::NotSame));
    }
}

/// A stateid is no secret: it must not open a file to who may not open it.
#[test]
fn a_stateid_is_no_right_to_a_file_for_another_user() {
    let mut client = World::new().client("a");
    let (file, open) = client.open("file", BOTH, 0);
    client.uid = 1000;
    let write = client.call(ops().put(&file).write(open, 0, 0, b"x"));
    assert_eq!(write.status, status(Status::Access));
    client.call(ops().put(&file).read(open, 0, 1)).ok(22).ok(25);
}
