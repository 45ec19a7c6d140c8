//! Verbs by the names that people know from elsewhere.

use clap::Command;

const ALIASES: &[(&str, &[&str])] = &[
    ("ls", &["list"]),
    ("rm", &["delete", "remove"]),
    ("show", &["describe", "get"]),
    ("inspect", &["describe", "show", "get"]),
];

/// To every verb that has some.
pub(super) fn add(command: Command) -> Command {
    let of_verb = ALIASES.iter().find(|(verb, _)| *verb == command.get_name());
    let aliases = of_verb.map_or(&[][..], |(_, aliases)| *aliases);
    command.visible_aliases(aliases.iter().copied()).mut_subcommands(add)
}
