//! Engines and replicas as far as managers and agents have to do with them: who may write is the real
//! record's to say ([`Record::after`]); a write is a number that every member has to take. How they
//! do it is another simulator's subject (ci/simulate).

use ankole_api::Name;
use ankole_api::objects::VolumeSpec;
use ankole_replica::record::{Change, Member, Record, Refused};
use ankole_replica::types::{Generation, ReplicaId};

use crate::machine::{EngineProcess, Place, Power, Stage};
use crate::world::World;

/// Turns before a member that can't be reached is taken out of the set.
const PATIENCE: u64 = 4;
const REBUILD: u64 = 6;

/// A volume.
struct Of {
    name: Name,
    uid: String,
}

impl Of {
    fn place(&self, replica: &ReplicaId) -> Place {
        Place { volume: self.name.clone(), uid: self.uid.clone(), replica: replica.clone() }
    }
}

impl World {
    /// One step of an engine; it may be its last.
    pub fn engine_turn(&mut self, machine: usize, name: &Name) {
        let Some(mut process) = self.machines[machine].engines.get(name).cloned() else { return };
        let of = Of { name: name.clone(), uid: process.volume_uid.clone() };
        let lives = match process.stage {
            Stage::Opening => self.open(machine, &of, &mut process),
            Stage::Open => self.write(machine, &of, &mut process),
            Stage::Detaching => false,
        };
        if lives {
            self.machines[machine].engines.insert(name.clone(), process);
            return;
        }
        self.machines[machine].engines.remove(name);
        if let Some(agent) = &mut self.machines[machine].agent {
            agent.ended(name, process.stage == Stage::Detaching);
        }
    }

    fn open(&mut self, machine: usize, of: &Of, process: &mut EngineProcess) -> bool {
        let Some(record) = self.ask_record(machine, of) else { return true };
        if !is_named(&record, process) {
            return false;
        }
        process.generation = record.generation;
        let Some(reached) = self.greet(machine, of, &record.in_sync, record.generation) else {
            return false; // fenced
        };
        if reached.is_empty() {
            return true;
        }
        process.members.clone_from(&record.in_sync);
        if reached.len() < record.in_sync.len() {
            process.missed += 1;
            if process.missed < PATIENCE || !self.leave(machine, of, process, &reached) {
                return true;
            }
        }
        let held = reached.iter().map(|member| self.holds(of, member));
        let acknowledged = self.acknowledged.get(&of.uid).copied().unwrap_or(0);
        for (member, holds) in reached.iter().zip(held.collect::<Vec<_>>()) {
            if holds < acknowledged && !self.is_excused(of) {
                let replica = &member.replica;
                self.wrong.push(format!(
                    "{} opens with {replica}, which has {holds} of {acknowledged} writes",
                    of.name
                ));
            }
            process.last = process.last.max(holds);
        }
        for member in &reached {
            self.put(of, member, process.last);
        }
        self.acknowledged.insert(of.uid.clone(), process.last.max(acknowledged));
        (process.stage, process.missed) = (Stage::Open, 0);
        true
    }

    fn write(&mut self, machine: usize, of: &Of, process: &mut EngineProcess) -> bool {
        let Some(reached) = self.greet(machine, of, &process.members, process.generation) else {
            return false;
        };
        if reached.len() < process.members.len() {
            process.missed += 1;
            let may_leave = process.missed >= PATIENCE && !reached.is_empty();
            return !may_leave
                || self.leave(machine, of, process, &reached)
                || self.is_still_named(machine, of, process);
        }
        process.missed = 0;
        let next = process.last + 1;
        for member in &process.members {
            self.put(of, member, next);
        }
        let is_excused = self.is_excused(of);
        let acknowledged = self.acknowledged.entry(of.uid.clone()).or_default();
        if *acknowledged != process.last && !is_excused {
            let (name, on) = (&of.name, &self.machines[machine].name);
            self.wrong.push(format!("the engine of {name} on {on} writes beside another"));
        }
        *acknowledged = next;
        process.last = next;
        self.rebuild(machine, of, process);
        true
    }

    fn is_excused(&self, of: &Of) -> bool {
        self.went_back || self.given_up.contains(&of.uid)
    }

    /// Replicas that run and aren't in sync are made so.
    fn rebuild(&mut self, machine: usize, of: &Of, process: &mut EngineProcess) {
        for replica in process.replicas.clone() {
            if process.members.iter().any(|member| member.replica == replica) {
                continue;
            }
            let Some(member) = self.served(machine, of, &replica) else {
                process.rebuilt.remove(&replica);
                continue;
            };
            let turns = process.rebuilt.entry(replica.clone()).or_default();
            *turns += 1;
            if *turns < REBUILD {
                continue;
            }
            let generation = process.generation;
            let Some(reached) = self.greet(machine, of, std::slice::from_ref(&member), generation)
            else {
                continue;
            };
            if reached.is_empty() {
                continue;
            }
            self.put(of, &member, process.last);
            let mut in_sync = process.members.clone();
            in_sync.push(member);
            if self.record(machine, of, process, in_sync) {
                process.rebuilt.remove(&replica);
            }
        }
    }

    /// The members become those that were reached.
    fn leave(
        &mut self,
        machine: usize,
        of: &Of,
        process: &mut EngineProcess,
        reached: &[Member],
    ) -> bool {
        self.record(machine, of, process, reached.to_vec())
    }

    /// Through the arbiter: the store's compare-and-swap.
    fn record(
        &mut self,
        machine: usize,
        of: &Of,
        process: &mut EngineProcess,
        in_sync: Vec<Member>,
    ) -> bool {
        let Some(record) = self.ask_record(machine, of) else {
            return false;
        };
        let by = process.instance.clone();
        let change = Change::Members { by, in_sync: in_sync.clone() };
        let after = record.after(process.generation, change);
        let Ok(after) = after else {
            // Somebody was granted meanwhile, or this engine's own change came late.
            if let Err(Refused::Conflict { record }) = after
                && is_named(&record, process)
            {
                process.generation = record.generation;
                process.members = record.in_sync;
            }
            return false;
        };
        let mut volume = self.store.get::<VolumeSpec>(&of.name).expect("it has a record");
        process.generation = after.generation;
        process.members = in_sync;
        process.missed = 0;
        volume.status.record = Some(after);
        self.store.replace_status(&volume).expect("nobody came in between");
        true
    }

    fn is_still_named(&self, machine: usize, of: &Of, process: &EngineProcess) -> bool {
        let record = self.ask_record(machine, of);
        record.is_none_or(|record| is_named(&record, process))
    }

    fn ask_record(&self, machine: usize, of: &Of) -> Option<Record> {
        let connected = self.machines[machine].is_connected;
        let volume = self.store.get::<VolumeSpec>(&of.name).filter(|_| connected)?;
        volume.status.record.filter(|_| volume.metadata.uid == of.uid)
    }

    /// Those of the members that answer; none if one has seen a newer engine.
    fn greet(
        &mut self,
        machine: usize,
        of: &Of,
        members: &[Member],
        generation: Generation,
    ) -> Option<Vec<Member>> {
        let mut reached = Vec::new();
        for member in members {
            let Some(at) = self.reach(machine, of, member) else { continue };
            let place = of.place(&member.replica);
            let directory = self.machines[at].directories.get_mut(&place).expect("it is served");
            if directory.seen.is_some_and(|seen| seen > generation) {
                return None;
            }
            directory.seen = Some(generation);
            reached.push(member.clone());
        }
        Some(reached)
    }

    /// The machine where that very copy is served, if the two hear each other.
    fn reach(&self, from: usize, of: &Of, member: &Member) -> Option<usize> {
        let place = of.place(&member.replica);
        self.machines.iter().enumerate().find_map(|(at, machine)| {
            let directory = machine.directory(&place)?;
            let is_heard = at == from || !self.is_cut(from, at);
            let runs = machine.state == Power::On && machine.replicas.contains(&place);
            let is_it = directory.incarnation == member.incarnation && !directory.damaged;
            (runs && is_heard && is_it).then_some(at)
        })
    }

    fn served(&self, from: usize, of: &Of, replica: &ReplicaId) -> Option<Member> {
        let place = of.place(replica);
        self.machines.iter().find_map(|machine| {
            let incarnation = machine.directory(&place)?.incarnation;
            let member = Member { replica: replica.clone(), incarnation };
            self.reach(from, of, &member).map(|_| member)
        })
    }

    fn holds(&self, of: &Of, member: &Member) -> u64 {
        let place = of.place(&member.replica);
        let directories = self.machines.iter().filter_map(|it| it.directories.get(&place));
        let mut own = directories.filter(|it| it.incarnation == member.incarnation);
        own.next().map_or(0, |directory| directory.holds)
    }

    fn put(&mut self, of: &Of, member: &Member, write: u64) {
        let place = of.place(&member.replica);
        for machine in &mut self.machines {
            if let Some(directory) = machine.directories.get_mut(&place)
                && directory.incarnation == member.incarnation
            {
                directory.holds = write;
            }
        }
    }
}

fn is_named(record: &Record, process: &EngineProcess) -> bool {
    record.engine.as_ref().is_some_and(|engine| engine.instance == process.instance)
}
