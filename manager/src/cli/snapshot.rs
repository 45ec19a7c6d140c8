//! `ankole snapshot …`

use std::collections::{BTreeMap, BTreeSet};

use clap::Subcommand;

use super::output::{Format, column, remark, wide};
use super::waiting::while_told;
use super::{Done, Outcome, Session, confirm};
use crate::api::Name;
use crate::api::size::human;
use crate::api::snapshot::{Chain, SnapshotStatus};
use crate::api::why::lasting;
use crate::clock::now_unix_s;

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

/// From the oldest down to the head. What branches off stands indented below the snapshot that it
/// stands on; the rest is one column, however long it is.
fn tree(chain: &Chain) -> String {
    let mut children = BTreeMap::<Option<&str>, Vec<&SnapshotStatus>>::new();
    for snapshot in &chain.snapshots {
        children.entry(snapshot.parent.as_deref()).or_default().push(snapshot);
    }
    let mut tree = Tree { chain, children, to_head: path_to_head(chain), text: String::new() };
    tree.branches(None, "");
    tree.text
}

struct Tree<'a> {
    chain: &'a Chain,
    /// Each is taken once, so that a loop, which only a faulty engine names, ends.
    children: BTreeMap<Option<&'a str>, Vec<&'a SnapshotStatus>>,
    to_head: BTreeSet<&'a str>,
    text: String,
}

impl<'a> Tree<'a> {
    /// All that stands on `parent`, the line that ends in the head last.
    fn branches(&mut self, mut parent: Option<&'a str>, indent: &str) {
        loop {
            let mut children = self.children.remove(&parent).unwrap_or_default();
            children.sort_by_key(|child| self.to_head.contains(child.name.as_str()));
            let holds_head = self.chain.head_parent.as_deref() == parent;
            let on = if holds_head { None } else { children.pop() };
            for side in children {
                self.line(indent, "├─ ", &side.name, side.data_bytes);
                self.branches(Some(&side.name), &format!("{indent}│  "));
            }
            if holds_head {
                self.line(indent, "", "(head)", self.chain.head_bytes);
            }
            let Some(next) = on else { return };
            self.line(indent, "", &next.name, next.data_bytes);
            parent = Some(&next.name);
        }
    }

    fn line(&mut self, indent: &str, branch: &str, name: &str, bytes: u64) {
        self.text += &format!("{indent}{branch}{name}  {}\n", human(bytes));
    }
}

fn path_to_head(chain: &Chain) -> BTreeSet<&str> {
    let parents: BTreeMap<&str, &str> = chain
        .snapshots
        .iter()
        .filter_map(|it| Some((it.name.as_str(), it.parent.as_deref()?)))
        .collect();
    let mut path = BTreeSet::new();
    let mut at = chain.head_parent.as_deref();
    while let Some(name) = at.filter(|name| path.insert(*name)) {
        at = parents.get(name).copied();
    }
    path
}

fn age(created_unix_s: u64) -> String {
    lasting(now_unix_s().saturating_sub(created_unix_s))
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
        assert_eq!(text, "a  1 MiB\n├─ c  1 MiB\nb  1 MiB\n(head)  0 B\n");
        assert_eq!(tree(&chain(vec![], None)), "(head)  0 B\n");
    }

    #[test]
    fn branches_of_branches_stand_below_each_other() {
        let snapshots = vec![
            snapshot("a", None),
            snapshot("b", Some("a")),
            snapshot("c", Some("b")),
            snapshot("d", Some("b")),
            snapshot("e", Some("a")),
        ];
        let text = tree(&chain(snapshots, Some("a")));
        let expected =
            "a  1 MiB\n├─ b  1 MiB\n│  ├─ c  1 MiB\n│  d  1 MiB\n├─ e  1 MiB\n(head)  0 B\n";
        assert_eq!(text, expected);
    }

    /// The last line of 500 began with 1000 spaces, and each was a call within the one before.
    #[test]
    fn a_long_chain_is_one_column() {
        let name = |number: usize| format!("s{number}");
        let parent = |number: usize| number.checked_sub(1).map(name);
        let snapshots = (0..4000).map(|it| snapshot(&name(it), parent(it).as_deref())).collect();
        let text = tree(&chain(snapshots, Some("s3999")));
        assert_eq!(text.lines().count(), 4001);
        assert!(text.lines().all(|line| !line.starts_with(' ')));
    }

    #[test]
    fn a_loop_in_what_an_engine_says_ends() {
        tree(&chain(vec![snapshot("a", Some("a"))], Some("a")));
    }
}
