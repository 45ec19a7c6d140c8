//! Visits every state of a model, nearest first.
//!
//! Promises: the search ends only when each state that can be reached has been visited, or with the
//! shortest way to a broken property. States are compared themselves, not by a hash, so none is
//! taken for another. States that are equal but for a renaming of the replicas are visited once.

use std::collections::hash_map::RandomState;
use std::fmt::Debug;
use std::hash::{BuildHasher, Hash};

pub trait Model {
    type State: Copy + Debug;
    type Step: Copy + Debug;
    type Property: Copy + Debug;
    /// A state in few bytes, one for all states that differ only in the replicas' names.
    type Key: Copy + Eq + Hash;

    fn initial(&self) -> Self::State;
    /// Everything that may happen next, with what is then.
    fn next(&self, state: &Self::State, found: &mut Vec<(Self::Step, Self::State)>);
    fn key(&self, state: &Self::State) -> Self::Key;
    /// Any of the states that have this key.
    fn state(&self, key: Self::Key) -> Self::State;
    /// The property that doesn't hold in `state`.
    fn broken(&self, state: &Self::State) -> Option<Self::Property>;
}

#[derive(Debug)]
pub struct Explored<M: Model> {
    pub states: usize,
    /// Steps to the state that is farthest from the first.
    pub depth: usize,
    pub counterexample: Option<Counterexample<M>>,
    /// False if `limit` ended the search; then nothing is proved.
    pub complete: bool,
}

#[derive(Debug)]
pub struct Counterexample<M: Model> {
    pub property: M::Property,
    pub steps: Vec<(M::Step, M::State)>,
}

/// Visits at most about `limit` states.
pub fn explore<M: Model>(model: &M, limit: usize) -> Explored<M> {
    let mut seen = Seen::new();
    seen.insert(model.key(&model.initial()), 0);
    let (mut depth, mut level_ends, mut at) = (0, 1, 0);
    let mut found = Vec::new();
    while at < seen.len() {
        if at == level_ends {
            depth += 1;
            level_ends = seen.len();
        }
        if seen.len() > limit {
            return Explored { states: seen.len(), depth, counterexample: None, complete: false };
        }
        found.clear();
        model.next(&model.state(seen.keys[at]), &mut found);
        for (_, state) in &found {
            if let Some(index) = seen.insert(model.key(state), at)
                && let Some(property) = model.broken(state)
            {
                let steps = retrace(model, &seen.way_to(index));
                let counterexample = Some(Counterexample { property, steps });
                return Explored {
                    states: seen.len(),
                    depth: depth + 1,
                    counterexample,
                    complete: true,
                };
            }
        }
        at += 1;
    }
    Explored { states: seen.len(), depth, counterexample: None, complete: true }
}

/// The same way with the replicas' names kept, so that a person can read it.
fn retrace<M: Model>(model: &M, way: &[M::Key]) -> Vec<(M::Step, M::State)> {
    let mut state = model.initial();
    let mut steps = Vec::new();
    for wanted in &way[1..] {
        let mut found = Vec::new();
        model.next(&state, &mut found);
        let step = found.into_iter().find(|(_, next)| model.key(next) == *wanted);
        let step = step.expect("renaming replicas changes nothing about what may happen");
        state = step.1;
        steps.push(step);
    }
    steps
}

/// All states in the order of their discovery, each with the one from which it was reached, and a
/// table that finds them.
struct Seen<K> {
    keys: Vec<K>,
    from: Vec<u32>,
    /// 0 is free, n is state n - 1.
    table: Vec<u32>,
    hasher: RandomState,
}

impl<K: Copy + Eq + Hash> Seen<K> {
    fn new() -> Self {
        Self {
            keys: Vec::new(),
            from: Vec::new(),
            table: vec![0; 1 << 16],
            hasher: RandomState::new(),
        }
    }

    fn len(&self) -> usize {
        self.keys.len()
    }

    /// The index, if it is new.
    fn insert(&mut self, key: K, from: usize) -> Option<usize> {
        if self.keys.len() * 4 > self.table.len() * 3 {
            self.grow();
        }
        let slot = self.slot_of(&key);
        if self.table[slot] != 0 {
            return None;
        }
        self.keys.push(key);
        self.from.push(u32::try_from(from).expect("memory ends before 2^32 states"));
        self.table[slot] = u32::try_from(self.keys.len()).expect("memory ends before 2^32 states");
        Some(self.keys.len() - 1)
    }

    fn slot_of(&self, key: &K) -> usize {
        let mask = self.table.len() - 1;
        let mut slot = self.hasher.hash_one(key) as usize & mask;
        while self.table[slot] != 0 && self.keys[self.table[slot] as usize - 1] != *key {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.table = vec![0; self.table.len() * 2];
        for index in 0..self.keys.len() {
            let slot = self.slot_of(&self.keys[index]);
            self.table[slot] = u32::try_from(index + 1).expect("it was stored as one");
        }
    }

    fn way_to(&self, mut index: usize) -> Vec<K> {
        let mut way = vec![self.keys[index]];
        while index != 0 {
            index = self.from[index] as usize;
            way.push(self.keys[index]);
        }
        way.reverse();
        way
    }
}
