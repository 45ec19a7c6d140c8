//! Sizes that can't work on the disks of a volume's places.

use crate::agent::growth;
use crate::api::replica::Place;
use crate::api::{ApiError, Name};

/// What a volume is to become.
pub struct Growth<'a> {
    pub volume: &'a Name,
    pub places: &'a [Place],
    /// 0: it is to be made.
    pub from_bytes: u64,
    pub to_bytes: u64,
}

impl Growth<'_> {
    pub fn refuse_impossible(&self) -> Result<(), ApiError> {
        let Self { volume, places, from_bytes, to_bytes } = *self;
        let directories: Vec<_> = places.iter().map(|place| place.directory.clone()).collect();
        let directories = &directories;
        growth::Growth { volume, directories, from_bytes, to_bytes }.refuse_impossible()
    }
}
