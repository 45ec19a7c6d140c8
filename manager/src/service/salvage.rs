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

use ankole_api::objects::volume::Recorded;
use ankole_api::objects::{Engine, VolumeSpec};
use ankole_plan::volume::Known;

use super::Service;
use super::attaching::refuse_deleting;
use crate::agent::node::records::RecordError;
use crate::api::error::chain;
use crate::api::salvage::{SalvageRequest, SalvageView};
use crate::api::{ApiError, Name};

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
        let known = self.known(name)?;
        let mut view = self.judge(&known, wanted)?;
        let said = self.ask_engine(&known);
        if said.is_some_and(|said| said.endpoint.is_some() && said.has_readable()) {
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
        let Some(_hold) = self.manager.hold(name) else {
            return Err(ApiError::conflict(format!("volume {name} is being salvaged already")));
        };
        self.wait_for_stillness(name)?;

        let known = self.known(name)?;
        refuse_deleting(&known.volume)?;
        let view = self.judge(&known, wanted)?;
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

    /// Reads every directory of this machine; takes as long as that takes.
    fn judge(&self, known: &Known, wanted: Option<&ReplicaId>) -> Result<SalvageView, ApiError> {
        let volume = &known.volume;
        let name = volume.name();
        if matches!(volume.recorded(), Recorded::New | Recorded::Unformatted) {
            return Err(ApiError::conflict(format!("volume {name} is still being created"))
                .next(format!("ankole volume why {name} says what it waits for")));
        }
        let record = volume.status.record.clone();
        let here = known.replicas.iter().filter(|it| self.agents.of(&it.spec.node).is_some());
        let replicas: Vec<Exhibit> = here
            .map(|replica| Exhibit {
                replica: replica.spec.id.clone(),
                evidence: inspect(&replica.spec.directory()),
            })
            .collect();
        let attachment = volume.status.attachment.as_ref();
        // None survives a boot.
        let client_waits = attachment
            .is_some_and(|kept| self.agents.all().iter().any(|it| it.boot_id == kept.boot_id));
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

    /// Until no process of it is left, and its agent has said so of the hold: none of that agent's
    /// older plans is under way.
    fn wait_for_stillness(&self, name: &Name) -> Result<(), ApiError> {
        let deadline = Instant::now() + END_PATIENCE;
        loop {
            let known = self.known(name)?;
            let knows = known.engine.as_ref().is_none_or(Engine::has_ended);
            let agents = self.agents.all().iter();
            let processes: Vec<_> = agents.flat_map(|agent| agent.supervisor.list()).collect();
            let left = processes.iter().find(|process| &process.spec.name.volume == name);
            let are_wanted = known.replicas.iter().any(|replica| replica.spec.served);
            if knows && !are_wanted && left.is_none() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let who = left.map_or("the volume's agent".into(), |process| {
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
        let changed = self.objects.modify_status::<VolumeSpec, _, _>(&view.volume, |_, status| {
            let name = || view.volume.to_string();
            let salvaged = match (&status.record, &view.record) {
                (Some(record), Some(seen)) => record.after(seen.generation, change.clone())?,
                (None, None) => Record::anew(member.clone(), above),
                (None, Some(_)) => return Err(RecordError::NoRecord { volume: name() }),
                (Some(record), None) => {
                    return Err(Refused::Conflict { record: record.clone() }.into());
                }
            };
            status.record = Some(salvaged.clone());
            // A socket's clients connect anew. A device waits in the kernel, and only a
            // successor of its engine can take it over.
            if status.attachment.as_ref().is_some_and(|kept| kept.driver().is_none()) {
                status.attachment = None;
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
