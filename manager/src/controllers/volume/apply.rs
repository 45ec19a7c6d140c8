//! Doing what was planned. Nothing here decides; nothing waits long, but for a killed engine.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ankole_blockdev::device::{DeviceError, Driver};
use ankole_blockdev::tgt::{self, TgtError};
use ankole_replica::admin::Request;
use ankole_replica::inspect::inspect;
use ankole_replica::record::{Change, EngineGrant, InstanceId, Member, Record};
use ankole_replica::types::ReplicaId;

use super::growth::Growth;
use super::{Memory, devices};
use crate::agent::admin::AdminError;
use crate::agent::format::FormatError;
use crate::agent::set_aside;
use crate::agent::supervisor::{Signal, SupervisorError};
use crate::agent::{Part, ProcessName, ProcessSpec, admin};
use crate::api::replica::Place;
use crate::api::volume::{Attachment, Device, Volume};
use crate::api::{ApiError, Name};
use crate::controllers::{ADDRESS_LABEL, Context, INSTANCE_LABEL, TURN_LABEL};
use crate::records::RecordError;
use crate::store::StoreError;
use ankole_plan::one_node::action::{Action, EngineStart};
use ankole_plan::one_node::plan::{DETACH_PATIENCE, Plan};

const KILL_PATIENCE: Duration = Duration::from_secs(10);
const EXPAND_TIMEOUT: Duration = Duration::from_secs(30);
const DETACH_RETRY: Duration = Duration::from_millis(200);

/// What became of a plan.
pub(super) struct Applied {
    pub(super) plan: Plan,
    pub(super) done: usize,
    pub(super) failed: Option<(Action, ApplyError)>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error("format replica {replica} in {directory}")]
    Format { replica: ReplicaId, directory: PathBuf, source: FormatError },
    #[error("remove {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("replica {replica} isn't formatted: {directory} may hold data, and is left as it is")]
    MayHoldData { replica: ReplicaId, directory: PathBuf },
    #[error("set {path} aside")]
    SetAside { path: PathBuf, source: io::Error },
    #[error("stop device {device}, which has no engine")]
    StopDevice { device: Device, source: DeviceError },
    #[error("end what tgt has of the volume")]
    CleanUp(#[source] TgtError),
    #[error("the killed engine hasn't ended after {} s", KILL_PATIENCE.as_secs())]
    StillThere,
    #[error("replica {replica} has no place")]
    NoPlace { replica: ReplicaId },
    #[error(transparent)]
    Expand(AdminError),
    #[error(transparent)]
    NoRoom(ApiError),
    #[error(transparent)]
    Start(#[from] SupervisorError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(super) fn apply(
    context: &Arc<Context>,
    volume: &Volume,
    plan: Plan,
    memory: &mut Memory,
) -> Applied {
    let mut hands = Hands { context, volume, memory };
    let mut done = 0;
    for action in &plan.actions {
        tracing::info!(volume = %volume.name, "{action}");
        if let Err(error) = hands.perform(action) {
            let failed = Some((action.clone(), error));
            return Applied { plan, done, failed };
        }
        done += 1;
    }
    Applied { plan, done, failed: None }
}

struct Hands<'a> {
    context: &'a Arc<Context>,
    volume: &'a Volume,
    memory: &'a mut Memory,
}

impl Hands<'_> {
    fn perform(&mut self, action: &Action) -> Result<(), ApplyError> {
        let name = &self.volume.name;
        match action {
            Action::FormatAll => self.format_all(),
            Action::FormatReplica(replica) => {
                self.format(self.place(replica)?)?;
                self.change_volume(|volume| {
                    volume.spec.rebuild.remove(replica);
                })
            }
            Action::SetAside(replica) => {
                let directory = &self.place(replica)?.directory;
                let failed = |source| ApplyError::SetAside { path: directory.clone(), source };
                set_aside::set_aside(directory).map_err(failed)
            }
            Action::StartReplica(replica) => self.start_replica(replica),
            Action::EndReplica(replica) => {
                self.end(Part::Replica(replica.clone()), Signal::Terminate);
                Ok(())
            }
            Action::KillReplica(replica) => {
                self.end(Part::Replica(replica.clone()), Signal::Kill);
                Ok(())
            }
            Action::Grant { instance, attach_epoch, attachment } => {
                self.grant(instance, *attach_epoch, attachment)
            }
            Action::StartEngine(start) => self.start_engine(start),
            Action::DetachEngine => {
                self.ask_to_end(Request::Detach);
                Ok(())
            }
            Action::StopDevice(it) => {
                let stopped = devices::stop(self.context, self.volume, *it);
                stopped.map_err(|source| ApplyError::StopDevice { device: *it, source })
            }
            Action::HandOverEngine => {
                self.ask_to_end(Request::HandOver);
                Ok(())
            }
            Action::KillEngine => self.kill_engine(),
            Action::Expand { size_bytes } => self.expand(*size_bytes),
            Action::NoteSize { size_bytes } => self.change_volume(|volume| {
                volume.status.size_bytes = Some(*size_bytes);
                volume.spec.size_bytes = volume.spec.size_bytes.max(*size_bytes);
            }),
            Action::ClearAttachment => {
                self.memory.engine_left = false;
                self.clean_up()?;
                self.change_volume(|volume| volume.status.attachment = None)
            }
            Action::RemoveDirectories => self.remove_directories(),
            Action::Forget => {
                Ok(self.context.store.remove::<Volume, StoreError>(name, |_| Ok(()))?)
            }
        }
    }

    /// What lies there is half of an earlier attempt, or isn't ours to touch.
    fn format_all(&self) -> Result<(), ApplyError> {
        let places = &self.volume.status.places;
        places.iter().try_for_each(refuse_what_may_hold_data)?;
        let mut in_sync = Vec::new();
        for place in places {
            remove_directory(&place.directory)?;
            in_sync.push(self.format(place)?);
        }
        let record = Record::first(in_sync);
        self.change_volume(|volume| {
            volume.status.record.get_or_insert_with(|| record.clone());
            volume.status.unformatted = false;
        })
    }

    /// Without a record nobody knows what the directories are worth: those that may hold data stay.
    fn remove_directories(&self) -> Result<(), ApplyError> {
        let is_known = self.volume.status.record.is_some();
        for Place { directory, .. } in &self.volume.status.places {
            if is_known || inspect(directory).holds_nothing() {
                remove_directory(directory)?;
            } else {
                let directory = directory.display();
                tracing::warn!(volume = %self.volume.name, %directory, "it may hold data: it stays");
            }
        }
        Ok(())
    }

    fn format(&self, place: &Place) -> Result<Member, ApplyError> {
        refuse_what_may_hold_data(place)?;
        let Place { replica, directory, .. } = place;
        let size_bytes = self.volume.size_bytes();
        let formatted = (self.context.format)(directory, &self.volume.name, replica, size_bytes);
        let incarnation = formatted.map_err(|source| ApplyError::Format {
            replica: replica.clone(),
            directory: directory.clone(),
            source,
        })?;
        Ok(Member { replica: replica.clone(), incarnation })
    }

    fn expand(&self, to_bytes: u64) -> Result<(), ApplyError> {
        let Volume { name, status, .. } = self.volume;
        let (places, from_bytes) = (&status.places, self.volume.size_bytes());
        let growth = Growth { volume: name, places, from_bytes, to_bytes };
        growth.refuse_impossible().map_err(ApplyError::NoRoom)?;
        let request = Request::Expand { size_bytes: to_bytes };
        let asked = admin::ask(&self.context.layout.admin(name), &request, EXPAND_TIMEOUT);
        asked.map(drop).map_err(ApplyError::Expand)
    }

    fn start_replica(&mut self, replica: &ReplicaId) -> Result<(), ApplyError> {
        let place = self.place(replica)?;
        let name = &self.volume.name;
        let address = self.context.address(name, place);
        let args = [
            ("--dir", place.directory.display().to_string()),
            ("--volume", name.to_string()),
            ("--replica", replica.to_string()),
            ("--listen", address.clone()),
        ];
        let labels = BTreeMap::from([(ADDRESS_LABEL.into(), address)]);
        self.start(ProcessName::replica(name, replica), ["replica", "serve"], &args, &[], labels)
    }

    fn start_engine(&mut self, start: &EngineStart) -> Result<(), ApplyError> {
        let name = &self.volume.name;
        let layout = &self.context.layout;
        let path = |path: PathBuf| path.display().to_string();
        let frontend = start.driver.map_or("socket".to_owned(), |driver| driver.to_string());
        let mut args = vec![
            ("--volume", name.to_string()),
            ("--node", self.context.node.clone()),
            ("--instance", start.instance.0.clone()),
            ("--arbiter", path(layout.arbiter())),
            ("--admin", path(layout.admin(name))),
            ("--frontend", frontend),
            ("--socket", path(layout.nbd(name))),
            ("--identity", start.identity.clone()),
        ];
        for place in &self.volume.status.places {
            let replica = &place.replica;
            let served = self.context.address(name, place);
            if self.volume.spec.in_engine {
                let directory = place.directory.display();
                args.push(("--replica", format!("{replica}=dir:{directory}")));
                args.push(("--serve-local", format!("{replica}={served}")));
            } else {
                args.push(("--replica", format!("{replica}={served}")));
            }
        }
        args.extend(start.device.map(|device| ("--device", device.number().to_string())));
        let mut flags = vec![];
        flags.extend(start.recover.then_some("--recover"));
        flags.extend(start.read_only.then_some("--read-only"));
        let labels = BTreeMap::from([
            (INSTANCE_LABEL.into(), start.instance.0.clone()),
            (TURN_LABEL.into(), self.volume.spec.engine.turn.to_string()),
        ]);
        self.memory.engine_left = false;
        self.start(ProcessName::engine(name), ["engine", "run"], &args, &flags, labels)
    }

    fn start(
        &mut self,
        name: ProcessName,
        role: [&str; 2],
        options: &[(&str, String)],
        flags: &[&str],
        labels: BTreeMap<String, String>,
    ) -> Result<(), ApplyError> {
        self.context.layout.remove_sockets(&name);
        let options = options.iter().flat_map(|(option, value)| [(*option).into(), value.clone()]);
        let flags = flags.iter().map(|flag| (*flag).into());
        let args = role.map(String::from).into_iter().chain(options).chain(flags).collect();
        let log = self.context.layout.log(&name);
        let begins = fs::metadata(&log).map_or(0, |log| log.len());
        let part = name.part.clone();
        let chosen = self.volume.spec.engine.program.clone();
        let program = chosen.filter(|_| part == Part::Engine);
        let program = program.unwrap_or_else(|| self.context.program.clone());
        let spec = ProcessSpec { name, program, args, log: log.clone(), labels };
        self.context.supervisor.start(spec)?;
        self.memory.started(part, (log, begins));
        Ok(())
    }

    /// The record and the attachment change together: a crash between them would make the next
    /// pass take a client that survived for none.
    fn grant(
        &self,
        instance: &InstanceId,
        attach_epoch: u64,
        attachment: &Attachment,
    ) -> Result<(), ApplyError> {
        let engine = EngineGrant { node: self.context.node.clone(), instance: instance.clone() };
        self.context.store.modify(&self.volume.name, |volume: &mut Volume| {
            let name = || volume.name.to_string();
            let record = volume.status.record.as_ref();
            let record = record.ok_or_else(|| RecordError::NoRecord { volume: name() })?;
            let change = Change::Grant { engine: engine.clone(), attach_epoch };
            let granted = record.after(record.generation, change).map_err(RecordError::from)?;
            volume.status.record = Some(granted);
            volume.status.attachment = Some(attachment.clone());
            Ok::<_, ApplyError>(())
        })
    }

    /// After an engine that died before it had made its device.
    fn clean_up(&self) -> Result<(), ApplyError> {
        let attachment = self.volume.status.attachment.as_ref();
        if attachment.and_then(Attachment::driver) != Some(Driver::Tgt) {
            return Ok(());
        }
        let identity = devices::identity(self.volume);
        let socket = self.context.layout.nbd(&self.volume.name);
        tgt::clean_up(&identity, &socket).map_err(ApplyError::CleanUp)
    }

    /// On a thread of its own: the answer comes when everything is flushed.
    fn ask_to_end(&mut self, how: Request) {
        self.memory.ask_to_end(Part::Engine);
        let (context, name) = (Arc::clone(self.context), self.volume.name.clone());
        thread::spawn(move || ask_to_end(&context, &name, &how));
    }

    fn kill_engine(&mut self) -> Result<(), ApplyError> {
        self.memory.engine_killed = true;
        self.end(Part::Engine, Signal::Kill);
        let name = ProcessName::engine(&self.volume.name);
        if self.context.supervisor.wait(&name, KILL_PATIENCE) {
            Ok(())
        } else {
            Err(ApplyError::StillThere)
        }
    }

    fn end(&mut self, part: Part, signal: Signal) {
        self.memory.ask_to_end(part.clone());
        let name = ProcessName { volume: self.volume.name.clone(), part };
        self.context.supervisor.signal(&name, signal);
    }

    fn place(&self, replica: &ReplicaId) -> Result<&Place, ApplyError> {
        let mut places = self.volume.status.places.iter();
        let found = places.find(|place| &place.replica == replica);
        found.ok_or_else(|| ApplyError::NoPlace { replica: replica.clone() })
    }

    fn change_volume(&self, change: impl Fn(&mut Volume)) -> Result<(), ApplyError> {
        self.context.store.modify(&self.volume.name, |volume| {
            change(volume);
            Ok::<_, ApplyError>(())
        })
    }
}

/// Until it is understood, refused, or the engine is gone.
fn ask_to_end(context: &Context, volume: &Name, how: &Request) {
    let socket = context.layout.admin(volume);
    let name = ProcessName::engine(volume);
    let deadline = Instant::now() + DETACH_PATIENCE;
    while Instant::now() < deadline {
        match admin::ask(&socket, how, DETACH_PATIENCE) {
            Ok(_) => return,
            Err(AdminError::NoAnswer(_)) if context.supervisor.wait(&name, DETACH_RETRY) => return,
            Err(AdminError::NoAnswer(_)) => {}
            Err(AdminError::Refused { message, .. }) => return context.refused(volume, message),
            Err(error) => {
                tracing::warn!(%volume, %error, "the engine doesn't detach");
                return;
            }
        }
    }
}

/// Looks into it, whatever was known of it before.
fn refuse_what_may_hold_data(place: &Place) -> Result<(), ApplyError> {
    let Place { replica, directory, .. } = place;
    if inspect(directory).holds_nothing() {
        return Ok(());
    }
    Err(ApplyError::MayHoldData { replica: replica.clone(), directory: directory.clone() })
}

fn remove_directory(path: &Path) -> Result<(), ApplyError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ApplyError::Remove { path: path.into(), source })
        }
        _ => Ok(()),
    }
}
