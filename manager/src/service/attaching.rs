//! Tickets: who wants a volume to be attached, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use ankole_api::objects::attachment::Ticket;
use ankole_api::objects::{AttachmentSpec, Engine, Volume, VolumeAttachment, VolumeSpec};
use ankole_plan::volume::shown;
use ankole_store::StoreError;

use super::Service;
use super::view::conditions;
use crate::agent::layout::random_hex;
use crate::agent::probe;
use crate::api::attachment::{AttachRequest, TicketKind};
use crate::api::volume::{State, VolumeView, salvage_hint};
use crate::api::why::{explain, obstacle};
use crate::api::{ApiError, Name};
use crate::clock::now_unix_s;

const ATTACH_PATIENCE: Duration = Duration::from_secs(60);

/// A volume that is attached for as long as this lives.
pub struct Engaged<'a> {
    _ticket: TicketGuard<'a>,
    pub admin: PathBuf,
}

/// Takes the ticket of a request back when it is done, however it ends.
struct TicketGuard<'a> {
    service: &'a Service,
    volume: Name,
    id: String,
}

impl Service {
    /// Adds a ticket; doing it twice is the same as once.
    pub fn attach(
        &self,
        name: &Name,
        id: &str,
        kind: TicketKind,
        request: &AttachRequest,
    ) -> Result<VolumeView, ApiError> {
        self.refuse_while_stopping()?;
        if let Some(node) = &request.node
            && !self.manager.nodes().contains_key(node)
        {
            let nodes = self.manager.nodes().keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(ApiError::not_found(format!("there is no node {node}"))
                .next(format!("name one of {nodes}, or leave --node out")));
        }
        let ticket = Ticket { kind, node: request.node.clone(), read_only: request.read_only };
        self.change_tickets(name, |volume, spec| add_ticket(volume, spec, id, &ticket))?;
        self.volume(name)
    }

    /// Takes a ticket back. The volume is detached when it was the last.
    pub fn detach(&self, name: &Name, id: &str, force: bool) -> Result<VolumeView, ApiError> {
        let before = self.volume(name)?;
        if before.clients > 0 && before.tickets.len() == 1 && !force {
            let clients = before.clients;
            return Err(ApiError::conflict(format!(
                "volume {name} has {clients} connected client(s)"
            ))
            .next("end them first, or use --force: they are cut off, nothing written is lost"));
        }
        self.drop_ticket(name, id)?;
        self.volume(name)
    }

    pub(super) fn drop_ticket(&self, name: &Name, id: &str) -> Result<(), ApiError> {
        let dropped = self.objects.modify(name, |attachment: &mut VolumeAttachment| {
            attachment.spec.tickets.remove(id);
            Ok(())
        });
        match dropped {
            Err(StoreError::NotFound { .. }) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Makes the object if there is none yet.
    fn change_tickets(
        &self,
        name: &Name,
        mut change: impl FnMut(&Volume, &mut AttachmentSpec) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        loop {
            let volume = self.objects.get::<VolumeSpec>(name)?;
            if self.objects.find::<AttachmentSpec>(name)?.is_some() {
                return self.objects.modify(name, |attachment: &mut VolumeAttachment| {
                    change(&volume, &mut attachment.spec)
                });
            }
            let mut spec = AttachmentSpec::default();
            change(&volume, &mut spec)?;
            match self.objects.create(&VolumeAttachment::new(name.clone(), spec)) {
                Err(StoreError::Exists { .. }) => {}
                made => return Ok(made.map(drop)?),
            }
        }
    }

    /// Attaches the volume for a request, and waits until its engine answers.
    pub fn engage(&self, name: &Name, kind: TicketKind) -> Result<Engaged<'_>, ApiError> {
        let read_only = self.is_read_only(name)?;
        let random = random_hex::<8>().map_err(|error| ApiError::failed(error.to_string()))?;
        let id = format!("{kind}-{random}");
        self.attach(name, &id, kind, &AttachRequest { read_only, node: None })?;
        let ticket = TicketGuard { service: self, volume: name.clone(), id };
        let attached = self.wait(name, ATTACH_PATIENCE, |known| {
            let Some(known) = known else { return Some(Err(gone(name))) };
            // One that was just asked to detach has its endpoint for a moment still.
            let is_observed = known.engine.as_ref().is_some_and(Engine::is_observed);
            let endpoint = shown::endpoint(known).filter(|_| is_observed);
            let Some((agent, _)) = self.agent_of(known).zip(endpoint) else {
                let is_asked_for = shown::state(known) == State::Attaching;
                let told = conditions(known, None);
                return obstacle(name, &told).filter(|_| is_asked_for).map(Err);
            };
            self.ask_engine(known)?;
            Some(Ok(agent.layout.admin(name)))
        })?;
        let admin = attached.unwrap_or_else(|| Err(self.late(name)))?;
        Ok(Engaged { _ticket: ticket, admin })
    }

    fn late(&self, name: &Name) -> ApiError {
        let volume = self.volume(name).ok();
        let reasons = volume.iter().flat_map(|volume| explain(volume, now_unix_s()));
        let reasons = reasons.collect::<Vec<_>>().join(" ");
        let seconds = ATTACH_PATIENCE.as_secs();
        let late = format!("volume {name} wasn't attached in {seconds} s. {reasons}");
        ApiError::timed_out(late).next(format!("ankole volume why {name} says what it waits for"))
    }
}

fn gone(name: &Name) -> ApiError {
    ApiError::not_found(format!("volume {name} was removed"))
}

impl Drop for TicketGuard<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.service.drop_ticket(&self.volume, &self.id) {
            // The next start of the manager takes it back.
            tracing::warn!(volume = %self.volume, %error, "take back the ticket of a request");
        }
    }
}

fn add_ticket(
    volume: &Volume,
    spec: &mut AttachmentSpec,
    id: &str,
    ticket: &Ticket,
) -> Result<(), ApiError> {
    use ankole_api::objects::volume::Recorded;
    let name = volume.name();
    refuse_deleting(volume)?;
    match volume.recorded() {
        Recorded::As(_) => {}
        Recorded::New | Recorded::Unformatted => {
            return Err(ApiError::conflict(format!("volume {name} is still being created"))
                .next(format!("ankole volume why {name} says what it waits for")));
        }
        Recorded::Lost => {
            let lost = format!("volume {name} has lost its record of who is in sync");
            return Err(ApiError::conflict(lost).next(salvage_hint(name)));
        }
    }
    if volume.is_being_restored() && ticket.kind != TicketKind::Restore {
        return Err(ApiError::conflict(format!("volume {name} is being restored"))
            .next("wait until it holds everything"));
    }
    if let Some(driver) = volume.spec.frontend.forced_driver()
        && spec.tickets.is_empty()
        && let Some(obstacle) = probe::obstacle(driver)
    {
        let why = obstacle.detail;
        let error = ApiError::conflict(format!(
            "volume {name}: this node can't make a device of {driver} now: {why}"
        ));
        let look = || "ankole check says what is missing".to_owned();
        return Err(error.next(obstacle.next.unwrap_or_else(look)));
    }
    if !spec.tickets.is_empty() && spec.is_read_only() && !ticket.read_only {
        return Err(ApiError::conflict(format!("volume {name} is attached read-only"))
            .next(format!("ankole volume detach {name}, then attach it again")));
    }
    let mut writers = spec.tickets.values().filter(|present| !present.read_only);
    if let Some(writer) = writers.next().filter(|_| ticket.read_only) {
        let kind = writer.kind;
        let error = ApiError::conflict(format!(
            "volume {name} is attached to be written ({kind}); its device can't refuse writes"
        ));
        return Err(error.next(format!("once it is detached, attach {name} again")));
    }
    if let Some(elsewhere) =
        spec.node().filter(|it| ticket.node.as_deref().is_some_and(|n| n != *it))
    {
        return Err(ApiError::conflict(format!("volume {name} is attached on node {elsewhere}"))
            .next(format!("ankole volume detach {name}, then attach it again")));
    }
    spec.tickets.entry(id.into()).or_insert_with(|| ticket.clone());
    Ok(())
}

pub(super) fn refuse_deleting(volume: &Volume) -> Result<(), ApiError> {
    if volume.is_ending() {
        return Err(ApiError::conflict(format!("volume {} is being deleted", volume.name())));
    }
    Ok(())
}
