//! Snapshots: asked of the volume's engine. A volume that isn't attached is attached for it.

use std::time::Duration;

use ankole_replica::admin::{Answer, Request};

use super::{Engaged, Service};
use crate::agent::admin;
use crate::api::attachment::TicketKind;
use crate::api::snapshot::{Chain, SnapshotRequest};
use crate::api::{ApiError, Name};

/// The engine settles, drains and flushes first.
const CHAIN_TIMEOUT: Duration = Duration::from_secs(120);
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

impl Service {
    pub fn snapshots(&self, volume: &Name) -> Result<Chain, ApiError> {
        let engaged = self.engage(volume, TicketKind::Snapshot)?;
        chain(volume, &engaged)
    }

    /// Answers when it exists on every member.
    pub fn create_snapshot(
        &self,
        volume: &Name,
        request: SnapshotRequest,
    ) -> Result<Chain, ApiError> {
        let name = match request.name {
            Some(name) => name,
            None => generated_name("snap"),
        };
        self.change_chain(
            volume,
            &Request::Snapshot { name: name.to_string(), labels: Default::default() },
        )
    }

    pub fn revert(&self, volume: &Name, snapshot: &Name) -> Result<Chain, ApiError> {
        self.change_chain(volume, &Request::Revert { name: snapshot.to_string() })
    }

    pub fn remove_snapshot(&self, volume: &Name, snapshot: &Name) -> Result<Chain, ApiError> {
        self.change_chain(volume, &Request::RemoveSnapshot { name: snapshot.to_string() })
    }

    fn change_chain(&self, volume: &Name, request: &Request) -> Result<Chain, ApiError> {
        let engaged = self.engage(volume, TicketKind::Snapshot)?;
        admin::ask(&engaged.admin, request, CHAIN_TIMEOUT).map_err(|error| {
            let error = ApiError::from(error);
            ApiError { message: format!("volume {volume}: {}", error.message), ..error }
        })?;
        chain(volume, &engaged)
    }
}

fn chain(volume: &Name, engaged: &Engaged<'_>) -> Result<Chain, ApiError> {
    match admin::ask(&engaged.admin, &Request::Status, STATUS_TIMEOUT)? {
        Answer::Status(status) => Ok(Chain {
            volume: volume.clone(),
            snapshots: status.snapshots,
            head_bytes: status.head_bytes,
            head_parent: status.head_parent,
        }),
        Answer::Ok | Answer::Alive | Answer::Error { .. } => {
            Err(ApiError::failed(format!("volume {volume}: the engine has no status")))
        }
    }
}

/// Sorts by time, and is as good as unique within a volume.
fn generated_name(prefix: &'static str) -> Name {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let milliseconds = now.map_or(0, |now| now.as_millis());
    format!("{prefix}-{milliseconds:013}").parse().expect("letters, digits and a hyphen")
}
