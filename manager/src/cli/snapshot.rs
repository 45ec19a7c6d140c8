//! `ankole snapshot …`

use clap::Subcommand;

use super::output::{Format, column, remark, wide};
use super::waiting::while_told;
use super::{Done, Outcome, Session, confirm};
use crate::api::Name;
use crate::api::size::human;
use crate::api::snapshot::{Chain, SnapshotStatus};

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Make one; the same bytes on every replica
    Create { volume: Name, name: Option<Name> },
    /// List, oldest first
    Ls {
        volume: Name,
        /// As a tree, with the head
        #[arg(long)]
        tree: bool,
    },
    /// Go back: what was written since is lost
    Revert {
        volume: Name,
        name: Name,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Remove
    Rm {
        volume: Name,
        #[arg(required = true)]
        names: Vec<Name>,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(session: &Session<'_>, command: SnapshotCommand) -> Outcome {
    let client = session.client()?;
    match command {
        SnapshotCommand::Create { volume, name } => {
            let create = || client.create_snapshot(&volume, name.clone());
            let chain = while_told(&client, &volume, create)?;
            let made = name.map(|name| name.to_string()).or(chain.head_parent.clone());
            match session.output.format {
                Format::Json => session.output.json(&chain),
                _ => session.output.line(made.as_deref().unwrap_or("-")),
            }
        }
        SnapshotCommand::Ls { volume, tree: true } => {
            let chain = while_told(&client, &volume, || client.snapshots(&volume))?;
            match session.output.format {
                Format::Json => session.output.json(&chain),
                _ => session.output.text(&tree(&chain)),
            }
        }
        SnapshotCommand::Ls { volume, tree: false } => session.output.list(
            &while_told(&client, &volume, || client.snapshots(&volume))?.snapshots,
            |snapshot: &SnapshotStatus| snapshot.name.clone(),
            &[
                column("NAME", |s: &SnapshotStatus| s.name.clone()),
                column("PARENT", |s| s.parent.clone().unwrap_or("-".into())),
                column("DATA", |s| human(s.data_bytes)),
                column("AGE", |s| age(s.created_unix_s)),
                wide("SIZE", |s| human(s.size_bytes)),
                wide("LABELS", |s| {
                    let labels = s.labels.iter().map(|(key, value)| format!("{key}={value}"));
                    labels.collect::<Vec<_>>().join(",")
                }),
            ],
        ),
        SnapshotCommand::Revert { volume, name, yes } => {
            let what = format!("revert volume {volume} to {name}, and lose what came after");
            confirm(&what, yes)?;
            while_told(&client, &volume, || client.revert(&volume, &name))?;
            Ok(Done::Well)
        }
        SnapshotCommand::Rm { volume, names, yes } => {
            let list = names.iter().map(|name| name.to_string()).collect::<Vec<_>>().join(", ");
            confirm(&format!("remove snapshot {list} of volume {volume}"), yes)?;
            for (done, name) in names.iter().enumerate() {
                let remove = || client.remove_snapshot(&volume, name);
                while_told(&client, &volume, remove).inspect_err(|_| {
                    if done > 0 {
                        remark(&format!("removed before the error: {done}"));
                    }
                })?;
            }
            Ok(Done::Well)
        }
    }
}

/// Children below their parents, and the head where it stands.
fn tree(chain: &Chain) -> String {
    let mut text = String::new();
    branch(chain, None, 0, &mut text);
    text
}

fn branch(chain: &Chain, parent: Option<&str>, depth: usize, text: &mut String) {
    // A chain from a faulty engine might name a loop.
    if depth > chain.snapshots.len() {
        return;
    }
    let indent = "  ".repeat(depth);
    for snapshot in &chain.snapshots {
        if snapshot.parent.as_deref() == parent {
            text.push_str(&format!("{indent}{}  {}\n", snapshot.name, human(snapshot.data_bytes)));
            branch(chain, Some(&snapshot.name), depth + 1, text);
        }
    }
    if chain.head_parent.as_deref() == parent {
        text.push_str(&format!("{indent}(head)  {}\n", human(chain.head_bytes)));
    }
}

fn age(created_unix_s: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = now.map_or(0, |now| now.as_secs()).saturating_sub(created_unix_s);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use ankole_replica::types::LayerId;

    use super::*;

    fn snapshot(name: &str, parent: Option<&str>) -> SnapshotStatus {
        SnapshotStatus {
            name: name.into(),
            layer: LayerId(1),
            parent: parent.map(Into::into),
            created_unix_s: 0,
            labels: Default::default(),
            data_bytes: 1 << 20,
            size_bytes: 1 << 30,
        }
    }

    fn chain(snapshots: Vec<SnapshotStatus>, head_parent: Option<&str>) -> Chain {
        let volume = "v".parse().unwrap();
        Chain { volume, snapshots, head_bytes: 0, head_parent: head_parent.map(Into::into) }
    }

    #[test]
    fn a_branch_is_below_what_it_stands_on() {
        let snapshots =
            vec![snapshot("a", None), snapshot("b", Some("a")), snapshot("c", Some("a"))];
        let text = tree(&chain(snapshots, Some("b")));
        assert_eq!(text, "a  1 MiB\n  b  1 MiB\n    (head)  0 B\n  c  1 MiB\n");
        assert_eq!(tree(&chain(vec![], None)), "(head)  0 B\n");
    }

    #[test]
    fn a_loop_in_what_an_engine_says_ends() {
        tree(&chain(vec![snapshot("a", Some("a"))], Some("a")));
    }
}
