//! One cut: what lies on the disks, and what must be found there.
//!
//! A folder has `case.json` and, for each machine, a directory or an image by the replica's name.
//! A cut that failed is kept like that and can be checked again.

use std::fs;
use std::path::Path;

use ankole_replica::record::Record;
use ankole_replica::types::ReplicaId;
use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::image::Filesystem;
use crate::oracle::{Expectation, Floor, History, Moment};
use crate::recording::Boot;

const FILE: &str = "case.json";

/// What became of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    PowerLost,
    /// Only its processes died.
    Killed,
}

/// What a cut left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disks {
    Directories,
    Images(Filesystem),
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Case {
    /// For people: the run and the cut.
    pub name: String,
    pub disks: Disks,
    /// The arbiter's, at that moment.
    pub record: Record,
    pub machines: Vec<CaseMachine>,
    /// What every member must have.
    pub flushed: Expectation,
    /// What the volume must have because a member's machine lived on, if one did.
    pub answered: Option<Expectation>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaseMachine {
    pub replica: String,
    pub fate: Fate,
    pub boot: Boot,
}

impl Case {
    /// The power of `machines` was cut at `at`; what was promised until then is in `history`.
    pub fn new(
        name: String,
        disks: Disks,
        at: Moment,
        record: Record,
        machines: Vec<CaseMachine>,
        history: &History,
    ) -> Self {
        let flushed = history.after_cut(at, Floor::Flushed);
        let mut case = Self { name, disks, record, machines, flushed, answered: None };
        if case.members().any(|member| member.fate == Fate::Killed) {
            case.answered = Some(history.after_cut(at, Floor::Answered));
        }
        case
    }

    /// What the volume must show.
    pub fn expectation(&self) -> &Expectation {
        self.answered.as_ref().unwrap_or(&self.flushed)
    }

    /// What a machine must have by itself, if its replica is a member.
    pub fn expectation_of(&self, machine: &CaseMachine) -> &Expectation {
        match machine.fate {
            Fate::PowerLost => &self.flushed,
            Fate::Killed => self.expectation(),
        }
    }

    pub fn save(&self, folder: &Path) -> anyhow::Result<()> {
        Ok(fs::write(folder.join(FILE), serde_json::to_vec(self)?)?)
    }

    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(folder.join(FILE));
        let bytes = bytes.with_context(|| format!("{} isn't a kept cut", folder.display()))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Replicas that must have everything by themselves.
    pub fn members(&self) -> impl Iterator<Item = &CaseMachine> {
        let is_member = |replica: &str| {
            let id = ReplicaId::from(replica);
            self.record.in_sync.iter().any(|member| member.replica == id)
        };
        self.machines.iter().filter(move |machine| is_member(&machine.replica))
    }
}
