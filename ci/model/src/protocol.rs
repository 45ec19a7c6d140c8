//! What may happen next, rule by rule.
//!
//! A request and its answer are one step, at the moment when the replica or the arbiter handles it;
//! the engine acts on it later, or never. That is exact where a request does no harm when it arrives
//! late. Two kinds do, and have steps of their own: writes, which stay in old sockets
//! (`View::old_writes`), and changes of the record, which are applied now, later or never.
//!
//! Time isn't there. A lease that an engine holds is valid until a replica answers another
//! instance: the replica may do that only when it has run out, so that step ends it for both.

use crate::explore::Model;
use crate::pack::{Key, pack, unpack};
use crate::rules::{Rule, Rules};
use crate::state::{
    Change, Delivery, ENGINES, NEWER, OLDER, Phase, Property, REPLICAS, Rebuild, State,
};
use crate::step::{Step, candidates};
use crate::values::{Value, Values};

/// What may happen at all. Nothing is counted but writes: each fault may come any number of times.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Members at the start; the other replicas are empty.
    pub members: usize,
    /// 1 or 2.
    pub writes: Value,
    pub reads: bool,
    pub flushes: bool,
    /// Replicas that aren't members are rebuilt.
    pub rebuilds: bool,
    /// ... also those that have been members.
    pub returns: bool,
    /// A second engine may be started at any time.
    pub successor: bool,
    /// ... and a third when nothing is left of the first, and so on.
    pub successions: bool,
    pub restarts: bool,
    pub power_cuts: bool,
    pub reformats: bool,
    /// Rebuilds copy only what was stamped since the replica left, and marks are cleared.
    pub deltas: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    pub rules: Rules,
    pub bounds: Bounds,
    /// Whether [`Property::Fenced`] is asked for.
    pub literal_p4: bool,
}

impl Model for Protocol {
    type State = State;
    type Step = Step;
    type Key = Key;
    type Property = Property;

    /// A healthy volume that is in use, as one engine has opened it.
    fn initial(&self) -> State {
        let mut state = State { generation: 1, ..State::default() };
        let engine = &mut state.engines[OLDER];
        (engine.phase, engine.settled, engine.generation) = (Phase::Serving, true, 1);
        for replica in &mut state.replicas[..self.bounds.members] {
            (replica.in_record, replica.synced) = (true, 1);
            let view = &mut replica.views[OLDER];
            (view.link, view.member, view.lease) = (true, true, true);
        }
        state.tidy(self.bounds.deltas, self.bounds.successions)
    }

    fn next(&self, state: &State, found: &mut Vec<(Step, State)>) {
        for step in candidates() {
            let mut after = *state;
            if self.apply(&mut after, step).is_some() {
                let after = after.tidy(self.bounds.deltas, self.bounds.successions);
                if after != *state {
                    found.push((step, after));
                }
            }
        }
    }

    fn key(&self, state: &State) -> Key {
        pack(state)
    }

    fn state(&self, key: Key) -> State {
        unpack(key)
    }

    fn broken(&self, state: &State) -> Option<Property> {
        let members = || state.replicas.iter().filter(|replica| replica.in_record);
        let property = if let Some(property) = state.broken {
            property
        } else if !state.client.history.is_possible() {
            Property::Linearizable
        } else if members().count() == 0 {
            Property::SomebodyIsInSync
        } else if members()
            .any(|it| !it.suspect && !it.foreign && !state.client.current.has(it.value))
        {
            Property::MembersHoldAcknowledged
        } else if members().any(|it| !it.foreign && !state.client.durable.has(it.durable)) {
            Property::MembersKeepFlushed
        } else if state
            .replicas
            .iter()
            .any(|it| it.views.iter().filter(|view| view.link).count() > 1)
        {
            Property::OneSession
        } else {
            return None;
        };
        Some(property)
    }
}

/// `None` where a step can't happen.
type Happened = Option<()>;

const fn when(condition: bool) -> Happened {
    if condition { Some(()) } else { None }
}

impl Protocol {
    fn on(&self, rule: Rule) -> bool {
        self.rules.has(rule)
    }

    fn apply(&self, state: &mut State, step: Step) -> Happened {
        match step {
            Step::Submit { e } => self.submit(state, e),
            Step::Acknowledge { e } => self.acknowledge(state, e),
            Step::Flush { e } => self.flush(state, e),
            Step::Clear { e } => self.clear(state, e),
            Step::Fetch { e, r } => self.fetch(state, e, r),
            Step::AnswerRead => self.answer_read(state),
            Step::AbandonRead => abandon_read(state),
            Step::Perform { e, r } => self.perform(state, e, r),
            Step::PerformOld { e, r, value } => self.perform_old(state, e, r, value),
            Step::Hello { e, r } => self.hello(state, e, r),
            Step::Disconnect { e, r } => {
                when(state.view(e, r).link)?;
                state.unlink(e, r);
                Some(())
            }
            Step::Restart { r } => {
                when(self.bounds.restarts)?;
                self.restart(state, r);
                Some(())
            }
            Step::PowerCut { r, lost } => self.cut_power(state, r, lost),
            Step::Reformat { r } => self.reformat(state, r),
            Step::Copy { e, r } => self.copy(state, e, r),
            Step::Ready { e, r } => ready(state, e, r),
            Step::ProposeRemoval { e, kept } => self.propose_removal(state, e, kept),
            Step::ProposeAddition { e, r } => self.propose_addition(state, e, r),
            Step::GiveUp { e } => self.give_up(state, e),
            Step::ArbiterApplies { e } => self.arbiter_applies(state, e),
            Step::Learn { e } => learn(state, e, self),
            Step::Advance { e, r } => self.advance(state, e, r),
            Step::Grant => self.grant(state),
            Step::DecideWhoStays => self.decide_who_stays(state),
            Step::Settle { e, r } => settle(state, e, r),
            Step::Crash { e } => {
                when(state.is_alive(e))?;
                state.end(e);
                Some(())
            }
        }
    }

    // ---- the client's requests -------------------------------------------------------------------

    fn submit(&self, state: &mut State, e: usize) -> Happened {
        let engine = state.engines[e];
        when(engine.phase == Phase::Serving && engine.settled && engine.write == 0)?;
        when(state.client.read.is_none_or(|(by, _)| usize::from(by) != e))?; // rule 11
        let write = state.client.history.next_write(self.bounds.writes)?;
        state.client.history.submit(write);
        if state.decides(e) {
            state.client.current.add(write);
            state.client.durable.add(write);
        }
        state.engines[e].write = write;
        self.send_write(state, e);
        Some(())
    }

    /// To every replica with a session that takes part and hasn't got it.
    fn send_write(&self, state: &mut State, e: usize) {
        let engine = state.engines[e];
        for replica in &mut state.replicas {
            let view = &mut replica.views[e];
            let proposed = engine.change == Change::Swapping && view.proposed;
            let takes_part = view.member || proposed || view.rebuild >= Rebuild::Copied;
            if engine.write != 0 && view.link && takes_part && view.write == Delivery::NotSent {
                view.write = Delivery::Sent;
            }
        }
    }

    /// Rules 5 and 6, Promote 2: whom an acknowledgement or a flush needs.
    fn needs(&self, state: &State, e: usize, r: usize) -> bool {
        let view = state.view(e, r);
        let asked_for = state.engines[e].change == Change::Swapping && view.proposed;
        (view.member && (self.on(Rule::RemoveBeforeAcknowledge) || view.link))
            || (asked_for && self.on(Rule::AcknowledgeNeedsUnion))
            || (view.rebuild >= Rebuild::Copied && self.on(Rule::CandidateConfirms))
    }

    fn may_answer(&self, state: &State, e: usize) -> bool {
        let engine = state.engines[e];
        engine.phase == Phase::Serving
            && (engine.change != Change::Advancing || !self.on(Rule::AdvanceBeforeAcknowledge))
    }

    fn acknowledge(&self, state: &mut State, e: usize) -> Happened {
        let write = state.engines[e].write;
        when(self.may_answer(state, e) && write != 0)?;
        let mut confirmed = 0;
        for r in 0..REPLICAS {
            let view = state.view(e, r);
            if self.needs(state, e, r) {
                when(view.write == Delivery::Confirmed)?;
                when(view.lease || !self.on(Rule::AcknowledgeNeedsLeases))?;
                confirmed += 1;
            }
        }
        when(confirmed > 0)?;
        if self.literal_p4
            && e == OLDER
            && state.any(e, |replica, view| view.member && replica.fenced)
        {
            state.broken = Some(Property::Fenced);
        }
        for replica in &mut state.replicas {
            let view = &mut replica.views[e];
            if view.write == Delivery::Sent {
                view.old_writes.add(write); // nobody waits for it, it is done some time
            }
        }
        state.client.history.acknowledge(write);
        if state.decides(e) {
            state.client.current = Values::only(write);
        }
        state.engines[e].write = 0;
        Some(())
    }

    fn flush(&self, state: &mut State, e: usize) -> Happened {
        when(self.bounds.flushes && self.may_answer(state, e) && state.engines[e].settled)?;
        for r in 0..REPLICAS {
            if self.needs(state, e, r) {
                when(state.view(e, r).link)?;
                state.replicas[r].durable = state.replicas[r].value;
            }
        }
        state.client.durable = state.client.current;
        Some(())
    }

    /// Rule 14, where all members are in step.
    fn clear(&self, state: &mut State, e: usize) -> Happened {
        let engine = state.engines[e];
        when(
            self.bounds.deltas && self.may_answer(state, e) && engine.settled && engine.write == 0,
        )?;
        when(engine.change != Change::Swapping)?;
        when(state.all(e, |replica, view| {
            !view.member || (view.link && replica.value == replica.durable)
        }))?;
        for replica in state.replicas.iter_mut().filter(|replica| replica.views[e].member) {
            replica.marked = false;
        }
        Some(())
    }

    fn fetch(&self, state: &mut State, e: usize, r: usize) -> Happened {
        let (engine, view) = (state.engines[e], state.view(e, r));
        when(self.bounds.reads && state.client.read.is_none())?;
        when(engine.phase == Phase::Serving && engine.settled && engine.write == 0)?;
        when(view.link && view.member)?;
        when(engine.change != Change::Swapping || view.proposed)?;
        when(engine.change != Change::Advancing || view.advanced)?;
        state.client.read = Some((e as u8, state.replicas[r].value));
        state.client.history.begin_read();
        Some(())
    }

    fn answer_read(&self, state: &mut State) -> Happened {
        let (by, value) = state.client.read?;
        let e = usize::from(by);
        let swapping = state.engines[e].change == Change::Swapping;
        let of_union = self.on(Rule::ReadNeedsLeasesOfUnion);
        let leases = state.all(e, |_, view| {
            let needed = match (swapping, of_union) {
                (false, _) => view.member,
                (true, true) => view.member || view.proposed,
                (true, false) => view.member && view.proposed,
            };
            view.lease || !needed
        });
        when(leases || !self.on(Rule::ReadNeedsAllLeases))?;
        state.client.history.answer_read(value);
        state.client.read = None;
        Some(())
    }

    // ---- replicas --------------------------------------------------------------------------------

    fn perform(&self, state: &mut State, e: usize, r: usize) -> Happened {
        when(state.view(e, r).link && state.view(e, r).write == Delivery::Sent)?;
        self.write(state, e, r, state.engines[e].write);
        state.view_mut(e, r).write = Delivery::Confirmed;
        Some(())
    }

    fn perform_old(&self, state: &mut State, e: usize, r: usize, value: Value) -> Happened {
        when(state.view(e, r).old_writes.has(value))?;
        state.view_mut(e, r).old_writes.remove(value);
        self.write(state, e, r, value);
        Some(())
    }

    /// Rule 13: marked first.
    fn write(&self, state: &mut State, e: usize, r: usize, value: Value) {
        let generation = state.engines[e].generation;
        let replica = &mut state.replicas[r];
        replica.value = value;
        if self.bounds.deltas && !replica.marked {
            replica.marked = true;
            replica.stamp = if replica.views[e].member { replica.synced } else { generation };
        }
    }

    /// A new session: rules 2, 3, 4, 9, 10a.
    fn hello(&self, state: &mut State, e: usize, r: usize) -> Happened {
        let (engine, replica, other) = (state.engines[e], state.replicas[r], 1 - e);
        let view = replica.views[e];
        let as_member = view.member || (engine.change == Change::Swapping && view.proposed);
        when(state.is_alive(e) && !view.link)?;
        let stale = e == OLDER && replica.fenced;
        if stale && self.on(Rule::RefuseOlderEngine) && self.on(Rule::GrantFirst) {
            if !self.on(Rule::FencedAnswersNothing) && engine.write != 0 {
                state.broken = Some(Property::NoErrors);
            }
            state.end(e); // rule 7
            return Some(());
        }
        if as_member {
            when(!view.outdated || !self.on(Rule::CheckIncarnation))?;
            let may_be_suspect = engine.phase == Phase::Opening && engine.change == Change::Steady;
            when(!replica.suspect || may_be_suspect || !self.on(Rule::SuspectStaysAway))?;
        } else {
            when(self.bounds.rebuilds && engine.phase == Phase::Serving)?;
            when(self.bounds.returns || replica.synced == 0)?;
            when(!self.bounds.deltas || replica.synced != 0)?; // a new one gets everything, as without deltas
            when(engine.settled && engine.change == Change::Steady)?;
            state.view_mut(e, r).rebuild = Rebuild::Greeted;
        }
        if self.on(Rule::HelloWaitsForLease) && !replica.forgot {
            state.view_mut(other, r).lease = false; // it has run out
        }
        state.unlink(other, r);
        for of in [e, other] {
            let kept = !self.on(Rule::FenceBeforeAnswer)
                || (of == e && !self.on(Rule::SessionsOrder))
                || (of < e && !self.on(Rule::RefuseOlderEngine));
            if !kept {
                state.view_mut(of, r).old_writes.clear(); // done before, or refused from now on
            }
        }
        state.replicas[r].fenced = e == NEWER;
        state.replicas[r].forgot = false;
        let view = state.view_mut(e, r);
        (view.link, view.lease) = (true, true);
        self.send_write(state, e);
        Some(())
    }

    /// The process is killed and started again: the page cache stays, what was under way is gone.
    fn restart(&self, state: &mut State, r: usize) {
        for e in 0..ENGINES {
            state.unlink(e, r);
            state.view_mut(e, r).old_writes.clear();
        }
        let lent = state.replicas[r].views.iter().any(|view| view.lease);
        state.replicas[r].forgot |= lent && !self.on(Rule::RestartRemembersLease);
    }

    fn cut_power(&self, state: &mut State, r: usize, lost: bool) -> Happened {
        when(self.bounds.power_cuts)?;
        self.restart(state, r);
        let replica = &mut state.replicas[r];
        when(!lost || replica.value != replica.durable)?;
        if lost {
            replica.value = replica.durable;
        } else {
            replica.durable = replica.value;
        }
        replica.suspect |= replica.marked || !self.bounds.deltas;
        Some(())
    }

    fn reformat(&self, state: &mut State, r: usize) -> Happened {
        when(self.bounds.reformats)?;
        self.restart(state, r);
        let replica = &mut state.replicas[r];
        (replica.value, replica.durable, replica.suspect) = (0, 0, false);
        (replica.fenced, replica.foreign) = (false, replica.in_record);
        for view in &mut replica.views {
            view.outdated = true;
        }
        (replica.synced, replica.marked, replica.stamp) = (0, false, 0);
        Some(())
    }

    // ---- rebuild and promotion -------------------------------------------------------------------

    fn copy(&self, state: &mut State, e: usize, r: usize) -> Happened {
        let engine = state.engines[e];
        when(state.view(e, r).rebuild == Rebuild::Greeted && engine.write == 0)?;
        when(engine.settled && engine.change == Change::Steady)?;
        let source = *state
            .replicas
            .iter()
            .find(|replica| replica.views[e].member && replica.views[e].link)?;
        let base = state.replicas[r].synced;
        let missed = state.any(e, |member, view| view.member && view.link && member.stamp > base);
        let replica = &mut state.replicas[r];
        if !self.bounds.deltas || missed || replica.marked {
            replica.value = source.value;
        }
        if self.bounds.deltas && replica.value != replica.durable {
            (replica.marked, replica.stamp) = (true, engine.generation);
        }
        replica.views[e].rebuild = Rebuild::Copied;
        Some(())
    }

    fn propose_addition(&self, state: &mut State, e: usize, r: usize) -> Happened {
        let engine = state.engines[e];
        when(engine.phase == Phase::Serving && engine.change == Change::Steady && !engine.gave_up)?;
        let least = if self.on(Rule::ReadyBeforeAdd) { Rebuild::Ready } else { Rebuild::Copied };
        when(state.view(e, r).rebuild >= least)?;
        for index in 0..REPLICAS {
            let view = state.view_mut(e, index);
            view.proposed = view.member || index == r;
            view.outdated &= index != r; // it is asked for as it is now
        }
        state.engines[e].change = Change::Swapping;
        Some(())
    }

    // ---- membership ------------------------------------------------------------------------------

    /// Rules 5 and 10. A replica with a link answers the ping.
    fn propose_removal(&self, state: &mut State, e: usize, kept: u8) -> Happened {
        let engine = state.engines[e];
        let kept = |r: usize| kept & 1 << r != 0;
        when(
            engine.phase == Phase::Serving && engine.change != Change::Swapping && !engine.gave_up,
        )?;
        let mut removed = 0;
        for r in 0..REPLICAS {
            let view = state.view(e, r);
            when(view.member || !kept(r))?;
            if self.on(Rule::PingBeforeChange) {
                when(kept(r) == (view.member && view.link))?;
            }
            removed += usize::from(view.member && !kept(r));
        }
        when(removed > 0)?;
        let anybody = (0..REPLICAS).any(kept);
        when(anybody || !self.on(Rule::LastMemberStays))?;
        if anybody
            && !(0..REPLICAS)
                .any(|r| kept(r) && state.view(e, r).link && !state.replicas[r].suspect)
        {
            state.broken = Some(Property::SomebodyAnswered);
        }
        for r in 0..REPLICAS {
            state.view_mut(e, r).proposed = kept(r);
        }
        state.engines[e].change = Change::Swapping;
        Some(())
    }

    fn give_up(&self, state: &mut State, e: usize) -> Happened {
        let engine = &mut state.engines[e];
        when(!self.on(Rule::RepeatUntilDefinite) && engine.change == Change::Swapping)?;
        when(engine.phase == Phase::Serving)?;
        (engine.change, engine.gave_up) = (Change::Steady, true);
        Some(())
    }

    /// The request arrives: it may have been under way for long.
    fn arbiter_applies(&self, state: &mut State, e: usize) -> Happened {
        let engine = state.engines[e];
        when((engine.change == Change::Swapping || engine.gave_up) && !engine.applied)?;
        when(usize::from(state.named) == e || !self.on(Rule::CompareBeforeSwap))?;
        state.named = e as u8;
        state.generation += u8::from(self.bounds.deltas);
        for replica in &mut state.replicas {
            let proposed = replica.views[e].proposed;
            if proposed && !replica.in_record {
                replica.foreign = replica.views[e].outdated;
            }
            replica.in_record = proposed;
        }
        state.engines[e].applied = true;
        Some(())
    }

    fn advance(&self, state: &mut State, e: usize, r: usize) -> Happened {
        let (engine, view) = (state.engines[e], state.view(e, r));
        when(engine.change == Change::Advancing && view.member && view.link && !view.advanced)?;
        let replica = &mut state.replicas[r];
        replica.views[e].advanced = true;
        replica.views[e].rebuild = Rebuild::No;
        replica.suspect = false;
        if !self.bounds.returns {
            replica.synced = 1; // it was a member
        } else if self.bounds.deltas {
            replica.synced = engine.generation;
            if replica.marked {
                replica.stamp = engine.generation;
            }
        }
        if state.all(e, |_, view| view.advanced || !view.member) {
            let engine = &mut state.engines[e];
            engine.change = Change::Steady;
            if engine.phase == Phase::Opening {
                engine.phase = Phase::Serving;
                engine.settled = !self.on(Rule::SettleBeforeRead);
            }
        }
        Some(())
    }

    // ---- another engine --------------------------------------------------------------------------

    fn grant(&self, state: &mut State) -> Happened {
        when(self.bounds.successor && state.engines[NEWER].phase == Phase::Unborn)?;
        if self.on(Rule::GrantFirst) {
            state.named = NEWER as u8;
            state.generation += u8::from(self.bounds.deltas);
        }
        state.engines[NEWER].phase = Phase::Opening;
        state.engines[NEWER].generation = state.generation;
        for replica in &mut state.replicas {
            replica.views[NEWER].member = replica.in_record;
            replica.views[NEWER].outdated = replica.foreign;
        }
        Some(())
    }

    /// Open, 3 and 4.
    fn decide_who_stays(&self, state: &mut State) -> Happened {
        let e = (0..ENGINES).find(|&e| state.engines[e].phase == Phase::Opening)?;
        when(state.engines[e].change == Change::Steady)?;
        let continuous = state.any(e, |replica, view| view.link && !replica.suspect);
        let all = state.all(e, |_, view| view.link || !view.member);
        when(state.any(e, |_, view| view.link))?;
        when(continuous || all || !self.on(Rule::OpenWaitsForTheMissing))?;
        let only_continuous = continuous && self.on(Rule::SuspectLeavesAtOpen);
        if !continuous && all {
            self.all_lost_power(state);
        }
        let mut change = Change::Advancing;
        for replica in &mut state.replicas {
            let view = &mut replica.views[e];
            view.proposed = view.link && !(only_continuous && replica.suspect);
            if view.member && !view.proposed {
                change = Change::Swapping;
            }
        }
        state.engines[e].change = change;
        Some(())
    }

    /// P1 is what is left of the promises.
    fn all_lost_power(&self, state: &mut State) {
        let durable = state.client.durable;
        state.client.history.cut_back(durable);
        for replica in state.replicas.iter().filter(|replica| replica.in_record) {
            state.client.current.add(replica.value);
        }
    }
}

fn abandon_read(state: &mut State) -> Happened {
    state.client.read.take()?;
    state.client.history.abandon_read();
    Some(())
}

fn ready(state: &mut State, e: usize, r: usize) -> Happened {
    when(state.view(e, r).rebuild == Rebuild::Copied)?;
    state.replicas[r].durable = state.replicas[r].value;
    state.view_mut(e, r).rebuild = Rebuild::Ready;
    Some(())
}

/// The definite answer, or that the record names another engine.
fn learn(state: &mut State, e: usize, protocol: &Protocol) -> Happened {
    let engine = state.engines[e];
    when(state.is_alive(e) && engine.change == Change::Swapping)?;
    if usize::from(state.named) != e {
        if !protocol.on(Rule::FencedAnswersNothing) && engine.write != 0 {
            state.broken = Some(Property::NoErrors);
        }
        state.end(e); // rule 7
        return Some(());
    }
    when(engine.applied)?;
    for r in 0..REPLICAS {
        let view = state.view_mut(e, r);
        view.advanced = false;
        let removed = view.member && !view.proposed;
        view.member = view.proposed;
        if removed {
            state.unlink(e, r);
        }
    }
    let generation = state.generation;
    let engine = &mut state.engines[e];
    (engine.change, engine.applied, engine.generation) = (Change::Advancing, false, generation);
    Some(())
}

/// The members are made equal; which of them wins doesn't matter, since nobody has read.
fn settle(state: &mut State, e: usize, r: usize) -> Happened {
    let engine = state.engines[e];
    when(engine.phase == Phase::Serving && !engine.settled && engine.change == Change::Steady)?;
    when(state.view(e, r).member && state.all(e, |_, view| view.link || !view.member))?;
    let value = state.replicas[r].value;
    for replica in state.replicas.iter_mut().filter(|replica| replica.views[e].member) {
        replica.value = value;
    }
    state.engines[e].settled = true;
    if state.decides(e) {
        state.client.current = Values::only(value);
    }
    Some(())
}
