//! The plan of a volume's engine on its node.
//!
//! ```text
//! attach   granted ─▶ started ─▶ waits for its endpoint
//! died     granted (same attach epoch) ─▶ started with --recover
//! upgrade  hands over ─▶ gone ─▶ granted (same attach epoch) ─▶ started with --recover
//! detach   asked ─▶ gone ─▶ attachment cleared               (asked in vain: killed)
//! stop     as detach, but what is used goes on               (the next agent adopts it)
//! still    killed                                            (while a person chooses a copy)
//! elsewhere  killed, its device stopped                      (the record has fenced it)
//! ```
//! What may never happen: an engine is granted while one of this volume lives on this node (rule 1),
//! or on another (the volume says which node may); an engine is ended because the store couldn't be
//! asked, or has lost an object.

mod attach;
mod attached;
mod detach;
mod trouble;

use std::fmt;
use std::time::Duration;

use ankole_api::objects::engine::{EnginePhase, EngineWanted, ReplicaSeen};
use ankole_api::objects::{Condition, EngineStatus, Volume};
use ankole_api::volume::{Attachment, Device, Reason};
use ankole_blockdev::device::Driver;
use ankole_replica::admin::ReplicaAddress;
use ankole_replica::record::{InstanceId, Record};

use super::facts::{EngineFacts, EngineProcess, History};

/// An engine drains and flushes within this, or the disks are in trouble.
pub const DETACH_PATIENCE: Duration = Duration::from_secs(60);
/// Requests of a device without an engine wait so long, and then get errors: a supervisor must not
/// let its clients hang for ever. A disk's time-outs are shorter, a node's reboot takes less.
pub const DEVICE_PATIENCE: Duration = Duration::from_secs(300);

/// An engine that opens gives silent members some 10 s; what it waits for longer may never come.
const OPEN_PATIENCE: Duration = Duration::from_secs(12);
/// What it said before is believed for so long.
const SILENCE: Duration = Duration::from_secs(2);

/// An engine opens within a few of these; one that waits for something is asked less often.
const WHILE_STARTING: Duration = Duration::from_millis(20);
const WHILE_WAITING: Duration = Duration::from_millis(200);
const WHILE_ATTACHED: Duration = Duration::from_secs(1);
const WHILE_IDLE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineAction {
    /// Makes the record name the instance, and the attachment durable with it.
    Grant {
        instance: InstanceId,
        attach_epoch: u64,
        attachment: Attachment,
    },
    Start(EngineStart),
    /// Its requests get errors, and it goes.
    StopDevice(Device),
    Detach,
    HandOver,
    Kill,
    Expand {
        size_bytes: u64,
    },
    SetReplicas(Vec<ReplicaAddress>),
    ClearAttachment,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStart {
    pub instance: InstanceId,
    /// Without one it is the socket.
    pub driver: Option<Driver>,
    /// What the device is marked with.
    pub identity: String,
    /// To be taken over; the kernel chooses the number of a new one.
    pub device: Option<Device>,
    pub recover: bool,
    pub read_only: bool,
}

/// Actions are done in order; when one fails the rest waits for the next pass.
#[derive(Clone, Debug, PartialEq)]
pub struct EnginePlan {
    pub phase: EnginePhase,
    pub actions: Vec<EngineAction>,
    pub conditions: Vec<Condition>,
    /// If no event comes before. After an action that was done, the next pass follows at once.
    pub look_again: Duration,
}

pub fn plan(facts: &EngineFacts) -> EnginePlan {
    let mut plan = EnginePlan {
        phase: EnginePhase::Ended,
        actions: vec![],
        conditions: vec![],
        look_again: WHILE_IDLE,
    };
    match (&facts.engine, &facts.volume) {
        (Some(engine), Some(volume)) if engine.spec.node == facts.node => {
            let is_named = volume.status.node.as_deref() == Some(facts.node.as_str());
            match (engine.spec.wanted, &volume.status.record) {
                _ if facts.is_stopping => {
                    if !plan.leave_used(facts, engine) {
                        plan.detach(facts, volume);
                    }
                }
                (EngineWanted::Still, _) => plan.stand_still(facts),
                (EngineWanted::Detached, _) => plan.detach(facts, volume),
                (EngineWanted::Attached { read_only }, Some(record)) if is_named => {
                    plan.attach(facts, volume, engine, record, read_only);
                }
                // The store doesn't say both yet, or has lost one: what runs goes on.
                (EngineWanted::Attached { .. }, _) => plan.go_on(facts),
            }
        }
        // The manager makes it again.
        (None, Some(_)) => plan.go_on(facts),
        _ => plan.end_strays(facts),
    }
    if let Some(process) = facts.process.as_ref().filter(|process| process.is_watched) {
        plan.look_when_due(process);
    }
    plan
}

impl EnginePlan {
    fn act(&mut self, action: EngineAction) {
        self.actions.push(action);
    }

    fn wait(&mut self, reason: Reason, message: String) {
        self.note(Condition::new(reason, message));
    }

    fn note(&mut self, condition: Condition) {
        self.conditions.push(condition);
    }

    fn hold_off(&mut self, history: &History) {
        let left = history.hold_off.unwrap_or_default();
        let how = history.last_end.as_deref().unwrap_or("for an unknown reason");
        let words = history.last_words.as_ref();
        let why = words.map_or(String::new(), |words| format!(": {}", words.error));
        let message = format!("the engine ended ({how}){why}; it is started again");
        let next = words.and_then(|words| words.next.clone());
        self.note(Condition { next, ..Condition::new(Reason::EngineEnded, message) });
        self.look_within(left);
    }

    /// Whether it can't be told that none lives: a second one beside it could do harm.
    fn is_in_doubt(&mut self, history: &History) -> bool {
        let Some(doubt) = &history.doubt else { return false };
        let unknown = Condition::new(Reason::ProcessUnknown, doubt.message.clone());
        self.note(unknown.next(doubt.next.clone()));
        self.look_within(WHILE_ATTACHED);
        true
    }

    /// A little later than `left`, so that what is due then is due.
    fn look_within(&mut self, left: Duration) {
        self.look_again = self.look_again.min(left + Duration::from_millis(10));
    }

    fn go_on(&mut self, facts: &EngineFacts) {
        if let Some(process) = &facts.process {
            self.phase = EnginePhase::Attached;
            self.ask_again(process, WHILE_ATTACHED);
        }
    }

    /// Unless it tells by itself.
    fn ask_again(&mut self, process: &EngineProcess, after: Duration) {
        if !process.is_watched {
            self.look_again = after;
        }
    }

    /// Nobody tells that time passes.
    fn look_when_due(&mut self, process: &EngineProcess) {
        let due = [
            (process.silent, SILENCE),
            (process.unreachable, OPEN_PATIENCE),
            (process.waits, OPEN_PATIENCE),
        ];
        for (since, patience) in due {
            let left = since.and_then(|since| patience.checked_sub(since));
            left.into_iter().for_each(|left| self.look_within(left));
        }
    }
}

/// An engine that the record doesn't name is fenced already: it only stands in the way.
fn is_granted(record: &Record, process: &EngineProcess) -> bool {
    record.engine.as_ref().is_some_and(|grant| grant.instance == process.instance)
}

/// How the last engine showed it, if that was here and in this boot: its clients may still be there.
fn attachment<'a>(facts: &EngineFacts, volume: &'a Volume) -> Option<&'a Attachment> {
    let engine = volume.status.record.as_ref()?.engine.as_ref()?;
    let attachment = volume.status.attachment.as_ref()?;
    (engine.node == facts.node && attachment.boot_id == facts.boot_id).then_some(attachment)
}

/// What the engine's object says after this pass, without dates: written only if it differs.
pub fn status(facts: &EngineFacts, plan: &EnginePlan) -> EngineStatus {
    let mut status = EngineStatus {
        phase: Some(plan.phase),
        node: facts.node.clone(),
        observed_generation: facts.engine.as_ref().map_or(0, |it| it.metadata.generation),
        conditions: plan.conditions.clone(),
        ..EngineStatus::default()
    };
    let Some(process) = &facts.process else { return status };
    status.instance = Some(process.instance.clone());
    if let Some(said) = &process.status {
        status.version.clone_from(&said.version);
        status.endpoint = said.endpoint.clone().filter(|_| plan.phase == EnginePhase::Attached);
        // Before it is open, it doesn't know.
        status.size_bytes = said.endpoint.as_ref().map(|_| said.size_bytes);
        let seen = said.replicas.iter();
        status.replicas =
            seen.map(|it| ReplicaSeen { replica: it.replica.clone(), mode: it.mode }).collect();
    }
    status
}

/// It doesn't answer, and what it said before isn't believed any more.
pub fn is_unknown(facts: &EngineFacts) -> bool {
    facts.process.as_ref().and_then(|process| process.silent).is_some_and(|it| it >= SILENCE)
}

impl fmt::Display for EngineAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grant { instance, attach_epoch, attachment } => {
                write!(f, "grant to {} in attach epoch {attach_epoch}", instance.0)?;
                match attachment.driver() {
                    Some(driver) => write!(f, ", device of {driver}"),
                    None => write!(f, ", socket"),
                }
            }
            Self::Start(start) => write!(f, "{start}"),
            Self::StopDevice(device) => write!(f, "stop device {device}, which has no engine"),
            Self::Detach => f.write_str("ask the engine to detach"),
            Self::HandOver => f.write_str("ask the engine to hand over"),
            Self::Kill => f.write_str("kill the engine"),
            Self::Expand { size_bytes } => write!(f, "expand to {size_bytes} bytes"),
            Self::SetReplicas(replicas) => {
                f.write_str("set its replicas:")?;
                replicas.iter().try_for_each(|it| write!(f, " {}={}", it.replica, it.address))
            }
            Self::ClearAttachment => f.write_str("clear the attachment"),
        }
    }
}

impl fmt::Display for EngineStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start engine {}", self.instance.0)?;
        match (self.device, self.driver) {
            (Some(device), _) => write!(f, " on {device} of {}", self.identity)?,
            (None, Some(driver)) => write!(f, " on a new device of {driver}")?,
            (None, None) => f.write_str(" on the socket")?,
        }
        f.write_str(if self.recover { ", recovering" } else { "" })?;
        f.write_str(if self.read_only { ", read-only" } else { "" })
    }
}

impl fmt::Display for EnginePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "phase: {:?}", self.phase)?;
        self.actions.iter().try_for_each(|action| writeln!(f, "do: {action}"))?;
        for Condition { reason, message, next, .. } in &self.conditions {
            writeln!(f, "{reason:?}: {message}")?;
            next.iter().try_for_each(|next| writeln!(f, "  next: {next}"))?;
        }
        writeln!(f, "look again: {:?}", self.look_again)
    }
}
