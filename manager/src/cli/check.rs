//! `ankole check`: what this node can do.

use std::path::Path;

use super::output::column;
use super::{Done, Outcome, Session};
use crate::agent::probe::{self, Finding, Found};

/// Degraded when there is a problem; what is only missing is fine, something else serves.
pub(super) fn run(session: &Session<'_>) -> Outcome {
    let data = session.global.data.as_deref().or(session.environment.data.as_deref());
    let data = data.unwrap_or(Path::new("."));
    let findings = probe::check(data, &session.environment.search_path);
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
