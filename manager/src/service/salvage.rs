//! Salvage: a person chooses the copy that a volume is from now on, when no member can open it.
//!
//! ```text
//! refused? ─▶ hold: engine killed, replicas ended ─▶ evidence again ─▶ refused?
//!          ─▶ the copy pardoned, if it failed ─▶ record {one member, above every fence} ─▶ go on
//! ```
//! What may never happen: a choice by evidence that is older than the last process of the volume.
//! A crash in the middle leaves the record as it was, or as it shall be.

use std::time::{Duration, Instant};

use ankole_replica::inspect::{inspect, pardon};
use ankole_replica::record::{Change, Member, Record, Refused};
use ankole_replica::salvage::{Exhibit, Turn, choose, turn};
use ankole_replica::types::{Generation, ReplicaId};

use super::Service;
use super::volumes::refuse_deleting;
use crate::agent::Part;
use crate::api::error::chain;
use crate::api::salvage::{SalvageRequest, SalvageView};
use crate::api::volume::{Condition, Reason, Volume};
use crate::api::{ApiError, Name};
use crate::controllers::volume::gather::engine_status;
use crate::records::RecordError;

/// A replica that ends writes its index back; one that doesn't is killed after 10 s.
const END_PATIENCE: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(20);

impl Service {
    /// What the directories tell, and what would be chosen. Disturbs nothing.
    pub fn salvage_view(
        &self,
        name: &Name,
        wanted: Option<&ReplicaId>,
    ) -> Result<SalvageView, ApiError> {
        let volume: Volume = self.context.store.read(name)?;
        let mut view = self.judge(&volume, wanted)?;
        if self.is_served(name) {
            view.refused = Some(format!("volume {name} is attached, and a replica can be read"));
        }
        Ok(view)
    }

    /// Makes the chosen copy the volume. It is attached again if it was wanted, and the other
    /// replicas are rebuilt.
    pub fn salvage(&self, name: &Name, request: &SalvageRequest) -> Result<SalvageView, ApiError> {
        self.refuse_while_stopping()?;
        let wanted = request.replica.as_ref();
        refuse(&self.salvage_view(name, wanted)?, request)?;
        let Some(_hold) = self.context.hold(name) else {
            return Err(ApiError::conflict(format!("volume {name} is being salvaged already")));
        };
        self.wait_for_stillness(name)?;

        let volume: Volume = self.context.store.read(name)?;
        refuse_deleting(&volume)?;
        let view = self.judge(&volume, wanted)?;
        refuse(&view, request)?;
        let exhibit = view.replicas.iter().find(|exhibit| {
            view.choice.chosen.as_ref().is_some_and(|member| member.replica == exhibit.replica)
        });
        let (Some(member), Some(exhibit)) = (&view.choice.chosen, exhibit) else {
            return Err(nothing_to_choose(&view));
        };
        if let Some(held) = view.replicas.iter().find(|exhibit| exhibit.evidence.held.is_some()) {
            let directory = held.evidence.directory.display();
            return Err(ApiError::conflict(format!("{directory} is in use by another process"))
                .next(format!("end it; ankole replica inspect {directory} says its pid")));
        }
        pardon(&exhibit.evidence.directory).map_err(|error| {
            ApiError::failed(format!("volume {name}: {}", chain(&error)))
                .next("nothing was changed: repair the disk, or choose another --replica")
        })?;
        let above = view.choice.above.unwrap_or(Generation::FIRST);
        let record = self.record_salvage(&view, member, above)?;
        tracing::warn!(volume = %name, replica = %member.replica, generation = %record.generation,
            doubts = ?view.choice.doubts, "salvaged: this copy is the volume from now on");
        Ok(SalvageView { record: Some(record), done: true, refused: None, ..view })
    }

    /// Reads every directory; takes as long as that takes.
    fn judge(&self, volume: &Volume, wanted: Option<&ReplicaId>) -> Result<SalvageView, ApiError> {
        let name = &volume.name;
        if volume.status.unformatted {
            return Err(ApiError::conflict(format!("volume {name} is still being created"))
                .next(format!("ankole volume why {name} says what it waits for")));
        }
        let record = volume.status.record.clone();
        let replicas: Vec<Exhibit> = volume
            .status
            .places
            .iter()
            .map(|place| Exhibit {
                replica: place.replica.clone(),
                evidence: inspect(&place.directory),
            })
            .collect();
        let attachment = volume.status.attachment.as_ref();
        // None survives a boot.
        let client_waits = attachment.is_some_and(|kept| kept.boot_id == self.context.boot_id);
        let turn = turn(name, &replicas, record.as_ref(), client_waits);
        let refused = match &turn {
            Turn::CanOpen { members } => {
                let names: Vec<_> = members.iter().map(ToString::to_string).collect();
                Some(format!(
                    "volume {name} can be opened by what is in sync ({})",
                    names.join(", ")
                ))
            }
            Turn::RolledBack { .. }
            | Turn::RecordLost
            | Turn::NoMember
            | Turn::MemberMissing { .. } => None,
        };
        let choice = choose(name, &replicas, record.as_ref(), wanted);
        Ok(SalvageView {
            volume: name.clone(),
            record,
            replicas,
            turn,
            refused,
            choice,
            done: false,
        })
    }

    /// Whether an engine answers requests now.
    fn is_served(&self, name: &Name) -> bool {
        let mut processes = self.context.supervisor.list().into_iter();
        let engine = processes.any(|process| {
            &process.spec.name.volume == name && process.spec.name.part == Part::Engine
        });
        let status = engine.then(|| engine_status(&self.context, name)).flatten();
        status.is_some_and(|status| status.endpoint.is_some() && status.has_readable())
    }

    /// Until the controller knows of the hold, so that none of its older plans is under way, and
    /// all processes have ended.
    fn wait_for_stillness(&self, name: &Name) -> Result<(), ApiError> {
        let deadline = Instant::now() + END_PATIENCE;
        loop {
            let holds = |condition: &Condition| condition.reason == Reason::Salvaging;
            let observed = self.context.board.get(name);
            let knows = observed.is_some_and(|observed| observed.conditions.iter().any(holds));
            let processes = self.context.supervisor.list();
            let left = processes.iter().find(|process| &process.spec.name.volume == name);
            if knows && left.is_none() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let who = left.map_or("the volume's controller".into(), |process| {
                    format!("{}, pid {},", process.spec.name, process.pid)
                });
                return Err(ApiError::timed_out(format!("volume {name}: {who} doesn't end"))
                    .next("its disk may hang; nothing was changed: try again"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Only if the record is still the one that the evidence was compared with.
    fn record_salvage(
        &self,
        view: &SalvageView,
        member: &Member,
        above: Generation,
    ) -> Result<Record, ApiError> {
        let change = Change::Salvage { member: member.clone(), above };
        let changed = self.context.store.modify(&view.volume, |volume: &mut Volume| {
            let name = || view.volume.to_string();
            let salvaged = match (&volume.status.record, &view.record) {
                (Some(record), Some(seen)) => record.after(seen.generation, change.clone())?,
                (None, None) => Record::anew(member.clone(), above),
                (None, Some(_)) => return Err(RecordError::NoRecord { volume: name() }),
                (Some(record), None) => {
                    return Err(Refused::Conflict { record: record.clone() }.into());
                }
            };
            volume.status.record = Some(salvaged.clone());
            // A socket's clients connect anew. A device waits in the kernel, and only a
            // successor of its engine can take it over.
            if volume.status.attachment.as_ref().is_some_and(|kept| kept.driver().is_none()) {
                volume.status.attachment = None;
            }
            Ok::<_, RecordError>(salvaged)
        });
        changed.map_err(|error| match error {
            RecordError::Store(error) => error.into(),
            error => ApiError::conflict(format!("volume {}: {}", view.volume, chain(&error)))
                .next("nothing was changed: try again"),
        })
    }
}

fn refuse(view: &SalvageView, request: &SalvageRequest) -> Result<(), ApiError> {
    let name = &view.volume;
    if let Some(refused) = &view.refused {
        return Err(ApiError::conflict(format!("{refused}: there is nothing to salvage"))
            .next(format!("ankole volume why {name} says what it waits for")));
    }
    if let (Some(expected), Some(record)) = (request.expected, &view.record)
        && expected != record.generation
    {
        let now = record.generation;
        return Err(ApiError::conflict(format!("volume {name}: the record is at {now} by now"))
            .next(format!("look again: ankole volume salvage {name} --dry-run")));
    }
    refuse_doubts(view, request.accept_stale, "salvage")
}

/// `verb` is what would be called again with the explicit yes.
pub(super) fn refuse_doubts(
    view: &SalvageView,
    accept_stale: bool,
    verb: &str,
) -> Result<(), ApiError> {
    let name = &view.volume;
    let Some(member) = &view.choice.chosen else { return Err(nothing_to_choose(view)) };
    if !view.choice.doubts.is_empty() && !accept_stale {
        let doubts = view.choice.doubts.join("; ");
        return Err(ApiError::conflict(format!(
            "volume {name}: what {} holds may be stale: {doubts}",
            member.replica
        ))
        .next(format!(
            "look at all of it with ankole volume {verb} {name} --dry-run; to take it all the same, add --accept-stale"
        )));
    }
    Ok(())
}

pub(super) fn nothing_to_choose(view: &SalvageView) -> ApiError {
    let name = &view.volume;
    ApiError::conflict(format!("volume {name}: {}", view.choice.why))
        .next("bring a disk with a copy back, or restore a backup into a new volume")
}
