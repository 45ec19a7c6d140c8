//! Two agents with a folder each over one store, in one process; engines and replicas are real.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ankole_api::attachment::TicketKind;
use ankole_api::objects::attachment::Ticket;
use ankole_api::objects::node::LeaseSpec;
use ankole_api::objects::{AttachmentSpec, ReplicaSpec, Volume, VolumeAttachment, VolumeSpec};
use ankole_api::volume::{Frontend, Robustness, State, Transport};
use ankole_manager::agent::arbiter;
use ankole_manager::agent::node::records::ObjectRecords;
use ankole_manager::agent::node::{self, Node};
use ankole_manager::agent::{Layout, LocalSupervisor, Supervisor, format, kill, pidfile};
use ankole_store::{MemoryStore, Selector, Store, StoreError};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

use common::data::{SIZE, fill, holds};
use common::until;

struct Cluster {
    store: Arc<dyn Store>,
    runtime: Handle,
}

/// A node while its agent runs.
struct Running {
    node: Arc<Node>,
    agent: JoinHandle<()>,
}

impl Cluster {
    fn new() -> Self {
        // It ends with the test.
        let runs = Builder::new_current_thread().enable_all().build().unwrap();
        let runtime = runs.handle().clone();
        std::thread::spawn(move || runs.block_on(std::future::pending::<()>()));
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        runtime.spawn(ankole_manager::manager::run(Arc::clone(&store)));
        Self { store, runtime }
    }

    fn start(&self, name: &str, folder: &Path) -> Running {
        let layout = Layout::prepare(&folder.join(name), &[], &folder.join("short")).unwrap();
        let supervisor = LocalSupervisor::open(&layout.run(), &layout.socket_folders()).unwrap();
        let supervisor: Arc<dyn Supervisor> = Arc::new(supervisor);
        let handle = self.runtime.clone();
        let records = Arc::new(ObjectRecords::new(Arc::clone(&self.store), handle));
        let limits = arbiter::Limits::default();
        arbiter::start(&layout.arbiter(), records, Arc::clone(&supervisor), limits).unwrap();
        let node = Arc::new(Node::new(
            name.into(),
            Arc::clone(&self.store),
            supervisor,
            layout,
            env!("CARGO_BIN_EXE_ankole").into(),
            format::format,
            pidfile::boot_id().unwrap(),
            Duration::from_secs(300),
        ));
        let agent = self.runtime.spawn(node::run(Arc::clone(&node)));
        Running { node, agent }
    }

    fn volume(&self, name: &str) -> Option<Volume> {
        self.runtime.block_on(self.store.find::<VolumeSpec>(name)).unwrap()
    }

    fn create(&self, name: &str, replicas: u8) {
        let spec = VolumeSpec {
            size_bytes: SIZE as u64,
            replicas,
            frontend: Frontend::Socket,
            transport: Transport::Tcp,
            in_engine: false,
            engine: ankole_api::volume::EngineProgram::default(),
            from_backup: None,
        };
        let volume = Volume::new(name.parse().unwrap(), spec);
        self.runtime.block_on(self.store.create(&volume)).unwrap();
        self.until_state(name, State::Detached);
    }

    fn attach(&self, name: &str, node: Option<&str>) {
        let node = node.map(str::to_owned);
        let ticket = Ticket { kind: TicketKind::User, node, read_only: false };
        let spec = AttachmentSpec { tickets: [("user".to_owned(), ticket)].into() };
        let attachment = VolumeAttachment::new(name.parse().unwrap(), spec);
        self.runtime.block_on(self.store.create(&attachment)).unwrap();
        self.until_state(name, State::Attached);
    }

    fn endpoint(&self, name: &str) -> String {
        let engine = self.store.get::<ankole_api::objects::EngineSpec>(name);
        self.runtime.block_on(engine).unwrap().status.endpoint.unwrap()
    }

    fn until_state(&self, name: &str, state: State) {
        until(&format!("{name} is {state}"), || {
            let volume = self.volume(name)?;
            (volume.status.state == Some(state)).then_some(())
        });
    }

    fn until_robustness(&self, name: &str, robustness: Robustness) {
        until(&format!("{name} is {robustness}"), || {
            let volume = self.volume(name)?;
            (volume.status.robustness == Some(robustness)).then_some(())
        });
    }
}

impl Running {
    /// Its agent ends and every process of it is killed.
    fn die(self) {
        self.agent.abort();
        kill::all(&*self.node.supervisor);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.agent.abort();
        kill::all(&*self.node.supervisor);
    }
}

/// Both run, and the manager has heard both say so.
fn two_nodes(folder: &Path) -> (Cluster, Running, Running) {
    let cluster = Cluster::new();
    let (one, two) = (cluster.start("n1", folder), cluster.start("n2", folder));
    let has_renewed = |name: &str| {
        let lease = cluster.runtime.block_on(cluster.store.find::<LeaseSpec>(name)).unwrap();
        lease.is_some_and(|lease| lease.metadata.generation > 2)
    };
    until("both nodes live", || ["n1", "n2"].into_iter().all(has_renewed).then_some(()));
    (cluster, one, two)
}

/// The volume goes on without the node, and is whole again when it is back.
#[test]
fn a_volume_with_replicas_on_both_outlives_one() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, _one, two) = two_nodes(folder.path());
    cluster.create("v1", 2);
    let all = Selector::all();
    let replicas = cluster.runtime.block_on(cluster.store.list::<ReplicaSpec>(&all)).unwrap();
    let on: Vec<_> = replicas.objects.into_iter().map(|it| it.unwrap().spec.node).collect();
    assert_eq!(on, ["n1", "n2"]);
    cluster.attach("v1", Some("n1"));
    cluster.until_robustness("v1", Robustness::Healthy);
    let endpoint = cluster.endpoint("v1");
    fill(&endpoint, 1);
    two.die();
    fill(&endpoint, 2);
    cluster.until_robustness("v1", Robustness::Degraded);
    assert!(holds(&endpoint, 2));
    let _two = cluster.start("n2", folder.path());
    cluster.until_robustness("v1", Robustness::Healthy);
    assert!(holds(&endpoint, 2));
}

/// Nobody does anything: the node's lease ends, the other one is named, and the record fences.
#[test]
fn a_volume_that_is_wanted_anywhere_is_attached_elsewhere_when_its_node_dies() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, one, two) = two_nodes(folder.path());
    cluster.create("v1", 2);
    cluster.attach("v1", None);
    cluster.until_robustness("v1", Robustness::Healthy);
    fill(&cluster.endpoint("v1"), 1);
    let first = cluster.volume("v1").unwrap().status.node.unwrap();
    let (dies, lives) = if first == "n1" { (one, two) } else { (two, one) };
    dies.die();
    until("it is attached on the other", || {
        let status = cluster.volume("v1")?.status;
        let is_there = status.node.as_ref() == Some(&lives.node.name);
        (is_there && status.state == Some(State::Attached)).then_some(())
    });
    let endpoint = cluster.endpoint("v1");
    assert!(holds(&endpoint, 1));
    fill(&endpoint, 2);
    // The first comes back, and its replica is filled from the other.
    let _back = cluster.start(&first, folder.path());
    cluster.until_robustness("v1", Robustness::Healthy);
    assert!(holds(&endpoint, 2));
}

/// What was made is removed, on both nodes, before the object goes.
#[test]
fn a_volume_that_is_deleted_leaves_nothing_on_either_node() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, _one, _two) = two_nodes(folder.path());
    cluster.create("v1", 2);
    cluster.attach("v1", Some("n1"));
    let directories = || {
        let of = |node: &str| folder.path().join(node).join("disks/default/replicas");
        ["n1", "n2"].map(|node| std::fs::read_dir(of(node)).unwrap().count())
    };
    assert_eq!(directories(), [1, 1]);
    let deleted = cluster.store.delete::<VolumeSpec, StoreError>("v1", |_| Ok(()));
    cluster.runtime.block_on(deleted).unwrap();
    until("it is gone", || cluster.volume("v1").is_none().then_some(()));
    assert_eq!(directories(), [0, 0]);
}
