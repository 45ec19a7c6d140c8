//! The process alone, told what to do by a file.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::common::data::{SIZE, fill, holds};
use crate::common::{World, files, send, until};
use ankole_api::backup::{BackupState, BackupView};
use ankole_api::error::ErrorKind;
use ankole_api::job::{
    BackupWork, JobOrder, JobResult, RESULT_FILE, SPEC_FILE, VolumeAccess, Work,
};
use ankole_replica::admin::ReplicaAddress;
use rustix::process::Signal;

const MEMORY_BYTES: u64 = 256 << 20;

/// A job's folder, as an agent makes it.
struct Job(PathBuf);

impl Job {
    fn new(folder: &Path, name: &str, volume: VolumeAccess, work: Work, memory_bytes: u64) -> Self {
        let path = folder.join(name);
        fs::create_dir(&path).unwrap();
        let spec = JobOrder { uid: "u1".into(), volume, work, memory_bytes };
        fs::write(path.join(SPEC_FILE), serde_json::to_vec(&spec).unwrap()).unwrap();
        Self(path)
    }

    fn run(&self, world: &World) -> Output {
        self.command(world).output().unwrap()
    }

    fn command(&self, world: &World) -> Command {
        let spec: JobOrder =
            serde_json::from_slice(&fs::read(self.0.join(SPEC_FILE)).unwrap()).unwrap();
        let mut command: Command = world.ankole();
        command.env("RUST_BACKTRACE", "0"); // see the agent's spawn
        command.args(["job", "run", "--volume", &spec.volume.name, "--spec"]);
        command.arg(self.0.join(SPEC_FILE));
        command
    }

    fn result(&self) -> Option<JobResult> {
        Some(serde_json::from_slice(&fs::read(self.0.join(RESULT_FILE)).ok()?).unwrap())
    }

    fn done(&self) -> BackupView {
        match self.result() {
            Some(JobResult::Done { backup }) => backup,
            other => panic!("{other:?}"),
        }
    }
}

/// It is attached.
fn access(world: &World, name: &str) -> VolumeAccess {
    let run = world.data().join("run");
    let shown = world.volume(name);
    let replicas = shown["replicas"].as_array().unwrap().iter().map(|replica| {
        let id = replica["replica"].as_str().unwrap();
        let address = format!("unix:{}", run.join(format!("{name}.{id}")).display());
        ReplicaAddress { replica: id.into(), address }
    });
    let endpoint = shown["endpoint"].as_str().unwrap();
    VolumeAccess {
        name: name.parse().unwrap(),
        uid: shown["uid"].as_str().unwrap().into(),
        admin: run.join(format!("{name}.admin")),
        nbd: endpoint.split_once("socket=").unwrap().1.into(),
        replicas: replicas.collect(),
    }
}

fn create(world: &World, name: &str) -> String {
    let size = SIZE.to_string();
    let options = ["--size", &size, "--replicas", "2", "--frontend", "socket"];
    world.well(&[&["volume", "create", name], &options[..]].concat());
    world.well(&["volume", "attach", name, "-o", "name"]).trim().to_owned()
}

fn back_up(world: &World, backup: &str) -> BackupWork {
    let target = format!("file://{}", world.path().join("backups").display());
    fs::create_dir_all(world.path().join("backups")).unwrap();
    BackupWork { backup: backup.parse().unwrap(), snapshot: None, target, full: false }
}

/// It lived and died with the manager, which was all that knew how far it was.
#[test]
fn a_backup_and_its_restore_need_sockets_and_no_manager() {
    let mut world = World::real();
    let (from, to) = (create(&world, "v1"), create(&world, "v2"));
    fill(&from, 7);
    let (from, into) = (access(&world, "v1"), access(&world, "v2"));
    world.kill();
    let folder = world.path().to_owned();
    let work = back_up(&world, "backup-0000000000001");
    let job = Job::new(&folder, "j1", from.clone(), Work::BackUp(work.clone()), MEMORY_BYTES);
    let said = job.run(&world);
    assert!(said.status.success(), "{said:?}");
    let backup = job.done();
    assert_eq!((&*backup.name, &*backup.snapshot), (&*work.backup, &*work.backup));
    assert_eq!((backup.state, backup.size_bytes), (BackupState::Complete, SIZE as u64));
    let job = Job::new(&folder, "j2", into, Work::Restore { url: backup.url }, MEMORY_BYTES);
    let said = job.run(&world);
    assert!(said.status.success(), "{said:?}");
    assert_eq!(job.done().name, backup.name);
    assert!(holds(&to, 7));
    // The same again is refused by the target, and the snapshot is there already.
    let job = Job::new(&folder, "j3", from, Work::BackUp(work), MEMORY_BYTES);
    assert!(!job.run(&world).status.success());
    match job.result() {
        Some(JobResult::Failed { error }) => assert_eq!(error.kind, ErrorKind::Conflict),
        other => panic!("{other:?}"),
    }
}

/// It had all the memory that the manager had.
#[test]
fn a_job_that_wants_more_memory_than_it_may_have_ends() {
    let world = World::real();
    let endpoint = create(&world, "v1");
    fill(&endpoint, 7);
    let work = Work::BackUp(back_up(&world, "backup-0000000000001"));
    let job = Job::new(world.path(), "j1", access(&world, "v1"), work, 20 << 20);
    let said = job.run(&world);
    let told = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success(), "{told}");
    assert!(told.contains("memory allocation of"), "{told}");
    assert_eq!(job.result(), None);
}

/// Who asks it to end knows why; what it has in the target is taken away.
#[test]
fn a_job_that_is_asked_to_end_says_nothing_and_leaves_no_lock() {
    let world = World::real();
    create(&world, "v1");
    // It looks for one that answers until it is asked to end.
    let mut volume = access(&world, "v1");
    volume.replicas.iter_mut().for_each(|it| it.address = "unix:/no/such/socket".into());
    let work = Work::BackUp(back_up(&world, "backup-0000000000001"));
    let job = Job::new(world.path(), "j1", volume, work, MEMORY_BYTES);
    let mut child = job.command(&world).stderr(Stdio::piped()).spawn().unwrap();
    let locks = || files(&world.path().join("backups"), "lck");
    until("it works on the target", || (!locks().is_empty()).then_some(()));
    send(child.id(), Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(job.result(), None);
    assert_eq!(locks(), [] as [PathBuf; 0]);
}

/// An engine that was replaced just then made the whole backup fail.
#[test]
fn a_job_waits_for_the_successor_of_an_engine_that_dies() {
    let world = World::real();
    fill(&create(&world, "v1"), 7);
    let mut volume = access(&world, "v1");
    let real = std::mem::replace(&mut volume.admin, world.path().join("admin"));
    let dying = UnixListener::bind(&volume.admin).unwrap();
    let admin = volume.admin.clone();
    let work = Work::BackUp(back_up(&world, "backup-0000000000001"));
    let job = Job::new(world.path(), "j1", volume, work, MEMORY_BYTES);
    let mut child = job.command(&world).spawn().unwrap();
    drop(dying.accept().unwrap());
    fs::remove_file(&admin).unwrap();
    drop(dying);
    std::os::unix::fs::symlink(real, admin).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(job.done().state, BackupState::Complete);
}
