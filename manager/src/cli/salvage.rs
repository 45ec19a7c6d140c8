//! `ankole volume salvage`: the evidence as a table, what would be chosen, and the explicit yes.

use ankole_replica::inspect::{Evidence, Found};
use ankole_replica::salvage::Exhibit;
use ankole_replica::store::ReplicaState;
use ankole_replica::types::ReplicaId;
use serde::Serialize;

use super::output::{Format, column, remark, wide};
use super::{Done, Outcome, Session, confirm};
use crate::api::salvage::{SalvageRequest, SalvageView};
use crate::api::size::human;
use crate::api::{ApiError, Name};
use crate::client::Client;

#[derive(Debug, clap::Args)]
pub(super) struct SalvageArgs {
    name: Name,
    /// Show what each replica holds and which would be chosen, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take this one instead of the best
    #[arg(long, value_name = "ID", value_parser = |text: &str| Ok::<_, String>(ReplicaId::from(text)))]
    replica: Option<ReplicaId>,
    /// Also if a newer copy exists, or existed, somewhere: what was written since is lost
    #[arg(long)]
    accept_stale: bool,
    /// Don't ask
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(session: &Session<'_>, client: &Client, args: &SalvageArgs) -> Outcome {
    let SalvageArgs { name, dry_run, replica, accept_stale, yes } = args;
    let view = client.evidence(name, replica.as_ref())?;
    if *dry_run {
        return evidence_of(session, &view, "salvage");
    }
    // What was seen is what is asked for; the server refuses what it has to.
    let chosen = view.choice.chosen.as_ref().map(|member| member.replica.clone());
    let refused = view.refused.is_some() || chosen.is_none();
    if !refused && (view.choice.doubts.is_empty() || *accept_stale) {
        let lost = view.choice.losses.iter().map(|loss| format!("; lost: {loss}"));
        let who = chosen.as_ref().map(ToString::to_string).unwrap_or_default();
        let what = format!("make what {who} holds the volume {name}{}", lost.collect::<String>());
        confirm(&what, *yes)?;
    }
    let replica = chosen.or_else(|| replica.clone());
    let expected = view.record.as_ref().map(|record| record.generation);
    let request = SalvageRequest { replica, accept_stale: *accept_stale, expected };
    let done = client.salvage(name, &request)?;
    let member = done.choice.chosen.as_ref();
    let who = member.map(|member| member.replica.to_string()).unwrap_or_default();
    match session.output.format {
        Format::Json => session.output.json(&done),
        Format::Name => session.output.line(&who),
        Format::Table | Format::Wide => {
            let from =
                done.record.map_or(String::new(), |it| format!(", from {} on", it.generation));
            remark(&format!(
                "volume {name} is what {who} holds{from}; the other replicas are rebuilt from it"
            ));
            remark(&format!("next: ankole volume attach {name}, and look at what is there"));
            Ok(Done::Well)
        }
    }
}

/// A row of the table.
#[derive(Serialize)]
struct Row<'a> {
    exhibit: &'a Exhibit,
    in_sync: bool,
    /// 1 is the best.
    rank: Option<usize>,
    is_chosen: bool,
}

/// `verb` is what takes the chosen copy.
pub(super) fn evidence_of(session: &Session<'_>, view: &SalvageView, verb: &str) -> Outcome {
    let choice = &view.choice;
    match session.output.format {
        Format::Json => return session.output.json(view),
        Format::Name => {
            let member = choice.chosen.as_ref();
            let member = member.ok_or_else(|| ApiError::conflict(choice.why.clone()))?;
            return session.output.line(&member.replica.to_string());
        }
        Format::Table | Format::Wide => {}
    }
    let rows = view.replicas.iter().map(|exhibit| Row {
        exhibit,
        in_sync: view.record.as_ref().is_some_and(|record| {
            record.in_sync.iter().any(|member| member.replica == exhibit.replica)
        }),
        rank: choice.order.iter().position(|id| *id == exhibit.replica).map(|at| at + 1),
        is_chosen: choice.chosen.as_ref().is_some_and(|one| one.replica == exhibit.replica),
    });
    session.output.list(
        &rows.collect::<Vec<_>>(),
        |row: &Row<'_>| row.exhibit.replica.to_string(),
        &[
            column("REPLICA", |row: &Row<'_>| row.exhibit.replica.to_string()),
            column("FOUND", |row| found(&row.exhibit.evidence)),
            column("IN-RECORD", |row| if row.in_sync { "yes".into() } else { "no".into() }),
            column("SYNCED", |row| synced(&row.exhibit.evidence)),
            column("WITH", |row| synced_with(&row.exhibit.evidence)),
            column("CONTINUOUS", |row| continuous(&row.exhibit.evidence)),
            column("MARKED", |row| shown(&row.exhibit.evidence, |c| human(c.marked_regions << 20))),
            wide("UNVERIFIED", |row| {
                shown(&row.exhibit.evidence, |c| c.unverified_blocks.to_string())
            }),
            wide("SEEN", |row| {
                let fence = row.exhibit.evidence.replica().and_then(|replica| replica.fence);
                fence.map_or("-".into(), |fence| fence.generation.to_string())
            }),
            column("SNAPSHOTS", |row| {
                shown(&row.exhibit.evidence, |c| c.snapshots.len().to_string())
            }),
            column("RANK", |row| match (row.rank, row.is_chosen) {
                (Some(rank), true) => format!("{rank}, chosen"),
                (Some(rank), false) => rank.to_string(),
                (None, _) => "-".into(),
            }),
            wide("DIRECTORY", |row| row.exhibit.evidence.directory.display().to_string()),
        ],
    )?;
    session.output.text("\n")?;
    session.output.fields(&conclusions(view, verb))
}

fn conclusions(view: &SalvageView, verb: &str) -> Vec<(&'static str, String)> {
    let (name, choice) = (&view.volume, &view.choice);
    let record = view.record.as_ref();
    let record = record.map_or("lost".into(), |record| record.generation.to_string());
    let mut said = vec![("record", record)];
    if let Some(refused) = &view.refused {
        said.push(("not now", refused.clone()));
    }
    let title = if choice.chosen.is_some() { "chosen" } else { "none" };
    said.push((title, choice.why.clone()));
    said.extend(choice.doubts.iter().map(|doubt| ("may be stale", doubt.clone())));
    said.extend(choice.losses.iter().map(|loss| ("lost", loss.clone())));
    if view.refused.is_none()
        && let Some(member) = &choice.chosen
    {
        let stale = if choice.doubts.is_empty() { "" } else { " --accept-stale" };
        said.push((
            "next",
            format!("ankole volume {verb} {name} --replica {}{stale}", member.replica),
        ));
    }
    said
}

/// One or two words.
pub(super) fn found(evidence: &Evidence) -> String {
    match &evidence.found {
        Found::Missing => "no directory".into(),
        Found::Empty => "empty".into(),
        Found::HalfFormatted => "half formatted".into(),
        Found::Foreign { .. } => "something else".into(),
        Found::Unreadable { .. } => "unreadable".into(),
        Found::Replica(replica) if replica.content.is_none() => "damaged".into(),
        Found::Replica(replica) => state(replica.state).into(),
    }
}

pub(super) fn state(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::New => "new",
        ReplicaState::Rebuilding => "rebuilding",
        ReplicaState::Ready => "ready",
        ReplicaState::Member => "member",
        ReplicaState::Failed => "failed",
    }
}

pub(super) fn synced(evidence: &Evidence) -> String {
    let synced = evidence.replica().and_then(|replica| replica.synced_gen);
    synced.map_or("-".into(), |synced| synced.to_string())
}

/// An older copy of a member has begun less than others know to be agreed.
pub(super) fn epoch(evidence: &Evidence) -> String {
    let epoch = evidence.replica().map(|replica| replica.epoch);
    epoch.map_or("-".into(), |it| format!("{}, agreed {}", it.begun, it.agreed))
}

pub(super) fn synced_with(evidence: &Evidence) -> String {
    let set = evidence.replica().map_or(&[][..], |replica| &replica.synced_set);
    let names: Vec<_> = set.iter().map(|member| member.replica.to_string()).collect();
    if names.is_empty() { "-".into() } else { names.join(",") }
}

fn continuous(evidence: &Evidence) -> String {
    shown(evidence, |content| if content.continuous { "yes".into() } else { "no".into() })
}

pub(super) fn shown(
    evidence: &Evidence,
    tell: impl Fn(&ankole_replica::inspect::Content) -> String,
) -> String {
    let content = evidence.replica().and_then(|replica| replica.content.as_ref());
    content.map_or("-".into(), tell)
}
