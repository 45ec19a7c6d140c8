//! From what is wanted and what is seen to the next actions. Pure: no clock, no process, no disk.
//!
//! ```text
//! attach   lost replica formatted ─▶ replicas started ─▶ grant ─▶ engine started ─▶ wait for its endpoint
//! engine died                                            grant (same attach epoch) ─▶ started with --recover
//! upgrade  engine hands over ─▶ gone ─▶ grant (same attach epoch) ─▶ started with --recover
//! detach   engine asked ─▶ gone ─▶ replicas ended ─▶ attachment cleared     (asked in vain: killed)
//! held     engine killed ─▶ replicas ended          (while a person chooses a copy)
//! gone     as detach, then the directories, then the object
//! ```
//! What may never happen: an engine is granted while one of this volume lives (rule 1), or by a
//! record that was rolled back (rule 8); a replica of the in-sync set is formatted; a directory is
//! removed while a process may use it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ankole_blockdev::device::Driver;
use ankole_replica::admin::EngineStatus;
use ankole_replica::record::{InstanceId, Record};
use ankole_replica::replication::waits_for_room;
use ankole_replica::types::{Generation, ReplicaId};

use super::validate::Wanted;
use crate::api::replica::Place;
use crate::api::volume::{
    Attachment, Condition, Device, Frontend, Reason, State, Volume, salvage_hint,
};

/// An engine drains and flushes within this, or the disks are in trouble.
pub const DETACH_PATIENCE: Duration = Duration::from_secs(60);
/// Requests of a device without an engine wait so long, and then get errors: a supervisor must not
/// let its clients hang for ever. A disk's time-outs are shorter, a node's reboot takes less.
pub const DEVICE_PATIENCE: Duration = Duration::from_secs(300);
/// Before an engine is asked again that has refused to detach.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A replica without an engine has nothing left to do.
pub const REPLICA_PATIENCE: Duration = Duration::from_secs(10);

/// An engine that opens gives silent members some 10 s; what it waits for longer may never come.
const OPEN_PATIENCE: Duration = Duration::from_secs(12);

/// An engine opens within a few of these; one that waits for something is asked less often.
const WHILE_STARTING: Duration = Duration::from_millis(20);
const WHILE_WAITING: Duration = Duration::from_millis(200);
const WHILE_ATTACHED: Duration = Duration::from_secs(2);
const WHILE_IDLE: Duration = Duration::from_secs(60);

/// Times are how long ago something was.
#[derive(Clone, Debug)]
pub struct Seen {
    pub volume: Volume,
    pub boot_id: String,
    pub engine: Option<EngineSeen>,
    pub engine_history: History,
    /// The last engine ended because it was asked to, and said goodbye.
    pub engine_left: bool,
    /// One for each place, in their order.
    pub replicas: Vec<ReplicaSeen>,
    pub devices: DevicesSeen,
    /// The newest generation that a replica has seen, while no engine lives.
    pub newest_seen: Option<(Generation, ReplicaId)>,
    /// Never used before; for an engine that may have to be granted.
    pub fresh_instance: InstanceId,
}

#[derive(Clone, Debug)]
pub struct EngineSeen {
    pub pid: u32,
    pub instance: InstanceId,
    /// Of the upgrade for which it was started.
    pub turn: u64,
    pub asked_to_end: Option<Duration>,
    /// When it last refused to detach, and why.
    pub refused: Option<(Duration, String)>,
    /// None while it doesn't answer.
    pub status: Option<Box<EngineStatus>>,
    /// How long it has been waiting for something.
    pub waits: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct ReplicaSeen {
    pub place: Place,
    pub directory_exists: bool,
    pub process: Option<ReplicaProcess>,
    pub history: History,
    /// Why no process can open it: its files are damaged.
    pub damaged: Option<String>,
    /// Earlier directories of it that were set aside and still lie there.
    pub set_aside: Vec<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct ReplicaProcess {
    pub pid: u32,
    pub asked_to_end: Option<Duration>,
}

/// How the earlier processes of one part ended.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// How long to wait before the next start.
    pub hold_off: Option<Duration>,
    pub last_end: Option<String>,
}

#[derive(Clone, Copy, Debug)]
pub struct DevicesSeen {
    /// Numbers that are free, of the drivers that can be used.
    pub free_ublk: Option<u32>,
    pub free_nbd: Option<u32>,
    /// A port.
    pub free_tgt: Option<u32>,
    /// The device of the present attachment is still in the kernel.
    pub own_left: bool,
    /// How long its requests have been waiting for an engine.
    pub unserved: Option<Duration>,
    /// How long they may.
    pub patience: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// All replicas of a new volume, and then its first record.
    FormatAll,
    /// One whose directory is lost and that isn't in sync.
    FormatReplica(ReplicaId),
    /// Its directory gets another name, under which nobody uses it.
    SetAside(ReplicaId),
    StartReplica(ReplicaId),
    EndReplica(ReplicaId),
    KillReplica(ReplicaId),
    /// Makes the record name the instance, and the attachment durable with it.
    Grant {
        instance: InstanceId,
        attach_epoch: u64,
        attachment: Attachment,
    },
    StartEngine(EngineStart),
    /// Its requests get errors, and it goes.
    StopDevice(Device),
    DetachEngine,
    HandOverEngine,
    KillEngine,
    Expand {
        size_bytes: u64,
    },
    ClearAttachment,
    RemoveDirectories,
    Forget,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStart {
    pub instance: InstanceId,
    pub device: Option<Device>,
    pub recover: bool,
    pub read_only: bool,
}

/// Actions are done in order; when one fails the rest waits for the next pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub state: State,
    pub actions: Vec<Action>,
    pub conditions: Vec<Condition>,
    /// If no event comes before. After an action that was done, the next pass follows at once.
    pub look_again: Duration,
}

pub fn plan(wanted: Wanted, seen: &Seen) -> Plan {
    let mut plan = Plan {
        state: State::Creating,
        actions: vec![],
        conditions: vec![],
        look_again: WHILE_IDLE,
    };
    match (wanted, &seen.volume.status.record) {
        (Wanted::Attached { read_only }, Some(record)) => plan.attach(seen, record, read_only),
        (Wanted::Formatted | Wanted::Attached { .. }, _) => plan.actions.push(Action::FormatAll),
        (Wanted::Detached, record) => {
            if plan.detach(seen) && record.is_none() {
                plan.state = State::Creating;
            }
        }
        (Wanted::Still, _) => plan.stand_still(seen),
        (Wanted::Gone, _) => {
            if plan.detach(seen) && plan.actions.is_empty() {
                plan.actions.extend([Action::RemoveDirectories, Action::Forget]);
            }
            plan.state = State::Deleting;
        }
    }
    plan
}

impl Plan {
    fn attach(&mut self, seen: &Seen, record: &Record, read_only: bool) {
        self.state = State::Attaching;
        if let Some((newest, replica)) = &seen.newest_seen
            && *newest > record.generation
        {
            return self.refuse_rolled_back(seen, record, *newest, replica);
        }
        let servable = self.start_replicas(seen, record);
        self.free_clients(seen);
        match &seen.engine {
            Some(engine) if !is_granted(record, engine) => {
                self.act(Action::KillEngine);
            }
            Some(engine) if engine.asked_to_end.is_some() => {
                self.wait(Reason::Stopping, format!("the engine, pid {}, is ending", engine.pid));
                self.give_up_waiting(engine);
            }
            Some(engine) => self.follow(seen, engine),
            None if !servable => {
                let message = "no replica of the in-sync set can be served";
                let hint = salvage_hint(&seen.volume.name);
                self.note(Condition::new(Reason::NoReplica, message).next(hint));
            }
            None if seen.engine_history.hold_off.is_some() => {
                self.hold_off(Reason::EngineEnded, None, "the engine", &seen.engine_history);
            }
            None => self.start_engine(seen, record, read_only),
        }
    }

    /// Those that wait for an engine which doesn't come.
    fn free_clients(&mut self, seen: &Seen) {
        let device = seen.volume.status.attachment.as_ref().and_then(|it| it.device);
        let Some((device, unserved)) = device.zip(seen.devices.unserved) else { return };
        let left = seen.devices.patience.saturating_sub(unserved);
        if left.is_zero() {
            return self.act(Action::StopDevice(device));
        }
        let quiet = OPEN_PATIENCE.saturating_sub(unserved);
        if quiet.is_zero() {
            let message = format!(
                "requests of device {device} wait for an engine; in {} s they get errors",
                left.as_secs()
            );
            self.note(Condition::new(Reason::Unserved, message));
        }
        // Nothing else is sure to happen by then: a failing engine is tried more and more seldom.
        self.look_within(if quiet.is_zero() { left } else { quiet.min(left) });
    }

    /// Each grant would raise the record, until it is above what the replicas have seen: then they
    /// would take it for new, and with it a set that lacks acknowledged writes.
    fn refuse_rolled_back(
        &mut self,
        seen: &Seen,
        record: &Record,
        newest: Generation,
        replica: &ReplicaId,
    ) {
        let message = format!(
            "the record of who is in sync is at {}, but replica {replica} has seen {newest}: it was brought back from an older copy, and no engine may trust it",
            record.generation
        );
        let hint = salvage_hint(&seen.volume.name);
        self.note(Condition::new(Reason::RecordRolledBack, message).of(replica).next(hint));
    }

    /// Whether a member of the in-sync set is served, or about to be.
    fn start_replicas(&mut self, seen: &Seen, record: &Record) -> bool {
        let mut servable = false;
        for seen_replica in &seen.replicas {
            let replica = &seen_replica.place.replica;
            let in_sync = record.in_sync.iter().any(|member| &member.replica == replica);
            if seen.volume.spec.in_engine {
                servable |= in_sync && seen_replica.directory_exists;
                continue;
            }
            self.tell_what_was_set_aside(seen_replica);
            let is_to_go = seen.is_to_be_made_anew(replica, in_sync);
            match &seen_replica.process {
                Some(process) if process.asked_to_end.is_some() => {
                    let message = format!("replica {replica}, pid {}, is ending", process.pid);
                    self.note(Condition::new(Reason::Stopping, message).of(replica));
                }
                Some(_) if is_to_go => self.act(Action::KillReplica(replica.clone())),
                Some(_) => servable |= in_sync,
                None if is_to_go && in_sync => {
                    let message = format!(
                        "replica {replica} is made anew, as asked, once the engine has taken it out of the in-sync set"
                    );
                    self.note(Condition::new(Reason::Stopping, message).of(replica));
                    self.look_within(WHILE_STARTING);
                }
                None if !seen_replica.directory_exists && in_sync => {
                    let directory = seen_replica.place.directory.display();
                    let message = format!(
                        "the directory of replica {replica} is gone: {directory}; it is made anew once the engine has taken the replica out of the in-sync set"
                    );
                    let next = "if its disk isn't mounted, mount it";
                    let missing = Condition::new(Reason::ReplicaMissing, message);
                    self.note(missing.of(replica).next(next));
                }
                None if seen_replica.directory_exists
                    && !in_sync
                    && (is_to_go || seen_replica.damaged.is_some()) =>
                {
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
                    if !seen_replica.directory_exists {
                        self.act(Action::FormatReplica(replica.clone()));
                    }
                    self.act(Action::StartReplica(replica.clone()));
                    servable |= in_sync;
                }
            }
        }
        servable
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

    fn start_engine(&mut self, seen: &Seen, record: &Record, read_only: bool) {
        let present = seen.volume.status.attachment.as_ref();
        let kept = present.filter(|attachment| {
            attachment.boot_id == seen.boot_id && (!seen.engine_left || seen.devices.own_left)
        });
        let (attachment, attach_epoch) = match (kept, seen.new_attachment()) {
            // A client of the dead engine may be waiting for its successor.
            (Some(kept), _) => (kept.clone(), record.attach_epoch),
            (None, Ok(new)) => (new, record.attach_epoch + 1),
            (None, Err(missing)) => {
                let message = format!("this node can't serve {missing} any more");
                let none = Condition::new(Reason::NoFrontend, message);
                return self.note(none.next("ankole check says what is missing"));
            }
        };
        let device = attachment.device;
        let recover = kept.is_some() && (device.is_none() || seen.devices.own_left);
        let instance = seen.fresh_instance.clone();
        self.act(Action::Grant { instance: instance.clone(), attach_epoch, attachment });
        self.act(Action::StartEngine(EngineStart { instance, device, recover, read_only }));
    }

    /// An engine that lives and is the right one.
    fn follow(&mut self, seen: &Seen, engine: &EngineSeen) {
        let usable = engine.status.as_ref().filter(|status| status.endpoint.is_some());
        let Some(status) = usable else {
            let waiting = engine.status.iter().flat_map(|status| &status.waiting).cloned();
            let mut message = waiting.collect::<Vec<_>>().join("; ");
            if message.is_empty() {
                message = format!("the engine, pid {}, starts", engine.pid);
            }
            let mut starting = Condition::new(Reason::EngineStarting, message);
            if engine.waits.is_some_and(|waits| waits > OPEN_PATIENCE) {
                starting = starting.next(salvage_hint(&seen.volume.name));
            }
            self.note(starting);
            let waits = engine.waits.is_some_and(|waits| waits > WHILE_WAITING);
            self.look_again = if waits { WHILE_WAITING } else { WHILE_STARTING };
            return;
        };
        self.state = State::Attached;
        self.look_again = WHILE_ATTACHED;
        if engine.turn != seen.volume.spec.engine.turn {
            let message = format!("the engine, pid {}, hands over to another one", engine.pid);
            self.note(Condition::new(Reason::Upgrading, message));
            return self.act(Action::HandOverEngine);
        }
        if engine.waits.is_some_and(|waits| waits > OPEN_PATIENCE) && !status.has_readable() {
            let message = "no replica can be read; requests wait";
            let hint = salvage_hint(&seen.volume.name);
            self.note(Condition::new(Reason::NoReplica, message).next(hint));
        }
        for replica in &status.full {
            let place = seen.volume.status.places.iter().find(|place| place.replica == *replica);
            let disk =
                place.map_or("its disk".into(), |place| place.directory.display().to_string());
            let name = &seen.volume.name;
            let full = Condition::new(Reason::DiskFull, waits_for_room(replica)).of(replica);
            self.note(full.next(format!(
                "free some space on the disk of {disk}, or remove snapshots: ankole snapshot ls {name}"
            )));
        }
        let size_bytes = seen.volume.spec.size_bytes;
        if status.size_bytes < size_bytes {
            self.act(Action::Expand { size_bytes });
        }
    }

    /// Whether no process of the volume is left.
    fn detach(&mut self, seen: &Seen) -> bool {
        self.state = State::Detaching;
        let attachment = seen.volume.status.attachment.as_ref();
        if let Some(engine) = &seen.engine {
            let granted = seen.volume.status.record.as_ref().is_some_and(|r| is_granted(r, engine));
            if granted {
                self.detach_engine(engine);
            } else {
                self.act(Action::KillEngine);
            }
            return false;
        }
        let same_boot = attachment.is_some_and(|attachment| attachment.boot_id == seen.boot_id);
        if let (true, true, Some(record)) =
            (same_boot, seen.devices.own_left, &seen.volume.status.record)
        {
            // Only an engine can take its device out of the kernel cleanly.
            self.attach(seen, record, false);
            self.state = State::Detaching;
            return false;
        }
        if self.end_replicas(seen) {
            return false;
        }
        self.state = State::Detached;
        if attachment.is_some() {
            self.act(Action::ClearAttachment);
        }
        true
    }

    /// It refuses while its device is in use, and is asked again and again.
    fn detach_engine(&mut self, engine: &EngineSeen) {
        if let Some((_, why)) = &engine.refused {
            let in_use = Condition::new(Reason::InUse, why.clone());
            self.note(in_use.next("unmount it, or end who uses it: it is detached then"));
        } else if engine.asked_to_end.is_some() {
            let message = format!("the engine, pid {}, flushes and detaches", engine.pid);
            self.wait(Reason::Stopping, message);
        }
        let ago = engine.refused.as_ref().map_or(ASK_AGAIN, |(ago, _)| *ago);
        match engine.asked_to_end {
            Some(_) => self.give_up_waiting(engine),
            None if ago < ASK_AGAIN => self.look_within(ASK_AGAIN - ago),
            None => self.act(Action::DetachEngine),
        }
    }

    /// Nothing of the volume runs, and nothing else changes: an engine that waits for replicas has
    /// nothing to flush.
    fn stand_still(&mut self, seen: &Seen) {
        let idle = seen.volume.spec.tickets.is_empty() && seen.volume.status.attachment.is_none();
        self.state = if idle { State::Detached } else { State::Attaching };
        let message = "nothing runs while a copy to trust is chosen";
        self.note(Condition::new(Reason::Salvaging, message));
        if seen.engine.is_some() {
            self.act(Action::KillEngine);
        } else {
            self.end_replicas(seen);
        }
    }

    /// Whether any is left.
    fn end_replicas(&mut self, seen: &Seen) -> bool {
        let mut left = false;
        for replica in &seen.replicas {
            let Some(process) = &replica.process else { continue };
            let id = &replica.place.replica;
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

    fn give_up_waiting(&mut self, engine: &EngineSeen) {
        match engine.asked_to_end {
            Some(since) if since > DETACH_PATIENCE => self.act(Action::KillEngine),
            Some(since) => self.look_within(DETACH_PATIENCE.saturating_sub(since)),
            None => {}
        }
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn wait(&mut self, reason: Reason, message: String) {
        self.note(Condition::new(reason, message));
    }

    fn note(&mut self, condition: Condition) {
        self.conditions.push(condition);
    }

    fn hold_off(
        &mut self,
        reason: Reason,
        part: Option<&ReplicaId>,
        what: &str,
        history: &History,
    ) {
        let left = history.hold_off.unwrap_or_default();
        let how = history.last_end.as_deref().unwrap_or("for an unknown reason");
        let seconds = left.as_secs_f64().ceil();
        let message = format!("{what} ended ({how}); it is started again in {seconds} s");
        let replica = part.cloned();
        self.note(Condition { replica, ..Condition::new(reason, message) });
        self.look_within(left);
    }

    /// A little later than `left`, so that what is due then is due.
    fn look_within(&mut self, left: Duration) {
        self.look_again = self.look_again.min(left + Duration::from_millis(10));
    }
}

impl Seen {
    /// Somebody asked for it; a member only while another one can be read.
    fn is_to_be_made_anew(&self, replica: &ReplicaId, in_sync: bool) -> bool {
        let status = self.engine.as_ref().and_then(|engine| engine.status.as_ref());
        let others = status.is_some_and(|status| status.has_readable_but(replica));
        self.volume.spec.rebuild.contains(replica) && (!in_sync || others)
    }

    /// Or the driver that is asked for and missing.
    fn new_attachment(&self) -> Result<Attachment, Driver> {
        let ublk = self.devices.free_ublk.map(Device::Ublk);
        let nbd = self.devices.free_nbd.map(Device::Nbd);
        let tgt = self.devices.free_tgt.map(Device::Tgt);
        let device = match self.volume.spec.frontend {
            Frontend::Auto => ublk.or(nbd).or(tgt),
            Frontend::Ublk => Some(ublk.ok_or(Driver::Ublk)?),
            Frontend::Nbd => Some(nbd.ok_or(Driver::Nbd)?),
            Frontend::Tgt => Some(tgt.ok_or(Driver::Tgt)?),
            Frontend::Socket => None,
        };
        Ok(Attachment { boot_id: self.boot_id.clone(), device })
    }
}

/// An engine that the record doesn't name is fenced already: it only stands in the way.
fn is_granted(record: &Record, engine: &EngineSeen) -> bool {
    record.engine.as_ref().is_some_and(|grant| grant.instance == engine.instance)
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FormatAll => f.write_str("format all replicas"),
            Self::FormatReplica(replica) => write!(f, "format replica {replica}"),
            Self::SetAside(replica) => write!(f, "set aside the directory of replica {replica}"),
            Self::StartReplica(replica) => write!(f, "start replica {replica}"),
            Self::EndReplica(replica) => write!(f, "end replica {replica}"),
            Self::KillReplica(replica) => write!(f, "kill replica {replica}"),
            Self::Grant { instance, attach_epoch, attachment } => {
                write!(f, "grant to {} in attach epoch {attach_epoch}", instance.0)?;
                match attachment.device {
                    Some(device) => write!(f, ", device {device}"),
                    None => write!(f, ", socket"),
                }
            }
            Self::StartEngine(EngineStart { instance, device, recover, read_only }) => {
                write!(f, "start engine {}", instance.0)?;
                device.iter().try_for_each(|device| write!(f, " on {device}"))?;
                f.write_str(if *recover { ", recovering" } else { "" })?;
                f.write_str(if *read_only { ", read-only" } else { "" })
            }
            Self::StopDevice(device) => write!(f, "stop device {device}"),
            Self::DetachEngine => f.write_str("ask the engine to detach"),
            Self::HandOverEngine => f.write_str("ask the engine to hand over"),
            Self::KillEngine => f.write_str("kill the engine and wait for its end"),
            Self::Expand { size_bytes } => write!(f, "expand to {size_bytes} bytes"),
            Self::ClearAttachment => f.write_str("clear the attachment"),
            Self::RemoveDirectories => f.write_str("remove the replicas' directories"),
            Self::Forget => f.write_str("forget the volume"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "state: {}", self.state)?;
        self.actions.iter().try_for_each(|action| writeln!(f, "do: {action}"))?;
        for Condition { reason, message, next, .. } in &self.conditions {
            writeln!(f, "{reason:?}: {message}")?;
            next.iter().try_for_each(|next| writeln!(f, "  next: {next}"))?;
        }
        writeln!(f, "look again: {:?}", self.look_again)
    }
}
