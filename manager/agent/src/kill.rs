//! The end of processes that weren't asked to end.

use std::time::Duration;

use super::supervisor::{Part, Signal, Supervisor};

const PATIENCE: Duration = Duration::from_secs(5);

/// Engines first: a replica that goes before its engine would be taken out of the set.
pub fn all(supervisor: &dyn Supervisor) {
    kill(supervisor, true);
    kill(supervisor, false);
}

pub fn engines(supervisor: &dyn Supervisor) {
    kill(supervisor, true);
}

fn kill(supervisor: &dyn Supervisor, engines: bool) {
    let processes = supervisor.list();
    let names = processes.iter().map(|process| &process.spec.name);
    let names: Vec<_> = names.filter(|name| (name.part == Part::Engine) == engines).collect();
    for name in &names {
        tracing::warn!(process = %name, "killed");
        supervisor.signal(name, Signal::Kill);
    }
    for name in names {
        supervisor.wait(name, PATIENCE);
    }
}
