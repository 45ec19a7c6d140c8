//! The end of a standalone: in order, and without taking a disk from under anybody.
//!
//! ```text
//! all volumes wanted detached ─┬─▶ all are                                   ─▶ Clean
//!                              ├─▶ the others are used, for USED_PATIENCE    ─▶ LeftUsed
//!                              └─▶ some hang, for PATIENCE                   ─▶ InHaste
//! second signal ─▶ engines killed ─▶ their devices stopped ─▶ replicas killed ─▶ InHaste
//! ```
//! What is left runs on, and the next standalone adopts it. What may never happen: a process is
//! killed that nobody asked to kill; a device is left that waits for an engine which was killed.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ankole_api::objects::{Engine, EngineSpec, Volume, VolumeSpec};
use ankole_store::{Selector, Store};
use tokio::task::JoinHandle;

use super::Ended;
use crate::agent::ProcessName;
use crate::agent::node::{Node, end};
use crate::api::Name;
use crate::api::volume::Reason;

/// Stated when it begins. A flush of a slow disk fits; a disk that hangs doesn't.
const PATIENCE: Duration = Duration::from_secs(30);
/// Somebody may be about to unmount, as we end.
const USED_PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

pub(super) struct Ending {
    pub(super) store: Arc<dyn Store>,
    pub(super) agents: Vec<Arc<Node>>,
    /// What looks after the agents' objects.
    pub(super) running: JoinHandle<()>,
}

impl Ending {
    pub(super) async fn run(self, again: impl Future<Output = ()>) -> Ended {
        let processes: usize = self.agents.iter().map(|agent| agent.supervisor.list().len()).sum();
        tell(&format!(
            "detaching all volumes ({processes} processes): at most {} s; what is in use goes on; \
             Ctrl-C again kills all",
            PATIENCE.as_secs()
        ));
        self.agents.iter().for_each(|agent| agent.stop());
        let left = tokio::select! {
            left = self.until_detached() => left,
            () = again => {
                self.kill_all().await;
                return Ended::InHaste;
            }
        };
        for volume in &left {
            tell(&volume.text);
        }
        if left.is_empty() {
            return Ended::Clean;
        }
        tell("start ankole standalone again to look after what was left");
        if left.iter().all(|volume| volume.is_used) { Ended::LeftUsed } else { Ended::InHaste }
    }

    async fn until_detached(&self) -> Vec<Left> {
        let begun = Instant::now();
        loop {
            let left = self.look().await;
            let are_all_used = left.iter().all(|volume| volume.is_used);
            let patience = if are_all_used { USED_PATIENCE } else { PATIENCE };
            if left.is_empty() || begun.elapsed() > patience {
                return left;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self) -> Vec<Left> {
        let volumes = self.volumes().await;
        let processes: Vec<_> =
            self.agents.iter().flat_map(|agent| agent.supervisor.list()).collect();
        let has_process =
            |volume: &Volume| processes.iter().any(|it| it.spec.name.volume == *volume.name());
        let is_left = |volume: &&Volume| volume.status.attachment.is_some() || has_process(volume);
        let mut left = Vec::new();
        for volume in volumes.iter().filter(is_left) {
            let engine = self.store.find::<EngineSpec>(volume.name()).await.ok().flatten();
            let name = ProcessName::engine(volume.name());
            let mut agents = self.agents.iter();
            let process = agents.find_map(|agent| agent.supervisor.find(&name));
            left.push(why_left(volume, engine.as_ref(), process.map(|process| process.pid)));
        }
        let is_known = |volume: &Name| volumes.iter().any(|known| known.name() == volume);
        for process in processes.iter().filter(|process| !is_known(&process.spec.name.volume)) {
            let text = format!("{} runs, process {}", process.spec.name, process.pid);
            left.push(Left { is_used: false, text });
        }
        left
    }

    /// Those that can be read.
    async fn volumes(&self) -> Vec<Volume> {
        let listed = self.store.list::<VolumeSpec>(&Selector::all()).await;
        listed.into_iter().flat_map(|listed| listed.objects).flatten().collect()
    }

    async fn kill_all(&self) {
        // Else each engine gets a successor at once, which takes its device over.
        self.running.abort();
        let volumes = self.volumes().await;
        let agents = self.agents.clone();
        let all = move || agents.iter().for_each(|agent| end::at_once(agent, &volumes));
        let _ = tokio::task::spawn_blocking(all).await;
    }
}

/// For the person at the terminal, whatever the log's filter is.
fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// What is not detached, and why.
struct Left {
    is_used: bool,
    text: String,
}

fn why_left(volume: &Volume, engine: Option<&Engine>, pid: Option<u32>) -> Left {
    let name = volume.name();
    let pid = pid.map_or(String::new(), |pid| format!(", process {pid},"));
    let told = engine.map_or(&[][..], |engine| &engine.status.conditions);
    match told.iter().find(|condition| condition.reason == Reason::InUse) {
        Some(used) => Left {
            is_used: true,
            text: format!("{name} is left as it is: {}; its engine{pid} goes on", used.message),
        },
        None => {
            let why: Vec<_> = told.iter().map(|it| it.message.as_str()).collect();
            let text = format!("{name} isn't detached: {}; its processes go on", why.join("; "));
            Left { is_used: false, text }
        }
    }
}
