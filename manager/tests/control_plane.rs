//! The control plane with parts that can be made to fail on demand.
//!
//! The standalone, its store, arbiter, supervisor and API are the real ones, and so is the command
//! line. Engine and replica are stand-ins of a few lines: this binary, started again. They keep to
//! the contract of the processes (arguments, admin socket, arbiter) and move no data; that the
//! real ones do is shown in `volume_lifecycle.rs`.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ankole_manager::agent::{self, format::FormatError};
use ankole_manager::roles::standalone::{self, Ended, Options};
use ankole_replica::admin::{self, EngineStatus, ReplicaMode, ReplicaStatus};
use ankole_replica::record::{self, Change, InstanceId, Record};
use ankole_replica::types::{Incarnation, ReplicaId};
use common::{World, alive, send, state_of, until};
use rustix::process::Signal;
use serde_json::Value;

// ---- the stand-ins ----

/// Not a test: what this binary is when it is started as a part.
#[test]
#[ignore = "the body of the stand-in processes"]
fn stand_in() {
    let Ok(args) = std::env::var("STAND_IN") else { return };
    let args = Args(args.split(' ').collect());
    match args.0[0] {
        "standalone" => std::process::exit(run_standalone(Path::new(args.0[1]))),
        "replica" => serve_replica(Path::new(args.option("--dir")), args.option("--listen")),
        "engine" => run_engine(&args),
        other => panic!("{other}?"),
    }
}

struct Args<'a>(Vec<&'a str>);

impl Args<'_> {
    fn options(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.windows(2).filter(move |pair| pair[0] == name).map(|pair| pair[1])
    }
    fn option(&self, name: &str) -> &str {
        self.options(name).next().unwrap_or_else(|| panic!("{name} is missing in {:?}", self.0))
    }
}

fn run_standalone(folder: &Path) -> i32 {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let program = folder.join("part");
    let me = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\nSTAND_IN=\"$*\" exec {} --exact stand_in --ignored --nocapture\n",
        me.display()
    );
    fs::write(folder.join("part.new"), script).unwrap();
    fs::set_permissions(folder.join("part.new"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::rename(folder.join("part.new"), &program).unwrap();
    let ended = standalone::run(&Options {
        data: folder.join("data"),
        listen: "127.0.0.1:0".parse().unwrap(),
        disks: vec![],
        recover_store: None,
        node: "n1".into(),
        runtime_folder: folder.join("ankole"),
        short_names: folder.join("s"),
        program,
        format,
        until_stdin_closes: false,
        device_patience: Duration::from_secs(300),
    });
    match ended {
        Ok(Ended::Clean | Ended::LeftUsed) => 0,
        Ok(Ended::InHaste) => 1,
        Err(error) => {
            eprintln!("error: {error:#}");
            1
        }
    }
}

/// The real one. A file `no-room` beside the replicas makes it fail half-way.
fn format(
    directory: &Path,
    volume: &str,
    replica: &ReplicaId,
    size_bytes: u64,
) -> Result<Incarnation, FormatError> {
    let no_room = directory.parent().unwrap().join("no-room").exists();
    if no_room && replica == &ReplicaId::from("r2") {
        fs::create_dir(directory).map_err(|error| FormatError(error.into()))?;
        return Err(FormatError("No space left on device".into()));
    }
    agent::format::format(directory, volume, replica, size_bytes)
}

fn serve_replica(directory: &Path, listen: &str) {
    assert!(directory.join("replica.meta").exists(), "{} isn't formatted", directory.display());
    let socket = listen.strip_prefix("unix:").expect("the tests use unix sockets");
    let listener = UnixListener::bind(socket).unwrap();
    let mut open = Vec::new();
    while let Ok((connection, _)) = listener.accept() {
        open.push(connection);
    }
}

/// As a real one: refuses to run without a grant, takes silent members out of the set, and takes
/// replicas that answer in again.
fn run_engine(args: &Args<'_>) {
    let volume = args.option("--volume");
    let me = InstanceId(args.option("--instance").into());
    let arbiter = Arbiter { socket: args.option("--arbiter").into(), volume: volume.into() };
    let replicas: Vec<(ReplicaId, String)> = args
        .options("--replica")
        .map(|replica| replica.split_once("=unix:").unwrap())
        .map(|(id, socket)| (id.into(), socket.into()))
        .collect();
    let control = Path::new(args.option("--socket")).with_extension("control");
    if fs::read_to_string(&control).is_ok_and(|text| text == "die at start") {
        std::process::exit(7);
    }
    let granted = arbiter.read();
    let named = granted.engine.as_ref().map(|grant| &grant.instance);
    assert_eq!(named, Some(&me), "started without a grant");

    let mut size_bytes = 2 << 20;
    let listener = UnixListener::bind(args.option("--admin")).unwrap();
    while let Ok((mut connection, _)) = listener.accept() {
        let mut line = String::new();
        if BufReader::new(&connection).read_line(&mut line).unwrap_or(0) == 0 {
            continue;
        }
        let request: admin::Request = serde_json::from_str(&line).unwrap();
        let detach = request == admin::Request::Detach;
        let answer = match request {
            admin::Request::Status => {
                let record = arbiter.keep_members(&me, &replicas);
                let status = status(volume, &me, &record, &replicas, size_bytes);
                admin::Answer::Status(Box::new(status))
            }
            admin::Request::Expand { size_bytes: wanted } => {
                size_bytes = wanted;
                admin::Answer::Ok
            }
            _ => admin::Answer::Ok,
        };
        let _ = writeln!(connection, "{}", serde_json::to_string(&answer).unwrap());
        if detach {
            std::process::exit(0);
        }
    }
}

fn answers(socket: &str) -> bool {
    UnixStream::connect(socket).is_ok()
}

fn status(
    volume: &str,
    me: &InstanceId,
    record: &Record,
    replicas: &[(ReplicaId, String)],
    size_bytes: u64,
) -> EngineStatus {
    let replicas = replicas.iter().map(|(replica, address)| ReplicaStatus {
        replica: replica.clone(),
        address: format!("unix:{address}"),
        mode: if answers(address) { ReplicaMode::ReadWrite } else { ReplicaMode::Error },
        reason: None,
        is_older: false,
        rebuild: None,
        last_rebuild: None,
    });
    EngineStatus {
        volume: volume.into(),
        version: None,
        instance: me.clone(),
        generation: record.generation,
        size_bytes,
        endpoint: Some(format!("nbd+unix:///?socket=/{volume}")),
        replicas: replicas.collect(),
        unsettled_bytes: 0,
        repaired_blocks: 0,
        unverified_bytes: 0,
        full: vec![],
        damage: Default::default(),
        waiting: vec![],
        clients: 0,
        snapshots: vec![],
        head_bytes: 0,
        head_parent: None,
        requests: Default::default(),
    }
}

struct Arbiter {
    socket: PathBuf,
    volume: String,
}

impl Arbiter {
    fn ask(&self, request: &record::Request) -> Option<record::Answer> {
        let mut connection = UnixStream::connect(&self.socket).ok()?;
        writeln!(connection, "{}", serde_json::to_string(request).unwrap()).ok()?;
        let mut line = String::new();
        BufReader::new(connection).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    fn read(&self) -> Record {
        let request = record::Request::Read { volume: self.volume.clone() };
        match until("the arbiter answers", || self.ask(&request)) {
            record::Answer::Record(record) => record,
            other => panic!("{other:?}"),
        }
    }

    /// A member that was made anew has another incarnation; the stand-in keeps the old one in the
    /// record, since only the real engine hears the new one.
    fn keep_members(&self, me: &InstanceId, replicas: &[(ReplicaId, String)]) -> Record {
        let record = self.read();
        let silent = |replica: &ReplicaId| {
            replicas.iter().any(|(id, address)| id == replica && !answers(address))
        };
        let mut in_sync = record.in_sync.clone();
        in_sync.retain(|member| !silent(&member.replica));
        if in_sync.is_empty() || in_sync.len() == record.in_sync.len() {
            return record;
        }
        let change = Change::Members { by: me.clone(), in_sync };
        let (volume, expected) = (self.volume.clone(), record.generation);
        match self.ask(&record::Request::Change { volume, expected, change }) {
            Some(record::Answer::Record(record)) => record,
            _ => record,
        }
    }
}

// ---- the stories ----

fn world() -> World {
    World::new(|world| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "stand_in", "--ignored", "--nocapture"]);
        command.env("STAND_IN", format!("standalone {}", world.path().display()));
        command
    })
}

fn attached() -> World {
    let world = world();
    world.well(&["volume", "create", "v1", "--size", "2MiB", "--frontend", "socket"]);
    let endpoint = world.well(&["volume", "attach", "v1"]);
    assert_eq!(endpoint, "nbd+unix:///?socket=/v1\n");
    world
}

fn engine_pid(volume: &Value) -> Option<u32> {
    u32::try_from(volume["enginePid"].as_u64()?).ok()
}

fn replica_pid(volume: &Value, number: usize) -> Option<u32> {
    u32::try_from(volume["replicas"][number]["pid"].as_u64()?).ok()
}

fn engine_args(world: &World) -> String {
    fs::read_to_string(world.data().join("run/v1.engine.process")).unwrap_or_default()
}

#[test]
fn a_volume_is_made_attached_shown_detached_and_removed() {
    let mut world = attached();
    let volume = world.volume("v1");
    assert_eq!(volume["state"], "attached");
    assert_eq!(volume["robustness"], "healthy");
    assert_eq!(volume["endpoint"], "nbd+unix:///?socket=/v1");
    assert_eq!(volume["sizeBytes"], 2 << 20);
    assert_eq!(volume["replicas"][2]["mode"], "RW");
    assert_eq!(world.well(&["volume", "show", "v1", "-o", "name"]), "nbd+unix:///?socket=/v1\n");

    let attached = world.say(&["volume", "rm", "v1", "--yes"]);
    assert_eq!(attached.code, 4, "{attached:?}");
    assert!(attached.err.contains("v1 is attached"), "{}", attached.err);

    world.well(&["volume", "detach", "v1"]);
    let volume = world.volume("v1");
    assert_eq!((&volume["state"], &volume["endpoint"]), (&"detached".into(), &Value::Null));
    assert!(world.processes().is_empty());
    let directory = PathBuf::from(volume["replicas"][0]["directory"].as_str().unwrap());
    assert!(directory.exists());
    world.well(&["volume", "rm", "v1", "--yes"]);
    assert_eq!(world.say(&["volume", "show", "v1"]).code, 3);
    assert!(!directory.exists());
    assert_eq!(world.stop().code(), Some(0));
}

/// A client that waits for the successor must find it under the same attach epoch: a new one would
/// say that no client survived.
#[test]
fn a_dead_engine_gets_a_successor_in_the_same_attach_epoch() {
    let world = attached();
    let before = world.volume("v1");
    assert!(!engine_args(&world).contains("--recover"));
    send(engine_pid(&before).unwrap(), Signal::KILL);
    let after = until("a successor", || {
        let volume = world.volume("v1");
        let new = engine_pid(&volume) != engine_pid(&before) && volume["state"] == "attached";
        new.then_some(volume)
    });
    assert_eq!(after["record"]["attachEpoch"], before["record"]["attachEpoch"]);
    let generation = |volume: &Value| volume["record"]["generation"].as_u64().unwrap();
    assert_eq!(generation(&after), generation(&before) + 1);
    assert!(engine_args(&world).contains("--recover"));
    // A new attachment is a new epoch.
    world.well(&["volume", "detach", "v1"]);
    world.well(&["volume", "attach", "v1"]);
    let epoch = |volume: &Value| volume["record"]["attachEpoch"].as_u64().unwrap();
    assert_eq!(epoch(&world.volume("v1")), epoch(&before) + 1);
    assert!(!engine_args(&world).contains("--recover"));
}

#[test]
fn a_dead_replica_is_started_again_where_it_was() {
    let world = attached();
    let before = world.volume("v1");
    send(replica_pid(&before, 1).unwrap(), Signal::KILL);
    let after = until("the replica is back", || {
        let volume = world.volume("v1");
        let pid = replica_pid(&volume, 1)?;
        (Some(pid) != replica_pid(&before, 1)).then_some(volume)
    });
    assert_eq!(after["replicas"][1]["address"], before["replicas"][1]["address"]);
    assert_eq!(engine_pid(&after), engine_pid(&before), "the engine isn't touched");
}

/// What a killed manager leaves goes on serving; ending it would be an outage, starting a second
/// engine beside it two writers.
#[test]
fn after_kill_9_the_processes_go_on_and_the_next_standalone_adopts_them() {
    let mut world = attached();
    let before = world.processes();
    assert_eq!(before.len(), 4);
    world.kill();
    assert!(before.iter().all(|pid| alive(*pid)), "they go on");
    world.start();
    let volume = until("it is attached", || {
        let volume = world.volume("v1");
        (volume["state"] == "attached").then_some(volume)
    });
    let sorted = |mut pids: Vec<u32>| {
        pids.sort_unstable();
        pids
    };
    assert_eq!(sorted(world.processes()), sorted(before.clone()), "adopted, not replaced");

    // An adopted process that dies is noticed, too.
    send(engine_pid(&volume).unwrap(), Signal::KILL);
    until("a successor", || {
        let now = world.volume("v1");
        (now["state"] == "attached" && engine_pid(&now) != engine_pid(&volume)).then_some(())
    });
    let all = world.processes();
    assert_eq!(world.stop().code(), Some(0));
    assert!(all.iter().all(|pid| !alive(*pid)), "nothing is left");
    assert!(world.processes().is_empty());
}

#[test]
fn processes_that_died_while_nobody_looked_are_replaced() {
    let mut world = attached();
    let volume = world.volume("v1");
    world.kill();
    send(engine_pid(&volume).unwrap(), Signal::KILL);
    send(replica_pid(&volume, 0).unwrap(), Signal::KILL);
    world.start();
    until("all is well again", || {
        let now = world.volume("v1");
        (now["robustness"] == "healthy" && replica_pid(&now, 0).is_some()).then_some(())
    });
    assert!(engine_args(&world).contains("--recover"));
}

#[test]
fn a_volume_that_was_attached_at_ctrl_c_is_attached_by_the_next_start() {
    let mut world = attached();
    assert_eq!(world.stop().code(), Some(0));
    assert!(world.processes().is_empty());
    world.start();
    until("it is attached", || (world.volume("v1")["state"] == "attached").then_some(()));
}

/// Two managers would both grant.
#[test]
fn a_second_standalone_on_the_folder_is_refused_with_the_firsts_pid() {
    let world = attached();
    let mut second = world.launch_one();
    let status = until("it is refused", || second.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
    let log = world.log();
    assert!(log.contains(&format!("pid {}", world.standalone_pid())), "{log}");
    assert_eq!(world.volume("v1")["state"], "attached", "the first isn't touched");
}

/// A hanging engine must not make Ctrl-C hang for its whole bound when the user is in a hurry.
#[test]
fn a_second_ctrl_c_kills_an_engine_that_hangs() {
    let mut world = attached();
    let all = world.processes();
    let engine = engine_pid(&world.volume("v1")).unwrap();
    send(engine, Signal::STOP);
    // One thread has to take the signal before all of them stop.
    until("the engine has stopped", || (state_of(engine) == Some('T')).then_some(()));
    world.signal(Signal::INT);
    until("it begins", || world.log().contains("detaching all volumes").then_some(()));
    let dead: Vec<_> = all.iter().filter(|pid| !alive(**pid)).collect();
    assert!(dead.is_empty(), "{dead:?} of {all:?}");
    world.signal(Signal::INT);
    assert_eq!(world.wait().code(), Some(1), "it says that it wasn't clean");
    assert!(all.iter().all(|pid| !alive(*pid)));
    let after = world.processes();
    assert!(after.iter().all(|pid| !alive(*pid)), "a successor was started: {after:?}");
}

#[test]
fn an_engine_that_can_not_start_is_reported_and_tried_less_and_less_often() {
    let world = world();
    world.well(&["volume", "create", "v1", "--size", "2MiB", "--frontend", "socket"]);
    fs::write(world.data().join("run/v1.control"), "die at start").unwrap();
    let said = world.say(&["volume", "attach", "v1", "--timeout", "3"]);
    assert_eq!(said.code, 5, "{said:?}");
    assert!(said.err.contains("exit status: 7"), "{}", said.err);
    assert_eq!(world.volume("v1")["robustness"], "unknown");
    let generation = world.volume("v1")["record"]["generation"].as_u64().unwrap();
    assert!(generation < 20, "g{generation} after three seconds");
    // And it recovers by itself.
    fs::remove_file(world.data().join("run/v1.control")).unwrap();
    world.well(&["volume", "attach", "v1"]);
}

#[test]
fn a_volume_that_can_not_be_formatted_leaves_nothing_behind() {
    let world = world();
    let replicas = world.data().join("disks/default/replicas");
    fs::write(replicas.join("no-room"), "").unwrap();
    let create = ["volume", "create", "v1", "--size", "2MiB", "--frontend", "socket"];
    let said = world.say(&create);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("r2") && said.err.contains("No space left"), "{}", said.err);
    fs::remove_file(replicas.join("no-room")).unwrap();
    until("it is gone", || (world.say(&["volume", "show", "v1"]).code == 3).then_some(()));
    assert_eq!(fs::read_dir(&replicas).unwrap().count(), 0);
    world.well(&create);
}

/// Somebody's data, perhaps of a store that was lost: never overwritten.
#[test]
fn a_directory_that_no_volume_knows_is_not_touched() {
    let world = world();
    let stranger = world.data().join("disks/default/replicas/v1-r2");
    fs::create_dir(&stranger).unwrap();
    fs::write(stranger.join("data"), "precious").unwrap();
    let said = world.say(&["volume", "create", "v1", "--size", "2MiB"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains("v1-r2"), "{}", said.err);
    assert_eq!(fs::read_to_string(stranger.join("data")).unwrap(), "precious");
}

#[test]
fn a_lost_directory_is_made_anew_once_its_replica_left_the_set() {
    let world = attached();
    let before = world.volume("v1");
    let directory = PathBuf::from(before["replicas"][1]["directory"].as_str().unwrap());
    fs::remove_dir_all(&directory).unwrap();
    send(replica_pid(&before, 1).unwrap(), Signal::KILL);
    until("it is formatted and served", || {
        let volume = world.volume("v1");
        let served = replica_pid(&volume, 1).is_some() && volume["replicas"][1]["mode"] == "RW";
        (served && directory.join("replica.meta").exists()).then_some(())
    });
    assert_eq!(world.volume("v1")["replicas"][1]["inSync"], false, "the engine decides that");
}

/// A stale mount or a disk that answers with errors: `is it a directory` says no, and the replica was
/// formatted anew beside its data.
#[test]
fn a_directory_that_can_not_be_looked_at_is_left_as_it_is_and_used_when_it_is_back() {
    let world = attached();
    let before = world.volume("v1");
    let directory = PathBuf::from(before["replicas"][1]["directory"].as_str().unwrap());
    let elsewhere = world.path().join("elsewhere");
    fs::rename(&directory, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&directory, &directory).unwrap(); // too many levels of symbolic links
    send(replica_pid(&before, 1).unwrap(), Signal::KILL);
    until("it is said", || {
        let volume = world.volume("v1");
        let left = volume["replicas"][1]["inSync"] == false;
        let reasons = volume["conditions"].as_array().unwrap().iter().map(|it| &it["reason"]);
        (left && reasons.into_iter().any(|it| it == "ReplicaUnreadable")).then_some(())
    });
    assert!(!world.log().contains("format replica r2"), "{}", world.log());
    fs::remove_file(&directory).unwrap();
    fs::rename(&elsewhere, &directory).unwrap();
    until("it is served", || replica_pid(&world.volume("v1"), 1));
}

#[test]
fn a_volume_grows_while_it_is_attached_and_never_shrinks() {
    let world = attached();
    world.well(&["volume", "resize", "v1", "--size", "4MiB"]);
    assert_eq!(world.volume("v1")["sizeBytes"], 4 << 20);
    let said = world.say(&["volume", "resize", "v1", "--size", "2MiB"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains("would shrink"), "{}", said.err);
}

/// A device can be written or not for as long as it is there: who asks for the other one besides
/// would get a device that takes writes, or one that refuses them.
#[test]
fn a_volume_is_attached_to_be_written_or_read_only_and_not_both() {
    let world = attached();
    let said = world.say(&["volume", "attach", "v1", "--read-only"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains("attached to be written"), "{}", said.err);
    world.well(&["volume", "detach", "v1"]);
    world.well(&["volume", "attach", "v1", "--read-only"]);
    assert!(engine_args(&world).contains("--read-only"));
    world.well(&["volume", "attach", "v1", "--read-only"]);
    let said = world.say(&["volume", "attach", "v1"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains("attached read-only"), "{}", said.err);
}

/// Reading the snapshots of a volume that nobody uses attaches it for a moment.
#[test]
fn a_job_attaches_the_volume_and_lets_go() {
    let world = world();
    world.well(&["volume", "create", "v1", "--size", "2MiB", "--frontend", "socket"]);
    world.well(&["snapshot", "ls", "v1"]);
    until("it is detached again", || {
        (world.volume("v1")["state"] == "detached" && world.processes().is_empty()).then_some(())
    });
}
