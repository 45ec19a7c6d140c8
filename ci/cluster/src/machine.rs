//! Machines: what lies on their disks, which processes run, whether they run themselves.

use std::collections::{BTreeMap, BTreeSet};

use ankole_api::Name;
use ankole_replica::inspect::{Content, Evidence, Found, ReplicaEvidence};
use ankole_replica::record::{InstanceId, Member};
use ankole_replica::store::ReplicaState;
use ankole_replica::types::{Epoch, Fence, Generation, Incarnation, ReplicaId, Session};

use crate::agent::Agent;

/// A replica's directory, by its volume's uid: another volume of that name has another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub volume: Name,
    pub uid: String,
    pub replica: ReplicaId,
}

#[derive(Clone, Debug)]
pub struct Directory {
    pub incarnation: Incarnation,
    /// The newest generation that has greeted it; none: nothing was ever written.
    pub seen: Option<Generation>,
    /// The last write that it has.
    pub holds: u64,
    /// Its files can't be opened.
    pub damaged: bool,
}

pub struct Machine {
    pub name: String,
    pub boot: u64,
    pub state: Power,
    /// It reaches the store.
    pub is_connected: bool,
    pub directories: BTreeMap<Place, Directory>,
    /// What was set aside is never lost.
    pub aside: Vec<(Place, Directory)>,
    /// A disk that isn't mounted.
    pub is_unmounted: bool,
    pub replicas: BTreeSet<Place>,
    pub engines: BTreeMap<Name, EngineProcess>,
    pub agent: Option<Agent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    On,
    /// Nothing of it runs, and all goes on later as if nothing had been.
    Hung,
    Off,
}

#[derive(Clone, Debug)]
pub struct EngineProcess {
    pub volume_uid: String,
    pub instance: InstanceId,
    pub turn: u64,
    pub size_bytes: u64,
    pub stage: Stage,
    /// Who is in sync, as it last recorded.
    pub members: Vec<Member>,
    pub generation: Generation,
    pub replicas: Vec<ReplicaId>,
    /// Turns in which it missed a member.
    pub missed: u64,
    /// Turns of a rebuild.
    pub rebuilt: BTreeMap<ReplicaId, u64>,
    /// The last write that it has acknowledged, or found.
    pub last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Opening,
    Open,
    Detaching,
}

impl Machine {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            boot: 1,
            state: Power::On,
            is_connected: true,
            directories: BTreeMap::new(),
            aside: Vec::new(),
            is_unmounted: false,
            replicas: BTreeSet::new(),
            engines: BTreeMap::new(),
            agent: Some(Agent::default()),
        }
    }

    pub fn boot_id(&self) -> String {
        format!("{}-{}", self.name, self.boot)
    }

    /// Nothing that ran is left; what lies on the disks is.
    pub fn power_off(&mut self) {
        self.state = Power::Off;
        self.replicas.clear();
        self.engines.clear();
        self.agent = None;
    }

    pub fn power_on(&mut self) {
        if self.state == Power::Off {
            self.boot += 1;
            self.agent = Some(Agent::default());
        }
        self.state = Power::On;
    }

    pub fn directory(&self, place: &Place) -> Option<&Directory> {
        self.directories.get(place).filter(|_| !self.is_unmounted)
    }

    /// As `ankole_replica::inspect` would tell.
    pub fn evidence(&self, place: &Place) -> Evidence {
        let found = match self.directory(place) {
            None => Found::Missing,
            Some(directory) => Found::Replica(Box::new(of(place, directory))),
        };
        Evidence { directory: format!("/disk/{}", place.replica).into(), held: None, found }
    }
}

fn of(place: &Place, directory: &Directory) -> ReplicaEvidence {
    let fence = directory.seen.map(|generation| Fence { generation, session: Session(1) });
    let content = Content {
        continuous: true,
        continuity: String::new(),
        partial: false,
        marked_regions: 0,
        unverified_blocks: 0,
        size_bytes: 1 << 20,
        data_bytes: directory.holds,
        layers: 1,
        snapshots: Vec::new(),
    };
    ReplicaEvidence {
        volume: place.volume.to_string(),
        replica: place.replica.clone(),
        incarnation: directory.incarnation,
        fence,
        state: if fence.is_some() { ReplicaState::Member } else { ReplicaState::New },
        failure: None,
        synced_gen: directory.seen,
        synced_set: Vec::new(),
        epoch: Epoch::default(),
        content: (!directory.damaged).then_some(content),
        problems: Vec::new(),
    }
}
