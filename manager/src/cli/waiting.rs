//! What a volume waits for, told while a command waits for the volume.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ankole_replica::types::ReplicaId;

use super::output::remark;
use crate::api::volume::{Condition, Reason, State, VolumeView};
use crate::api::why::obstacle;
use crate::api::{ApiError, Name};
use crate::client::Client;

/// What takes no longer isn't worth a word.
const QUIET: Duration = Duration::from_secs(2);
/// Until then, what is seen may be of the time before the command.
const SETTLED: Duration = Duration::from_secs(1);

pub(super) struct Waiting {
    began: Instant,
    told: BTreeSet<(Reason, Option<ReplicaId>)>,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), told: BTreeSet::new() }
    }

    /// Each reason once, on stderr.
    pub(super) fn tell(&mut self, volume: &VolumeView) {
        if self.began.elapsed() < QUIET {
            return;
        }
        for Condition { reason, replica, message, next, .. } in &volume.conditions {
            if is_waited_for(*reason) && self.told.insert((*reason, replica.clone())) {
                let next = next.as_ref().map_or(String::new(), |next| format!(" ({next})"));
                remark(&format!("waiting: {message}{next}"));
            }
        }
    }

    /// An attach that needs a person fails at once.
    pub(super) fn refuse_obstacle(&self, volume: &VolumeView) -> Result<(), ApiError> {
        let is_open = volume.state == State::Attaching && self.began.elapsed() >= SETTLED;
        let obstacle = is_open.then(|| obstacle(&volume.name, &volume.conditions)).flatten();
        obstacle.map_or(Ok(()), Err)
    }
}

/// Does `work`, for which the server may have to attach the volume first.
pub(super) fn while_told<T: Send>(
    client: &Client,
    volume: &Name,
    work: impl FnOnce() -> T + Send,
) -> T {
    thread::scope(|scope| {
        let (done, result) = mpsc::sync_channel(1);
        let worker = scope.spawn(move || done.send(work()));
        let mut waiting = Waiting::new();
        loop {
            match result.recv_timeout(QUIET) {
                Ok(result) => return result,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => match worker.join() {
                    Err(panic) => std::panic::resume_unwind(panic),
                    Ok(_) => unreachable!("it ends by sending, or by a panic"),
                },
            }
            let volume = client.volume(volume).ok();
            if let Some(volume) = volume.filter(|volume| volume.state != State::Attached) {
                waiting.tell(&volume);
            }
        }
    })
}

/// And not only worth to be known.
fn is_waited_for(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::SetAside
            | Reason::DataLost
            | Reason::ReplicaCorrupt
            | Reason::ReplicaRepaired
            | Reason::ReplicaOlder
            | Reason::ReplicaAbsent
            | Reason::ReplicaRebuilt
    )
}
