//! What the API does, free of HTTP: check a wish, write it to the store, show what is.
//!
//! All calls may block: they wait for the disk, and some for a controller or an engine.

mod jobs;
mod node;
mod program;
mod recovery;
mod salvage;
mod snapshots;
mod targets;
mod volumes;

use std::sync::Arc;

pub use jobs::JobControl;
pub use volumes::Engaged;

use self::jobs::Jobs;
use crate::api::ApiError;
use crate::api::error::chain;
use crate::controllers::Context;
use crate::store::{Kind, StoreError};

#[derive(Clone)]
pub struct Service {
    context: Arc<Context>,
    jobs: Arc<Jobs>,
}

impl Service {
    /// Also takes back the tickets of jobs of an earlier process: nobody works on them any more.
    pub fn open(context: Arc<Context>) -> Result<Self, StoreError> {
        let service = Self { context, jobs: Arc::default() };
        service.drop_job_tickets()?;
        Ok(service)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = chain(&error);
        match error {
            StoreError::NotFound { kind, .. } => {
                let noun = if kind == Kind::Volume { "volume" } else { "target" };
                Self::not_found(message).next(format!("ankole {noun} ls shows what there is"))
            }
            StoreError::Exists { .. } => Self::conflict(message).next("choose another name"),
            StoreError::Conflict { .. } => Self::conflict(message).next("try again"),
            _ => Self::failed(message).next("look at the disk of the data folder, and at the log"),
        }
    }
}
