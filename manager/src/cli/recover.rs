//! `ankole volume recover`: volumes made of directories that no volume knows.

use ankole_replica::types::ReplicaId;

use super::output::{Format, column, remark};
use super::salvage::{evidence_of, shown};
use super::{Done, Outcome, Session, confirm};
use crate::agent::replica_folders::nobodys;
use crate::api::salvage::{RecoveryRequest, SalvageView};
use crate::api::size::human;
use crate::api::volume::Frontend;
use crate::api::{ApiError, Name};
use crate::client::Client;

#[derive(Debug, clap::Args)]
pub(super) struct RecoverArgs {
    /// The volume that they were of; all of which nothing is doubtful, if it is left out
    name: Option<Name>,
    /// Show what could be recovered, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take this one instead of the best
    #[arg(long, requires = "name", value_name = "ID", value_parser = |text: &str| Ok::<_, String>(ReplicaId::from(text)))]
    replica: Option<ReplicaId>,
    /// Also if a newer copy exists, or existed, somewhere: what was written since is lost
    #[arg(long, requires = "name")]
    accept_stale: bool,
    /// How the volume is shown; the directories don't tell how it was
    #[arg(long, value_enum, default_value_t = Frontend::Auto)]
    frontend: Frontend,
    /// Don't ask
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(session: &Session<'_>, client: &Client, args: &RecoverArgs) -> Outcome {
    match &args.name {
        Some(name) => one(session, client, args, name),
        None => all(session, client, args),
    }
}

fn one(session: &Session<'_>, client: &Client, args: &RecoverArgs, name: &Name) -> Outcome {
    let view = client.recovery(name, args.replica.as_ref())?;
    if args.dry_run {
        return evidence_of(session, &view, "recover");
    }
    // What is refused or doubtful is refused by the server, and not asked before.
    if view.refused.is_none() && (view.choice.doubts.is_empty() || args.accept_stale) {
        let lost = view.choice.losses.iter().map(|loss| format!("; lost: {loss}"));
        let what = format!("make what {} holds the volume {name}", chosen(&view));
        confirm(&(what + &lost.collect::<String>()), args.yes)?;
    }
    let done = recover(client, args, &view)?;
    match session.output.format {
        Format::Json => session.output.json(&done),
        Format::Name => session.output.line(name),
        Format::Table | Format::Wide => Ok(Done::Well),
    }
}

fn all(session: &Session<'_>, client: &Client, args: &RecoverArgs) -> Outcome {
    let views = client.recoveries()?;
    let is_sure = |view: &&SalvageView| view.refused.is_none() && view.choice.doubts.is_empty();
    let sure: Vec<_> = views.iter().filter(is_sure).collect();
    if args.dry_run || sure.is_empty() {
        return list(session, client, &views);
    }
    let names: Vec<_> = sure.iter().map(|view| view.volume.to_string()).collect();
    confirm(&format!("make {} of what the directories hold", names.join(", ")), args.yes)?;
    let done: Vec<_> =
        sure.iter().map(|view| recover(client, args, view)).collect::<Result<_, _>>()?;
    for view in views.iter().filter(|view| !is_sure(view)) {
        remark(&format!("{} isn't recovered: {}", view.volume, obstacle(view)));
        remark(&format!("next: ankole volume recover {} --dry-run", view.volume));
    }
    match session.output.format {
        Format::Json => session.output.json(&done)?,
        Format::Name => session.output.line(&names.join("\n"))?,
        Format::Table | Format::Wide => Done::Well,
    };
    Ok(if done.len() == views.len() { Done::Well } else { Done::Degraded })
}

fn recover(
    client: &Client,
    args: &RecoverArgs,
    view: &SalvageView,
) -> Result<SalvageView, ApiError> {
    let member = view.choice.chosen.as_ref().map(|member| member.replica.clone());
    let replica = member.or_else(|| args.replica.clone());
    let (accept_stale, frontend) = (args.accept_stale, args.frontend);
    let done =
        client.recover(&view.volume, &RecoveryRequest { replica, accept_stale, frontend })?;
    let name = &done.volume;
    remark(&format!(
        "volume {name} is what {} holds; next: ankole volume attach {name}, and look at what is there",
        chosen(&done)
    ));
    Ok(done)
}

fn list(session: &Session<'_>, client: &Client, views: &[SalvageView]) -> Outcome {
    session.output.list(
        views,
        |view: &SalvageView| view.volume.to_string(),
        &[
            column("VOLUME", |view: &SalvageView| view.volume.to_string()),
            column("REPLICAS", |view| {
                let all = view.replicas.iter().map(|exhibit| exhibit.replica.to_string());
                all.collect::<Vec<_>>().join(",")
            }),
            column("SIZE", |view| of_chosen(view, |content| human(content.size_bytes))),
            column("DATA", |view| of_chosen(view, |content| human(content.data_bytes))),
            column("SNAPSHOTS", |view| {
                of_chosen(view, |content| content.snapshots.len().to_string())
            }),
            column("CHOSEN", chosen),
            column("NOTES", obstacle),
        ],
    )?;
    tell_orphans(client);
    Ok(Done::Well)
}

fn of_chosen(
    view: &SalvageView,
    tell: impl Fn(&ankole_replica::inspect::Content) -> String,
) -> String {
    let member = view.choice.chosen.as_ref();
    let exhibit = view.replicas.iter().find(|it| member.is_some_and(|m| m.replica == it.replica));
    exhibit.map_or("-".into(), |exhibit| shown(&exhibit.evidence, tell))
}

fn chosen(view: &SalvageView) -> String {
    view.choice.chosen.as_ref().map_or("-".into(), |member| member.replica.to_string())
}

fn obstacle(view: &SalvageView) -> String {
    match (&view.refused, view.choice.doubts.is_empty()) {
        (Some(refused), _) => refused.clone(),
        (None, false) => format!("may be stale: {}", view.choice.doubts.join("; ")),
        (None, true) => "-".into(),
    }
}

/// A line on stderr, if there are any. A server that doesn't know the question has no answer.
pub(super) fn tell_orphans(client: &Client) {
    if let Ok(orphans) = client.orphans()
        && !orphans.is_empty()
    {
        remark(&nobodys(&orphans));
    }
}
