//! One volume: gather → validate → plan → apply → report, whenever something happened to it.

mod apply;
pub mod devices;
pub mod gather;
pub mod growth;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ankole_plan::one_node::plan::plan;
use ankole_plan::one_node::seen::{EngineSeen, History, Seen};
use ankole_plan::one_node::validate::{Wanted, validate};
use ankole_replica::types::ReplicaId;
use tokio::sync::mpsc;

use super::Context;
use crate::agent::backoff::Backoff;
use crate::agent::last_words::last_words;
use crate::agent::supervisor::Ended;
use crate::agent::{Part, disk_usage};
use crate::api::Name;
use crate::api::replica::Place;
use crate::api::volume::{Condition, Device, Reason};
use crate::clock::now_unix_s;

/// What replicas take of their disks is shown as old as this.
const COUNT_AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub enum Event {
    /// Something changed: the object, or the wish to stop.
    Look,
    Ended(Ended),
}

/// What a volume's task remembers between passes. All of it may be lost: then a part is started a
/// little earlier, or waited for a little longer, than it would have been.
#[derive(Debug, Default)]
pub struct Memory {
    parts: BTreeMap<Part, PartMemory>,
    failing: Backoff,
    engine_killed: bool,
    engine_left: bool,
    /// When the engine last refused to detach, and why.
    refused: Option<(Instant, String)>,
    /// When each condition of the last pass began, in seconds of Unix time.
    conditions: BTreeMap<(Reason, Option<ReplicaId>), u64>,
    engine_waits: Option<(Instant, u64)>,
    /// Since when nobody has been listening on the engine's socket, and the engine's pid.
    unreachable: Option<(Instant, u32)>,
    /// The volume's device as it was when no engine could be reached.
    device: Option<Device>,
    /// Since when it has no engine.
    unserved: Option<Instant>,
    /// What each replica takes of its disk, and when that was counted.
    used_bytes: Option<(Instant, BTreeMap<ReplicaId, u64>)>,
}

#[derive(Debug, Default)]
struct PartMemory {
    started: Option<Instant>,
    asked_to_end: Option<Instant>,
    backoff: Backoff,
    last_end: Option<String>,
    /// The log of the process that was started last, and where its part begins, in bytes.
    log: Option<(PathBuf, u64)>,
}

impl Memory {
    fn asked_to_end(&self, part: &Part) -> Option<Duration> {
        self.parts.get(part)?.asked_to_end.map(|asked| asked.elapsed())
    }

    fn history(&self, part: &Part) -> History {
        let Some(memory) = self.parts.get(part) else { return History::default() };
        let hold_off = memory.backoff.hold_off(Instant::now());
        let last_words = match (&memory.log, &memory.last_end) {
            (Some((log, from_bytes)), Some(_)) => last_words(log, *from_bytes),
            _ => None,
        };
        History { hold_off, last_end: memory.last_end.clone(), last_words, doubt: None }
    }

    /// How long the engine has been waiting for something without a break.
    fn engine_waits(&self) -> Option<Duration> {
        self.engine_waits.map(|(since, _)| since.elapsed())
    }

    /// How long the device has been waiting for an engine.
    fn note_unserved(&mut self, seen: &Seen) -> Option<Duration> {
        let is_served = match &seen.engine {
            Some(EngineSeen { status: Some(status), .. }) => status.endpoint.is_some(),
            Some(_) => self.unserved.is_none(), // too busy to answer: it is as it was
            None => false,
        };
        let since = self.unserved.unwrap_or_else(Instant::now);
        self.unserved = (seen.devices.own.is_some() && !is_served).then_some(since);
        self.unserved.map(|since| since.elapsed())
    }

    /// For how long already.
    fn note_unreachable(&mut self, engine: &mut EngineSeen) {
        let before = self.unreachable.filter(|(_, pid)| *pid == engine.pid);
        let since = before.map_or_else(Instant::now, |(since, _)| since);
        self.unreachable = engine.unreachable.is_some().then_some((since, engine.pid));
        engine.unreachable = engine.unreachable.is_some().then(|| since.elapsed());
    }

    fn note_waiting(&mut self, engine: Option<&EngineSeen>) {
        let waits = match engine.map(|engine| &engine.status) {
            Some(Some(status)) => !status.waiting.is_empty(),
            Some(None) => return, // too busy to answer: it goes on with what it did
            None => false,
        };
        let since = self.engine_waits.unwrap_or_else(|| (Instant::now(), now_unix_s()));
        self.engine_waits = waits.then_some(since);
    }

    /// Gives each condition the time at which the first of its kind was seen in a row of passes.
    fn date(&mut self, conditions: &mut [Condition]) {
        let now = now_unix_s();
        let before = std::mem::take(&mut self.conditions);
        for condition in conditions {
            let key = (condition.reason, condition.replica.clone());
            let since = before.get(&key).copied().unwrap_or(now);
            condition.since_unix_s = Some(since);
            self.conditions.insert(key, since);
        }
    }

    /// Counted anew when it is old. Those that can't be looked at are left out.
    fn used_bytes(&mut self, places: &[Place]) -> BTreeMap<ReplicaId, u64> {
        let of = |place: &Place| {
            let used = disk_usage::used_bytes(&place.directory).ok()?;
            Some((place.replica.clone(), used))
        };
        let known = self.used_bytes.take().filter(|(at, _)| at.elapsed() < COUNT_AGAIN);
        let count = || (Instant::now(), places.iter().filter_map(of).collect());
        self.used_bytes.insert(known.unwrap_or_else(count)).1.clone()
    }

    /// What failed before was set right by a person: it is tried again at once.
    fn forgive(&mut self) {
        self.parts.values_mut().for_each(|part| part.backoff = Backoff::default());
    }

    fn failures(&self) -> u32 {
        self.failing.failures()
    }

    fn started(&mut self, part: Part, log: (PathBuf, u64)) {
        let memory = self.parts.entry(part).or_default();
        memory.log = Some(log);
        memory.started = Some(Instant::now());
        memory.asked_to_end = None;
    }

    fn refused(&mut self, why: String) {
        self.parts.entry(Part::Engine).or_default().asked_to_end = None;
        self.refused = Some((Instant::now(), why));
    }

    fn ask_to_end(&mut self, part: Part) {
        self.parts.entry(part).or_default().asked_to_end.get_or_insert_with(Instant::now);
    }

    fn ended(&mut self, ended: Ended) {
        let memory = self.parts.entry(ended.name.part.clone()).or_default();
        let asked = memory.asked_to_end.take().is_some();
        if ended.name.part == Part::Engine {
            let well = ended.how.as_deref().is_none_or(|how| how == "exit status: 0");
            self.engine_left = asked && well && !self.engine_killed;
            self.engine_killed = false;
            self.refused = None;
        }
        if !asked {
            let lived = memory.started.map(|started| started.elapsed());
            memory.backoff.failed(Instant::now(), lived.unwrap_or(Duration::MAX));
            memory.last_end = ended.how;
        }
    }
}

/// Until the volume doesn't exist any more. A pass runs where blocking is allowed.
pub async fn run(context: Arc<Context>, name: Name, mut events: mpsc::UnboundedReceiver<Event>) {
    let mut memory = Memory::default();
    loop {
        let (context_of_pass, name_of_pass) = (Arc::clone(&context), name.clone());
        let pass = tokio::task::spawn_blocking(move || {
            let next = pass(&context_of_pass, &name_of_pass, &mut memory);
            (next, memory)
        });
        let Ok((next, remembered)) = pass.await else {
            // The runtime ends, or a pass panicked: that is a defect, and said so by the hook.
            tracing::error!(volume = %name, "the volume is no longer looked after");
            return;
        };
        memory = remembered;
        let Some(look_again) = next else {
            context.board.take_down(&name);
            drop(events);
            context.look_at_all();
            return;
        };
        if let Ok(event) = tokio::time::timeout(look_again, events.recv()).await {
            let Some(event) = event else { return };
            memory.hear(event);
            while let Ok(event) = events.try_recv() {
                memory.hear(event);
            }
        }
    }
}

impl Memory {
    fn hear(&mut self, event: Event) {
        match event {
            Event::Look => {}
            Event::Ended(ended) => self.ended(ended),
        }
    }
}

/// When to look again at the latest; None when the volume is gone.
fn pass(context: &Arc<Context>, name: &Name, memory: &mut Memory) -> Option<Duration> {
    if let Some(why) = context.take_refusal(name) {
        memory.refused(why);
    }
    let mut seen = match gather::gather(context, name, memory) {
        Ok(seen) => seen?,
        Err(error) => {
            let error = crate::api::error::chain(&error);
            tracing::error!(volume = %name, %error, "can't look at the volume");
            return Some(memory.failing.failed_now());
        }
    };
    if let Some(engine) = &mut seen.engine {
        memory.note_unreachable(engine);
    }
    memory.note_waiting(seen.engine.as_ref());
    memory.device = seen.devices.own;
    seen.devices.unserved = memory.note_unserved(&seen);
    let wanted = if context.is_held(name) {
        memory.forgive();
        Wanted::Still
    } else {
        validate(&seen.volume, context.is_stopping())
    };
    if let Wanted::Attached { .. } = wanted {
        memory.refused = None; // nobody asks for that any more
    }
    let plan = plan(wanted, &seen);
    let look_again = plan.look_again;
    let applied = apply::apply(context, &seen.volume, plan, memory);
    let next = if applied.failed.is_some() {
        memory.failing.failed_now()
    } else {
        memory.failing = Backoff::default();
        if applied.done > 0 { Duration::ZERO } else { look_again }
    };
    report::report(context, &seen, &applied, memory);
    Some(next)
}
