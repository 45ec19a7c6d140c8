//! Connections between engines and replicas: what is late, lost, closed and still arrives; and the
//! replicas' processes.

use ankole_blockdev::disk::Buffer;
use ankole_replica::chain::ChainChange;
use ankole_replica::server::{Conversation, Peer};
use ankole_replica::store::crash::Disk;
use ankole_replica::types::Fence;
use ankole_replica::wire::{self, Frame, HEADER_BYTES, Header};

use super::footprint::Footprint;
use super::*;
use crate::machine::Stop;

pub(super) struct Link {
    pub(super) engine: u64,
    pub(super) replica: usize,
    slot: Slot,
    number: LinkId,
    /// The engine has closed it: it hears nothing of it any more.
    pub(super) closed: bool,
    /// Nothing passes any more.
    pub(super) broken: bool,
    /// What the engine sends is lost; what the replica answers arrives.
    pub(super) deaf: bool,
    last_arrival: u64,
    in_flight: BTreeMap<u64, Footprint>,
    /// When each request was sent, in the world's steps.
    sent: BTreeMap<u64, u64>,
    conversation: Option<Rc<Conversation<Disk>>>,
}

/// What comes to a replica.
struct Arrival {
    seq: u64,
    request: Request<Rc<Payload>>,
    message: Work,
    into: Option<Destination>,
}

/// What comes back.
struct Delivery {
    seq: u64,
    reply: Reply<Rc<Payload>>,
    message: Work,
    into: Option<Destination>,
}

/// What a replica says to a request.
pub(super) struct Answered {
    key: u64,
    seq: u64,
    asked: Asked,
    into: Option<Destination>,
    reply: Reply<Rc<Payload>>,
}

/// Requests whose answer is a promise that the world remembers.
#[derive(Clone, Copy)]
enum Asked {
    Hello(Fence),
    Advance(Generation),
    Ready,
    Other,
}

impl Asked {
    fn by<P>(request: &Request<P>) -> Self {
        match request {
            Request::Hello(hello) => {
                hello.claim.as_ref().map_or(Self::Other, |claim| Self::Hello(claim.fence))
            }
            Request::Advance(advance) => Self::Advance(advance.generation),
            Request::Ready { .. } => Self::Ready,
            _ => Self::Other,
        }
    }
}

impl World {
    pub(super) fn connect(&mut self, id: u64, slot: Slot, number: LinkId) {
        self.next_link += 1;
        let key = self.next_link;
        let replica = self.engines[&id].slots[usize::from(slot.0)];
        let new = Link {
            engine: id,
            replica,
            slot,
            number,
            closed: false,
            broken: false,
            deaf: false,
            last_arrival: 0,
            in_flight: BTreeMap::new(),
            sent: BTreeMap::new(),
            conversation: None,
        };
        self.links.insert(key, new);
        self.engine(id).links.insert((slot, number), key);
        let wait = self.delay(replica);
        self.after(wait, "connect", move |world| {
            let now = world.now_us();
            let reachable = world.unreachable.get(&replica).is_none_or(|at| *at < now)
                && world.split.get(&(id, replica)).is_none_or(|at| *at < now);
            match &world.machines[replica].process {
                Some(process) if reachable => {
                    let peer =
                        if world.kernel_tells { Peer::Process(id as u32) } else { Peer::Unknown };
                    let conversation = Some(Conversation::with(process.replica.clone(), peer));
                    world.link(key).conversation = conversation;
                    world.hear(key, move |core, now| core.connected(now, slot, number));
                }
                _ => world.break_link(key),
            }
        });
    }

    fn link(&mut self, key: u64) -> &mut Link {
        self.links.get_mut(&key).expect("links are kept")
    }

    /// What comes to an engine that is stopped, it hears when it goes on.
    fn hear(&mut self, key: u64, event: impl FnOnce(&mut Core, Instant) + 'static) {
        let link = &self.links[&key];
        if link.closed {
            return;
        }
        match self.engines[&link.engine].thread.busy_us() {
            Some(wait) => self.after(wait, "heard", move |world| world.hear(key, event)),
            None => self.tell(link.engine, event),
        }
    }

    pub(super) fn break_link(&mut self, key: u64) {
        let link = self.link(key);
        if std::mem::replace(&mut link.broken, true) {
            return;
        }
        let (slot, number) = (link.slot, link.number);
        let wait = 10 + self.rng.below(3 * MS);
        self.after(wait, "disconnected", move |world| {
            world.hear(key, move |core, now| core.disconnected(now, slot, number, "link lost"));
        });
    }

    pub(super) fn close(&mut self, id: u64, slot: Slot, link: LinkId) {
        let Some(key) = self.engine(id).links.remove(&(slot, link)) else { return };
        let lost = self.rng.percent(50); // else what was sent may still arrive
        let link = self.link(key);
        link.closed = true;
        link.broken |= lost;
        // What was sent comes before the end of the stream.
        let (closed, sent) = (link.conversation.clone(), link.last_arrival);
        if let Some(closed) = closed {
            let wait = sent.saturating_sub(self.now_us()) + 10;
            self.after(wait, "closed", move |_| closed.closed_by_peer());
        }
    }

    fn delay(&mut self, replica: usize) -> u64 {
        let slow = self.slow.get(&replica).is_some_and(|until| *until > self.now_us());
        let base = 20 + self.rng.below(300);
        base + if slow || self.rng.percent(2) { self.rng.below(30 * MS) } else { 0 }
    }

    fn lateness(&mut self, replica: usize) -> u64 {
        let late = self.late_answers.get(&replica).is_some_and(|until| *until > self.now_us());
        if late { 40 * MS + self.rng.below(40 * MS) } else { 0 }
    }

    // ---- to the replica --------------------------------------------------------------------

    pub(super) fn send(
        &mut self,
        id: u64,
        slot: Slot,
        link: LinkId,
        seq: u64,
        request: Request<replication::PayloadRef>,
        into: Option<Destination>,
    ) {
        let key = self.engine(id).links.get(&(slot, link)).copied();
        let key = key.unwrap_or_else(|| panic!("{request:?} is sent on a closed link"));
        let replica = self.links[&key].replica;
        self.log(|| format!("engine {id} sends r{replica} {request:?}"));
        let status = self.engines[&id].core.status();
        let head = status.chain.head;
        let seals = matches!(&request, Request::Chain(op)
            if matches!(op.change, ChainChange::Snapshot { .. }));
        // While the volume opens, a change is rolled forward that was decided when all were equal.
        let unsettled = status.serving && status.unsettled_bytes > 0;
        assert!(!(seals && unsettled), "a snapshot seals regions that may differ (P6)");
        let wait = self.engines[&id].thread.ahead_us() + self.delay(replica);
        let now_us = self.now_us();
        let at = self.links[&key].last_arrival.max(now_us + wait - 1) + 1;
        let steps = self.steps;
        let what = format!("{request:?}");
        let footprint = Footprint::of(&request, head);
        let request = self.with_data(id, request);
        let footprint = footprint.or_else(|| Footprint::of_repair(request.as_ref()?, head));
        let link = self.link(key);
        link.last_arrival = at;
        link.sent.insert(seq, steps);
        if let Some(footprint) = footprint {
            let clash = link.in_flight.values().find(|other| footprint.conflicts_with(**other));
            assert!(clash.is_none(), "{what} overlaps {clash:?} at r{replica}");
            link.in_flight.insert(seq, footprint);
        }
        let Some((request, message)) = request.map(|request| request_as_sent(&request)) else {
            return;
        };
        self.engine(id).thread.spend(message);
        let arrival = Arrival { seq, request, message, into };
        self.after(at - now_us, "arrive", move |world| world.arrive(key, arrival));
    }

    /// The core's message with the data it refers to.
    fn with_data(
        &mut self,
        id: u64,
        request: Request<replication::PayloadRef>,
    ) -> Option<Request<Rc<Payload>>> {
        let engine = self.engine(id);
        request.try_map_payload(|payload| match payload {
            replication::PayloadRef::Of(io) => Some(engine.ops.get_mut(&io)?.seal()),
            replication::PayloadRef::Transfer(transfer) => engine.transfers.get(&transfer).cloned(),
        })
    }

    /// Whether the story wants it to be lost.
    fn loses(&self, request: &Request<Rc<Payload>>, replica: usize) -> bool {
        matches!(request, Request::Chain(_))
            && self.changes_reach_only.is_some_and(|only| only != replica)
    }

    fn arrive(&mut self, key: u64, arrival: Arrival) {
        let Arrival { seq, request, message, into } = arrival;
        let link = &self.links[&key];
        if link.broken || link.deaf || self.loses(&request, link.replica) {
            return;
        }
        if !self.machines[link.replica].is_up() {
            return self.break_link(key);
        }
        let conversation = link.conversation.clone().expect("it was connected");
        let outbox = self.outbox.clone();
        let replica = link.replica;
        let amid = match request {
            Request::Chain(_) => Some((replica, Amid::Change)),
            Request::Flush => Some((replica, Amid::Flush)),
            _ => None,
        };
        let asked = Asked::by(&request);
        let machine = &self.machines[replica];
        let thread = machine.thread.clone();
        machine.spawn(async move {
            thread.spend(message);
            let reply = conversation.handle(request).await;
            outbox.borrow_mut().push(Answered { key, seq, asked, into, reply });
        });
        if amid.is_some() && amid == self.dies_amid {
            self.dies_amid = None;
            let wait = self.rng.below(2 * MS);
            self.after(wait, "killed", move |world| {
                world.stop_replica(replica, false, 100);
                world.engine_gone(world.newest, true);
            });
        }
    }

    // ---- from the replica ------------------------------------------------------------------

    /// Lets all that run go on; what they answer is on its way afterwards.
    pub(super) fn run_machines(&mut self) {
        let now_us = self.now_us();
        for machine in &mut self.machines {
            if machine.hung_until <= now_us
                && let Some(process) = &mut machine.process
            {
                process.tasks.run();
            }
        }
        self.check_turns();
        self.take_reads();
        let answered = std::mem::take(&mut *self.outbox.borrow_mut());
        for answer in answered {
            self.answered(answer);
        }
    }

    fn answered(&mut self, answer: Answered) {
        let Answered { key, seq, asked, into, reply } = answer;
        let Link { replica, engine, .. } = self.links[&key];
        let machine = &mut self.machines[replica];
        match (&reply, asked) {
            (Reply::Welcome(welcome), Asked::Hello(fence)) => {
                // With nothing marked, all that was acknowledged is durable there.
                machine.lossy &= machine.is_marked();
                machine.lossy |= !welcome.continuous && machine.has_lost();
                let was = machine.accepted_lossy_by == Some(engine);
                machine.greeted_lossy = machine.lossy || !welcome.continuous || was;
                machine.welcomed_engine = machine.welcomed_engine.max(Some(engine));
                let before = machine.welcomed.replace(fence);
                assert!(before < Some(fence), "r{replica} welcomes an older session (I4)");
            }
            (Reply::Done, Asked::Advance(generation)) => {
                self.check_told_in_sync(replica);
                let machine = &mut self.machines[replica];
                machine.synced = machine.synced.max(Some(generation));
                machine.accepted_lossy_by = machine.greeted_lossy.then_some(engine);
            }
            // It holds what is acknowledged now, whatever it had lost before.
            (Reply::Done, Asked::Ready) => {
                (machine.lossy, machine.greeted_lossy) = (false, false);
                machine.is_rolled_back = false;
                self.note_ready(replica);
            }
            _ => {}
        }
        let (reply, message) = reply_as_sent(&reply);
        let thread = &self.machines[replica].thread;
        thread.spend(message);
        let computes_us = thread.ahead_us();
        self.note(kind_of(&reply), key ^ seq << 32);
        self.log(|| format!("r{replica} answers {seq} with {}", kind_of(&reply)));
        let wait = computes_us + self.delay(replica) + self.lateness(replica);
        let delivery = Delivery { seq, reply, message, into };
        self.after(wait, "reply", move |world| world.deliver(key, delivery));
    }

    fn deliver(&mut self, key: u64, delivery: Delivery) {
        let thread = self.engines[&self.links[&key].engine].thread.clone();
        if let Some(wait) = thread.busy_us() {
            return self.after(wait, "reply", move |world| world.deliver(key, delivery));
        }
        let Delivery { seq, reply, message, into } = delivery;
        thread.spend(message);
        let link = self.link(key);
        link.in_flight.remove(&seq);
        let sent = link.sent.remove(&seq).unwrap_or(0);
        let (id, slot, number, replica) = (link.engine, link.slot, link.number, link.replica);
        if link.closed || link.broken || !self.engine(id).alive {
            return;
        }
        let reply = self.take_data(id, into, reply);
        let heard = self.engine(id).heard.entry(replica).or_default();
        *heard = sent.max(*heard);
        self.tell(id, |core, now| core.answered(now, slot, number, seq, reply));
    }

    /// Puts an answer's data where it belongs; the core gets the rest.
    fn take_data(
        &mut self,
        id: u64,
        into: Option<Destination>,
        reply: Reply<Rc<Payload>>,
    ) -> Reply<()> {
        let Reply::Data(payload) = reply else {
            return reply.without_data().expect("it isn't data");
        };
        let engine = self.engine(id);
        match (into.expect("data goes somewhere"), &*payload) {
            (Destination::Read(io), Payload::Blocks(_) | Payload::Map(_)) => {
                if let Some(op) = engine.ops.get_mut(&io) {
                    op.got.get_or_insert(payload); // of two that were asked the first counts
                }
                Reply::Data(())
            }
            (Destination::Edge(io, block), Payload::Blocks(_)) => {
                if let Some(op) = engine.ops.get_mut(&io) {
                    op.edges.insert(block.0, payload);
                }
                Reply::Data(())
            }
            (Destination::Transfer(transfer), Payload::Patch(patch)) => {
                let digest = patch.digest;
                engine.transfers.insert(transfer, payload);
                Reply::Digest(digest)
            }
            (into, _) => panic!("the wrong kind of data for {into:?}"),
        }
    }

    // ---- processes -------------------------------------------------------------------------

    pub(super) fn stop_replica(&mut self, at: usize, power: bool, away_us: u64) {
        let seed = self.rng.number();
        let how = if power { Stop::PowerCut(seed) } else { Stop::Kill };
        self.stop_replica_by(at, how, away_us);
    }

    pub(super) fn stop_replica_by(&mut self, at: usize, how: Stop, away_us: u64) {
        if !self.machines[at].is_up() {
            return;
        }
        self.log(|| format!("replica {at} stops: {how:?}"));
        self.machines[at].disk.heal();
        self.machines[at].stop(how);
        self.cut_off(at);
        self.after(away_us, "restart", move |world| {
            let tick = world.tick;
            world.machines[at].start(tick);
        });
    }

    /// The process at the other end of all its connections is gone.
    pub(super) fn cut_off(&mut self, at: usize) {
        let keys: Vec<_> =
            self.links.iter().filter(|(_, it)| it.replica == at).map(|(key, _)| *key).collect();
        for key in keys {
            self.break_link(key);
            self.link(key).conversation = None;
        }
    }
}

/// What arrives of a request: it goes through bytes, as over a socket.
fn request_as_sent(request: &Request<Rc<Payload>>) -> (Request<Rc<Payload>>, Work) {
    let frame = wire::encode_request(1, request).expect("no request is too long");
    let (header, meta) = parts(&frame);
    let data = Buffer::copy_of(frame.data());
    let sent = wire::decode_request(&header, meta, data).expect("what is sent is a message");
    (sent, work_of(&frame))
}

/// The same of a reply.
fn reply_as_sent(reply: &Reply<Rc<Payload>>) -> (Reply<Rc<Payload>>, Work) {
    let frame = wire::encode_reply(1, reply);
    let (header, meta) = parts(&frame);
    let data = Buffer::copy_of(frame.data());
    let sent = wire::decode_reply(&header, meta, data).expect("what is sent is a message");
    assert_eq!(kind_of(&sent), kind_of(reply), "an answer is too long to be sent");
    (sent, work_of(&frame))
}

/// What each end has to do for it.
fn work_of(frame: &Frame) -> Work {
    Work::message(frame.head.len() + frame.data().len())
}

fn parts(frame: &Frame) -> (Header, &[u8]) {
    let (header, meta) = frame.head.split_first_chunk::<HEADER_BYTES>().expect("a whole header");
    (Header::decode(header).expect("it was just made"), meta)
}

fn kind_of<P>(reply: &Reply<P>) -> &'static str {
    use ankole_replica::message::Refusal;
    match reply {
        Reply::Done => "done",
        Reply::Welcome(_) => "welcome",
        Reply::Data(_) => "data",
        Reply::Sums(_) => "sums",
        Reply::Regions(_) => "regions",
        Reply::Digest(_) => "digest",
        Reply::Chain(_) => "chain",
        Reply::Adopted(_) => "adopted",
        Reply::Changed { .. } => "changed",
        Reply::Refused(Refusal::StaleGeneration { .. }) => "stale",
        Reply::Refused(Refusal::NoSpace) => "no space",
        Reply::Refused(Refusal::BadBlocks { .. }) => "bad blocks",
        Reply::Refused(Refusal::Unverified) => "unverified",
        Reply::Refused(_) => "refused",
    }
}
