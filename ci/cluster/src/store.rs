//! The store as everybody sees it: the very rules of the real ones, in memory, without waiting. Counts
//! what is written.

use std::collections::BTreeMap;

use ankole_api::Name;
use ankole_api::object::{Object, ResourceVersion, Spec};
use ankole_store::{Event, Precondition, Raw, Selector, Since, Stamp, State, StoreError, Write};
use jiff::Timestamp;

#[derive(Default)]
pub struct Store {
    state: State,
    uids: u64,
    now_s: i64,
    /// By kind.
    pub writes: BTreeMap<&'static str, u64>,
}

/// Where a watcher is; None: it lists.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor(Option<u64>);

pub enum Heard<S: Spec> {
    Applied(Object<S>),
    Deleted(Object<S>),
    /// These are all there are; what was heard before doesn't count.
    All(Vec<Object<S>>),
}

impl Store {
    pub fn clock(&mut self, now_s: i64) {
        self.now_s = now_s;
    }

    pub fn get<S: Spec>(&self, name: &str) -> Option<Object<S>> {
        let found = self.state.get(S::KIND, name).expect("all can be read");
        found.map(|raw| raw.parse().expect("all can be read"))
    }

    pub fn list<S: Spec>(&self, selector: &Selector) -> Vec<Object<S>> {
        let found = self.state.list(S::KIND, selector);
        found.objects.iter().map(|raw| raw.parse().expect("all can be read")).collect()
    }

    pub fn create<S: Spec>(&mut self, object: &Object<S>) -> Result<(), StoreError> {
        let mut raw = Raw::of(object);
        raw.metadata.resource_version = ResourceVersion::default();
        self.write::<S>(&Write::Create(raw))
    }

    /// Metadata and spec.
    pub fn replace<S: Spec>(&mut self, object: &Object<S>) -> Result<(), StoreError> {
        self.write::<S>(&Write::Replace(Raw::of(object)))
    }

    pub fn replace_status<S: Spec>(&mut self, object: &Object<S>) -> Result<(), StoreError> {
        self.write::<S>(&Write::ReplaceStatus(Raw::of(object)))
    }

    pub fn delete<S: Spec>(&mut self, name: &Name) -> Result<(), StoreError> {
        let precondition = Precondition::none();
        self.write::<S>(&Write::Delete { name: name.to_string(), precondition })
    }

    fn write<S: Spec>(&mut self, write: &Write) -> Result<(), StoreError> {
        self.uids += 1;
        let now = Timestamp::from_second(self.now_s).expect("a time of our days");
        let stamp = Stamp { now, uid: format!("{:032x}", self.uids) };
        let mut batch = self.state.batch();
        batch.apply(S::KIND, write, &stamp)?;
        let changes = batch.finish();
        *self.writes.entry(S::KIND.name).or_default() += changes.len() as u64;
        self.state.publish(changes);
        Ok(())
    }

    /// All that a watcher hasn't heard yet.
    pub fn hear<S: Spec>(&self, cursor: &mut Cursor, selector: &Selector) -> Vec<Heard<S>> {
        let parse = |raw: &Raw| raw.parse().expect("all can be read");
        let mut heard = Vec::new();
        while cursor.0 != Some(self.state.revision()) {
            let missed = cursor.0.map(|seen| self.state.since(seen, S::KIND, selector));
            let Some(Since::Changes { events, until }) = missed else {
                cursor.0 = Some(self.state.revision());
                return vec![Heard::All(self.list(selector))];
            };
            cursor.0 = Some(until);
            heard.extend(events.into_iter().filter_map(|event| match event {
                Event::Applied(raw) => Some(Heard::Applied(parse(&raw))),
                Event::Deleted(raw) => Some(Heard::Deleted(parse(&raw))),
                Event::Resync => None,
            }));
        }
        heard
    }

    /// What was stored until now.
    pub fn saved(&self) -> State {
        self.state.clone()
    }

    /// Everything as it was once, as after a restore of the store from its backup.
    pub fn restore(&mut self, saved: State) {
        let ahead = self.state.revision() + 1;
        let mut objects: Vec<(String, Raw)> = Vec::new();
        objects.extend(saved.objects().map(|(kind, raw)| (kind.to_owned(), Raw::clone(raw))));
        self.state.replace_by(State::new(ahead, objects, Vec::new()));
    }

    /// The object comes back from a saved one: without its status.
    pub fn lose_status<S: Spec>(&mut self, name: &str) {
        let Some(mut object) = self.get::<S>(name) else { return };
        object.status = S::Status::default();
        self.replace_status(&object).expect("nobody came in between");
    }
}
