//! Doing what was planned for an engine. Nothing here decides.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ankole_api::Name;
use ankole_api::error::chain;
use ankole_api::object::Spec;
use ankole_api::objects::{Engine, ReplicaSpec, Volume, VolumeSpec};
use ankole_api::volume::{Attachment, Device};
use ankole_blockdev::device::{self, DeviceError, Driver};
use ankole_blockdev::tgt;
use ankole_plan::node::engine::{DETACH_PATIENCE, EngineAction, EngineStart};
use ankole_plan::node::facts::EngineFacts;
use ankole_replica::admin::Request;
use ankole_replica::record::{Change, EngineGrant, InstanceId};
use ankole_store::{Raw, Selector};
use tokio::sync::mpsc;

use super::memory::Memory;
use super::{EnginePart, INSTANCE_LABEL, TURN_LABEL};
use crate::admin::{self, AdminError};
use crate::device_link::{self, FOLDER};
use crate::growth::Growth;
use crate::node::part::PassError;
use crate::node::{Node, Told};
use crate::supervisor::{ProcessName, ProcessSpec, Signal, SupervisorError};

const KILL_PATIENCE: Duration = Duration::from_secs(10);
const KILL_LOOK: Duration = Duration::from_millis(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const DETACH_RETRY: Duration = Duration::from_millis(200);

impl EnginePart {
    pub(super) async fn perform(
        &mut self,
        facts: &EngineFacts,
        action: &EngineAction,
        back: &mpsc::WeakUnboundedSender<Told>,
    ) -> Result<(), PassError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| PassError::Action {
            action: action.to_string(),
            source,
        };
        match action {
            EngineAction::Grant { instance, attach_epoch, attachment } => {
                self.grant(facts, instance, *attach_epoch, attachment).await
            }
            EngineAction::ClearAttachment => {
                self.memory.left = false;
                self.clear_attachment(facts).await
            }
            EngineAction::Start(start) => {
                let Some(engine) = &facts.engine else { return Ok(()) };
                self.start(engine, start).await?.map_err(|error| failed(error.into()))
            }
            EngineAction::Kill => self.kill().await.map_err(failed),
            EngineAction::Detach => {
                self.ask_to_end(Request::Detach, back);
                Ok(())
            }
            EngineAction::HandOver => {
                self.ask_to_end(Request::HandOver, back);
                Ok(())
            }
            EngineAction::StopDevice(device) => {
                let Some(volume) = facts.volume.clone() else { return Ok(()) };
                let (node, device) = (Arc::clone(&self.node), *device);
                let stopped =
                    self.node.places.of_node(move || stop_device(&node, &volume, device)).await?;
                stopped.map_err(|error| failed(error.into()))
            }
            EngineAction::Expand { size_bytes } => {
                self.refuse_impossible(facts, *size_bytes).await?;
                self.ask(Request::Expand { size_bytes: *size_bytes }).await?.map_err(failed)
            }
            EngineAction::SetReplicas(replicas) => {
                self.ask(Request::SetReplicas { replicas: replicas.clone() }).await?.map_err(failed)
            }
        }
    }

    /// The record and the attachment change together, and with the version of the volume that says
    /// which node may: a crash between them would take a client that survived for none.
    async fn grant(
        &self,
        facts: &EngineFacts,
        instance: &InstanceId,
        attach_epoch: u64,
        attachment: &Attachment,
    ) -> Result<(), PassError> {
        let Some(mut volume) = facts.volume.clone() else { return Ok(()) };
        let Some(record) = &volume.status.record else { return Ok(()) };
        let engine = EngineGrant { node: self.node.name.clone(), instance: instance.clone() };
        let granted = record.after(record.generation, Change::Grant { engine, attach_epoch });
        let granted = granted.map_err(|error| PassError::Action {
            action: "grant to the engine".into(),
            source: error.into(),
        })?;
        volume.status.record = Some(granted);
        volume.status.attachment = Some(attachment.clone());
        self.node.store.replace_status_raw(VolumeSpec::KIND, Raw::of(&volume)).await?;
        Ok(())
    }

    async fn clear_attachment(&self, facts: &EngineFacts) -> Result<(), PassError> {
        let Some(mut volume) = facts.volume.clone() else { return Ok(()) };
        let device = volume.status.attachment.as_ref().and_then(|it| it.device);
        let identity = volume.identity_of(device);
        let attachment = volume.status.attachment.take();
        if attachment.and_then(|it| it.driver()) == Some(Driver::Tgt) {
            let socket = self.node.layout.nbd(&self.name);
            let cleaned =
                self.node.places.of_node(move || tgt::clean_up(&identity, &socket)).await?;
            cleaned.map_err(|error| PassError::Action {
                action: "clean up after the engine's target".into(),
                source: error.into(),
            })?;
        }
        self.node.store.replace_status_raw(VolumeSpec::KIND, Raw::of(&volume)).await?;
        Ok(())
    }

    /// By the replicas on this node; the engine asks the others.
    async fn refuse_impossible(&self, facts: &EngineFacts, to_bytes: u64) -> Result<(), PassError> {
        let Some(volume) = &facts.volume else { return Ok(()) };
        let own = Selector::on_node(&self.node.name);
        let replicas = self.node.store.list::<ReplicaSpec>(&own).await?.objects;
        let specs = replicas.into_iter().flatten().map(|replica| replica.spec);
        let of_volume = specs.filter(|spec| spec.volume_uid == volume.metadata.uid);
        let directories: Vec<_> = of_volume.map(|spec| spec.directory()).collect();
        let said = facts.process.as_ref().and_then(|process| process.status.as_ref());
        let from_bytes = said.map_or(0, |said| said.size_bytes);
        let volume = self.name.clone();
        let refused = self.node.places.of_node(move || {
            let growth =
                Growth { volume: &volume, directories: &directories, from_bytes, to_bytes };
            growth.refuse_impossible()
        });
        refused.await?.map_err(PassError::NoRoom)
    }

    async fn start(
        &mut self,
        engine: &Engine,
        start: &EngineStart,
    ) -> Result<Result<(), SupervisorError>, PassError> {
        let layout = &self.node.layout;
        let path = |path: &Path| path.display().to_string();
        let frontend = start.driver.map_or("socket".to_owned(), |driver| driver.to_string());
        let mut options = vec![
            ("--volume", self.name.to_string()),
            ("--node", self.node.name.clone()),
            ("--instance", start.instance.0.clone()),
            ("--arbiter", path(&layout.arbiter())),
            ("--admin", path(&layout.admin(&self.name))),
            ("--frontend", frontend),
            ("--socket", path(&layout.nbd(&self.name))),
            ("--identity", start.identity.clone()),
        ];
        for replica in &engine.spec.replicas {
            let (id, address) = (&replica.replica, &replica.address);
            options.push(("--replica", format!("{id}={address}")));
            if address.starts_with("dir:") {
                // Backups read it there.
                let socket = layout.replica_socket(&self.name, id);
                options.push(("--serve-local", format!("{id}=unix:{}", socket.display())));
            }
        }
        options.extend(start.device.map(|device| ("--device", device.number().to_string())));
        let flags = [(start.recover, "--recover"), (start.read_only, "--read-only")];
        let flags = flags.into_iter().filter(|(is_on, _)| *is_on).map(|(_, flag)| flag.to_owned());
        let options = options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
        let role = ["engine", "run"].map(str::to_owned);
        let name = ProcessName::engine(&self.name);
        let log = layout.log(&name);
        let labels = BTreeMap::from([
            (INSTANCE_LABEL.into(), start.instance.0.clone()),
            (TURN_LABEL.into(), engine.spec.turn.to_string()),
        ]);
        let program = engine.spec.program.clone().unwrap_or_else(|| self.node.program.clone());
        let args = role.into_iter().chain(options).chain(flags).collect();
        let spec = ProcessSpec { name, program, args, log: log.clone(), labels };
        let node = Arc::clone(&self.node);
        let launched = self.node.places.of_node(move || {
            node.layout.remove_sockets(&spec.name);
            let begins = fs::metadata(&spec.log).map_or(0, |log| log.len());
            node.supervisor.start(spec).map(|_| begins)
        });
        let begins = match launched.await? {
            Ok(begins) => begins,
            Err(error) => return Ok(Err(error)),
        };
        let mut past = std::mem::take(&mut self.memory.past);
        past.started(log, begins);
        let (device, unserved) = (start.device, self.memory.unserved);
        self.memory = Memory { past, device, unserved, ..Memory::default() };
        Ok(Ok(()))
    }

    async fn kill(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.memory.was_killed = true;
        self.memory.past.ask_to_end();
        let name = ProcessName::engine(&self.name);
        self.node.supervisor.signal(&name, Signal::Kill);
        let deadline = Instant::now() + KILL_PATIENCE;
        while self.node.supervisor.find(&name).is_some() {
            if Instant::now() > deadline {
                let seconds = KILL_PATIENCE.as_secs();
                return Err(format!("the killed engine hasn't ended after {seconds} s").into());
            }
            tokio::time::sleep(KILL_LOOK).await;
        }
        Ok(())
    }

    async fn ask(
        &self,
        request: Request,
    ) -> Result<Result<(), Box<dyn std::error::Error + Send + Sync>>, PassError> {
        let socket = self.node.layout.admin(&self.name);
        let asked = admin::ask_async(&socket, &request, REQUEST_TIMEOUT).await;
        Ok(asked.map(drop).map_err(Into::into))
    }

    /// By a task of its own: the answer comes when everything is flushed.
    fn ask_to_end(&mut self, how: Request, back: &mpsc::WeakUnboundedSender<Told>) {
        self.memory.past.ask_to_end();
        let (node, name, back) = (Arc::clone(&self.node), self.name.clone(), back.clone());
        tokio::spawn(async move {
            if let Some(why) = ask_to_end(&node, &name, &how).await
                && let Some(task) = back.upgrade()
            {
                let _ = task.send(Told::Refused(why));
            }
        });
    }
}

/// Until it is understood, refused (with the reason), or the engine is gone.
async fn ask_to_end(node: &Node, volume: &Name, how: &Request) -> Option<String> {
    let socket = node.layout.admin(volume);
    let name = ProcessName::engine(volume);
    let deadline = Instant::now() + DETACH_PATIENCE;
    while Instant::now() < deadline {
        match admin::ask_async(&socket, how, DETACH_PATIENCE).await {
            Ok(_) => return None,
            Err(AdminError::NoAnswer(_)) if node.supervisor.find(&name).is_none() => return None,
            Err(AdminError::NoAnswer(_)) => tokio::time::sleep(DETACH_RETRY).await,
            Err(AdminError::Refused { message, .. }) => return Some(message),
            Err(error) => {
                tracing::warn!(%volume, error = chain(&error), "the engine doesn't detach");
                return None;
            }
        }
    }
    None
}

/// Of a volume without an engine here: its requests get errors, and it goes.
pub(in crate::node) fn stop_device(
    node: &Node,
    volume: &Volume,
    it: Device,
) -> Result<(), DeviceError> {
    let (identity, socket) = (volume.identity_of(Some(it)), node.layout.nbd(volume.name()));
    let marked = device::Volume { identity: &identity, socket: &socket };
    // Before it goes, since another volume may get its number at once.
    if let Some(path) = device::path_of(it.driver(), it.number(), marked)
        && let Err(error) = device_link::remove(Path::new(FOLDER), volume.name(), &path)
    {
        tracing::warn!(volume = %volume.name(), %error, "a link in {FOLDER} is left");
    }
    device::stop(it.driver(), it.number(), marked)
}
