//! `ankole volume …`

use std::time::Duration;

use clap::Subcommand;

use super::output::{Format, column, remark, wide};
use super::recover::{self, RecoverArgs, tell_orphans};
use super::salvage::{self, SalvageArgs};
use super::waiting::Waiting;
use super::{Done, Outcome, Session, confirm, is_not_found, poll, seconds};
use crate::api::attachment::AttachRequest;
use crate::api::node::{Finding, Found};
use crate::api::size::{VolumeSize, human};
use crate::api::volume::{
    Condition, Frontend, Reason, Robustness, State, Transport, VolumeRequest, VolumeView,
};
use crate::api::why::{explain, lasting, next_steps, notes, progress};
use crate::api::{ApiError, Name};
use crate::client::Client;
use crate::clock::now_unix_s;

#[derive(Debug, Subcommand)]
pub(super) enum VolumeCommand {
    /// Make a volume
    Create(CreateArgs),
    /// List
    Ls,
    /// One volume; `-o name` prints its endpoint
    Show { name: Name },
    /// Attach, wait until it can be used, and print the endpoint
    Attach(AttachArgs),
    /// Flush and detach, and wait until that is done
    Detach(DetachArgs),
    /// Make it larger, and wait until it is
    Resize(ResizeArgs),
    /// Choose the copy to trust when no replica that is in sync can be opened
    Salvage(SalvageArgs),
    /// Make volumes of replicas' directories that no volume knows, as after the loss of the store
    Recover(RecoverArgs),
    /// What it waits for, in words
    Why { name: Name },
    /// Remove it with all its data
    Rm(RemoveArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct CreateArgs {
    /// a-z, 0-9 and -, at most 63 characters
    name: Name,
    /// For example 10G or 10GiB, which are the same; rounded up to 2 MiB
    #[arg(long, value_parser = VolumeSize::parse, allow_hyphen_values = true)]
    size: VolumeSize,
    #[arg(long, default_value_t = 3)]
    replicas: u8,
    #[arg(long, value_enum, default_value_t = Frontend::Auto)]
    frontend: Frontend,
    /// Between engine and replicas
    #[arg(long, value_enum, default_value_t = Transport::Unix)]
    transport: Transport,
    /// Run the one replica inside the engine's process
    #[arg(long)]
    in_engine: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct AttachArgs {
    name: Name,
    /// The node that shall attach it
    #[arg(long)]
    node: Option<String>,
    #[arg(long)]
    read_only: bool,
    /// Wait until it is healthy, too; 6 when it stays degraded
    #[arg(long)]
    wait: bool,
    /// Seconds to wait
    #[arg(long, value_parser = seconds, default_value = "60")]
    timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct DetachArgs {
    name: Name,
    /// Also when clients are connected
    #[arg(long)]
    force: bool,
    /// Seconds to wait
    #[arg(long, value_parser = seconds, default_value = "120")]
    timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct ResizeArgs {
    name: Name,
    /// Less than before takes back what the volume hasn't become yet
    #[arg(long, value_parser = VolumeSize::parse, allow_hyphen_values = true)]
    size: VolumeSize,
    /// Don't wait until it has that size
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait
    #[arg(long, value_parser = seconds, default_value = "120")]
    timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct RemoveArgs {
    name: Name,
    /// Don't ask
    #[arg(long)]
    yes: bool,
    /// Seconds to wait
    #[arg(long, value_parser = seconds, default_value = "120")]
    timeout: Duration,
}

pub(super) fn run(session: &Session<'_>, command: VolumeCommand) -> Outcome {
    let client = session.client()?;
    match command {
        VolumeCommand::Create(args) => create(session, &client, args),
        VolumeCommand::Ls => {
            let done = list(session, &client.volumes()?)?;
            tell_orphans(&client);
            Ok(done)
        }
        VolumeCommand::Show { name } => show(session, &client.volume(&name)?),
        VolumeCommand::Attach(args) => attach(session, &client, args),
        VolumeCommand::Detach(args) => detach(&client, &args),
        VolumeCommand::Resize(args) => resize(&client, &args),
        VolumeCommand::Why { name } => {
            let said = explain(&client.volume(&name)?, now_unix_s());
            match session.output.format {
                Format::Json => session.output.json(&said),
                _ => session.output.line(&said.join("\n")),
            }
        }
        VolumeCommand::Recover(args) => recover::run(session, &client, &args),
        VolumeCommand::Salvage(args) => salvage::run(session, &client, &args),
        VolumeCommand::Rm(args) => remove(&client, &args),
    }
}

fn create(session: &Session<'_>, client: &Client, args: CreateArgs) -> Outcome {
    say_if_rounded(args.size);
    let volume = client.create_volume(&VolumeRequest {
        name: args.name,
        size_bytes: args.size.bytes,
        replicas: args.replicas,
        frontend: args.frontend,
        transport: args.transport,
        in_engine: args.in_engine,
    })?;
    match session.output.format {
        Format::Json => session.output.json(&volume),
        Format::Name => session.output.line(&volume.name),
        Format::Table | Format::Wide => {
            remark(&format!("next: ankole volume attach {}", volume.name));
            Ok(Done::Well)
        }
    }
}

fn say_if_rounded(size: VolumeSize) {
    if let Some(asked) = size.rounded_from_bytes {
        let bytes = size.bytes;
        remark(&format!(
            "{asked} bytes are rounded up to {bytes} ({}): sizes are multiples of 2 MiB",
            human(bytes)
        ));
    }
}

fn list(session: &Session<'_>, volumes: &[VolumeView]) -> Outcome {
    session.output.list(
        volumes,
        |volume: &VolumeView| volume.name.to_string(),
        &[
            column("NAME", |v: &VolumeView| v.name.to_string()),
            column("STATE", |v| v.state.to_string()),
            column("ROBUSTNESS", |v| v.robustness.to_string()),
            column("SIZE", size),
            column("USED", |v| used(v).map_or("-".into(), human)),
            column("REPLICAS", replicas_in_short),
            column("NOTES", reasons),
            column("ENDPOINT", |v| v.endpoint.clone().unwrap_or("-".into())),
            wide("FRONTEND", |v| v.frontend.to_string()),
            wide("NODE", |v| v.node.clone().unwrap_or("-".into())),
            wide("ENGINE", |v| v.engine_pid.map_or("-".into(), |pid| pid.to_string())),
            wide("GENERATION", |v| {
                v.record.as_ref().map_or("-".into(), |record| record.generation.to_string())
            }),
        ],
    )
}

/// And what it is to become.
fn size(volume: &VolumeView) -> String {
    let wanted = volume.wanted_bytes.map(|wanted| format!(" ({} wanted)", human(wanted)));
    human(volume.size_bytes) + &wanted.unwrap_or_default()
}

/// On the disks of all replicas, as far as it is known.
fn used(volume: &VolumeView) -> Option<u64> {
    let of_replicas = volume.replicas.iter().filter_map(|replica| replica.used_bytes);
    of_replicas.reduce(|all, one| all + one)
}

fn used_by_all(bytes: u64) -> String {
    format!("{} on the disks of all replicas", human(bytes))
}

fn engine(volume: &VolumeView) -> Option<String> {
    let version = volume.engine_version.as_deref().unwrap_or("that is unknown");
    volume.engine_pid.map(|pid| format!("pid {pid}, version {version}"))
}

/// With the reason if the best isn't used.
fn frontend(volume: &VolumeView) -> String {
    let mut text = volume.frontend.to_string();
    for Finding { name, found, detail, next, .. } in &volume.better_frontends {
        text += &match (found, next) {
            (Found::Yes, _) => format!("; {name} could be used now: detach and attach the volume"),
            (_, Some(next)) => format!("; not {name}: {detail} ({next})"),
            (_, None) => format!("; not {name}: {detail}"),
        };
    }
    text
}

fn replicas_in_short(volume: &VolumeView) -> String {
    let in_sync = volume.replicas.iter().filter(|replica| replica.in_sync).count();
    format!("{in_sync}/{}", volume.replicas.len())
}

/// Each once, in the order of the conditions.
fn reasons(volume: &VolumeView) -> String {
    let mut reasons: Vec<String> = Vec::new();
    for condition in &volume.conditions {
        let reason = format!("{:?}", condition.reason);
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    if reasons.is_empty() { "-".into() } else { reasons.join(",") }
}

fn show(session: &Session<'_>, volume: &VolumeView) -> Outcome {
    match session.output.format {
        Format::Json => return session.output.json(volume),
        Format::Name => return session.output.line(endpoint(volume)?),
        Format::Table | Format::Wide => {}
    }
    let dash = || String::from("-");
    let mut fields = vec![
        ("name", volume.name.to_string()),
        ("state", volume.state.to_string()),
        ("robustness", volume.robustness.to_string()),
        ("endpoint", volume.endpoint.clone().unwrap_or_else(dash)),
        ("size", size(volume)),
        ("used", used(volume).map_or_else(dash, used_by_all)),
        ("frontend", frontend(volume)),
        ("node", volume.node.clone().unwrap_or_else(dash)),
        ("engine", engine(volume).unwrap_or_else(dash)),
        ("clients", volume.clients.to_string()),
    ];
    for replica in &volume.replicas {
        let mut text = format!("{} {}", replica.replica, replica.mode);
        text += if replica.in_sync { ", in sync" } else { ", not in sync" };
        if let Some(progress) = progress(replica) {
            text += &format!(", rebuilt {progress}");
        }
        if let Some(reason) = &replica.reason {
            text += &format!(": {reason}");
        }
        fields.push(("replica", text));
    }
    for ticket in &volume.tickets {
        let read_only = if ticket.read_only { ", read-only" } else { "" };
        fields.push(("ticket", format!("{}{read_only}", ticket.kind)));
    }
    if volume.unsettled_bytes > 0 {
        let bytes = human(volume.unsettled_bytes);
        fields.push(("unsettled", format!("{bytes}, compared between the replicas")));
    }
    for of in volume.damage.replicas.iter().filter(|of| of.repaired_blocks > 0) {
        fields.push(("repaired", format!("{} {} block(s)", of.replica, of.repaired_blocks)));
    }
    if volume.damage.lost_bytes > 0 {
        let bytes = human(volume.damage.lost_bytes);
        fields.push(("lost", format!("{bytes} that no replica in sync can read")));
    }
    let now = now_unix_s();
    let since = |since: Option<u64>| {
        since.map(|since| format!(" (for {})", lasting(now.saturating_sub(since))))
    };
    let waits = since(volume.waiting_since_unix_s).unwrap_or_default();
    fields.extend(volume.waiting.iter().map(|text| ("waiting", format!("{text}{waits}"))));
    fields.extend(notes(volume).map(|condition| {
        let since = since(condition.since_unix_s).unwrap_or_default();
        ("note", format!("{}{since}", condition.message))
    }));
    fields.extend(next_steps(volume).into_iter().map(|step| ("next", step.to_owned())));
    session.output.fields(&fields)
}

fn endpoint(volume: &VolumeView) -> Result<&str, ApiError> {
    volume.endpoint.as_deref().ok_or_else(|| {
        let name = &volume.name;
        ApiError::conflict(format!("volume {name} is {} and has no endpoint", volume.state))
            .next(format!("ankole volume attach {name}"))
    })
}

fn attach(session: &Session<'_>, client: &Client, args: AttachArgs) -> Outcome {
    let AttachArgs { name, node, read_only, wait, timeout } = args;
    client.attach(&name, &AttachRequest { read_only, node })?;
    let mut last = None;
    let mut waiting = Waiting::new();
    let good = poll(timeout, || {
        let volume = client.volume(&name)?;
        let usable = volume.endpoint.is_some();
        if !usable {
            waiting.refuse_obstacle(&volume)?;
            waiting.tell(&volume);
        }
        let enough = usable && (!wait || volume.robustness == Robustness::Healthy);
        last = Some(volume.clone());
        Ok(enough.then_some(volume))
    })?;
    let done = if good.is_some() { Done::Well } else { Done::Degraded };
    match good.or(last) {
        Some(volume) if volume.endpoint.is_some() => {
            match session.output.format {
                Format::Json => session.output.json(&volume)?,
                _ => session.output.line(endpoint(&volume)?)?,
            };
            Ok(done)
        }
        _ => Err(late(client, &name, "can't be used", timeout)),
    }
}

fn detach(client: &Client, args: &DetachArgs) -> Outcome {
    let DetachArgs { name, force, timeout } = args;
    let volume = client.detach(name, *force)?;
    if let Some(ticket) = volume.tickets.first() {
        remark(&format!("volume {name} stays attached until the {} is done", ticket.kind));
        return Ok(Done::Well);
    }
    let mut told = false;
    let detached = poll(*timeout, || {
        let volume = client.volume(name)?;
        let in_use = volume.conditions.iter().find(|it| it.reason == Reason::InUse);
        if let Some(Condition { message, next, .. }) = in_use.filter(|_| !told) {
            told = true;
            remark(&format!("{message}; {}", next.as_deref().unwrap_or_default()));
        }
        Ok((volume.state == State::Detached).then_some(()))
    })?;
    detached.map(|()| Done::Well).ok_or_else(|| late(client, name, "isn't detached", *timeout))
}

fn resize(client: &Client, args: &ResizeArgs) -> Outcome {
    let ResizeArgs { name, size, no_wait, timeout } = args;
    say_if_rounded(*size);
    let volume = client.resize_volume(name, size.bytes)?;
    let Some(wanted) = volume.wanted_bytes.map(human) else { return Ok(Done::Well) };
    if volume.tickets.is_empty() {
        remark(&format!("volume {name} grows to {wanted} when it is attached next"));
        return Ok(Done::Well);
    }
    if *no_wait {
        return Ok(Done::Well);
    }
    let mut waiting = Waiting::new();
    let grown = poll(*timeout, || {
        let volume = client.volume(name)?;
        waiting.refuse_obstacle(&volume)?;
        match volume.conditions.iter().find(|it| it.reason == Reason::CantGrow) {
            Some(Condition { message, next, .. }) => {
                let error = ApiError::conflict(format!("volume {name}: {message}"));
                Err(ApiError { next: next.clone(), ..error })
            }
            None if volume.size_bytes >= size.bytes => Ok(Some(())),
            None => {
                waiting.tell(&volume);
                Ok(None)
            }
        }
    })?;
    let what = format!("hasn't {wanted}");
    grown.map(|()| Done::Well).ok_or_else(|| late(client, name, &what, *timeout))
}

/// What a volume has not become in time, and why.
fn late(client: &Client, name: &Name, what: &str, timeout: Duration) -> ApiError {
    let volume = client.volume(name).ok();
    let reasons = volume.iter().flat_map(|volume| explain(volume, now_unix_s()));
    let reasons = reasons.collect::<Vec<_>>().join(" ");
    let seconds = timeout.as_secs();
    ApiError::timed_out(format!("volume {name} {what} after {seconds} s. {reasons}"))
        .next(format!("it is tried on; ankole volume why {name} says how far it is"))
}

fn remove(client: &Client, args: &RemoveArgs) -> Outcome {
    let RemoveArgs { name, yes, timeout } = args;
    let volume = client.volume(name)?;
    let size = human(volume.size_bytes);
    confirm(&format!("remove volume {name} ({size}) with all its snapshots"), *yes)?;
    client.delete_volume(name)?;
    if volume.conditions.iter().any(|it| it.reason == Reason::RecordLost) {
        remark(&format!(
            "its record is lost, so what its directories hold stays; ankole volume recover {name} makes a volume of it again"
        ));
    }
    let gone = poll(*timeout, || {
        let look = client.volume(name);
        if is_not_found(&look) { Ok(Some(())) } else { look.map(|_| None) }
    })?;
    gone.map(|()| Done::Well).ok_or_else(|| late(client, name, "isn't removed", *timeout))
}
