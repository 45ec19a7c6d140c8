//! Volumes: made, attached, resized, shown, removed.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use ankole_blockdev::device::Driver;
use ankole_replica::admin::{Damage, EngineStatus, ReplicaAddress};
use ankole_replica::types::ReplicaId;

use super::{Service, program};
use crate::agent::layout::random_hex;
use crate::agent::probe;
use crate::agent::{Layout, Part, Process};
use crate::api::attachment::{AttachRequest, Ticket, TicketKind};
use crate::api::error::chain;
use crate::api::node::Finding;
use crate::api::replica::{Mode, Place, ReplicaView, seconds_left};
use crate::api::size::{VolumeSize, human};
use crate::api::volume::{
    Attachment, Condition, Frontend, Reason, Robustness, State, Transport, UpgradeRequest, Volume,
    VolumeRequest, VolumeSpec, VolumeStatus, VolumeView, salvage_hint,
};
use crate::api::why::{explain, obstacle};
use crate::api::{ApiError, Name};
use crate::clock::now_unix_s;
use crate::controllers::board::Observed;
use crate::controllers::volume::gather::{address_of, engine_status};
use crate::controllers::volume::growth::Growth;
use crate::schedule::{self, Disk};
use crate::store::StoreError;

const FORMAT_PATIENCE: Duration = Duration::from_secs(60);
const ATTACH_PATIENCE: Duration = Duration::from_secs(60);

/// A volume that is attached for as long as this lives.
pub struct Engaged<'a> {
    _ticket: TicketGuard<'a>,
    pub admin: PathBuf,
    /// Device path, or a URI that libnbd understands.
    pub endpoint: String,
    pub status: EngineStatus,
    pub replicas: Vec<ReplicaAddress>,
    /// The unix socket that serves the volume over NBD, whatever its frontend is.
    pub nbd: PathBuf,
    pub uid: String,
}

/// Takes the ticket of a job back when the job is done, however it ends.
struct TicketGuard<'a> {
    service: &'a Service,
    volume: Name,
    ticket: Ticket,
}

impl Service {
    /// Also those that can't be read, with the reason.
    pub fn volumes(&self) -> Result<Vec<VolumeView>, ApiError> {
        let volumes = self.context.store.each::<Volume>()?;
        let processes = self.context.supervisor.list();
        // Each engine that doesn't answer would be waited for; who looks after it has asked lately.
        let seen = |name: &Name| self.context.board.get(name)?.engine;
        let view = |(name, volume): (String, Result<Volume, StoreError>)| match volume {
            Ok(volume) => Some(self.view(volume, &processes, seen)),
            Err(error) => Some(VolumeView::unreadable(name.parse().ok()?, chain(&error))),
        };
        Ok(volumes.into_iter().filter_map(view).collect())
    }

    pub fn volume(&self, name: &Name) -> Result<VolumeView, ApiError> {
        match self.context.store.read(name) {
            Ok(volume) => {
                let ask = |name: &Name| engine_status(&self.context, name);
                Ok(self.view(volume, &self.context.supervisor.list(), ask))
            }
            Err(error @ StoreError::Garbage { .. }) => {
                Ok(VolumeView::unreadable(name.clone(), chain(&error)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Answers when the replicas are formatted. If they can't be, nothing is left of the volume.
    pub fn create_volume(&self, request: &VolumeRequest) -> Result<VolumeView, ApiError> {
        let spec = request.validate()?;
        self.refuse_while_stopping()?;
        let name = &request.name;
        if self.context.store.find::<Volume>(name)?.is_some() {
            return Err(ApiError::conflict(format!("volume {name} exists already"))
                .next("choose another name"));
        }
        let places = self.places(name, &spec)?;
        let to_bytes = spec.size_bytes;
        Growth { volume: name, places: &places, from_bytes: 0, to_bytes }.refuse_impossible()?;
        let size_bytes = Some(to_bytes);
        let status =
            VolumeStatus { places, size_bytes, unformatted: true, ..VolumeStatus::default() };
        let uid = random_hex::<16>().map_err(|error| ApiError::failed(error.to_string()))?;
        self.context.store.add(&Volume { name: name.clone(), uid, spec, status })?;

        let failed = self.context.board.wait(name, FORMAT_PATIENCE, |observed| {
            let observed = observed?;
            match observed.state {
                State::Creating if observed.failures > 0 => Some(Some(observed.conditions.clone())),
                State::Creating | State::Deleting => None,
                _ => Some(None),
            }
        });
        let Some(conditions) = failed.flatten() else { return self.volume(name) };
        self.context.store.modify(name, |volume: &mut Volume| {
            volume.spec.deleting = true;
            Ok::<_, StoreError>(())
        })?;
        let is_gone = |observed: Option<&Observed>| observed.is_none().then_some(());
        let next = match self.context.board.wait(name, FORMAT_PATIENCE, is_gone) {
            Some(()) => "nothing was left behind: repair the cause and create it again".into(),
            None => format!("it is being removed; ankole volume why {name} says how far that is"),
        };
        let causes: Vec<_> = conditions.into_iter().map(|condition| condition.message).collect();
        Err(ApiError::failed(format!("volume {name}: {}", causes.join("; "))).next(next))
    }

    fn places(&self, name: &Name, spec: &VolumeSpec) -> Result<Vec<Place>, ApiError> {
        let disks = self.context.layout.disks().iter().map(|path| Disk {
            path: path.clone(),
            free_bytes: probe::free_bytes(path).unwrap_or(0),
        });
        let disks = schedule::place(spec.replicas, &disks.collect::<Vec<_>>());
        let ports = match spec.transport {
            Transport::Unix => vec![None; disks.len()],
            Transport::Tcp => free_ports(disks.len()).map_err(|error| {
                ApiError::failed(format!("volume {name}: find free ports: {error}"))
            })?,
        };
        let mut places = Vec::new();
        for (number, (disk, port)) in (1..).zip(disks.iter().zip(ports)) {
            let replica = ReplicaId::from(format!("r{number}").as_str());
            let directory = Layout::replica_directory(disk, name, &replica);
            let looked = std::fs::symlink_metadata(&directory);
            if !looked.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
                let directory = directory.display();
                return Err(ApiError::conflict(format!(
                    "volume {name}: {directory} is there already, and no volume knows it"
                ))
                .next(format!("ankole volume recover {name} --dry-run shows what it holds; or move it away, or choose another name")));
            }
            places.push(Place { replica, directory, port });
        }
        Ok(places)
    }

    /// Adds a ticket; doing it twice is the same as once.
    pub fn attach(
        &self,
        name: &Name,
        id: &str,
        kind: TicketKind,
        request: &AttachRequest,
    ) -> Result<VolumeView, ApiError> {
        self.refuse_while_stopping()?;
        let own = &self.context.node;
        if let Some(node) = request.node.as_ref().filter(|node| *node != own) {
            return Err(ApiError::not_found(format!("there is no node {node}"))
                .next(format!("this standalone is the node {own}; leave --node out")));
        }
        let ticket = Ticket { id: id.into(), kind, read_only: request.read_only };
        self.context.store.modify(name, |volume: &mut Volume| add_ticket(volume, &ticket))?;
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

    fn drop_ticket(&self, name: &Name, id: &str) -> Result<(), StoreError> {
        self.context.store.modify(name, |volume: &mut Volume| {
            volume.spec.tickets.retain(|ticket| ticket.id != id);
            Ok(())
        })
    }

    /// A volume that an earlier process was restoring holds a part of the backup, and nobody but
    /// the restore has ever had it: it goes.
    pub(super) fn drop_job_tickets(&self) -> Result<(), StoreError> {
        for volume in self.context.store.readable::<Volume>()? {
            self.context.store.modify(&volume.name, |volume: &mut Volume| {
                if is_being_restored(volume) {
                    tracing::warn!(volume = %volume.name, "its restore was broken off; it is removed");
                    volume.spec.deleting = true;
                }
                volume.spec.tickets.retain(|ticket| ticket.kind == TicketKind::User);
                Ok::<_, StoreError>(())
            })?;
        }
        Ok(())
    }

    /// Attaches the volume for a job, and waits until it can be used. Takes part in an attachment
    /// that is read-only: a job's own requests go to the engine, not through its frontend.
    pub fn engage(&self, name: &Name, kind: TicketKind) -> Result<Engaged<'_>, ApiError> {
        let tickets = self.volume(name)?.tickets;
        let read_only = !tickets.is_empty() && tickets.iter().all(|ticket| ticket.read_only);
        let random = random_hex::<8>().map_err(|error| ApiError::failed(error.to_string()))?;
        let ticket = Ticket { id: format!("{kind}-{random}"), kind, read_only };
        self.attach(name, &ticket.id, kind, &AttachRequest { read_only, node: None })?;
        let ticket = TicketGuard { service: self, volume: name.clone(), ticket };
        let attached = self.context.board.wait(name, ATTACH_PATIENCE, |observed| {
            let observed = observed.filter(|it| it.spec.tickets.contains(&ticket.ticket))?;
            if observed.state != State::Attached {
                return obstacle(name, &observed.conditions).map(Err);
            }
            let engine = observed.engine.clone()?;
            Some(Ok((engine.endpoint.clone()?, engine)))
        });
        let (endpoint, status) = attached.unwrap_or_else(|| Err(self.late(name)))?;
        let volume: Volume = self.context.store.read(name)?;
        let replicas = volume.status.places.iter().map(|place| ReplicaAddress {
            replica: place.replica.clone(),
            address: self.context.address(name, place),
        });
        Ok(Engaged {
            _ticket: ticket,
            admin: self.context.layout.admin(name),
            endpoint,
            status,
            replicas: replicas.collect(),
            nbd: self.context.layout.nbd(name),
            uid: volume.uid,
        })
    }

    fn late(&self, name: &Name) -> ApiError {
        let volume = self.volume(name).ok();
        let reasons = volume.iter().flat_map(|volume| explain(volume, now_unix_s()));
        let reasons = reasons.collect::<Vec<_>>().join(" ");
        let seconds = ATTACH_PATIENCE.as_secs();
        let late = format!("volume {name} wasn't attached in {seconds} s. {reasons}");
        ApiError::timed_out(late).next(format!("ankole volume why {name} says what it waits for"))
    }

    /// A volume only grows; what it hasn't become yet can be taken back. An attached one follows at
    /// once, another when it is attached.
    pub fn resize_volume(&self, name: &Name, size_bytes: u64) -> Result<VolumeView, ApiError> {
        let size = VolumeSize::of(size_bytes)
            .map_err(|error| ApiError::invalid(format!("volume {name}: {error}")))?;
        let present: Volume = self.context.store.read(name)?;
        let (places, from_bytes) = (&present.status.places, present.size_bytes());
        let to_bytes = size.bytes.max(from_bytes);
        Growth { volume: name, places, from_bytes, to_bytes }.refuse_impossible()?;
        self.context.store.modify(name, |volume: &mut Volume| {
            refuse_deleting(volume)?;
            if size.bytes < volume.size_bytes() {
                let present = human(volume.size_bytes());
                let wanted = human(size.bytes);
                return Err(ApiError::conflict(format!(
                    "volume {name} has {present} and would shrink to {wanted}"
                ))
                .next("create a smaller volume and copy the files"));
            }
            volume.spec.size_bytes = size.bytes;
            Ok(())
        })?;
        self.volume(name)
    }

    /// The engine hands over to one of another program, or of the same one anew.
    pub fn upgrade_engine(
        &self,
        name: &Name,
        request: &UpgradeRequest,
    ) -> Result<VolumeView, ApiError> {
        let checked = |path: &PathBuf| {
            program::check(path).map_err(|why| {
                ApiError::invalid(format!("volume {name}: {}: {why}", path.display()))
                    .next("name the absolute path of an ankole that runs on this node")
            })
        };
        let program = request.program.as_ref().map(checked).transpose()?;
        self.context.store.modify(name, |volume: &mut Volume| {
            refuse_deleting(volume)?;
            let jobs = volume.spec.tickets.iter().filter(|ticket| ticket.kind != TicketKind::User);
            if let Some(job) = jobs.map(|ticket| ticket.kind).next() {
                return Err(ApiError::conflict(format!("volume {name} has a running {job}"))
                    .next("wait until it is done: it reads from the engine"));
            }
            volume.spec.engine.program.clone_from(&program);
            volume.spec.engine.turn += 1;
            Ok(())
        })?;
        self.volume(name)
    }

    /// Makes a replica anew from the others; its directory is set aside. Answers at once.
    pub fn rebuild_replica(
        &self,
        name: &Name,
        replica: &ReplicaId,
    ) -> Result<VolumeView, ApiError> {
        self.refuse_while_stopping()?;
        let view = self.volume(name)?;
        if !view.replicas.iter().any(|it| it.replica == *replica) {
            return Err(ApiError::not_found(format!("volume {name} has no replica {replica}"))
                .next(format!("ankole replica ls {name}")));
        }
        let is_other = |it: &&ReplicaView| it.replica != *replica && it.mode == Mode::ReadWrite;
        if view.state != State::Attached {
            return Err(ApiError::conflict(format!(
                "volume {name} is {}: only an engine can rebuild a replica",
                view.state
            ))
            .next(format!("ankole volume attach {name}")));
        }
        if view.replicas.iter().find(is_other).is_none() {
            return Err(ApiError::conflict(format!(
                "replica {replica} of volume {name}: no other copy is in sync to rebuild it from"
            ))
            .next(format!("ankole volume why {name}")));
        }
        self.context.store.modify(name, |volume: &mut Volume| {
            refuse_deleting(volume)?;
            volume.spec.rebuild.insert(replica.clone());
            Ok::<_, ApiError>(())
        })?;
        self.volume(name)
    }

    /// Marks it; a controller removes everything and then the object.
    pub fn delete_volume(&self, name: &Name) -> Result<VolumeView, ApiError> {
        self.context.store.modify(name, |volume: &mut Volume| {
            if !volume.spec.tickets.is_empty() {
                let tickets: Vec<_> =
                    volume.spec.tickets.iter().map(|ticket| ticket.kind.to_string()).collect();
                let tickets = tickets.join(", ");
                return Err(ApiError::conflict(format!("volume {name} is attached ({tickets})"))
                    .next(format!("ankole volume detach {name}")));
            }
            volume.spec.deleting = true;
            Ok(())
        })?;
        self.volume(name)
    }

    pub fn replicas(&self, volume: Option<&Name>) -> Result<Vec<ReplicaView>, ApiError> {
        let volumes = match volume {
            Some(name) => vec![self.volume(name)?],
            None => self.volumes()?,
        };
        Ok(volumes.into_iter().flat_map(|volume| volume.replicas).collect())
    }

    /// `status` says what the volume's engine says of itself.
    fn view(
        &self,
        volume: Volume,
        processes: &[Process],
        status: impl Fn(&Name) -> Option<EngineStatus>,
    ) -> VolumeView {
        let name = &volume.name;
        let process_of = |part: &Part| {
            let mut own = processes.iter().filter(|process| &process.spec.name.volume == name);
            own.find(|process| &process.spec.name.part == part)
        };
        let engine_process = process_of(&Part::Engine);
        let engine = engine_process.and_then(|_| status(name));
        let observed = self.context.board.get(name);
        let record = volume.status.record.as_ref();

        let replicas = volume.status.places.iter().map(|place| {
            let process = process_of(&Part::Replica(place.replica.clone()));
            let seen = engine.as_ref().and_then(|engine| {
                engine.replicas.iter().find(|replica| replica.replica == place.replica)
            });
            ReplicaView {
                volume: name.clone(),
                replica: place.replica.clone(),
                mode: seen.map_or(Mode::None, |seen| seen.mode.into()),
                in_sync: record.is_some_and(|record| {
                    record.in_sync.iter().any(|member| member.replica == place.replica)
                }),
                node: self.context.node.clone(),
                directory: place.directory.clone(),
                address: process.map(address_of),
                pid: process.map(|process| process.pid),
                used_bytes: observed
                    .as_ref()
                    .and_then(|observed| observed.used_bytes.get(&place.replica).copied()),
                reason: seen.and_then(|seen| seen.reason.clone()),
                rebuild: seen.and_then(|seen| seen.rebuild),
                rebuild_seconds_left: seen.and_then(|seen| seconds_left(seen.rebuild.as_ref()?)),
            }
        });
        let replicas = replicas.collect();
        let mut state = observed.as_ref().map_or(State::Detached, |observed| observed.state);
        let wants_to_go = volume.spec.tickets.is_empty() && volume.status.attachment.is_some();
        if volume.spec.deleting {
            state = State::Deleting;
        } else if volume.status.unformatted {
            state = State::Creating;
        } else if wants_to_go {
            // The controller may not have looked yet.
            state = State::Detaching;
        } else if state == State::Detached && !volume.spec.tickets.is_empty() {
            state = State::Attaching;
        }
        let mut conditions = observed.as_ref().map_or_else(Vec::new, |it| it.conditions.clone());
        let wanted_bytes = volume.spec.size_bytes;
        if observed.as_ref().is_some_and(|observed| observed.spec.size_bytes != wanted_bytes) {
            conditions.retain(|it| it.reason != Reason::CantGrow); // of another wish
        }
        let usable = engine.as_ref().filter(|engine| engine.endpoint.is_some());
        let size_bytes = usable.map_or(volume.size_bytes(), |engine| engine.size_bytes);
        let driver = volume.status.attachment.as_ref().and_then(Attachment::driver);
        conditions.extend(driver.and_then(|driver| self.lost_driver(driver)));
        let endpoint = engine.as_ref().and_then(|engine| engine.endpoint.clone());
        if state == State::Attached && endpoint.is_none() {
            state = State::Attaching;
        }
        VolumeView {
            state,
            robustness: Robustness::of(volume.spec.replicas, engine.as_ref()),
            size_bytes,
            wanted_bytes: Some(wanted_bytes).filter(|wanted| *wanted > size_bytes),
            frontend: volume.spec.frontend,
            better_frontends: self.better_frontends(&volume),
            endpoint: endpoint.filter(|_| state == State::Attached),
            node: engine_process.map(|_| self.context.node.clone()),
            engine_pid: engine_process.map(|process| process.pid),
            engine_version: engine.as_ref().and_then(|engine| engine.version.clone()),
            clients: engine.as_ref().map_or(0, |engine| engine.clients),
            damage: engine.as_ref().map_or_else(Damage::default, |engine| engine.damage.clone()),
            unverified_bytes: engine.as_ref().map_or(0, |engine| engine.unverified_bytes),
            unsettled_bytes: engine.as_ref().map_or(0, |engine| engine.unsettled_bytes),
            waiting_since_unix_s: engine
                .as_ref()
                .filter(|engine| !engine.waiting.is_empty())
                .and_then(|_| observed.as_ref()?.waiting_since_unix_s),
            waiting: engine.map_or_else(Vec::new, |engine| engine.waiting),
            conditions,
            tickets: volume.spec.tickets,
            record: volume.status.record,
            replicas,
            uid: volume.uid,
            name: volume.name,
        }
    }

    /// Empty while it isn't attached, or if its frontend was asked for.
    fn better_frontends(&self, volume: &Volume) -> Vec<Finding> {
        let attachment = volume.status.attachment.as_ref();
        let Some(attachment) = attachment.filter(|_| volume.spec.frontend == Frontend::Auto) else {
            return Vec::new();
        };
        let has = attachment.driver().map_or("socket".into(), |driver| driver.to_string());
        let findings = self.context.frontends.capabilities().into_iter().map(|it| it.finding);
        findings.take_while(|finding| finding.name != has).collect()
    }

    /// A volume's device goes on as long as its engine lives.
    fn lost_driver(&self, driver: Driver) -> Option<Condition> {
        let lost = self.context.frontends.lost(&driver.to_string())?;
        let message = format!(
            "this node has lost {}: {}; if the engine ends, no other can take the device over",
            lost.finding.name, lost.finding.detail
        );
        let mut condition = Condition::new(Reason::NoFrontend, message);
        condition.since_unix_s = Some(lost.since_unix_s);
        Some(condition.next(lost.finding.next.unwrap_or_else(|| "bring the driver back".into())))
    }

    pub fn is_stopping(&self) -> bool {
        self.context.is_stopping()
    }

    pub(super) fn refuse_while_stopping(&self) -> Result<(), ApiError> {
        if self.context.is_stopping() {
            return Err(ApiError::conflict("this standalone is ending"));
        }
        Ok(())
    }
}

impl Drop for TicketGuard<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.service.drop_ticket(&self.volume, &self.ticket.id) {
            // The next start of the manager takes it back.
            tracing::warn!(volume = %self.volume, %error, "take back the ticket of a job");
        }
    }
}

fn add_ticket(volume: &mut Volume, ticket: &Ticket) -> Result<(), ApiError> {
    let name = &volume.name;
    refuse_deleting(volume)?;
    if volume.status.unformatted {
        return Err(ApiError::conflict(format!("volume {name} is still being created"))
            .next(format!("ankole volume why {name} says what it waits for")));
    }
    if volume.status.record.is_none() {
        let lost = format!("volume {name} has lost its record of who is in sync");
        return Err(ApiError::conflict(lost).next(salvage_hint(name)));
    }
    if is_being_restored(volume) {
        return Err(ApiError::conflict(format!("volume {name} is being restored"))
            .next("wait until it holds everything"));
    }
    if let Some(driver) = volume.spec.frontend.forced_driver()
        && volume.spec.tickets.is_empty()
        && let Some(obstacle) = probe::obstacle(driver)
    {
        let why = obstacle.detail;
        let error = ApiError::conflict(format!(
            "volume {name}: this node can't make a device of {driver} now: {why}"
        ));
        let look = || "ankole check says what is missing".to_owned();
        return Err(error.next(obstacle.next.unwrap_or_else(look)));
    }
    let tickets = &mut volume.spec.tickets;
    let read_only_now = !tickets.is_empty() && tickets.iter().all(|ticket| ticket.read_only);
    if read_only_now && !ticket.read_only {
        return Err(ApiError::conflict(format!("volume {name} is attached read-only"))
            .next(format!("ankole volume detach {name}, then attach it again")));
    }
    if let Some(writer) = tickets.iter().find(|present| !present.read_only && ticket.read_only) {
        let kind = writer.kind;
        let error = ApiError::conflict(format!(
            "volume {name} is attached to be written ({kind}); its device can't refuse writes"
        ));
        return Err(error.next(format!("once it is detached, attach {name} again")));
    }
    if !tickets.iter().any(|present| present.id == ticket.id) {
        tickets.push(ticket.clone());
    }
    Ok(())
}

fn is_being_restored(volume: &Volume) -> bool {
    volume.spec.tickets.iter().any(|ticket| ticket.kind == TicketKind::Restore)
}

pub(super) fn refuse_deleting(volume: &Volume) -> Result<(), ApiError> {
    if volume.spec.deleting {
        return Err(ApiError::conflict(format!("volume {} is being deleted", volume.name)));
    }
    Ok(())
}

/// Bound all at once, so that they differ, and let go.
fn free_ports(count: usize) -> std::io::Result<Vec<Option<u16>>> {
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(Some(listener.local_addr()?.port()))).collect()
}
