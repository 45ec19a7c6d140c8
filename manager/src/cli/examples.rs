//! What each command's `--help` ends with: lines that can be typed as they are.
//!
//! In the order of a volume's life, in which a test runs them.

use clap::Command;

/// A command without the program's name, and its examples without it.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("demo", &["demo", "demo --keep"]),
    ("check", &["check", "check -o json"]),
    (
        "standalone",
        &["standalone --data ankole", "standalone --data ankole --disk /mnt/a --disk /mnt/b"],
    ),
    (
        "volume create",
        &["volume create v1 --size 10GiB", "volume create scratch --size 512MiB --replicas 1"],
    ),
    ("volume ls", &["volume ls", "volume ls -o wide", "volume ls -o name"]),
    ("volume attach", &["volume attach v1", "volume attach scratch --wait"]),
    ("volume show", &["volume show v1", "volume show v1 -o name", "volume show v1 -o json"]),
    ("volume why", &["volume why v1"]),
    ("volume resize", &["volume resize v1 --size 20GiB"]),
    ("snapshot create", &["snapshot create v1 before-upgrade", "snapshot create v1"]),
    ("snapshot ls", &["snapshot ls v1", "snapshot ls v1 --tree"]),
    ("snapshot revert", &["snapshot revert v1 before-upgrade --yes"]),
    ("target add", &["target add default file:///backups"]),
    ("target ls", &["target ls"]),
    (
        "backup create",
        &[
            "backup create v1",
            "backup create v1 --snapshot before-upgrade --target file:///backups",
        ],
    ),
    ("backup ls", &["backup ls", "backup ls --target file:///backups --volume v1"]),
    ("backup inspect", &["backup inspect 'file:///backups?backup=backup-1&volume=v1'"]),
    ("backup verify", &["backup verify 'file:///backups?backup=backup-1&volume=v1'"]),
    (
        "backup restore",
        &[
            "backup restore 'file:///backups?backup=backup-1&volume=v1' --to restored",
            "backup restore 'file:///backups?backup=backup-1&volume=v1' --to-file v1.img",
        ],
    ),
    ("backup rm", &["backup rm 'file:///backups?backup=backup-1&volume=v1' --yes"]),
    ("backup prune", &["backup prune", "backup prune --target file:///backups --volume v1"]),
    ("backup unlock", &["backup unlock v1 --target file:///backups"]),
    ("target rm", &["target rm default"]),
    ("snapshot rm", &["snapshot rm v1 before-upgrade --yes"]),
    ("node show", &["node show", "node show -o json"]),
    ("replica ls", &["replica ls", "replica ls v1 -o wide"]),
    ("replica inspect", &["replica inspect v1/r1"]),
    ("replica rebuild", &["replica rebuild v1 r2 --yes"]),
    ("engine upgrade", &["engine upgrade v1", "engine upgrade v1 --program /usr/local/bin/ankole"]),
    ("volume detach", &["volume detach v1", "volume detach scratch --force"]),
    ("replica verify", &["replica verify v1/r1"]),
    ("volume salvage", &["volume salvage v1 --dry-run", "volume salvage v1 --replica r2"]),
    ("volume recover", &["volume recover --dry-run", "volume recover v1 --replica r2"]),
    ("volume rm", &["volume rm v1 --yes"]),
    ("share serve", &["share serve --root files --listen 127.0.0.1:2049"]),
    (
        "replica serve",
        &["replica serve --dir r1 --volume v1 --replica r1 --listen unix:/run/v1.r1"],
    ),
    (
        "engine run",
        &[
            "engine run --volume v1 --node n1 --instance e1 --arbiter run/arbiter --admin run/v1.admin --frontend socket --socket run/v1.nbd --replica r1=unix:/run/v1.r1",
        ],
    ),
    ("completion", &["completion bash"]),
    ("man", &["man", "man share/man/man1"]),
    ("version", &["version"]),
];

/// To every command that has some.
pub(super) fn add(command: Command) -> Command {
    command.mut_subcommands(|noun| {
        let path = noun.get_name().to_owned();
        add_below(noun, &path)
    })
}

fn add_below(command: Command, path: &str) -> Command {
    let command = match EXAMPLES.iter().find(|(of, _)| *of == path) {
        Some((_, lines)) => command.after_help(shown(lines)),
        None => command,
    };
    command.mut_subcommands(|verb| {
        let path = format!("{path} {}", verb.get_name());
        add_below(verb, &path)
    })
}

fn shown(lines: &[&str]) -> String {
    let title = if lines.len() == 1 { "Example" } else { "Examples" };
    lines.iter().fold(format!("{title}:"), |text, line| format!("{text}\n  ankole {line}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cli::{Environment, grammar};

    fn leaves(command: &Command, path: &str, into: &mut BTreeSet<String>) {
        for below in command.get_subcommands().filter(|it| !it.is_hide_set()) {
            let path = format!("{path} {}", below.get_name()).trim().to_owned();
            if below.has_subcommands() {
                leaves(below, &path, into);
            } else {
                into.insert(path);
            }
        }
    }

    #[test]
    fn every_command_has_examples_and_each_of_them_is_that_command() {
        let command = grammar(&Environment::default(), &[]);
        let mut missing = BTreeSet::new();
        leaves(&command, "", &mut missing);
        for (path, lines) in EXAMPLES {
            assert!(missing.remove(*path), "there is no command {path}, or it has examples twice");
            for line in *lines {
                let words = line.split(' ').map(|word| word.trim_matches('\''));
                let parsed =
                    command.clone().try_get_matches_from(["ankole"].into_iter().chain(words));
                let parsed = parsed.unwrap_or_else(|error| panic!("{line}: {error}"));
                let mut told = Vec::new();
                let mut at = &parsed;
                while let Some((name, below)) = at.subcommand() {
                    told.push(name);
                    at = below;
                }
                assert_eq!(told.join(" "), *path, "{line}");
            }
        }
        assert_eq!(missing, BTreeSet::new(), "these have no example");
    }
}
