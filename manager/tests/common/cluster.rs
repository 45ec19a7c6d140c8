//! A store, a manager and the agents of nodes in one process; engines and replicas are real.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ankole_api::attachment::TicketKind;
use ankole_api::objects::attachment::Ticket;
use ankole_api::objects::{AttachmentSpec, EngineSpec, Volume, VolumeAttachment, VolumeSpec};
use ankole_api::volume::{EngineProgram, Frontend, Robustness, State, Transport};
use ankole_manager::agent::arbiter;
use ankole_manager::agent::format::{self, Format};
use ankole_manager::agent::node::records::ObjectRecords;
use ankole_manager::agent::node::{self, Node};
use ankole_manager::agent::{Layout, LocalSupervisor, Supervisor, kill, pidfile};
use ankole_store::{MemoryStore, Store};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

use super::data::SIZE;
use super::until;

pub struct Cluster {
    pub store: Arc<dyn Store>,
    pub runtime: Handle,
}

/// A node while its agent runs.
pub struct Running {
    pub node: Arc<Node>,
    agent: JoinHandle<()>,
    has_left: bool,
}

impl Cluster {
    pub fn new() -> Self {
        Self::over(Arc::new(MemoryStore::default()))
    }

    pub fn over(store: Arc<dyn Store>) -> Self {
        // It ends with the test.
        let runs = Builder::new_current_thread().enable_all().build().unwrap();
        let runtime = runs.handle().clone();
        std::thread::spawn(move || runs.block_on(std::future::pending::<()>()));
        runtime.spawn(ankole_manager::manager::Manager::new(Arc::clone(&store)).run());
        Self { store, runtime }
    }

    pub fn start(&self, name: &str, folder: &Path) -> Running {
        self.start_with(name, folder, format::format)
    }

    pub fn start_with(&self, name: &str, folder: &Path, format: Format) -> Running {
        self.start_program(name, folder, format, env!("CARGO_BIN_EXE_ankole").into())
    }

    /// Whose processes are of this program.
    pub fn start_program(
        &self,
        name: &str,
        folder: &Path,
        format: Format,
        program: PathBuf,
    ) -> Running {
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
            program,
            format,
            pidfile::boot_id().unwrap(),
            Duration::from_secs(300),
        ));
        let agent = self.runtime.spawn(node::run(Arc::clone(&node)));
        Running { node, agent, has_left: false }
    }

    pub fn volume(&self, name: &str) -> Option<Volume> {
        self.runtime.block_on(self.store.find::<VolumeSpec>(name)).unwrap()
    }

    pub fn create(&self, name: &str, replicas: u8) {
        self.make(name, replicas);
        self.until_state(name, State::Detached);
    }

    /// The object alone, of one with its only replica in the engine.
    pub fn make_small(&self, name: &str) {
        let spec =
            r#"{"sizeBytes": 33554432, "replicas": 1, "frontend": "socket", "inEngine": true}"#;
        let volume = Volume::new(name.parse().unwrap(), serde_json::from_str(spec).unwrap());
        self.runtime.block_on(self.store.create(&volume)).unwrap();
    }

    /// The object alone.
    pub fn make(&self, name: &str, replicas: u8) {
        let spec = VolumeSpec {
            size_bytes: SIZE as u64,
            replicas,
            frontend: Frontend::Socket,
            transport: Transport::Tcp,
            in_engine: false,
            engine: EngineProgram::default(),
            from_backup: None,
        };
        let volume = Volume::new(name.parse().unwrap(), spec);
        self.runtime.block_on(self.store.create(&volume)).unwrap();
    }

    pub fn attach(&self, name: &str, node: Option<&str>) {
        self.want(name, node);
        self.until_state(name, State::Attached);
    }

    pub fn want(&self, name: &str, node: Option<&str>) {
        let node = node.map(str::to_owned);
        let ticket = Ticket { kind: TicketKind::User, node, read_only: false };
        let spec = AttachmentSpec { tickets: [("user".to_owned(), ticket)].into() };
        let attachment = VolumeAttachment::new(name.parse().unwrap(), spec);
        self.runtime.block_on(self.store.create(&attachment)).unwrap();
    }

    pub fn endpoint(&self, name: &str) -> String {
        let engine = self.store.get::<EngineSpec>(name);
        self.runtime.block_on(engine).unwrap().status.endpoint.unwrap()
    }

    pub fn until_state(&self, name: &str, state: State) {
        until(&format!("{name} is {state}"), || {
            let volume = self.volume(name)?;
            (volume.status.state == Some(state)).then_some(())
        });
    }

    pub fn until_robustness(&self, name: &str, robustness: Robustness) {
        until(&format!("{name} is {robustness}"), || {
            let volume = self.volume(name)?;
            (volume.status.robustness == Some(robustness)).then_some(())
        });
    }
}

impl Running {
    /// Its agent ends, and its processes go on.
    pub fn leave(mut self) {
        self.agent.abort();
        self.has_left = true;
    }

    /// Its agent ends and every process of it is killed.
    pub fn die(self) {
        self.agent.abort();
        kill::all(&*self.node.supervisor);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.agent.abort();
        if !self.has_left {
            kill::all(&*self.node.supervisor);
        }
    }
}
