//! Connections between engines and replicas: what is late, lost, closed and still arrives; and the
//! replicas' processes.

use super::*;

impl World {
    pub(super) fn connect(&mut self, id: u64, slot: Slot, link: LinkId) {
        let key = self.links.len() as u64;
        let replica = usize::from(slot.0);
        let new = Link {
            engine: id,
            replica,
            link,
            closed: false,
            broken: false,
            last_arrival: 0,
            in_flight: BTreeMap::new(),
        };
        self.links.insert(key, new);
        self.engine(id).links.insert((slot, link), key);
        let wait = self.delay(replica);
        self.after(wait, "connect", move |world| {
            let reachable = world.unreachable.get(&replica).is_none_or(|at| *at < world.now_us);
            if world.replicas[replica].up && reachable {
                world.hear(key, |core, now| core.connected(now, slot, link));
            } else {
                world.break_link(key);
            }
        });
    }

    pub(super) fn hear(&mut self, key: u64, event: impl FnOnce(&mut Core, Instant)) {
        let link = &self.links[&key];
        if !link.closed {
            self.tell(link.engine, event);
        }
    }

    pub(super) fn break_link(&mut self, key: u64) {
        let link = self.links.get_mut(&key).expect("links are kept");
        if std::mem::replace(&mut link.broken, true) {
            return;
        }
        let (slot, number) = (Slot(link.replica as u8), link.link);
        let wait = 10 + self.rng.below(3 * MS);
        self.after(wait, "disconnected", move |world| {
            world.hear(key, |core, now| core.disconnected(now, slot, number, "link lost"));
        });
    }

    pub(super) fn close(&mut self, id: u64, slot: Slot, link: LinkId) {
        let Some(key) = self.engine(id).links.remove(&(slot, link)) else { return };
        let lost = self.rng.percent(50); // else what was sent may still arrive
        let link = self.links.get_mut(&key).expect("links are kept");
        link.closed = true;
        link.broken |= lost;
    }

    pub(super) fn delay(&mut self, replica: usize) -> u64 {
        let slow = self.slow.get(&replica).is_some_and(|until| *until > self.now_us);
        let base = 20 + self.rng.below(300);
        base + if slow || self.rng.percent(2) { self.rng.below(30 * MS) } else { 0 }
    }

    pub(super) fn send(
        &mut self,
        id: u64,
        slot: Slot,
        link: LinkId,
        seq: u64,
        request: Request<Payload>,
        into: Option<Destination>,
    ) {
        let key = self.engine(id).links.get(&(slot, link)).copied();
        let key = key.unwrap_or_else(|| panic!("{request:?} is sent on a closed link"));
        let replica = usize::from(slot.0);
        let data = self.payload(id, &request);
        self.log(|| format!("engine {id} sends {slot:?} {request:?} {:.60}", format!("{data:?}")));
        let head = self.replicas[replica].chain.head;
        let wait = self.delay(replica);
        let at = self.links[&key].last_arrival.max(self.now_us + wait - 1) + 1;
        let link = self.links.get_mut(&key).expect("links are kept");
        link.last_arrival = at;
        let footprint = match &request {
            Request::Repair { layer, .. } => Footprint::of_repair(*layer, &data),
            request => Footprint::of(request, head),
        };
        if let Some(footprint) = footprint {
            let clash = link.in_flight.values().find(|other| footprint.conflicts_with(**other));
            assert!(clash.is_none(), "{request:?} overlaps {clash:?} at {slot:?}");
            link.in_flight.insert(seq, footprint);
        }
        let wait = at - self.now_us;
        self.after(wait, "arrive", move |world| world.arrive(key, seq, request, data, into));
    }

    pub(super) fn payload(&mut self, id: u64, request: &Request<Payload>) -> Data {
        let whole = |sectors: [Option<u64>; 2]| {
            Some(sectors.map(|it| it.expect("a write goes out when its edges are there")))
        };
        let engine = self.engine(id);
        match request {
            Request::Write { payload: Payload::Of(io), .. } => {
                let cells = engine.ops[io].cells.iter();
                cells.map(|(block, sectors)| (*block, whole(*sectors))).collect()
            }
            Request::Copy { payload: Payload::Transfer(transfer), .. }
            | Request::Repair { payload: Payload::Transfer(transfer), .. } => {
                engine.transfers.get(transfer).expect("fetched before").clone()
            }
            _ => Data::new(),
        }
    }

    pub(super) fn arrive(
        &mut self,
        key: u64,
        seq: u64,
        request: Request<Payload>,
        data: Data,
        into: Option<Destination>,
    ) {
        let link = &self.links[&key];
        let at = link.replica;
        if link.broken {
            return;
        }
        if !self.replicas[at].up {
            return self.break_link(key);
        }
        let is_hello = matches!(request, Request::Hello(_));
        if !is_hello && self.replicas[at].owner != Some(key) {
            let reply = self.replicas[at].stale();
            return self.reply(key, seq, reply, Data::new(), into);
        }
        let ticket = self.scheduled;
        if !is_hello {
            let taken = Taken { link: key, request: request.clone(), data };
            self.replicas[at].taken.insert(ticket, taken);
        }
        let wait =
            5 + self.rng.below(200) + if self.rng.percent(2) { self.rng.below(20 * MS) } else { 0 };
        self.after(wait, "execute", move |world| match request {
            Request::Hello(hello) => world.greet(key, seq, *hello),
            _ => world.execute(key, seq, ticket, into),
        });
    }

    pub(super) fn greet(&mut self, key: u64, seq: u64, hello: ankole_replica::message::Hello) {
        let link = &self.links[&key];
        let at = link.replica;
        if link.broken || !self.replicas[at].up {
            return;
        }
        let hung_until = self.replicas[at].hung_until;
        if hung_until > self.now_us {
            let wait = hung_until - self.now_us;
            return self.after(wait, "hung", move |world| world.greet(key, seq, hello));
        }
        let fence = hello.claim.expect("engines claim").fence;
        let rng = &mut self.rng;
        let reply = self.replicas[at].greet(fence, || rng.percent(50));
        if let ankole_replica::message::Reply::Welcome(_) = reply {
            self.replicas[at].owner = Some(key);
        }
        self.reply(key, seq, reply, Data::new(), None);
    }

    pub(super) fn execute(&mut self, key: u64, seq: u64, ticket: u64, into: Option<Destination>) {
        let at = self.links[&key].replica;
        let replica = &mut self.replicas[at];
        if replica.hung_until > self.now_us {
            let wait = replica.hung_until - self.now_us;
            return self.after(wait, "hung", move |world| world.execute(key, seq, ticket, into));
        }
        let Some(taken) = replica.taken.remove(&ticket) else { return };
        if matches!(taken.request, Request::Chain(_))
            && replica.has_unflushed_head()
            && self.record.in_sync.iter().any(|it| it.replica == replica_id(at))
        {
            panic!("replica {at} changes its chain before its head is flushed");
        }
        let (reply, data) = replica.execute(&taken.request, &taken.data);
        // One that was lost meanwhile clears what is flushed there; what it misses is marked anew.
        let link = &self.links[&key];
        let counts = !link.closed && !link.broken && self.engines[&link.engine].alive;
        if let Request::Clear { regions } = &taken.request
            && counts
        {
            self.check_cleared(regions);
        }
        self.reply(taken.link, seq, reply, data, into);
    }

    pub(super) fn reply(
        &mut self,
        key: u64,
        seq: u64,
        reply: ankole_replica::message::Reply<()>,
        data: Data,
        into: Option<Destination>,
    ) {
        let link = &self.links[&key];
        let (id, slot, number) = (link.engine, Slot(link.replica as u8), link.link);
        let wait = self.delay(usize::from(slot.0));
        self.after(wait, "reply", move |world| {
            let link = world.links.get_mut(&key).expect("links are kept");
            link.in_flight.remove(&seq);
            if link.closed || link.broken || !world.engine(id).alive {
                return;
            }
            let engine = world.engine(id);
            match into {
                Some(Destination::Read(io)) => {
                    engine.ops.get_mut(&io).expect("still reading").got = data;
                }
                Some(Destination::Edge(io, block)) => {
                    let op = engine.ops.get_mut(&io).expect("still filling");
                    let sectors = op.cells.get_mut(&block.0).expect("an edge is in the range");
                    for (_, found) in data {
                        for (sector, found) in sectors.iter_mut().zip(found.unwrap_or_default()) {
                            sector.get_or_insert(found);
                        }
                    }
                }
                Some(Destination::Transfer(transfer)) => {
                    engine.transfers.insert(transfer, data);
                }
                None => {}
            }
            world.tell(id, |core, now| core.answered(now, slot, number, seq, reply));
        });
    }

    pub(super) fn stop_replica(&mut self, at: usize, power: bool, away_us: u64) {
        if !self.replicas[at].up {
            return;
        }
        self.log(|| format!("replica {at} stops, power {power}"));
        let chance = self.rng.pick(&[0, 50, 50, 100]);
        let rng = &mut self.rng;
        if power {
            self.replicas[at].cut_power(|| rng.percent(chance));
        } else {
            self.replicas[at].kill(|| rng.percent(50));
        }
        let keys: Vec<_> = self
            .links
            .iter()
            .filter(|(_, it)| it.replica == at && !it.broken)
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.break_link(key);
        }
        self.after(away_us, "restart", move |world| world.restart_replica(at));
    }

    pub(super) fn restart_replica(&mut self, at: usize) {
        self.replicas[at].up = true;
    }

    pub(super) fn members(&self) -> Vec<usize> {
        let named = |at: &usize| self.record.in_sync.iter().any(|it| it.replica == replica_id(*at));
        (0..self.replicas.len()).filter(named).collect()
    }
}
