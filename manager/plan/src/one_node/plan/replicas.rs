//! The processes and directories of the replicas.

use ankole_replica::record::Record;

use super::{Plan, REPLICA_PATIENCE, WHILE_STARTING, WHILE_UNREADABLE};
use crate::one_node::action::Action;
use crate::one_node::seen::{DirectorySeen, ReplicaSeen, Seen};
use ankole_api::volume::{Condition, Reason, salvage_hint};

impl Plan {
    /// Whether a member of the in-sync set is served, or about to be.
    pub(super) fn start_replicas(&mut self, seen: &Seen, record: &Record) -> bool {
        let mut servable = false;
        for seen_replica in &seen.replicas {
            let replica = &seen_replica.place.replica;
            let in_sync = record.in_sync.iter().any(|member| &member.replica == replica);
            if seen.volume.spec.in_engine {
                servable |= in_sync && seen_replica.directory == DirectorySeen::There;
                continue;
            }
            self.tell_what_was_set_aside(seen_replica);
            let is_to_go = seen.is_to_be_made_anew(replica, in_sync);
            let is_missing = seen_replica.directory == DirectorySeen::Missing;
            match &seen_replica.process {
                Some(process) if process.asked_to_end.is_some() => {
                    let message = format!("replica {replica}, pid {}, is ending", process.pid);
                    self.note(Condition::new(Reason::Stopping, message).of(replica));
                }
                Some(_) if is_to_go => self.act(Action::KillReplica(replica.clone())),
                Some(_) => servable |= in_sync,
                None if self.is_in_doubt(Some(replica), &seen_replica.history) => {}
                None if let Some(why) = seen_replica.unreadable() => {
                    self.tell_unreadable(seen_replica, why);
                }
                None if is_to_go && in_sync => {
                    let message = format!(
                        "replica {replica} is made anew, as asked, once the engine has taken it out of the in-sync set"
                    );
                    self.note(Condition::new(Reason::Stopping, message).of(replica));
                    self.look_within(WHILE_STARTING);
                }
                None if is_missing && in_sync => {
                    let directory = seen_replica.place.directory.display();
                    let message = format!(
                        "the directory of replica {replica} is gone: {directory}; it is made anew once the engine has taken the replica out of the in-sync set"
                    );
                    let next = "if its disk isn't mounted, mount it";
                    let missing = Condition::new(Reason::ReplicaMissing, message);
                    self.note(missing.of(replica).next(next));
                }
                None if !is_missing && !in_sync && (is_to_go || seen_replica.damaged.is_some()) => {
                    let replica = || replica.clone();
                    self.act(Action::SetAside(replica()));
                    self.act(Action::FormatReplica(replica()));
                    self.act(Action::StartReplica(replica()));
                }
                None if seen_replica.history.hold_off.is_some() => {
                    self.tell_damage(seen, record, seen_replica);
                    let name = format!("replica {replica}");
                    let part = Some(replica);
                    self.hold_off(Reason::ReplicaEnded, part, &name, &seen_replica.history);
                }
                None => {
                    if is_missing {
                        self.act(Action::FormatReplica(replica.clone()));
                    }
                    self.act(Action::StartReplica(replica.clone()));
                    servable |= in_sync;
                }
            }
        }
        servable
    }

    /// It may be back at any time: a mount, a disk that answers again.
    fn tell_unreadable(&mut self, of: &ReplicaSeen, why: &str) {
        let replica = &of.place.replica;
        let directory = of.place.directory.display();
        let message = format!(
            "whether the directory of replica {replica} is there can't be told, and it is left as it is: {directory}: {why}"
        );
        let next = "look at its disk and its mount (the kernel's log, mount)";
        self.note(Condition::new(Reason::ReplicaUnreadable, message).of(replica).next(next));
        self.look_within(WHILE_UNREADABLE);
    }

    /// Of a member that can't be opened: what becomes of it.
    fn tell_damage(&mut self, seen: &Seen, record: &Record, damaged: &ReplicaSeen) {
        let Some(why) = &damaged.damaged else { return };
        let replica = &damaged.place.replica;
        let mut condition = Condition::new(Reason::ReplicaDamaged, "").of(replica);
        if record.in_sync.len() > 1 {
            condition.message = format!(
                "the directory of replica {replica} is damaged: {why}; it is set aside and made anew once the engine has taken the replica out of the in-sync set"
            );
        } else {
            condition.message = format!(
                "the directory of replica {replica} is damaged, and no other copy is in sync: {why}"
            );
            condition = condition.next(salvage_hint(&seen.volume.name));
        }
        self.note(condition);
    }

    fn tell_what_was_set_aside(&mut self, of: &ReplicaSeen) {
        let replica = &of.place.replica;
        for directory in &of.set_aside {
            let directory = directory.display();
            let message = format!(
                "an earlier directory of replica {replica} was set aside and takes room: {directory}"
            );
            let next = format!("remove {directory} when nothing in it is needed any more");
            self.note(Condition::new(Reason::SetAside, message).of(replica).next(next));
        }
    }

    /// Whether any is left.
    pub(super) fn end_replicas(&mut self, seen: &Seen) -> bool {
        let mut left = false;
        for replica in &seen.replicas {
            let id = &replica.place.replica;
            let Some(process) = &replica.process else {
                left |= self.is_in_doubt(Some(id), &replica.history);
                continue;
            };
            left = true;
            match process.asked_to_end {
                None => self.act(Action::EndReplica(id.clone())),
                Some(since) if since > REPLICA_PATIENCE => {
                    self.act(Action::KillReplica(id.clone()));
                }
                Some(since) => {
                    let message = format!("replica {id} is ending");
                    self.note(Condition::new(Reason::Stopping, message).of(id));
                    self.look_within(REPLICA_PATIENCE.saturating_sub(since));
                }
            }
        }
        left
    }
}
