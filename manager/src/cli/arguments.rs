//! What the arguments mean that many commands have: said once.

use clap::{Arg, Command};

/// To every argument that says nothing of itself.
pub(super) fn explain(command: Command) -> Command {
    command.mut_subcommands(|noun| {
        let name = noun.get_name().to_owned();
        noun.mut_args(|arg| explained(arg, &name))
            .mut_subcommands(|verb| verb.mut_args(|arg| explained(arg, &name)))
    })
}

fn explained(arg: Arg, noun: &str) -> Arg {
    if arg.get_help().is_some() {
        return arg;
    }
    let help = match (arg.get_id().as_str(), noun) {
        ("name", "engine") | ("volume", _) => "Name of the volume".into(),
        ("name", noun) => format!("Name of the {noun}"),
        ("names", noun) => format!("Names of the {noun}s"),
        ("replica", _) => "Name of the replica, such as r1".into(),
        ("replicas", _) => "Copies, each on another disk as far as there are enough".into(),
        ("frontend", _) => "How the volume is shown to its users".into(),
        ("read_only", _) => "Refuse writes".into(),
        ("directory", _) => "Directory of a replica, as `replica ls -o wide` shows it".into(),
        ("url", _) => "URL of the backup, as `backup ls -o name` prints it".into(),
        ("node", _) => "Name of the node".into(),
        ("shell", _) => "Shell that reads it".into(),
        ("folder", _) => "Folder for the pages, made if it isn't there".into(),
        _ => return arg,
    };
    arg.help(help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Environment, grammar};

    fn look(command: &Command, path: &str) {
        let arguments = command.get_arguments().filter(|arg| !arg.is_hide_set());
        for argument in arguments {
            assert!(argument.get_help().is_some(), "{path}: {} has no text", argument.get_id());
        }
        for below in command.get_subcommands() {
            look(below, &format!("{path} {}", below.get_name()));
        }
    }

    #[test]
    fn every_argument_is_explained() {
        let mut grammar = grammar(&Environment::default(), &[]);
        grammar.build();
        look(&grammar, "ankole");
    }
}
