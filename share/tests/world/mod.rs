//! A server without sockets, and with a clock of its own.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part of it, and may fail")]

use crate::client::{Carrier, Client};
use ankole_share::ops::{Export, Origin};
use ankole_share::policy::Policy;
use ankole_share::state::ConnectionId;
use ankole_share::tree::local::{LocalTree, Options};
use ankole_share::tree::memory::MemoryTree;
use std::cell::Cell;
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub type Calls = Arc<Mutex<Vec<Vec<u8>>>>;
pub const LEASE: Duration = Duration::from_secs(20);

/// A server with a clock that moves when it is told to.
#[derive(Clone)]
pub struct World {
    pub tree: MemoryTree,
    pub export: Arc<Export>,
    pub now: Rc<Cell<Instant>>,
}

impl World {
    pub fn new() -> Self {
        let (tree, now) = (MemoryTree::default(), Instant::now());
        let export = Arc::new(Export::new(Box::new(tree.clone()), now, 1, LEASE));
        Self { tree, export, now: Rc::new(Cell::new(now)) }
    }

    pub fn with_policy(policy: Policy) -> Self {
        let world = Self::new();
        world.again(policy)
    }

    /// The same tree, served by the next process with another policy.
    pub fn again(&self, policy: Policy) -> Self {
        let export = Export::new(Box::new(self.tree.clone()), self.now.get(), 2, LEASE);
        Self { export: Arc::new(export.with_policy(policy)), ..self.clone() }
    }

    /// The same, over a directory of this machine.
    pub fn local(directory: &Path) -> Self {
        let local = LocalTree::open(directory, Options::default()).expect("the directory is there");
        let export = Arc::new(Export::new(Box::new(local), Instant::now(), 1, LEASE));
        Self { export, ..Self::new() }
    }

    /// The same tree, served by the next process.
    pub fn restarted(&self) -> Self {
        self.again(Policy::default())
    }

    pub fn wait(&self, time: Duration) {
        self.now.set(self.now.get() + time);
        self.export.tick(self.now.get());
    }

    pub fn carrier(&self) -> impl FnMut(&[u8]) -> Vec<u8> + use<> {
        let (export, now) = (self.export.clone(), self.now.clone());
        move |message: &[u8]| {
            let mut reply = Vec::new();
            export.answer(now.get(), message, &mut reply).expect("it is a call");
            reply
        }
    }

    /// A connection, and the calls that come on it.
    pub fn connect(&self) -> (ConnectionId, Calls) {
        let calls = Calls::default();
        let taken = calls.clone();
        (self.export.connected(Arc::new(move |call| taken.lock().unwrap().push(call))), calls)
    }

    pub fn carrier_on(&self, id: ConnectionId) -> impl FnMut(&[u8]) -> Vec<u8> + use<> {
        let (export, now) = (self.export.clone(), self.now.clone());
        move |message: &[u8]| {
            let mut reply = Vec::new();
            export
                .answer_on(
                    Origin { peer: IpAddr::from([10, 0, 0, 1]), connection: Some(id) },
                    now.get(),
                    message,
                    &mut reply,
                )
                .expect("it is a call");
            reply
        }
    }

    pub fn client(&self, name: &str) -> Client<impl Carrier + use<>> {
        Client::new(self.carrier(), name)
    }
}
