//! Who makes snapshots, removes them, and lets the volume grow; and what came of that.
//!
//! A request without an answer may have been done: until the next look nobody knows. What was
//! answered counts from then on, whatever dies.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use ankole_replica::admin::{Answer, EngineStatus, ErrorKind, Request};
use anyhow::{bail, ensure};

use crate::admin;
use crate::oracle::{Moment, Oracle};
use crate::sector::Number;

/// More aren't made.
const SNAPSHOTS_MAX: usize = 4;
const GROWTH_BYTES: u64 = 2 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Existence {
    /// Asked for.
    Perhaps,
    Surely,
    /// Its removal was asked for.
    PerhapsNot,
    SurelyNot,
}

struct Snapshot {
    existence: Existence,
    began: Moment,
    ended: Option<Moment>,
    /// What it shows, once somebody has looked: that stays so.
    content: Option<Rc<[Number]>>,
}

/// A snapshot that nobody has looked at yet.
pub struct Fresh {
    pub began: Moment,
    pub ended: Moment,
}

#[derive(Clone)]
pub struct Operator(Rc<Shared>);

struct Shared {
    oracle: Rc<RefCell<Oracle>>,
    snapshots: RefCell<BTreeMap<String, Snapshot>>,
    made: Cell<u32>,
    busy: Cell<usize>,
    refused: RefCell<Vec<String>>,
    /// The first answer that can't be.
    wrong: RefCell<Option<String>>,
    /// As last answered, and as asked for since.
    size_bytes: Cell<u64>,
    asked_bytes: Cell<u64>,
    most_bytes: u64,
}

impl Operator {
    pub fn new(oracle: Rc<RefCell<Oracle>>, size_bytes: u64, most_bytes: u64) -> Self {
        Self(Rc::new(Shared {
            oracle,
            snapshots: RefCell::default(),
            made: Cell::new(0),
            busy: Cell::new(0),
            refused: RefCell::default(),
            wrong: RefCell::default(),
            size_bytes: Cell::new(size_bytes),
            asked_bytes: Cell::new(size_bytes),
            most_bytes,
        }))
    }

    pub fn is_idle(&self) -> bool {
        self.0.busy.get() == 0
    }

    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes.get()
    }

    pub fn check(&self) -> anyhow::Result<()> {
        match self.0.wrong.borrow_mut().take() {
            Some(message) => bail!("the engine says of a snapshot that exists: {message}"),
            None => Ok(()),
        }
    }

    /// What the engine refused since the last time it was asked.
    pub fn take_refused(&self) -> Vec<String> {
        self.0.refused.take()
    }

    /// In the background; its name, unless there are enough.
    pub fn make(&self, admin: PathBuf) -> Option<String> {
        let gone = |snapshot: &&Snapshot| snapshot.existence == Existence::SurelyNot;
        let count = {
            let snapshots = self.0.snapshots.borrow();
            snapshots.len() - snapshots.values().filter(gone).count()
        };
        if count >= SNAPSHOTS_MAX {
            return None;
        }
        self.0.made.set(self.0.made.get() + 1);
        let name = format!("s{}", self.0.made.get());
        let began = self.0.oracle.borrow_mut().now();
        let snapshot =
            Snapshot { existence: Existence::Perhaps, began, ended: None, content: None };
        self.0.snapshots.borrow_mut().insert(name.clone(), snapshot);
        let request = Request::Snapshot { name: name.clone(), labels: BTreeMap::new() };
        let (operator, asked) = (self.clone(), name.clone());
        self.ask(admin, request, move || {
            let ended = operator.0.oracle.borrow_mut().now();
            let mut snapshots = operator.0.snapshots.borrow_mut();
            if let Some(snapshot) = snapshots.get_mut(&asked) {
                snapshot.ended.get_or_insert(ended);
                if snapshot.existence == Existence::Perhaps {
                    snapshot.existence = Existence::Surely;
                }
            }
        });
        Some(name)
    }

    /// One that surely exists, the `choice`th of them; in the background.
    pub fn remove(&self, admin: PathBuf, choice: u64) -> Option<String> {
        let name = {
            let mut snapshots = self.0.snapshots.borrow_mut();
            let there = snapshots.iter_mut();
            let mut there: Vec<_> =
                there.filter(|(_, snapshot)| snapshot.existence == Existence::Surely).collect();
            if there.is_empty() {
                return None;
            }
            let index = choice as usize % there.len();
            let (name, snapshot) = &mut there[index];
            snapshot.existence = Existence::PerhapsNot;
            name.clone()
        };
        let request = Request::RemoveSnapshot { name: name.clone() };
        let (operator, asked) = (self.clone(), name.clone());
        self.ask(admin, request, move || {
            if let Some(snapshot) = operator.0.snapshots.borrow_mut().get_mut(&asked) {
                snapshot.existence = Existence::SurelyNot;
            }
        });
        Some(name)
    }

    /// By a little, unless it is large enough; in the background.
    pub fn expand(&self, admin: PathBuf) -> Option<u64> {
        let size_bytes = self.0.asked_bytes.get() + GROWTH_BYTES;
        if size_bytes > self.0.most_bytes {
            return None;
        }
        self.0.asked_bytes.set(size_bytes);
        let operator = self.clone();
        self.ask(admin, Request::Expand { size_bytes }, move || {
            operator.0.size_bytes.set(operator.0.size_bytes.get().max(size_bytes));
        });
        Some(size_bytes)
    }

    fn ask(&self, admin: PathBuf, request: Request, done: impl FnOnce() + 'static) {
        let operator = self.clone();
        self.0.busy.set(self.0.busy.get() + 1);
        tokio::task::spawn_local(async move {
            match admin::ask(&admin, &request).await {
                Ok(Answer::Ok) => done(),
                // Only what surely exists is named.
                Ok(Answer::Error { kind: ErrorKind::NotFound, message }) => {
                    operator.0.wrong.borrow_mut().get_or_insert(message);
                }
                Ok(Answer::Error { message, .. }) => {
                    operator.0.refused.borrow_mut().push(message);
                }
                Ok(Answer::Status(_) | Answer::Alive) | Err(_) => {} // whether it was done is seen later
            }
            operator.0.busy.set(operator.0.busy.get() - 1);
        });
    }

    /// Compares what should exist with what the engine shows. Nothing is under way.
    pub fn look(&self, status: &EngineStatus) -> anyhow::Result<()> {
        let shown: Vec<&str> = status.snapshots.iter().map(|it| it.name.as_str()).collect();
        let mut snapshots = self.0.snapshots.borrow_mut();
        for (name, snapshot) in &mut *snapshots {
            let is_shown = shown.contains(&name.as_str());
            match snapshot.existence {
                Existence::Surely => ensure!(is_shown, "snapshot {name} is gone"),
                Existence::SurelyNot => ensure!(!is_shown, "snapshot {name} is there again"),
                Existence::Perhaps | Existence::PerhapsNot => {}
            }
            snapshot.existence = if is_shown { Existence::Surely } else { Existence::SurelyNot };
        }
        for name in shown {
            ensure!(snapshots.contains_key(name), "nobody asked for a snapshot {name}");
        }
        snapshots.retain(|_, snapshot| snapshot.existence == Existence::Surely);
        let (least, most) = (self.0.size_bytes.get(), self.0.asked_bytes.get());
        ensure!(
            (least..=most).contains(&status.size_bytes),
            "the volume has {} bytes; {least} were confirmed, {most} asked for",
            status.size_bytes
        );
        self.0.size_bytes.set(status.size_bytes);
        self.0.asked_bytes.set(status.size_bytes);
        Ok(())
    }

    /// A snapshot that a look has seen shows this. Says so if it is its first time.
    pub fn shows(&self, name: &str, numbers: &[Number]) -> anyhow::Result<Option<Fresh>> {
        let mut snapshots = self.0.snapshots.borrow_mut();
        let Some(snapshot) = snapshots.get_mut(name) else {
            bail!("a replica has a snapshot {name}, which the engine doesn't show");
        };
        let Some(content) = &snapshot.content else {
            snapshot.content = Some(numbers.into());
            let ended = snapshot.ended.unwrap_or_else(|| self.0.oracle.borrow_mut().now());
            return Ok(Some(Fresh { began: snapshot.began, ended }));
        };
        ensure!(
            content.len() == numbers.len(),
            "snapshot {name} had {} sectors, and has {}",
            content.len(),
            numbers.len()
        );
        for (sector, (before, now)) in content.iter().zip(numbers).enumerate() {
            ensure!(
                before == now,
                "snapshot {name} showed {before} in sector {sector}, and shows {now}"
            );
        }
        Ok(None)
    }

    pub fn names(&self) -> Vec<String> {
        self.0.snapshots.borrow().keys().cloned().collect()
    }
}
