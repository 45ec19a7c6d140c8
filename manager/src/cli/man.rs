//! `ankole man`

use std::path::Path;

use super::output::Output;
use super::{Done, Outcome};
use crate::api::ApiError;

/// The first page to stdout, or a page for each command into a folder.
pub(super) fn run(output: Output, command: clap::Command, folder: Option<&Path>) -> Outcome {
    let Some(folder) = folder else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(command).render(&mut page);
        rendered.map_err(|error| ApiError::failed(format!("write the page: {error}")))?;
        return output.text(&String::from_utf8_lossy(&page));
    };
    let written =
        std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(command, folder));
    written.map(|()| Done::Well).map_err(|error| {
        ApiError::failed(format!("write the pages to {}: {error}", folder.display()))
    })
}
