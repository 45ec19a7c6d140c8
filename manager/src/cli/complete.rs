//! Completion in a shell. Commands and options are known here; names are asked of the server, which
//! may be away: then there are none.

use std::ffi::{OsStr, OsString};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use clap::Command;
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::Shells;

use super::output::Output;
use super::{Environment, Outcome, connect, grammar};
use crate::api::volume::State;
use crate::api::{ApiError, Name};
use crate::client::Client;

/// That the scripts set; its value is the shell.
const VARIABLE: &str = "COMPLETE";
/// A person waits for it with the finger on the key.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Volume,
    /// Of the volume that is the noun's first word.
    Snapshot,
    Target,
}

/// Arguments that name something: the commands, the argument, and what it names.
const NAMES: &[(&[&str], &str, Kind)] = &[
    (&["volume show", "volume attach", "volume detach", "volume resize"], "name", Kind::Volume),
    (&["volume salvage", "volume why", "volume rm", "engine upgrade"], "name", Kind::Volume),
    (&["snapshot create", "snapshot ls", "snapshot revert", "snapshot rm"], "volume", Kind::Volume),
    (&["backup create", "replica ls", "replica rebuild"], "volume", Kind::Volume),
    (&["snapshot revert"], "name", Kind::Snapshot),
    (&["snapshot rm"], "names", Kind::Snapshot),
    (&["target rm"], "name", Kind::Target),
    (&["backup create", "backup ls", "backup prune", "backup unlock"], "target", Kind::Target),
];

/// Whether a shell asked, and was answered.
pub(super) fn answer(args: &[OsString], environment: &Environment) -> clap::error::Result<bool> {
    let current = std::env::current_dir().ok();
    let factory = || grammar(environment, args);
    CompleteEnv::with_factory(factory).var(VARIABLE).try_complete(args, current.as_deref())
}

/// What a shell is to read at its start.
pub(super) fn script(output: Output, shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string());
    let completer = completer.ok_or_else(|| ApiError::invalid(format!("no script for {shell}")))?;
    let written = completer.write_registration(VARIABLE, "ankole", "ankole", "ankole", &mut script);
    written.map_err(|error| ApiError::failed(format!("write the script: {error}")))?;
    output.text(&String::from_utf8_lossy(&script))
}

/// `args` are what the process was started with.
pub(super) fn add(command: Command, environment: &Environment, args: &[OsString]) -> Command {
    let words = args.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let asker = Arc::new(Asker { environment: environment.clone(), words });
    command.mut_subcommands(|noun| {
        let noun_name = noun.get_name().to_owned();
        noun.mut_subcommands(|verb| {
            let path = format!("{noun_name} {}", verb.get_name());
            let own = |argument: &str| {
                let is_it = |(paths, of, _): &&(&[&str], &str, Kind)| {
                    *of == argument && paths.contains(&&*path)
                };
                NAMES.iter().find(is_it).map(|(_, _, kind)| *kind)
            };
            verb.mut_args(|arg| {
                let Some(kind) = own(arg.get_id().as_str()) else { return arg };
                let asker = Arc::clone(&asker);
                let completer = move |current: &OsStr| asker.candidates(kind, current);
                arg.add(ArgValueCompleter::new(completer))
            })
        })
    })
}

struct Asker {
    environment: Environment,
    words: Vec<String>,
}

impl Asker {
    fn candidates(self: &Arc<Self>, kind: Kind, current: &OsStr) -> Vec<CompletionCandidate> {
        let (answer, answered) = mpsc::channel();
        let asker = Arc::clone(self);
        thread::spawn(move || answer.send(asker.names(kind).unwrap_or_default()));
        let names = answered.recv_timeout(PATIENCE).unwrap_or_default();
        let current = current.to_string_lossy();
        let fitting = names.into_iter().filter(|name| name.starts_with(&*current));
        fitting.map(CompletionCandidate::new).collect()
    }

    fn names(&self, kind: Kind) -> Option<Vec<String>> {
        let client = self.client()?;
        match kind {
            Kind::Volume => {
                let volumes = client.volumes().ok()?;
                Some(volumes.into_iter().map(|volume| volume.name.to_string()).collect())
            }
            Kind::Snapshot => {
                let volume: Name = self.words_of("snapshot").nth(1)?.parse().ok()?;
                // Asking attaches a volume that isn't.
                let attached = client.volume(&volume).ok()?.state == State::Attached;
                let chain = attached.then(|| client.snapshots(&volume).ok()).flatten()?;
                Some(chain.snapshots.into_iter().map(|snapshot| snapshot.name).collect())
            }
            Kind::Target => {
                let targets = client.targets().ok()?;
                Some(targets.into_iter().map(|target| target.name.to_string()).collect())
            }
        }
    }

    fn client(&self) -> Option<Client> {
        let data = self.option("--data");
        let data = data.as_deref().map(std::path::Path::new);
        let server = connect::reach(self.option("--server").as_deref(), data, &self.environment);
        Some(server.ok()?.client())
    }

    /// As the words have it so far, whether a value is a word of its own or not.
    fn option(&self, option: &str) -> Option<String> {
        let at = self.words.iter().position(|word| word.split('=').next() == Some(option))?;
        match self.words[at].split_once('=') {
            Some((_, value)) => Some(value.into()),
            None => self.words.get(at + 1).cloned(),
        }
    }

    /// After the noun, without options.
    fn words_of(&self, noun: &str) -> impl Iterator<Item = &str> {
        let words = self.words.iter().map(String::as_str);
        let takes_value = |word: &str| ["--data", "--server", "-o", "--output"].contains(&word);
        let mut before = "";
        words.skip_while(move |word| *word != noun).skip(1).filter(move |word| {
            let is_value = takes_value(std::mem::replace(&mut before, word));
            !is_value && !word.starts_with('-')
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_argument_that_names_something_is_there() {
        let grammar = grammar(&Environment::default(), &[]);
        for (paths, argument, _) in NAMES {
            for path in *paths {
                let (noun, verb) = path.split_once(' ').unwrap();
                let verb = grammar.find_subcommand(noun).and_then(|it| it.find_subcommand(verb));
                let verb = verb.unwrap_or_else(|| panic!("there is no {path}"));
                assert!(
                    verb.get_arguments().any(|it| it.get_id() == argument),
                    "{path} {argument}"
                );
            }
        }
    }
}
