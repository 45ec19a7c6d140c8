//! What is true of a volume on this machine right now.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use ankole_blockdev::device::DeviceError;
use ankole_replica::admin::{Answer, EngineStatus, Request};
use ankole_replica::inspect;
use ankole_replica::record::InstanceId;

use super::{Memory, devices};
use crate::agent::admin::AdminError;
use crate::agent::layout::random_hex;
use crate::agent::set_aside;
use crate::agent::{Part, Process, ProcessName, admin};
use crate::api::Name;
use crate::api::volume::Volume;
use crate::controllers::{ADDRESS_LABEL, Context, INSTANCE_LABEL, TURN_LABEL};
use crate::store::StoreError;
use ankole_plan::one_node::seen::{
    DirectorySeen, EngineSeen, History, ReplicaProcess, ReplicaSeen, Seen,
};

const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("look for the volume's device")]
    Device(#[from] DeviceError),
    #[error("make an instance's name")]
    Random(#[source] std::io::Error),
}

/// None if the volume doesn't exist any more.
pub fn gather(
    context: &Context,
    name: &Name,
    memory: &Memory,
) -> Result<Option<Seen>, GatherError> {
    let Some(volume) = context.store.find::<Volume>(name)? else { return Ok(None) };
    let processes: Vec<_> = context
        .supervisor
        .list()
        .into_iter()
        .filter(|process| &process.spec.name.volume == name)
        .collect();
    let process_of = |part: &Part| processes.iter().find(|process| &process.spec.name.part == part);

    let history = |part: &Part| {
        let name = ProcessName { volume: name.clone(), part: part.clone() };
        History { doubt: context.supervisor.doubt(&name), ..memory.history(part) }
    };

    let asked = process_of(&Part::Engine).map(|_| ask_status(context, name));
    let is_reachable = !matches!(&asked, Some(Err(error)) if error.is_nobody());
    let status = match asked {
        Some(Ok(Answer::Status(status))) => Some(status),
        _ => None,
    };
    let engine = process_of(&Part::Engine).map(|process| EngineSeen {
        pid: process.pid,
        instance: InstanceId(told(process, "--instance", INSTANCE_LABEL)),
        turn: label(process, TURN_LABEL).parse().unwrap_or_default(),
        asked_to_end: memory.asked_to_end(&Part::Engine),
        refused: memory.refused.as_ref().map(|(at, why)| (at.elapsed(), why.clone())),
        status,
        unreachable: (!is_reachable).then_some(Duration::ZERO),
        waits: memory.engine_waits(),
    });
    let is_lost = volume.status.record.is_none() && !volume.status.unformatted;
    let replicas = volume.status.places.iter().map(|place| {
        let part = Part::Replica(place.replica.clone());
        let process = process_of(&part);
        let history = history(&part);
        // One that ended by itself may never be able to start.
        let is_doubtful = process.is_none() && history.last_end.is_some();
        ReplicaSeen {
            directory: look_for(&place.directory),
            evidence: is_lost.then(|| Box::new(inspect::inspect(&place.directory))),
            damaged: is_doubtful.then(|| inspect::damage(&place.directory)).flatten(),
            set_aside: set_aside::earlier(&place.directory),
            process: process.map(|process| ReplicaProcess {
                pid: process.pid,
                asked_to_end: memory.asked_to_end(&part),
            }),
            history,
            place: place.clone(),
        }
    });
    // What an engine would be refused for. While one lives, it says so itself.
    let newest_seen = volume.status.places.iter().filter(|_| engine.is_none());
    let newest_seen = newest_seen
        .filter_map(|place| {
            let (directory, replica) = (&place.directory, &place.replica);
            Some((inspect::newest_generation(directory, name, replica)?, replica.clone()))
        })
        .max();
    let devices = devices::look(context, &volume, engine.as_ref(), memory)?;
    Ok(Some(Seen {
        newest_seen,
        boot_id: context.boot_id.clone(),
        engine,
        engine_history: history(&Part::Engine),
        engine_left: memory.engine_left,
        replicas: replicas.collect(),
        devices,
        fresh_instance: InstanceId(random_hex::<8>().map_err(GatherError::Random)?),
        volume,
    }))
}

fn look_for(directory: &Path) -> DirectorySeen {
    match fs::metadata(directory) {
        Ok(found) if found.is_dir() => DirectorySeen::There,
        Ok(_) => DirectorySeen::Unreadable("it isn't a directory".into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => DirectorySeen::Missing,
        Err(error) => DirectorySeen::Unreadable(error.to_string()),
    }
}

/// What the engine says of itself, if it answers now.
pub fn engine_status(context: &Context, volume: &Name) -> Option<EngineStatus> {
    match ask_status(context, volume) {
        Ok(Answer::Status(status)) => Some(*status),
        Ok(Answer::Ok | Answer::Alive | Answer::Error { .. }) | Err(_) => None,
    }
}

fn ask_status(context: &Context, volume: &Name) -> Result<Answer, AdminError> {
    admin::ask(&context.layout.admin(volume), &Request::Status, STATUS_TIMEOUT)
}

fn label(process: &Process, label: &str) -> String {
    process.spec.labels.get(label).cloned().unwrap_or_default()
}

/// By its command line: one that was found by that has no labels.
fn told(process: &Process, option: &str, name: &str) -> String {
    let mut words = process.spec.args.windows(2);
    let told = words.find(|pair| pair[0] == option).map(|pair| pair[1].clone());
    told.unwrap_or_else(|| label(process, name))
}

pub fn address_of(process: &Process) -> String {
    told(process, "--listen", ADDRESS_LABEL)
}
