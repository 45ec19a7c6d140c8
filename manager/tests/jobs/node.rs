//! Over a store and an agent; engines, replicas and jobs are real processes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::cluster::{Cluster, Running};
use crate::common::data::{fill, holds};
use crate::common::{alive, files, send, until};
use ankole_api::attachment::TicketKind;
use ankole_api::error::ErrorKind;
use ankole_api::object::Object;
use ankole_api::objects::attachment::Ticket;
use ankole_api::objects::{
    AttachmentSpec, BackupSpec, JobPhase, JobSpec, JobStatus, RestoreSpec, VolumeAttachment,
    VolumeSpec,
};
use ankole_api::volume::State;
use ankole_manager::agent::{Part, format};
use ankole_store::StoreError;
use rustix::process::Signal;

const TICKET: &str = "job";

/// A program that is Ankole, but runs no job before its gate is open.
struct Gate(PathBuf);

impl Gate {
    fn new(folder: &Path) -> Self {
        let gate = Self(folder.join("gate"));
        fs::write(
            gate.0.with_extension("sh"),
            gate.script("while [ ! -e \"${0%.sh}\" ]; do sleep 0.02; done"),
        )
        .unwrap();
        gate.executable();
        gate
    }

    /// That lets a job have so much memory, at most.
    fn of_memory(folder: &Path, kibibytes: u64) -> Self {
        let gate = Self(folder.join("gate"));
        let script = gate.script(&format!("ulimit -d {kibibytes}"));
        fs::write(gate.0.with_extension("sh"), script).unwrap();
        gate.executable();
        gate
    }

    /// Its own name stays the first word, by which processes are known.
    fn script(&self, before: &str) -> String {
        let ankole = env!("CARGO_BIN_EXE_ankole");
        format!(
            "#!/bin/bash\nif [ \"$1\" = job ]; then {before}; fi\nexec -a \"$0\" {ankole} \"$@\"\n"
        )
    }

    fn executable(&self) {
        fs::set_permissions(self.program(), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn program(&self) -> PathBuf {
        self.0.with_extension("sh")
    }

    fn open(&self) {
        fs::write(&self.0, "").unwrap();
    }
}

/// One node, and a target for backups.
struct World {
    folder: tempfile::TempDir,
    cluster: Cluster,
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), cluster: Cluster::new() }
    }

    fn start(&self, gate: &Gate) -> Running {
        self.cluster.start_program("n1", self.folder.path(), format::format, gate.program())
    }

    fn target(&self) -> String {
        let path = self.folder.path().join("backups");
        fs::create_dir_all(&path).unwrap();
        format!("file://{}", path.display())
    }

    /// As whoever makes a job does it: first its ticket, then the object.
    fn begin<S: JobSpec>(&self, number: u64, kind: TicketKind, spec: S) -> Object<S> {
        let (store, runtime) = (&self.cluster.store, &self.cluster.runtime);
        let ticket = Ticket { kind, node: Some("n1".into()), read_only: false };
        let tickets = [(TICKET.to_owned(), ticket)].into();
        let attachment = VolumeAttachment::new(spec.volume().clone(), AttachmentSpec { tickets });
        runtime.block_on(store.create(&attachment)).unwrap();
        runtime.block_on(store.create(&Object::job(number, spec))).unwrap()
    }

    fn back_up(&self, volume: &str, target: String) -> Object<BackupSpec> {
        let volume = self.cluster.volume(volume).unwrap();
        let spec = BackupSpec {
            volume: volume.name().clone(),
            volume_uid: volume.metadata.uid.clone(),
            node: "n1".into(),
            snapshot: None,
            target,
            full: false,
            ticket: TICKET.into(),
        };
        self.begin(1, TicketKind::Backup, spec)
    }

    /// To a volume that is made for it.
    fn restore(&self, name: &str, url: &str) -> Object<RestoreSpec> {
        let (store, runtime) = (&self.cluster.store, &self.cluster.runtime);
        self.cluster.make(name, 1);
        let made = store.modify::<VolumeSpec, _, StoreError>(name, |volume| {
            volume.spec.from_backup = Some(url.into());
            Ok(volume.metadata.uid.clone())
        });
        let spec = RestoreSpec {
            volume: name.parse().unwrap(),
            volume_uid: runtime.block_on(made).unwrap(),
            node: "n1".into(),
            url: url.into(),
            ticket: TICKET.into(),
        };
        self.begin(2, TicketKind::Restore, spec)
    }

    fn find<S: JobSpec>(&self, job: &Object<S>) -> Option<Object<S>> {
        self.cluster.runtime.block_on(self.cluster.store.find::<S>(job.name())).unwrap()
    }

    /// When its ticket is taken back, too.
    fn over<S: JobSpec>(&self, job: &Object<S>) -> JobStatus {
        let over =
            until(&format!("{} is over", job.name()), || self.find(job).filter(Object::is_over));
        assert!(self.tickets(job).is_empty());
        over.status
    }

    fn done<S: JobSpec>(&self, job: &Object<S>) -> String {
        let status = self.over(job);
        assert_eq!(status.phase, Some(JobPhase::Done), "{status:?}");
        let progress = status.progress;
        assert_eq!(progress.done_bytes, progress.total_bytes);
        status.backup.unwrap().url
    }

    fn failed<S: JobSpec>(&self, job: &Object<S>) -> ankole_api::ApiError {
        let status = self.over(job);
        assert_eq!(status.phase, Some(JobPhase::Failed), "{status:?}");
        status.error.unwrap()
    }

    fn running<S: JobSpec>(&self, job: &Object<S>) {
        until(&format!("{} runs", job.name()), || {
            (self.find(job)?.status.phase == Some(JobPhase::Running)).then_some(())
        });
    }

    fn tickets<S: JobSpec>(&self, job: &Object<S>) -> Vec<String> {
        let (store, runtime) = (&self.cluster.store, &self.cluster.runtime);
        let found = runtime.block_on(store.find::<AttachmentSpec>(job.spec.volume())).unwrap();
        found.map_or(Vec::new(), |it| it.spec.tickets.into_keys().collect())
    }

    fn pid<S: JobSpec>(&self, node: &Running, job: &Object<S>) -> Option<u32> {
        let is_it = |part: &Part| matches!(part, Part::Backup(name) | Part::Restore(name) if name == job.name());
        let all = node.node.supervisor.list();
        all.into_iter().find(|process| is_it(&process.spec.name.part)).map(|it| it.pid)
    }
}

/// A volume whose every byte is 7.
fn filled(world: &World, name: &str) {
    world.cluster.create(name, 2);
    world.cluster.attach(name, None);
    fill(&world.cluster.endpoint(name), 7);
    let attachment = world.cluster.store.delete::<AttachmentSpec, StoreError>(name, |_| Ok(()));
    world.cluster.runtime.block_on(attachment).unwrap();
}

/// One that goes on until the gate is opened.
fn running_backup() -> (World, Gate, Running, Object<BackupSpec>) {
    let world = World::new();
    let gate = Gate::new(world.folder.path());
    let node = world.start(&gate);
    filled(&world, "v1");
    let backup = world.back_up("v1", world.target());
    world.running(&backup);
    (world, gate, node, backup)
}

/// And nobody gets in before: a volume that was filled in part was attached and healthy.
#[test]
fn a_backup_is_made_and_restored_to_a_new_volume() {
    let world = World::new();
    let gate = Gate::new(world.folder.path());
    let _node = world.start(&gate);
    filled(&world, "v1");
    let backup = world.back_up("v1", world.target());
    gate.open();
    let url = world.done(&backup);
    assert!(url.contains(&**backup.name()), "{url}");
    fs::remove_file(&gate.0).unwrap();
    let restore = world.restore("v2", &url);
    world.running(&restore);
    assert!(world.cluster.volume("v2").unwrap().is_being_restored());
    world.cluster.until_state("v2", State::Restoring);
    gate.open();
    assert_eq!(world.done(&restore), url);
    assert!(!world.cluster.volume("v2").unwrap().is_being_restored());
    world.cluster.until_state("v2", State::Detached);
    let attachment = world.cluster.store.delete::<AttachmentSpec, StoreError>("v2", |_| Ok(()));
    world.cluster.runtime.block_on(attachment).unwrap();
    world.cluster.attach("v2", None);
    assert!(holds(&world.cluster.endpoint("v2"), 7));
}

/// It was "running" for ever, in the memory of a manager that didn't know better.
#[test]
fn a_backup_whose_process_is_killed_has_failed_and_says_how() {
    let (world, _gate, node, backup) = running_backup();
    send(world.pid(&node, &backup).unwrap(), Signal::KILL);
    let error = world.failed(&backup);
    assert!(error.message.contains("signal: 9"), "{error:?}");
    assert!(error.next.unwrap().contains("start it again"));
}

/// Nobody else may use its volume meanwhile, so nobody needs to be told first.
#[test]
fn a_restore_whose_process_is_killed_is_started_again() {
    let world = World::new();
    let gate = Gate::new(world.folder.path());
    let node = world.start(&gate);
    filled(&world, "v1");
    let backup = world.back_up("v1", world.target());
    gate.open();
    let url = world.done(&backup);
    fs::remove_file(&gate.0).unwrap();
    let restore = world.restore("v2", &url);
    world.running(&restore);
    let first = world.pid(&node, &restore).unwrap();
    send(first, Signal::KILL);
    let second =
        until("another one runs", || world.pid(&node, &restore).filter(|pid| *pid != first));
    gate.open();
    world.done(&restore);
    assert!(!alive(second));
}

/// Half a backup must not be taken for a volume.
#[test]
fn a_restore_that_fails_removes_what_it_has_filled_in_part() {
    let world = World::new();
    let gate = Gate::new(world.folder.path());
    gate.open();
    let _node = world.start(&gate);
    filled(&world, "v1");
    let backup = world.back_up("v1", world.target());
    let url = world.done(&backup);
    let blocks = files(&world.folder.path().join("backups"), "blk");
    fs::write(blocks.first().unwrap(), "garbage").unwrap();
    let restore = world.restore("v2", &url);
    let error = world.failed(&restore);
    assert!(error.message.contains("volume v2, filled in part, is removed again"), "{error:?}");
    until("the volume is gone", || world.cluster.volume("v2").is_none().then_some(()));
}

/// Jobs were threads of the manager: its restart ended them.
#[test]
fn a_job_goes_on_while_its_agent_is_replaced() {
    let (world, gate, node, backup) = running_backup();
    let pid = world.pid(&node, &backup).unwrap();
    node.leave();
    let node = world.start(&gate);
    assert_eq!(world.pid(&node, &backup), Some(pid));
    gate.open();
    world.done(&backup);
}

#[test]
fn what_became_of_a_job_is_found_when_it_ended_while_no_agent_was_there() {
    let (world, gate, node, backup) = running_backup();
    let pid = world.pid(&node, &backup).unwrap();
    node.leave();
    gate.open();
    until("it ends", || (!alive(pid)).then_some(()));
    assert_eq!(world.find(&backup).unwrap().status.phase, Some(JobPhase::Running));
    let _node = world.start(&gate);
    world.done(&backup);
}

#[test]
fn a_job_that_is_deleted_while_it_runs_leaves_no_process_no_ticket_and_no_file() {
    let (world, _gate, node, backup) = running_backup();
    let pid = world.pid(&node, &backup).unwrap();
    let store = &world.cluster.store;
    let deleted = store.delete::<BackupSpec, StoreError>(backup.name(), |_| Ok(()));
    world.cluster.runtime.block_on(deleted).unwrap();
    until("it is gone", || world.find(&backup).is_none().then_some(()));
    assert!(!alive(pid));
    assert!(world.tickets(&backup).is_empty());
    until("its files are gone", || node.node.layout.jobs().unwrap().is_empty().then_some(()));
    world.cluster.until_state("v1", State::Detached);
}

/// It had all the memory that the manager had.
#[test]
fn a_job_that_wants_more_memory_than_it_may_have_fails_and_says_so() {
    let world = World::new();
    let gate = Gate::of_memory(world.folder.path(), 20 << 10);
    let _node = world.start(&gate);
    filled(&world, "v1");
    let backup = world.back_up("v1", world.target());
    let error = world.failed(&backup);
    assert!(error.message.contains("signal: 6"), "{error:?}");
    assert!(error.message.contains("memory allocation of"), "{error:?}");
}

#[test]
fn a_backup_to_a_target_that_is_not_there_fails_and_names_it() {
    let world = World::new();
    let gate = Gate::new(world.folder.path());
    gate.open();
    let _node = world.start(&gate);
    filled(&world, "v1");
    let backup = world.back_up("v1", "file:///no/such/place".into());
    let error = world.failed(&backup);
    assert_eq!(error.kind, ErrorKind::Failed);
    assert!(error.message.contains("/no/such/place"), "{error:?}");
}
