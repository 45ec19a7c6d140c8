//! All objects, and what happened last. Pure: no clock, no file, no task.
//!
//! ```text
//! Batch: writes decided over State, in their order ──▶ changes ──(durable)──▶ State::publish
//! ```
//! Until they are published nobody sees them, so that a backend can make them durable before, or
//! drop them. The history is bounded: who comes for what it no longer has lists again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use ankole_api::object::{Kind, ResourceVersion};

use crate::rules::{self, Decision, Present};
use crate::{Event, List, Raw, Selector, Stamp, StoreError, Unreadable, Write};

/// Of all objects together: nothing is made beyond it, what is there can change.
pub const OBJECTS_BYTES_MAX: usize = 1 << 30;
pub const HISTORY_CHANGES_MAX: usize = 8192;
pub const HISTORY_BYTES_MAX: usize = 32 << 20;
/// So many changes are looked at for a watcher at a time.
const LOOK_CHANGES_MAX: usize = 512;

#[derive(Clone, Debug, Default)]
pub struct State {
    revision: u64,
    /// By plural of the kind, then by name.
    kinds: BTreeMap<String, BTreeMap<String, Arc<Raw>>>,
    unreadable: BTreeMap<(String, String), Unreadable>,
    size_bytes: usize,
    history: History,
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    pub revision: u64,
    pub kind: Kind,
    pub name: String,
    pub before: Option<Arc<Raw>>,
    pub after: After,
}

#[derive(Clone, Debug)]
pub enum After {
    Put(Arc<Raw>),
    /// As it was last, with the version of its end.
    Removed(Arc<Raw>),
    /// One that nobody could read.
    Forgotten,
}

/// What a write came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    Is(Arc<Raw>),
    /// As it was last, if anybody could read it.
    Gone(Option<Arc<Raw>>),
}

impl Written {
    pub fn object(self) -> Option<Arc<Raw>> {
        match self {
            Self::Is(object) => Some(object),
            Self::Gone(last) => last,
        }
    }
}

/// What a watcher has missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// All of it up to this revision.
    Changes { events: Vec<Event>, until: u64 },
    /// More than is known.
    Lost,
}

#[derive(Clone, Debug, Default)]
struct History {
    /// What changed after this revision is all there.
    from: u64,
    changes: VecDeque<Change>,
    size_bytes: usize,
}

pub fn version_of(revision: u64) -> ResourceVersion {
    ResourceVersion(revision.to_string())
}

impl State {
    /// What was stored, as of its last change.
    pub fn new(revision: u64, objects: Vec<(String, Raw)>, unreadable: Vec<Unreadable>) -> Self {
        let mut state = Self { revision, ..Self::default() };
        state.history.from = revision;
        for (plural, object) in objects {
            state.size_bytes += object.size_bytes();
            let kind = state.kinds.entry(plural).or_default();
            kind.insert(object.name().into(), Arc::new(object));
        }
        for it in unreadable {
            state.unreadable.insert((it.plural.clone(), it.name.clone()), it);
        }
        state
    }

    /// Of the last change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn get(&self, kind: Kind, name: &str) -> Result<Option<Arc<Raw>>, StoreError> {
        match self.present(kind, name) {
            Present::Nothing => Ok(None),
            Present::Object(object) => Ok(Some(Arc::clone(object))),
            Present::Unreadable(it) => {
                Err(StoreError::Unreadable { kind, name: name.into(), why: it.why.clone() })
            }
        }
    }

    /// By name. One that can't be read is listed whatever is asked for: it may be one of those.
    pub fn list(&self, kind: Kind, selector: &Selector) -> List {
        let objects = self.kinds.get(kind.plural).into_iter().flat_map(BTreeMap::values);
        let from = (kind.plural.to_owned(), String::new());
        let unreadable = self.unreadable.range(from..).map(|(_, it)| it);
        List {
            version: version_of(self.revision),
            objects: objects.filter(|object| selector.matches(object)).cloned().collect(),
            unreadable: unreadable.take_while(|it| it.plural == kind.plural).cloned().collect(),
        }
    }

    /// A copy of all objects as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let history = History { from: self.revision, ..History::default() };
        Self {
            revision: self.revision,
            kinds: self.kinds.clone(),
            unreadable: self.unreadable.clone(),
            size_bytes: self.size_bytes,
            history,
        }
    }

    /// All objects with the plurals of their kinds.
    pub fn objects(&self) -> impl Iterator<Item = (&str, &Arc<Raw>)> {
        self.kinds.iter().flat_map(|(plural, objects)| {
            objects.values().map(move |object| (plural.as_str(), object))
        })
    }

    pub fn unreadable(&self) -> impl Iterator<Item = &Unreadable> {
        self.unreadable.values()
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch {
            state: self,
            revision: self.revision,
            size_bytes: self.size_bytes,
            touched: HashMap::new(),
            changes: Vec::new(),
        }
    }

    /// Those of a batch over this very state.
    pub fn publish(&mut self, changes: Vec<Change>) {
        for change in changes {
            assert!(change.revision > self.revision, "one batch at a time");
            self.revision = change.revision;
            let size_before = change.before.as_ref().map_or(0, |object| object.size_bytes());
            self.size_bytes -= size_before;
            let objects = self.kinds.entry(change.kind.plural.into()).or_default();
            match &change.after {
                After::Put(object) => {
                    self.size_bytes += object.size_bytes();
                    objects.insert(change.name.clone(), Arc::clone(object));
                }
                After::Removed(_) => drop(objects.remove(&change.name)),
                After::Forgotten => {
                    self.unreadable.remove(&(change.kind.plural.into(), change.name.clone()));
                }
            }
            self.history.push(change);
        }
    }

    /// By what was found elsewhere, such as in a backup: all watchers list again.
    pub fn replace_by(&mut self, found: Self) {
        assert!(found.revision > self.revision, "watchers of before must notice");
        *self = found;
    }

    /// For a watcher that has seen all up to the revision.
    pub fn since(&self, seen: u64, kind: Kind, selector: &Selector) -> Since {
        self.history.since(seen, kind, selector, self.revision)
    }

    fn present(&self, kind: Kind, name: &str) -> Present<'_> {
        if let Some(object) = self.kinds.get(kind.plural).and_then(|kind| kind.get(name)) {
            return Present::Object(object);
        }
        match self.unreadable.is_empty() {
            true => Present::Nothing,
            false => match self.unreadable.get(&(kind.plural.into(), name.into())) {
                Some(it) => Present::Unreadable(it),
                None => Present::Nothing,
            },
        }
    }
}

/// Writes that become true together.
#[derive(Debug)]
pub struct Batch<'a> {
    state: &'a State,
    revision: u64,
    size_bytes: usize,
    /// None: removed.
    touched: HashMap<(&'static str, String), Option<Arc<Raw>>>,
    changes: Vec<Change>,
}

impl Batch<'_> {
    /// As if those before it were true already.
    pub fn apply(
        &mut self,
        kind: Kind,
        write: &Write,
        stamp: &Stamp,
    ) -> Result<Written, StoreError> {
        let key = (kind.plural, write.name().to_owned());
        let present = match self.touched.get(&key) {
            Some(Some(object)) => Present::Object(object),
            Some(None) => Present::Nothing,
            None => self.state.present(kind, &key.1),
        };
        let before = match present {
            Present::Object(object) => Some(Arc::clone(object)),
            Present::Nothing | Present::Unreadable(_) => None,
        };
        let revision = self.revision + 1;
        let decision = rules::decide(kind, present, write, stamp, version_of(revision))?;
        let (after, written) = match decision {
            Decision::Nothing(object) => return Ok(Written::Is(object)),
            Decision::Put(object) => {
                let size_before = before.as_ref().map_or(0, |object| object.size_bytes());
                let size_bytes = self.size_bytes - size_before + object.size_bytes();
                if before.is_none() && size_bytes > OBJECTS_BYTES_MAX {
                    return Err(StoreError::Full { kind, name: key.1 });
                }
                self.size_bytes = size_bytes;
                let object = Arc::new(object);
                (After::Put(Arc::clone(&object)), Written::Is(object))
            }
            Decision::Remove(object) => {
                self.size_bytes -= before.as_ref().map_or(0, |object| object.size_bytes());
                let last = Arc::new(object);
                (After::Removed(Arc::clone(&last)), Written::Gone(Some(last)))
            }
            Decision::RemoveUnreadable => (After::Forgotten, Written::Gone(None)),
        };
        let is = match &after {
            After::Put(object) => Some(Arc::clone(object)),
            After::Removed(_) | After::Forgotten => None,
        };
        let name = key.1.clone();
        self.touched.insert(key, is);
        self.revision = revision;
        self.changes.push(Change { revision, kind, name, before, after });
        Ok(written)
    }

    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    pub fn finish(self) -> Vec<Change> {
        self.changes
    }
}

impl Change {
    /// As a watcher with that selector sees it.
    fn event(&self, selector: &Selector) -> Option<Event> {
        let was_meant = self.before.as_ref().is_some_and(|before| selector.matches(before));
        match &self.after {
            After::Put(object) if selector.matches(object) => {
                Some(Event::Applied(Arc::clone(object)))
            }
            After::Put(object) | After::Removed(object) => {
                was_meant.then(|| Event::Deleted(Arc::clone(object)))
            }
            After::Forgotten => None,
        }
    }

    fn size_bytes(&self) -> usize {
        match &self.after {
            After::Put(object) | After::Removed(object) => object.size_bytes(),
            After::Forgotten => 0,
        }
    }
}

impl History {
    fn push(&mut self, change: Change) {
        if let After::Forgotten = change.after {
            // There is no object to tell it by.
            *self = Self { from: change.revision, ..Self::default() };
            return;
        }
        self.size_bytes += change.size_bytes();
        self.changes.push_back(change);
        while self.changes.len() > HISTORY_CHANGES_MAX || self.size_bytes > HISTORY_BYTES_MAX {
            let Some(oldest) = self.changes.pop_front() else { break };
            self.size_bytes -= oldest.size_bytes();
            self.from = oldest.revision;
        }
    }

    fn since(&self, seen: u64, kind: Kind, selector: &Selector, last: u64) -> Since {
        if seen < self.from || seen > last {
            return Since::Lost;
        }
        let first = self.changes.partition_point(|change| change.revision <= seen);
        let missed = self.changes.range(first..).take(LOOK_CHANGES_MAX);
        let until = missed.clone().next_back().map_or(seen, |change| change.revision);
        let of_kind = missed.filter(|change| change.kind.plural == kind.plural);
        let events = of_kind.filter_map(|change| change.event(selector)).collect();
        Since::Changes { events, until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Precondition;

    const LAMP: Kind = Kind { name: "Lamp", plural: "lamps" };

    fn stamp() -> Stamp {
        Stamp { now: jiff::Timestamp::UNIX_EPOCH, uid: "u".into() }
    }

    fn lamp(name: &str, lumen: usize) -> Raw {
        let json = format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{{"lumen":{lumen}}}}}"#);
        Raw::from_json(&json).unwrap()
    }

    fn make(state: &mut State, object: Raw) {
        let mut batch = state.batch();
        batch.apply(LAMP, &Write::Create(object), &stamp()).unwrap();
        let changes = batch.finish();
        state.publish(changes);
    }

    /// What was decided and then could not be made durable must leave no trace.
    #[test]
    fn a_batch_that_is_dropped_has_changed_nothing() {
        let mut state = State::default();
        make(&mut state, lamp("l1", 1));
        let mut batch = state.batch();
        let delete = Write::Delete { name: "l1".into(), precondition: Precondition::none() };
        assert!(matches!(batch.apply(LAMP, &delete, &stamp()), Ok(Written::Gone(Some(_)))));
        let again = batch.apply(LAMP, &Write::Create(lamp("l1", 2)), &stamp()).unwrap();
        let Written::Is(again) = again else { panic!("it is made") };
        assert_eq!(again.metadata.resource_version, version_of(3));
        drop(batch);
        let is = state.get(LAMP, "l1").unwrap().unwrap();
        assert_eq!((is.spec().as_str(), state.revision()), (r#"{"lumen":1}"#, 1));
    }

    #[test]
    fn the_history_is_bounded_and_who_comes_too_late_is_told() {
        let mut state = State::default();
        for number in 0..HISTORY_CHANGES_MAX + 10 {
            make(&mut state, lamp(&format!("l{number}"), number));
        }
        assert_eq!(state.since(9, LAMP, &Selector::all()), Since::Lost);
        let Since::Changes { events, until } = state.since(10, LAMP, &Selector::all()) else {
            panic!("it is known from there");
        };
        assert_eq!((events.len(), until), (LOOK_CHANGES_MAX, 10 + LOOK_CHANGES_MAX as u64));
        let ahead = state.revision() + 1;
        assert_eq!(state.since(ahead, LAMP, &Selector::all()), Since::Lost, "of another store");
    }

    #[test]
    fn the_history_is_bounded_in_bytes_too() {
        let mut state = State::default();
        let large = 1 << 19;
        for number in 0..HISTORY_BYTES_MAX / large + 10 {
            let mut object = lamp(&format!("l{number}"), 1);
            object.metadata.labels.insert("blob".into(), "x".repeat(large));
            make(&mut state, object);
        }
        assert!(state.history.changes.len() < HISTORY_BYTES_MAX / large);
        assert!(state.history.size_bytes <= HISTORY_BYTES_MAX);
    }

    #[test]
    fn one_that_cannot_be_read_is_in_its_place_until_somebody_deletes_it() {
        let strange = Unreadable {
            plural: "lamps".into(),
            name: "l1".into(),
            why: "it isn't JSON".into(),
            version: version_of(3),
            text: "{".into(),
        };
        let mut state = State::new(5, vec![("lamps".into(), lamp("l2", 1))], vec![strange.clone()]);
        let all = Selector::all();
        assert_eq!(state.list(LAMP, &all).objects.len(), 1);
        assert_eq!(state.list(LAMP, &all).unreadable, [strange]);
        assert!(matches!(state.get(LAMP, "l1"), Err(StoreError::Unreadable { .. })));
        let mut batch = state.batch();
        let create = batch.apply(LAMP, &Write::Create(lamp("l1", 1)), &stamp());
        assert!(matches!(create, Err(StoreError::Exists { .. })), "{create:?}");
        let same = Precondition { uid: Some("u".into()), resource_version: None };
        let delete = Write::Delete { name: "l1".into(), precondition: same };
        let refused = batch.apply(LAMP, &delete, &stamp());
        assert!(matches!(refused, Err(StoreError::Unreadable { .. })), "{refused:?}");
        let delete = Write::Delete { name: "l1".into(), precondition: Precondition::none() };
        assert_eq!(batch.apply(LAMP, &delete, &stamp()), Ok(Written::Gone(None)));
        let changes = batch.finish();
        state.publish(changes);
        assert_eq!(state.list(LAMP, &all).unreadable, []);
        assert_eq!(state.since(5, LAMP, &all), Since::Lost, "no event could tell it");
    }
}
