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

use super::Ended;
use crate::agent::kill;
use crate::api::Name;
use crate::api::error::chain;
use crate::api::volume::{Reason, Volume};
use crate::controllers::{Context, volume::devices};

/// Stated when it begins. A flush of a slow disk fits; a disk that hangs doesn't.
const PATIENCE: Duration = Duration::from_secs(30);
/// Somebody may be about to unmount, as we end.
const USED_PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

pub(super) async fn run(context: &Arc<Context>, again: impl Future<Output = ()>) -> Ended {
    let processes = context.supervisor.list().len();
    tell(&format!(
        "detaching all volumes ({processes} processes): at most {} s; what is in use goes on; \
         Ctrl-C again kills all",
        PATIENCE.as_secs()
    ));
    context.stop();
    let left = tokio::select! {
        left = until_detached(context) => left,
        () = again => {
            let context = Arc::clone(context);
            let _ = tokio::task::spawn_blocking(move || kill_all(&context)).await;
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

/// For the person at the terminal, whatever the log's filter is.
fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// What is not detached, and why.
struct Left {
    is_used: bool,
    text: String,
}

async fn until_detached(context: &Arc<Context>) -> Vec<Left> {
    let begun = Instant::now();
    loop {
        let context = Arc::clone(context);
        let looked = tokio::task::spawn_blocking(move || look(&context)).await;
        let left = looked.unwrap_or_else(|panic| {
            vec![Left { is_used: false, text: format!("what is left isn't known: {panic}") }]
        });
        let are_all_used = left.iter().all(|volume| volume.is_used);
        let patience = if are_all_used { USED_PATIENCE } else { PATIENCE };
        if left.is_empty() || begun.elapsed() > patience {
            return left;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn look(context: &Context) -> Vec<Left> {
    let volumes = context.store.readable::<Volume>().unwrap_or_default();
    let processes = context.supervisor.list();
    let has_process =
        |volume: &Volume| processes.iter().any(|it| it.spec.name.volume == volume.name);
    let is_left = |volume: &&Volume| volume.status.attachment.is_some() || has_process(volume);
    let mut left: Vec<_> =
        volumes.iter().filter(is_left).map(|volume| why_left(context, volume)).collect();
    let is_known = |volume: &Name| volumes.iter().any(|known| known.name == *volume);
    for process in processes.iter().filter(|process| !is_known(&process.spec.name.volume)) {
        let text = format!("{} runs, process {}", process.spec.name, process.pid);
        left.push(Left { is_used: false, text });
    }
    left
}

fn why_left(context: &Context, volume: &Volume) -> Left {
    let name = &volume.name;
    let Some(seen) = context.board.get(name) else {
        return Left { is_used: false, text: format!("{name} wasn't looked at yet") };
    };
    let pid = seen.engine_pid.map_or(String::new(), |pid| format!(", process {pid},"));
    match seen.conditions.iter().find(|condition| condition.reason == Reason::InUse) {
        Some(used) => Left {
            is_used: true,
            text: format!("{name} is left as it is: {}; its engine{pid} goes on", used.message),
        },
        None => {
            let why: Vec<_> = seen.conditions.iter().map(|it| it.message.as_str()).collect();
            let text = format!("{name} isn't detached: {}; its processes go on", why.join("; "));
            Left { is_used: false, text }
        }
    }
}

/// Their devices are stopped once they have no engine, so that clients get errors and don't hang.
fn kill_all(context: &Arc<Context>) {
    let volumes = context.store.readable::<Volume>().unwrap_or_default();
    // Else each engine gets a successor at once, which takes its device over. Held until the process
    // ends, which is soon.
    volumes.iter().filter_map(|volume| context.hold(&volume.name)).for_each(std::mem::forget);
    kill::engines(&*context.supervisor);
    for volume in volumes {
        let stopped = devices::own(context, &volume).and_then(|device| match device {
            Some(device) => devices::stop(context, &volume, device),
            None => Ok(()),
        });
        if let Err(error) = stopped {
            let error = chain(&error);
            tracing::warn!(volume = %volume.name, %error, "its device can't be stopped");
        }
    }
    // Also what a pass that was on its way has started meanwhile.
    kill::all(&*context.supervisor);
}
