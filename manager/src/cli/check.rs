//! `ankole check`: what this node can do.

use std::path::Path;

use super::output::column;
use super::{Done, Outcome, Session};
use crate::agent::layout::api_socket_path;
use crate::agent::probe;
use crate::agent::replica_folders::nobodys;
use crate::api::node::{Area, Finding, Found};
use crate::client::Client;

/// Degraded when there is a problem; what is only missing is fine, something else serves.
pub(super) fn run(session: &Session<'_>) -> Outcome {
    let data = session.global.data.as_deref().or(session.environment.data.as_deref());
    let data = data.unwrap_or(Path::new("."));
    let mut findings = probe::check(data, &session.environment.search_path);
    // Which directories are whose, only the server of the data folder knows.
    let orphans = Client::local(api_socket_path(data)).orphans().unwrap_or_default();
    if !orphans.is_empty() {
        findings.push(Finding {
            area: Area::Disk,
            name: "orphans".into(),
            found: Found::Problem,
            detail: nobodys(&orphans),
            next: None,
        });
    }
    let area = |finding: &Finding| format!("{:?}", finding.area).to_lowercase();
    session.output.list(
        &findings,
        |finding: &Finding| finding.name.clone(),
        &[
            column("AREA", area),
            column("NAME", |finding: &Finding| finding.name.clone()),
            column("FOUND", |finding| format!("{:?}", finding.found).to_lowercase()),
            column("DETAIL", |finding| finding.detail.clone()),
            column("NEXT", |finding| finding.next.clone().unwrap_or_default()),
        ],
    )?;
    let problem = findings.iter().any(|finding| finding.found == Found::Problem);
    Ok(if problem { Done::Degraded } else { Done::Well })
}
