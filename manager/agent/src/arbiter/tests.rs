use std::io::{BufRead, Write};
use std::os::unix::net;
use std::path::PathBuf;
use std::sync::Mutex;

use ankole_replica::record::{EngineGrant, Member};
use ankole_replica::types::Incarnation;

use super::*;
use crate::pidfile::{self, Header, Identity};
use crate::{LocalSupervisor, ProcessSpec};

/// Of the volume v1, in memory.
struct Kept(Mutex<Record>);

impl Records for Kept {
    fn read(&self, volume: &str) -> Result<Record, Failure> {
        match volume {
            "v1" => Ok(self.0.lock().unwrap().clone()),
            _ => Err(Failure::Impossible(format!("volume {volume} doesn't exist"))),
        }
    }

    fn change(
        &self,
        _volume: &str,
        expected: Generation,
        change: &Change,
    ) -> Result<Record, Failure> {
        let mut record = self.0.lock().unwrap();
        *record = record.after(expected, change.clone())?;
        Ok(record.clone())
    }
}

/// Serves until the test process ends.
struct World {
    folder: tempfile::TempDir,
    kept: Arc<Kept>,
}

impl World {
    /// Whose engine of v1 this process is, as an earlier supervisor left it.
    fn new() -> Self {
        Self::of_engine(Some(std::process::id()), Limits::default())
    }

    fn of_engine(pid: Option<u32>, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        if let Some(pid) = pid {
            let name = ProcessName::engine(&"v1".parse().unwrap());
            let spec = ProcessSpec {
                name,
                program: "ankole".into(),
                args: vec![],
                log: PathBuf::new(),
                labels: Default::default(),
            };
            let header = Header::new(&pidfile::boot_id().unwrap(), &spec);
            let path = folder.path().join("v1.engine.process");
            pidfile::write_whole(&path, &header, Identity { pid, start_ticks: 0 }).unwrap();
        }
        let supervisor = LocalSupervisor::open(folder.path(), &[folder.path()]).unwrap();
        let record = Record {
            generation: Generation::FIRST,
            engine: Some(EngineGrant { node: "n".into(), instance: InstanceId("e1".into()) }),
            attach_epoch: 1,
            in_sync: ["r1", "r2", "r3"].map(member).to_vec(),
            salvaged: None,
        };
        let kept = Arc::new(Kept(Mutex::new(record)));
        let records: Arc<dyn Records> = Arc::clone(&kept) as _;
        let socket = folder.path().join("arbiter.sock");
        start(&socket, records, Arc::new(supervisor), limits).unwrap();
        Self { folder, kept }
    }

    fn connect(&self) -> net::UnixStream {
        net::UnixStream::connect(self.folder.path().join("arbiter.sock")).unwrap()
    }

    fn ask(&self, request: &Request) -> Answer {
        self.say(&serde_json::to_string(request).unwrap())
    }

    fn say(&self, line: &str) -> Answer {
        let mut connection = self.connect();
        writeln!(connection, "{line}").unwrap();
        serde_json::from_str(&hear(connection)).unwrap()
    }

    fn reads(&self) -> bool {
        matches!(self.say(r#"{"request":"read","volume":"v1"}"#), Answer::Record(_))
    }

    fn generation(&self) -> Generation {
        self.kept.0.lock().unwrap().generation
    }
}

fn hear(connection: net::UnixStream) -> String {
    let mut answer = String::new();
    let _ = std::io::BufReader::new(connection).read_line(&mut answer);
    answer
}

fn member(replica: &str) -> Member {
    Member { replica: replica.into(), incarnation: Incarnation(1) }
}

fn members_change(by: &str, members: &[&str]) -> Request {
    let in_sync = members.iter().map(|replica| member(replica)).collect();
    let change = Change::Members { by: InstanceId(by.into()), in_sync };
    Request::Change { volume: "v1".into(), expected: Generation::FIRST, change }
}

#[test]
fn the_engines_own_process_changes_the_set() {
    let world = World::new();
    let answer = world.ask(&members_change("e1", &["r1", "r2"]));
    assert!(matches!(answer, Answer::Record(_)), "{answer:?}");
    assert_eq!(world.generation(), Generation::FIRST.next());
}

/// The instance stands in a command line that every user may read: knowing it was enough.
#[test]
fn another_process_changes_nothing_even_if_it_knows_the_instance() {
    let mut other = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    for engine in [None, Some(other.id())] {
        let world = World::of_engine(engine, Limits::default());
        let answer = world.ask(&members_change("e1", &["r1"]));
        let Answer::Error { message } = &answer else { panic!("{answer:?}") };
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        assert!(message.contains("volume v1"), "{message}");
        assert_eq!(world.generation(), Generation::FIRST);
        assert!(world.reads(), "it may look");
    }
    other.kill().unwrap();
    other.wait().unwrap();
}

/// It asks until there is a definite answer: without one it would go on for ever.
#[test]
fn an_engine_that_was_replaced_hears_so_whichever_process_it_is() {
    for engine in [None, Some(std::process::id())] {
        let world = World::of_engine(engine, Limits::default());
        let late = world.ask(&members_change("e0", &["r2"]));
        assert!(matches!(late, Answer::Refused(Refused::NotTheEngine { .. })), "{late:?}");
        assert_eq!(world.generation(), Generation::FIRST);
    }
}

/// Its supervisor can't tell whether it lives; its writes would wait for ever.
#[test]
fn an_engine_whose_pid_file_is_in_doubt_changes_the_set() {
    let folder = tempfile::tempdir().unwrap();
    fn doubtful(folder: &Path) -> LocalSupervisor {
        std::fs::write(folder.join("v1.engine.process"), "not json\n1 2 3").unwrap();
        LocalSupervisor::open(folder, &[folder]).unwrap()
    }
    let supervisor = doubtful(folder.path());
    let world = World::new();
    let records: Arc<dyn Records> = Arc::clone(&world.kept) as _;
    let arbiter = Arbiter { records, supervisor: Arc::new(supervisor), limits: Limits::default() };
    let answer = arbiter.answer(Some(1), members_change("e1", &["r1"])).unwrap();
    assert!(matches!(answer, Answer::Record(_)), "{answer:?}");
}

/// An engine that could grant could name itself.
#[test]
fn nobody_grants_or_salvages_through_the_socket() {
    let world = World::new();
    let engine = EngineGrant { node: "n".into(), instance: InstanceId("me".into()) };
    let grant = Change::Grant { engine, attach_epoch: 2 };
    let salvage = Change::Salvage { member: member("r3"), above: Generation::FIRST };
    for change in [grant, salvage] {
        let expected = Generation::FIRST;
        let answer = world.ask(&Request::Change { volume: "v1".into(), expected, change });
        assert!(matches!(answer, Answer::Error { .. }));
    }
    assert_eq!(world.generation(), Generation::FIRST);
}

#[test]
fn garbage_is_answered_and_the_next_line_is_served() {
    let world = World::new();
    assert!(matches!(world.say("{]"), Answer::Error { .. }));
    assert!(matches!(world.say(r#"{"request":"read","volume":"nope"}"#), Answer::Error { .. }));
    assert!(world.reads());
}

#[test]
fn a_client_that_never_ends_its_line_is_cut_off() {
    let world = World::new();
    let mut endless = world.connect();
    let flood = vec![b'x'; 2 * LINE_BYTES_MAX as usize];
    // The arbiter may close while we still write: both ends are fine, an answer isn't.
    let _ = endless.write_all(&flood);
    assert_eq!(hear(endless), "");
    assert!(world.reads());
}

/// They kept their places for as long as they lived, and engines waited in the queue behind them.
#[test]
fn clients_that_say_nothing_or_half_a_line_lose_their_places() {
    let limits = Limits { connections: 2, patience: Duration::from_millis(200) };
    let world = World::of_engine(None, limits);
    let silent: Vec<_> = (0..6).map(|_| world.connect()).collect();
    for mut connection in silent.iter().skip(1) {
        write!(connection, "{{\"request\":").unwrap();
    }
    assert!(world.reads());
    for connection in silent {
        assert_eq!(hear(connection), "");
    }
}
