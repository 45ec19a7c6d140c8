use std::fs::File;

use super::*;
use crate::pidfile::Identity;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn supervisor(&self) -> LocalSupervisor {
        LocalSupervisor::open(self.0.path(), &[self.0.path()]).unwrap()
    }
    /// With the command line of a real one.
    fn engine(&self, volume: &str) -> ProcessSpec {
        let (script, fifo) = (self.0.path().join("ankole"), self.0.path().join("fifo"));
        if !script.exists() {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
            // Opened, so that it never waits for a writer, and reads for ever.
            fs::write(&script, format!("read line <>{}\n", fifo.display())).unwrap();
        }
        let admin = self.0.path().join(format!("{volume}.admin")).display().to_string();
        let words = ["engine", "run", "--volume", volume, "--instance", "e1", "--admin"];
        let words = words.map(String::from).into_iter().chain([admin]);
        ProcessSpec {
            name: ProcessName::engine(&volume.parse().unwrap()),
            program: "/bin/sh".into(),
            args: [script.display().to_string()].into_iter().chain(words).collect(),
            ..self.sleep()
        }
    }
    fn sleep(&self) -> ProcessSpec {
        self.shell("exec sleep 600")
    }
    fn shell(&self, script: &str) -> ProcessSpec {
        ProcessSpec {
            name: ProcessName::engine(&"v1".parse().unwrap()),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            log: self.0.path().join("log"),
            labels: BTreeMap::from([("instance".into(), "e1".into())]),
        }
    }
}

fn told(path: &Path) -> Identity {
    match pidfile::read(path).unwrap().child {
        pidfile::Child::Told(identity) => identity,
        other => panic!("{other:?}"),
    }
}

const SOON: Duration = Duration::from_secs(20);

fn end(supervisor: &LocalSupervisor, name: &ProcessName) {
    supervisor.signal(name, Signal::Kill);
    assert!(supervisor.wait(name, SOON), "a killed process ends");
}

/// A socket or a device that an engine held without knowing it would live as long as it does.
#[test]
fn a_process_gets_none_of_the_files_that_we_were_given() {
    let folder = Folder::new();
    let supervisor = folder.supervisor();
    let given = File::open("/dev/zero").unwrap();
    rustix::io::fcntl_setfd(&given, rustix::io::FdFlags::empty()).unwrap();
    let mut ends = supervisor.ended();
    supervisor.start(folder.shell("ls -l /proc/$$/fd")).unwrap();
    ends.blocking_recv().unwrap();
    let open = fs::read_to_string(folder.0.path().join("log")).unwrap();
    assert!(open.contains("/log") && !open.contains("/dev/zero"), "{open}");
}

#[test]
fn a_process_that_ends_is_told_with_its_status_and_forgotten() {
    let folder = Folder::new();
    let supervisor = folder.supervisor();
    let mut ends = supervisor.ended();
    let spec = folder.shell("echo some words; exit 3");
    let pid = supervisor.start(spec.clone()).unwrap();
    let ended = ends.blocking_recv().unwrap();
    assert_eq!((ended.pid, ended.how.as_deref()), (pid, Some("exit status: 3")));
    assert!(supervisor.list().is_empty());
    assert!(!supervisor.pid_file(&spec.name).exists());
    assert_eq!(fs::read_to_string(&spec.log).unwrap(), "some words\n");
}

/// Two engines of one volume would be two writers.
#[test]
fn one_name_runs_once() {
    let folder = Folder::new();
    let supervisor = folder.supervisor();
    let spec = folder.sleep();
    supervisor.start(spec.clone()).unwrap();
    let second = supervisor.start(spec.clone());
    assert!(matches!(second, Err(SupervisorError::Running { .. })));
    end(&supervisor, &spec.name);
    supervisor.start(spec.clone()).expect("the first has ended");
    end(&supervisor, &spec.name);
}

/// A supervisor that is dropped is to its processes what one that was killed is: nobody waits
/// for them any more.
#[test]
fn the_next_supervisor_adopts_and_hears_of_the_end() {
    let folder = Folder::new();
    let first = folder.supervisor();
    let spec = folder.sleep();
    let pid = first.start(spec.clone()).unwrap();
    let second = folder.supervisor();
    let adopted = second.list();
    assert_eq!(adopted.len(), 1);
    assert_eq!((adopted[0].pid, &adopted[0].spec), (pid, &spec));
    let mut ends = second.ended();
    end(&second, &spec.name);
    assert_eq!(ends.blocking_recv().unwrap().pid, pid);
}

/// After a reboot, or when pids were given anew, the pid in the file belongs to a stranger.
#[test]
fn a_stranger_with_the_pid_of_the_file_is_not_adopted() {
    let folder = Folder::new();
    let supervisor = folder.supervisor();
    let spec = folder.sleep();
    let pid = supervisor.start(spec.clone()).unwrap();
    let path = supervisor.pid_file(&spec.name);
    let text = fs::read_to_string(&path).unwrap();
    let ticks = told(&path).start_ticks;
    fs::write(&path, text.replace(&format!(" {ticks} "), &format!(" {} ", ticks - 1))).unwrap();
    assert!(folder.supervisor().list().is_empty());
    assert!(pidfile::is_alive(Identity { pid, start_ticks: ticks }).unwrap(), "not touched");
    end(&supervisor, &spec.name);
}

#[test]
fn processes_of_another_boot_are_gone() {
    let folder = Folder::new();
    let supervisor = folder.supervisor();
    let spec = folder.sleep();
    supervisor.start(spec.clone()).unwrap();
    let path = supervisor.pid_file(&spec.name);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&supervisor.boot_id, "another")).unwrap();
    assert!(folder.supervisor().list().is_empty());
    end(&supervisor, &spec.name);
}

#[test]
fn a_program_that_is_not_there_is_an_error_and_leaves_no_pid_file() {
    let folder = Folder::new();
    let supervisor = folder.supervisor();
    let spec = ProcessSpec { program: "/nowhere/ankole".into(), ..folder.sleep() };
    assert!(matches!(supervisor.start(spec.clone()), Err(SupervisorError::Start { .. })));
    assert!(!supervisor.pid_file(&spec.name).exists());
}

/// The kernel frees memory by killing: without these the volume is there for nobody.
#[test]
fn when_memory_is_short_others_go_first() {
    let folder = Folder::new();
    let supervisor = folder.supervisor();
    let lower = "echo -1 >/proc/self/oom_score_adj";
    let lowered = std::process::Command::new("sh").args(["-c", lower]).output().unwrap();
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let volume = "v1".parse().unwrap();
    for (name, score) in [
        (ProcessName::engine(&volume), "-999\n"),
        (ProcessName::replica(&volume, &"r1".into()), "-900\n"),
    ] {
        let spec = ProcessSpec { name, ..folder.sleep() };
        let pid = supervisor.start(spec.clone()).unwrap();
        let path = format!("/proc/{pid}/oom_score_adj");
        let expected = if lowered.status.success() { score } else { &own };
        assert_eq!(fs::read_to_string(path).unwrap(), expected, "{}", spec.name);
        end(&supervisor, &spec.name);
    }
    assert_eq!(fs::read_to_string("/proc/self/oom_score_adj").unwrap(), own, "ours stays");
}

/// It was deleted, and a second engine granted beside the one that lived.
#[test]
fn whatever_became_of_its_pid_file_an_engine_that_lives_is_adopted() {
    let folder = Folder::new();
    let first = folder.supervisor();
    let spec = folder.engine("v1");
    let pid = first.start(spec.clone()).unwrap();
    let path = first.pid_file(&spec.name);
    let whole = fs::read(&path).unwrap();
    let flipped = (0..whole.len()).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        Some(bytes)
    });
    let cut = (0..whole.len()).map(|length| Some(whole[..length].to_vec()));
    for (number, bytes) in flipped.chain(cut).chain([None]).enumerate() {
        match &bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let next = folder.supervisor();
        let adopted = next.list();
        assert_eq!(adopted.len(), 1, "case {number}");
        assert_eq!(adopted[0].pid, pid, "case {number}");
        assert!(spec.args.ends_with(&adopted[0].spec.args), "case {number}");
        assert!(next.start(spec.clone()).is_err(), "case {number}: a second one beside it");
        assert_eq!(told(&path).pid, pid, "case {number}: the file is mended");
    }
    end(&first, &spec.name);
}

#[test]
fn ten_engines_whose_pid_files_are_gone_or_empty_are_all_adopted() {
    let folder = Folder::new();
    let first = folder.supervisor();
    let specs: Vec<_> = (0..10).map(|number| folder.engine(&format!("v{number}"))).collect();
    for (number, spec) in specs.iter().enumerate() {
        first.start(spec.clone()).unwrap();
        match number % 2 {
            0 => fs::remove_file(first.pid_file(&spec.name)).unwrap(),
            _ => fs::write(first.pid_file(&spec.name), "").unwrap(),
        }
    }
    let pids = |supervisor: &LocalSupervisor| -> Vec<_> {
        supervisor.list().iter().map(|process| process.pid).collect()
    };
    assert_eq!(pids(&folder.supervisor()), pids(&first));
    specs.iter().for_each(|spec| end(&first, &spec.name));
}

/// A program that changed its command line, and a header that another version wrote.
#[test]
fn a_process_that_can_not_be_told_keeps_its_name_until_it_ends() {
    let folder = Folder::new();
    let first = folder.supervisor();
    let spec = folder.sleep();
    let pid = first.start(spec.clone()).unwrap();
    let path = first.pid_file(&spec.name);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"version\":1", "\"version\":99")).unwrap();
    let next = folder.supervisor();
    assert!(next.list().is_empty());
    let Err(SupervisorError::Doubt(doubt)) = next.start(spec.clone()) else {
        panic!("a second one beside it");
    };
    assert!(doubt.message.contains("version 99"), "{doubt:?}");
    assert!(doubt.message.contains(&format!("process {pid}")), "{doubt:?}");
    assert!(doubt.message.contains(path.to_str().unwrap()), "{doubt:?}");
    end(&first, &spec.name); // which removes the file, as its supervisor
    fs::write(&path, text.replace("\"version\":1", "\"version\":99")).unwrap();
    next.start(spec.clone()).expect("the process of the file has ended");
    end(&next, &spec.name);
}

#[test]
fn garbage_in_a_pid_file_stays_until_somebody_removes_it_and_stops_no_other() {
    let folder = Folder::new();
    let spec = folder.sleep();
    let path = folder.0.path().join("v1.engine.process");
    fs::write(&path, "\u{1f404} not json\n1 2 3").unwrap();
    let supervisor = folder.supervisor();
    assert!(supervisor.list().is_empty());
    assert!(matches!(supervisor.start(spec.clone()), Err(SupervisorError::Doubt(_))));
    assert!(path.exists());
    let other = ProcessSpec { name: ProcessName::engine(&"v2".parse().unwrap()), ..spec.clone() };
    supervisor.start(other.clone()).unwrap();
    end(&supervisor, &other.name);
    fs::remove_file(&path).unwrap();
    supervisor.start(spec.clone()).expect("nothing is in doubt any more");
    end(&supervisor, &spec.name);
}
