//! Who waits for a lock: in turn, told when it is free, and at nobody's cost.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod client;
mod world;

use ankole_share::state::ConnectionId;
use ankole_share::wire::status::Status;
use ankole_share::wire::types::StateId;
use ankole_share::wire::xdr::{Decoder, Encoder};
use client::{Carrier, Client, OK, Ops};
use std::time::Duration;
use world::{Calls, LEASE, World};

const BOTH: u32 = 3;
const PROGRAM: u32 = 0x4000_0001;
const MAY_NOTIFY_LOCK: u32 = 0x20;
const NO_WAY_BACK: u32 = 0x201;
const DENIED: u32 = Status::Denied as u32;

fn ops() -> Ops {
    Ops::default()
}

/// A client that has the file open, and can be called back if it has a connection for that.
struct User<C> {
    client: Client<C>,
    file: Vec<u8>,
    open: StateId,
    locks: Option<StateId>,
}

impl<C: Carrier> User<C> {
    fn new(mut client: Client<C>) -> Self {
        let (file, open) = client.open("file", BOTH, 0);
        Self { client, file, open, locks: None }
    }

    fn wait_to_lock(&mut self) -> u32 {
        self.asks(ops().put(&self.file).wait_to_lock(self.open, "l", 0, 9))
    }

    fn try_lock(&mut self, exclusive: bool) -> u32 {
        self.asks(ops().put(&self.file).lock(self.open, "l", exclusive, 0, 9))
    }

    fn asks(&mut self, ops: Ops) -> u32 {
        let mut reply = self.client.call(ops);
        let status = reply.ok(22).next(12);
        self.locks = (status == OK).then(|| reply.stateid());
        status
    }

    fn unlock(&mut self) {
        let locks = self.locks.take().expect("it has it");
        self.client.call(ops().put(&self.file).unlock(locks, 0, 9)).ok(22).ok(14);
    }

    fn flags(&mut self) -> u32 {
        self.client.call(ops().put_root()).ok(24);
        self.client.flags
    }
}

fn user(world: &World, name: &str) -> User<impl Carrier + use<>> {
    User::new(world.client(name))
}

fn callable(world: &World, name: &str) -> (User<impl Carrier + use<>>, ConnectionId, Calls) {
    let (connection, calls) = world.connect();
    let mut client = Client::new(world.carrier_on(connection), name);
    client.call(ops().callback_control(PROGRAM)).ok(40);
    let bound = |client: &mut Client<_>| {
        let mut bound = client.bare(ops().bind(client.session, 3));
        bound.ok(41).decode(|d| d.array::<16>().unwrap());
        bound.u32()
    };
    assert_eq!(bound(&mut client), 3, "for requests and calls");
    (User::new(client), connection, calls)
}

/// A call that came: its number, the sequence number in the slot, the file, and the owner of the lock.
fn taken_apart(call: &[u8]) -> (u32, u32, Vec<u8>, Vec<u8>) {
    let mut d = Decoder::new(call);
    let mut numbers = |count: usize| -> Vec<u32> { (0..count).map(|_| d.u32().unwrap()).collect() };
    let head = numbers(6);
    assert_eq!(head[1..], [0, 2, PROGRAM, 1, 1], "a call of the client's program");
    assert_eq!(numbers(1), [1], "AUTH_SYS");
    let mut d = Decoder::new(&call[28..]);
    d.opaque(400).unwrap();
    assert_eq!([d.u32().unwrap(), d.u32().unwrap()], [0, 0], "no verifier");
    assert_eq!(d.opaque(10).unwrap(), b"");
    assert_eq!([(); 4].map(|()| d.u32().unwrap()), [1, 0, 2, 11], "minor version, CB_SEQUENCE");
    d.array::<16>().unwrap();
    let sequence = d.u32().unwrap();
    assert_eq!([(); 5].map(|()| d.u32().unwrap()), [0, 0, 0, 0, 13], "CB_NOTIFY_LOCK");
    let file = d.opaque(128).unwrap().to_vec();
    d.u64().unwrap();
    let owner = d.opaque(1024).unwrap().to_vec();
    assert!(d.rest().is_empty());
    (head[0], sequence, file, owner)
}

fn only_call(calls: &Calls) -> Vec<u8> {
    let mut calls = calls.lock().unwrap();
    assert_eq!(calls.len(), 1);
    calls.pop().unwrap()
}

fn answer(world: &World, on: ConnectionId, xid: u32, status: u32) {
    let mut reply = Vec::new();
    let mut e = Encoder::new(&mut reply);
    [xid, 1, 0, 0, 0, 0, status, 0, 1, 11, status].iter().for_each(|&number| e.u32(number));
    world.export.called_back(on, &reply).unwrap();
}

/// Linux asks again after 1 s, 2 s, … 30 s by itself.
#[test]
fn who_waits_for_a_lock_is_told_that_it_is_free_and_gets_it() {
    let world = World::new();
    let mut holder = user(&world, "holder");
    assert_eq!(holder.try_lock(true), OK);
    let (mut waiter, connection, calls) = callable(&world, "waiter");
    assert_eq!(waiter.wait_to_lock(), DENIED);
    assert!(calls.lock().unwrap().is_empty());
    holder.unlock();
    let (xid, sequence, file, owner) = taken_apart(&only_call(&calls));
    assert_eq!((sequence, &file, &owner[..]), (1, &waiter.file, &b"l"[..]));
    answer(&world, connection, xid, OK);
    assert_eq!(holder.try_lock(true), DENIED, "it isn't its turn");
    assert_eq!(waiter.wait_to_lock(), OK);
    assert_eq!(waiter.flags(), 0);
}

#[test]
fn an_open_says_that_its_locks_are_told_of_if_they_can_be() {
    let world = World::new();
    let (mut waiter, connection, _calls) = callable(&world, "a");
    let mut flags = |ops| {
        let mut reply = waiter.client.call(ops);
        reply.ok(24).ok(18).stateid();
        reply.decode(|d| d.array::<20>().unwrap());
        reply.u32()
    };
    let open = || ops().put_root().open("o", BOTH, 0, client::Create::No, "file");
    assert_eq!(flags(open()) & MAY_NOTIFY_LOCK, MAY_NOTIFY_LOCK);
    world.export.disconnected(connection);
    assert_eq!(flags(open()) & MAY_NOTIFY_LOCK, 0);
}

#[test]
fn those_who_wait_get_it_in_the_order_in_which_they_came() {
    let world = World::new();
    let mut holder = user(&world, "holder");
    assert_eq!(holder.try_lock(true), OK);
    let (mut first, on_first, calls_first) = callable(&world, "first");
    let (mut second, _, calls_second) = callable(&world, "second");
    assert_eq!(first.wait_to_lock(), DENIED);
    assert_eq!(second.wait_to_lock(), DENIED);
    assert_eq!(first.wait_to_lock(), DENIED, "it asks again, and keeps its place");
    holder.unlock();
    answer(&world, on_first, taken_apart(&only_call(&calls_first)).0, OK);
    assert!(calls_second.lock().unwrap().is_empty());
    assert_eq!(second.wait_to_lock(), DENIED);
    assert_eq!(first.wait_to_lock(), OK);
    first.unlock();
    only_call(&calls_second);
    assert_eq!(first.wait_to_lock(), DENIED);
    assert_eq!(second.wait_to_lock(), OK);
}

/// A waiter that was interrupted, or that died, keeps nobody else from the lock for longer than a moment.
#[test]
fn who_does_not_come_when_it_is_told_costs_the_next_a_moment() {
    let world = World::new();
    let mut holder = user(&world, "holder");
    assert_eq!(holder.try_lock(true), OK);
    let (mut dead, on_dead, calls) = callable(&world, "dead");
    let (mut next, _, calls_next) = callable(&world, "next");
    assert_eq!(dead.wait_to_lock(), DENIED);
    assert_eq!(next.wait_to_lock(), DENIED);
    holder.unlock();
    let (first_xid, sequence, ..) = taken_apart(&only_call(&calls));
    world.wait(Duration::from_secs(1));
    only_call(&calls_next);
    assert_eq!(next.wait_to_lock(), OK);

    // It is alive after all, and what it was told got lost: it learns that it can't be called.
    world.wait(Duration::from_secs(11));
    assert_eq!(dead.flags(), NO_WAY_BACK);
    dead.client.bare(ops().bind(dead.client.session, 3)).ok(41);
    let (xid, again, ..) = taken_apart(&only_call(&calls));
    assert_ne!(xid, first_xid);
    assert_eq!(again, sequence, "the same call in the same slot");
    assert_eq!(dead.flags(), 0);
    answer(&world, on_dead, first_xid, OK); // too late: nobody waits for that any more
    answer(&world, on_dead, xid, Status::RetryUncachedRep.number());
    assert_eq!(dead.wait_to_lock(), DENIED);
    next.unlock();
    assert_eq!(taken_apart(&only_call(&calls)).1, sequence + 1);
    world.export.disconnected(on_dead);
    assert_eq!(dead.flags(), NO_WAY_BACK);
}

/// Minor version 0 has no way back here, and a client may have none: it asks now and then.
#[test]
fn who_can_not_be_told_keeps_its_turn_for_a_lease_if_it_asks() {
    let world = World::new();
    let (mut holder, mut asks) = (user(&world, "holder"), user(&world, "asks"));
    let (mut gave_up, mut other) = (user(&world, "gave up"), user(&world, "other"));
    assert_eq!(holder.try_lock(true), OK);
    assert_eq!(gave_up.wait_to_lock(), DENIED);
    world.wait(LEASE * 3 / 4);
    assert_eq!(holder.flags() | gave_up.flags() | other.flags(), 0);
    assert_eq!(asks.wait_to_lock(), DENIED);
    world.wait(LEASE / 2);
    holder.unlock();
    assert_eq!(other.try_lock(true), DENIED);
    assert_eq!(asks.wait_to_lock(), OK);
    asks.unlock();
    assert_eq!(other.try_lock(true), OK);
    assert_eq!(asks.wait_to_lock(), DENIED);
    assert_eq!(asks.try_lock(true), DENIED, "the last time that it asks");
    other.unlock();
    assert_eq!(other.try_lock(true), OK);
}

/// A process that is ended while it waits closes its file.
#[test]
fn who_closes_the_file_waits_for_it_no_more() {
    let world = World::new();
    let mut holder = user(&world, "holder");
    assert_eq!(holder.try_lock(true), OK);
    let (mut ended, _, calls_ended) = callable(&world, "ended");
    let (mut next, _, calls_next) = callable(&world, "next");
    assert_eq!(ended.wait_to_lock(), DENIED);
    assert_eq!(next.wait_to_lock(), DENIED);
    let close = ops().put(&ended.file).close(ended.open);
    ended.client.call(close).ok(22).ok(4);
    holder.unlock();
    assert!(calls_ended.lock().unwrap().is_empty());
    only_call(&calls_next);
    assert_eq!(next.wait_to_lock(), OK);
}

/// Before anybody has looked at the clock: the search for what is in the way must not find it for ever.
#[test]
fn what_is_kept_for_a_client_whose_lease_is_over_is_free() {
    let world = World::new();
    let (mut holder, mut silent) = (user(&world, "holder"), user(&world, "silent"));
    assert_eq!(holder.try_lock(true), OK);
    assert_eq!(silent.wait_to_lock(), DENIED);
    world.wait(LEASE * 3 / 4);
    holder.unlock();
    let mut other = user(&world, "other");
    assert_eq!(other.try_lock(true), DENIED);
    world.now.set(world.now.get() + LEASE / 2);
    assert_eq!(other.try_lock(true), OK);
}

#[test]
fn those_who_share_a_lock_get_it_together() {
    let world = World::new();
    let mut holder = user(&world, "holder");
    assert_eq!(holder.try_lock(true), OK);
    let mut readers = ["a", "b"].map(|name| callable(&world, name));
    for (reader, ..) in &mut readers {
        let wait = ops().put(&reader.file).wait_to_share(reader.open, "l", 0, 9);
        assert_eq!(reader.asks(wait), DENIED);
    }
    let (file, open) = (holder.file.clone(), holder.open);
    holder.client.call(ops().put(&file).close(open)).ok(22).ok(4);
    readers.iter().for_each(|(_, _, calls)| drop(only_call(calls)));
    readers.iter_mut().for_each(|(reader, ..)| assert_eq!(reader.try_lock(false), OK));
}
