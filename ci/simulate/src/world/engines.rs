//! Engines: the real core, and what its shell does around it.

use super::*;

pub(super) struct Engine {
    pub(super) core: Core,
    pub(super) thread: Rc<Thread<World>>,
    /// Of its clock.
    pub(super) speed: Speed,
    pub(super) alive: bool,
    pub(super) opened: bool,
    /// A client of the engine before waits: nobody may be forgotten.
    recovers: bool,
    /// The members when it was granted the volume.
    granted: Vec<Member>,
    pub(super) detaching: bool,
    /// Which machine each of its slots is.
    pub(super) slots: Vec<usize>,
    pub(super) links: BTreeMap<(Slot, LinkId), u64>,
    pub(super) ops: BTreeMap<IoId, ClientOp>,
    pub(super) transfers: BTreeMap<TransferId, Rc<Payload>>,
    /// The questions to the arbiter that wait for an answer: what the record is, and a change.
    pub(super) asking: [u64; 2],
    pub(super) asks_for_change: bool,
    pub(super) arbiter_cut_until: u64,
    /// When it lost a replica last, and when it had sent what a replica has answered, in steps.
    lost: BTreeMap<usize, u64>,
    pub(super) heard: BTreeMap<usize, u64>,
    timer: Option<u64>,
    /// Turns in a row after which it wanted to be woken at a time that has passed.
    late_turns: u32,
}

impl World {
    pub(super) fn start_engine(&mut self, recover: bool) {
        self.newest += 1;
        let id = self.newest;
        let instance = InstanceId(format!("e{id}"));
        let engine = EngineGrant { node: format!("n{id}"), instance: instance.clone() };
        let attach_epoch = self.record.attach_epoch + u64::from(!recover);
        let grant = Change::Grant { engine, attach_epoch };
        self.record = self.record.after(self.record.generation, grant).expect("nobody disputes it");
        let known = |at: &usize| self.wanted.contains(at) || self.is_member(*at);
        let slots: Vec<_> = (0..self.machines.len()).filter(known).collect();
        let ids = slots.iter().map(|at| self.machines[*at].id.clone()).collect();
        let mut config = Config::new("v", instance, ids);
        // An engine that lives on elsewhere has a client that waits.
        config.recover = recover || self.engines.values().any(|engine| engine.alive);
        config.open_timeout = Duration::from_millis(300);
        config.replica_timeout = Duration::from_millis(200);
        config.reconnect_after = Duration::from_millis(5);
        config.dead_timeout = Duration::from_millis(50);
        config.rejoin_grace = Duration::from_millis(20);
        config.slow_patience = Duration::from_millis(150);
        config.process = Some(id as u32);
        config.clear_after = Duration::from_millis(20);
        config.epoch_every = Duration::from_millis(50);
        config.marked_regions_max = 1;
        config.backlog_bytes = BACKLOG_BYTES;
        let recovers = config.recover;
        let speed = self.rng.pick(&Speed::ALL);
        let core = Core::new(self.base + speed.clock(self.now_us()), config);
        self.log(|| format!("engine {id} starts, recover {recover}"));
        let engine = Engine {
            core,
            thread: Thread::new(&self.schedule),
            speed,
            alive: true,
            opened: false,
            recovers,
            granted: self.record.in_sync.clone(),
            detaching: false,
            slots,
            links: BTreeMap::new(),
            ops: BTreeMap::new(),
            transfers: BTreeMap::new(),
            asking: [0; 2],
            asks_for_change: false,
            arbiter_cut_until: 0,
            lost: BTreeMap::new(),
            heard: BTreeMap::new(),
            timer: None,
            late_turns: 0,
        };
        self.engines.insert(id, engine);
        self.tell_wanted(id);
        self.act(id);
        for op in std::mem::take(&mut self.lost_ops) {
            if recover {
                self.submit(id, op.shape()); // with new values: one more write
            }
        }
    }

    /// The replicas that the volume should have, as the manager says them.
    pub(super) fn tell_wanted(&mut self, id: u64) {
        let wanted: Vec<_> = self.wanted.iter().copied().collect();
        let ids: Vec<_> = wanted.iter().map(|at| self.machines[*at].id.clone()).collect();
        let engine = self.engine(id);
        let new: Vec<_> = wanted.into_iter().filter(|at| !engine.slots.contains(at)).collect();
        engine.slots.extend(new);
        self.tell(id, |core, now| {
            let told = core.set_replicas(now, &ids);
            told.expect("few replicas");
        });
    }

    pub(super) fn engine(&mut self, id: u64) -> &mut Engine {
        self.engines.get_mut(&id).expect("engines are never forgotten")
    }

    /// Tells the core something, then does what it wants.
    pub(super) fn tell(&mut self, id: u64, event: impl FnOnce(&mut Core, Instant)) {
        let now = self.now(id);
        let engine = self.engine(id);
        if engine.alive {
            event(&mut engine.core, now);
            self.act(id);
        }
    }

    pub(super) fn act(&mut self, id: u64) {
        while self.engine(id).alive
            && let Some(action) = self.engine(id).core.poll_action()
        {
            self.carry_out(id, action);
        }
        let base = self.base;
        let now_us = self.now_us();
        let engine = self.engine(id);
        let due = engine.core.poll_timeout().filter(|_| engine.alive);
        let due = due.map(|at| engine.speed.when_us(at.saturating_duration_since(base)));
        let is_past = due.is_some_and(|at| at <= now_us);
        engine.late_turns = if is_past { engine.late_turns + 1 } else { 0 };
        assert!(engine.late_turns < 1000, "an engine spins: it wants to be woken in the past");
        if due != engine.timer {
            engine.timer = due;
            if let Some(at) = due {
                let wait = at.saturating_sub(now_us).max(1);
                self.after(wait, "timer", move |world| world.timer(id, at));
            }
        }
    }

    fn timer(&mut self, id: u64, at: u64) {
        let engine = self.engine(id);
        if engine.timer != Some(at) {
            return;
        }
        if let Some(wait) = engine.thread.busy_us() {
            return self.after(wait, "timer", move |world| world.timer(id, at));
        }
        engine.timer = None;
        self.tell(id, |core, now| core.handle_timeout(now));
    }

    fn carry_out(&mut self, id: u64, action: Action) {
        self.steps += 1;
        match action {
            Action::Connect { slot, link } => self.connect(id, slot, link),
            Action::Disconnect { slot, link } => {
                self.log(|| {
                    let peers = self.engines[&id].core.status().peers;
                    let reason = &peers[usize::from(slot.0)].reason;
                    format!("engine {id} disconnects {slot:?}: {reason:?}")
                });
                let replica = self.engines[&id].slots[usize::from(slot.0)];
                let peers = self.engines[&id].core.status().peers;
                self.check_lost_for(replica, peers[usize::from(slot.0)].reason.as_ref());
                let steps = self.steps;
                self.engine(id).lost.insert(replica, steps);
                self.close(id, slot, link);
            }
            Action::Send { slot, link, seq, request, into } => {
                self.send(id, slot, link, seq, request, into);
            }
            Action::Complete { io, result } => {
                if result.is_ok() {
                    self.check_acknowledged(id, io);
                }
                let told_off = result == Err(replication::Failure::Shutdown);
                let engine = &self.engines[&id];
                assert!(
                    engine.detaching || !told_off,
                    "an engine that was fenced answers (rule 7)"
                );
                self.engine(id).ops.get_mut(&io).expect("submitted").answered = true;
                let wait = 5 + self.rng.below(400);
                self.after(wait, "answer", move |world| world.answer(id, io, result.is_ok()));
            }
            Action::Retire { io } => {
                let op = self.engine(id).ops.get(&io).expect("submitted");
                assert!(op.done, "a request is retired before its answer was handed over");
                self.engine(id).ops.remove(&io);
            }
            Action::RetireTransfer { transfer } => {
                self.engine(id).transfers.remove(&transfer);
            }
            Action::ReadRecord => self.ask(id, None),
            Action::Change { expected, change } => {
                self.check_survivors(id, &change);
                self.check_room(id, &change);
                self.call_off_failures();
                self.ask(id, Some((expected, change)));
            }
            Action::Opened { .. } => self.opened(id),
            Action::JobDone { job, result } => {
                if self.pending.as_ref().is_some_and(|it| it.id == Some(job) && it.engine == id) {
                    self.log(|| format!("job done: {result:?}"));
                    self.resolve_job(id, result.is_ok());
                }
            }
            Action::Damage { .. } => {}
            Action::End(end) => {
                self.log(|| format!("engine {id} ends: {end:?}"));
                let fenced = matches!(end, End::Fenced(_));
                assert!(!(fenced && id == self.newest), "nobody is newer: {end:?}");
                let recover = end != End::Detached && self.rng.percent(80);
                self.engine_gone(id, recover);
            }
        }
    }

    /// I9: one of those who stay has answered after the failure of those who leave, also at an open.
    fn check_survivors(&self, id: u64, change: &Change) {
        let engine = &self.engines[&id];
        let Change::Members { in_sync, .. } = change else { return };
        let stays = |at: &usize| in_sync.iter().any(|it| it.replica == self.machines[*at].id);
        if id != self.newest {
            return;
        }
        let staying: Vec<_> = (0..self.machines.len()).filter(stays).collect();
        let leaving: Vec<_> = self.members().into_iter().filter(|at| !stays(at)).collect();
        let lost = leaving.iter().filter_map(|at| engine.lost.get(at)).max();
        assert!(
            leaving.is_empty() || staying.iter().any(|at| engine.heard.get(at) >= lost),
            "{leaving:?} are removed, and none of {staying:?} was heard since (rule 5, I9)"
        );
    }

    /// Rule 21: nobody leaves only since its disk is full unless two others stay.
    fn check_room(&self, id: u64, change: &Change) {
        let engine = &self.engines[&id];
        let Change::Members { in_sync, .. } = change else { return };
        let stays = |at: &usize| in_sync.iter().any(|it| it.replica == self.machines[*at].id);
        if !engine.opened || id != self.newest {
            return;
        }
        // One whose directory was made anew leaves too, and not since it is full.
        let named = (0..self.machines.len()).filter(|at| self.is_member(*at));
        let leaving: Vec<_> = named.filter(|at| !stays(at)).collect();
        let peers = engine.core.status().peers;
        let is_full = |at: &usize| {
            let id = &self.machines[*at].id;
            let peer = peers.iter().find(|peer| peer.replica == *id);
            peer.and_then(|peer| peer.reason.as_deref()) == Some("its disk is full")
        };
        assert!(
            leaving.is_empty() || in_sync.len() >= 2 || !leaving.iter().all(is_full),
            "{leaving:?} are removed since their disks are full, and {in_sync:?} stay (rule 21)"
        );
    }

    /// The process is gone; if it was the newest, its agent starts another one.
    pub(super) fn engine_gone(&mut self, id: u64, recover: bool) {
        let engine = self.engine(id);
        if !engine.alive {
            return;
        }
        engine.alive = false;
        let ops = std::mem::take(&mut engine.ops);
        let links: Vec<_> = engine.links.keys().copied().collect();
        for (slot, link) in links {
            self.close(id, slot, link);
        }
        let open: Vec<_> = ops.into_values().filter(|op| !op.done).collect();
        self.undecided.extend(open.iter().cloned());
        if id == self.newest {
            self.lost_ops.extend(open.into_iter().filter(|_| recover));
            let wait = MS + self.rng.below(50 * MS);
            self.after(wait, "start engine", move |world| {
                if world.newest == id {
                    world.start_engine(recover);
                }
            });
        }
    }

    fn opened(&mut self, id: u64) {
        if std::mem::replace(&mut self.engine(id).opened, true) {
            return; // only its size has changed
        }
        self.check_cut(id);
        if id != self.newest {
            return;
        }
        let now = self.tick;
        let mut old = std::mem::take(&mut self.undecided);
        let others = self.engines.iter().filter(|(other, _)| **other != id);
        old.extend(others.flat_map(|(_, it)| it.ops.values().filter(|op| !op.done).cloned()));
        for op in old {
            op.written().for_each(|at| self.history.write_ends(at, op.start, now, false));
        }
        if self.pending.is_some() {
            self.resolve_job(id, false);
        }
        self.inspect();
        self.after(1, "first of all", move |world| world.hurry(id));
    }

    /// Some can't wait until all members are equal.
    fn hurry(&mut self, id: u64) {
        let engine = &self.engines[&id];
        let idle = engine.alive && !engine.detaching && id == self.newest && self.faults;
        if idle && self.jobs && self.pending.is_none() && self.rng.percent(15) {
            self.start_job(Job::Snapshot { seal: Seal::default() });
        } else if idle && self.menu.contains(&Fault::Detached) && self.rng.percent(20) {
            self.engine(id).detaching = true;
            self.tell(id, |core, now| core.detach(now));
        }
    }

    /// Open, step 4: what only a member that is missing has isn't given up while a client waits.
    fn check_nobody_is_forgotten(&self, id: u64) {
        let engine = &self.engines[&id];
        let sound = |at: &usize| {
            let machine = &self.machines[*at];
            let is_it =
                |it: &Member| it.replica == machine.id && it.incarnation == machine.incarnation;
            engine.granted.iter().any(is_it)
                && !self.is_member(*at)
                && !machine.has_failed()
                && !machine.is_rolled_back
                && !machine.greeted_lossy
                && machine.look(|store| store.continuous())
        };
        let forgotten: Vec<_> = (0..self.machines.len()).filter(sound).collect();
        assert!(
            !engine.recovers || forgotten.is_empty(),
            "{forgotten:?} may have what the others lost, and a client waits (open, step 4)"
        );
    }

    /// If the members have lost what wasn't flushed, all of them have.
    fn check_cut(&mut self, id: u64) {
        let members = self.members();
        let lost = members.iter().filter(|at| self.machines[**at].greeted_lossy).count();
        self.log(|| format!("engine {id} serves with {members:?}, {lost} lost power"));
        assert!(lost == 0 || lost == members.len(), "a suspect member stays beside a sound one");
        if lost == 0 {
            return;
        }
        self.check_nobody_is_forgotten(id);
        for at in &members {
            self.machines[*at].greeted_lossy = false;
            self.machines[*at].lossy = false;
        }
        self.history.cut();
        self.cut_at = self.tick;
        // What is still under way belongs to the time after the cut.
        let engines = self.engines.values().filter(|engine| engine.alive);
        let open: Vec<_> =
            engines.flat_map(|it| it.ops.values().filter(|op| !op.done)).cloned().collect();
        open.iter().for_each(|op| self.begin_writes(op));
    }
}
