//! What a volume waits for, in words. Pure.

use super::replica::Mode;
use super::size::human;
use super::volume::{Robustness, State, VolumeView};

/// Sentences, the most important first; never none.
pub fn explain(volume: &VolumeView) -> Vec<String> {
    let name = &volume.name;
    let mut said = vec![match volume.state {
        State::Creating => format!("{name} is being created: its replicas are formatted."),
        State::Detached => format!("{name} is detached: nobody asked for it."),
        State::Attaching => format!("{name} is being attached."),
        State::Attached => format!("{name} is attached and {}.", volume.robustness),
        State::Detaching => format!("{name} is being detached: the engine flushes and ends."),
        State::Deleting => format!("{name} is being deleted."),
    }];
    said.extend(volume.waiting.iter().map(|waiting| format!("The engine waits: {waiting}.")));
    said.extend(volume.conditions.iter().map(|condition| sentence(&condition.message)));
    for replica in &volume.replicas {
        let id = &replica.replica;
        let reason = replica.reason.as_ref().map(|reason| format!(" ({reason})"));
        let reason = reason.unwrap_or_default();
        match (replica.mode, &replica.rebuild) {
            (Mode::WriteOnly, Some(rebuild)) => said.push(format!(
                "Replica {id} is rebuilt: {} of {}{reason}.",
                human(rebuild.done_bytes),
                human(rebuild.total_bytes)
            )),
            (Mode::WriteOnly, None) => said.push(format!("Replica {id} is rebuilt{reason}.")),
            (Mode::Error, _) => said.push(format!("Replica {id} is out of service{reason}.")),
            (Mode::ReadWrite | Mode::None, _) => {}
        }
    }
    if volume.unsettled_bytes > 0 {
        let bytes = human(volume.unsettled_bytes);
        said.push(format!("{bytes} are compared between the replicas after an unclean stop."));
    }
    if volume.robustness == Robustness::Faulted {
        said.push("No replica can be read.".into());
    }
    said
}

fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(char::to_uppercase).into_iter().flatten();
    let end = if text.ends_with('.') { "" } else { "." };
    first.chain(characters).chain(end.chars()).collect()
}
