//! What a volume waits for, since when, and what can be done about it, in words. Pure.

use ankole_replica::types::ReplicaId;

use super::replica::{Mode, ReplicaView};
use super::size::human;
use super::volume::{Condition, Reason, Robustness, State, VolumeView};
use super::{ApiError, Name};

/// Sentences, the most important first; never none. `now_unix_s` is what "since" is counted from.
pub fn explain(volume: &VolumeView, now_unix_s: u64) -> Vec<String> {
    let name = &volume.name;
    let since = |since: Option<u64>| {
        since.map_or(String::new(), |since| {
            format!(" (for {})", lasting(now_unix_s.saturating_sub(since)))
        })
    };
    let mut said = vec![match volume.state {
        State::Creating => format!("{name} is being created: its replicas are formatted."),
        State::Detached => format!("{name} is detached: nobody asked for it."),
        State::Attaching => format!("{name} is being attached."),
        State::Attached => format!("{name} is attached and {}.", volume.robustness),
        State::Detaching => format!("{name} is being detached: the engine flushes and ends."),
        State::Deleting => format!("{name} is being deleted."),
        State::Restoring => format!("{name} is being filled from its backup."),
        State::Unreadable => {
            format!("{name} is there, but what the store has of it can't be read.")
        }
    }];
    let says_why = || volume.conditions.iter().any(|it| it.reason == Reason::CantGrow);
    if let Some(wanted) = volume.wanted_bytes.filter(|_| !says_why()).map(human) {
        let attached = !volume.tickets.is_empty();
        let when = if attached { "now" } else { "when it is attached next" };
        said.push(format!("It grows from {} to {wanted} {when}.", human(volume.size_bytes)));
    }
    let waits = since(volume.waiting_since_unix_s);
    said.extend(
        volume.waiting.iter().map(|waiting| format!("The engine waits: {waiting}{waits}.")),
    );
    said.extend(notes(volume).map(|note| sentence(&note.message, &since(note.since_unix_s))));
    said.extend(volume.replicas.iter().filter_map(of_replica));
    if volume.unsettled_bytes > 0 {
        let bytes = human(volume.unsettled_bytes);
        said.push(format!("{bytes} are compared between the replicas after an unclean stop."));
    }
    if volume.robustness == Robustness::Faulted {
        said.push("No replica can be read.".into());
    }
    said.extend(next_steps(volume).into_iter().map(|step| format!("Next: {step}.")));
    said
}

/// Conditions that neither what the volume waits for nor a replica's own line tells.
pub fn notes(volume: &VolumeView) -> impl Iterator<Item = &Condition> {
    volume.conditions.iter().filter(|condition| {
        let waits = volume.waiting.iter().any(|waiting| condition.message.contains(waiting));
        let of_replica = matches!(
            condition.reason,
            Reason::ReplicaOlder | Reason::ReplicaAbsent | Reason::ReplicaRebuilt
        );
        !waits && !of_replica
    })
}

/// Why a volume that is to be attached won't be until a person does something about it; None if it
/// may be at any moment.
pub fn obstacle(volume: &Name, conditions: &[Condition]) -> Option<ApiError> {
    let is_damaged = |replica: &Option<ReplicaId>| {
        let damaged =
            |it: &Condition| it.reason == Reason::ReplicaDamaged && it.replica == *replica;
        conditions.iter().any(damaged)
    };
    let comes_back = |it: &Condition| it.reason == Reason::ReplicaEnded && !is_damaged(&it.replica);
    let obstacle = conditions.iter().find(|condition| match condition.reason {
        Reason::RecordLost | Reason::RecordRolledBack | Reason::NoFrontend => true,
        Reason::NoReplica => !conditions.iter().any(comes_back),
        _ => false,
    })?;
    let is_cause = |it: &&Condition| {
        let of_replica = matches!(it.reason, Reason::ReplicaDamaged | Reason::ReplicaMissing);
        obstacle.reason == Reason::NoReplica && of_replica
    };
    let mut causes = vec![obstacle];
    causes.extend(conditions.iter().filter(is_cause));
    let texts: Vec<_> = causes.iter().map(|cause| cause.message.as_str()).collect();
    let mut steps: Vec<_> = causes.iter().filter_map(|cause| cause.next.as_deref()).collect();
    steps.dedup();
    let error = format!("volume {volume} can't be attached: {}", texts.join("; "));
    let next =
        if steps.is_empty() { format!("ankole volume why {volume}") } else { steps.join("; or ") };
    Some(ApiError::conflict(error).next(next))
}

/// Each once, the most important first.
pub fn next_steps(volume: &VolumeView) -> Vec<&str> {
    let mut steps = Vec::new();
    for step in volume.conditions.iter().filter_map(|condition| condition.next.as_deref()) {
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    steps
}

fn of_replica(replica: &ReplicaView) -> Option<String> {
    let id = &replica.replica;
    let reason = replica.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    match replica.mode {
        Mode::WriteOnly => {
            let progress = progress(replica).map(|progress| format!(": {progress}"));
            Some(format!("Replica {id} is rebuilt{}{reason}.", progress.unwrap_or_default()))
        }
        Mode::Error => Some(format!("Replica {id} is out of service{reason}.")),
        Mode::ReadWrite | Mode::None => None,
    }
}

/// `1 MiB of 1 GiB, 10 MiB/s, 2 min left`
pub fn progress(replica: &ReplicaView) -> Option<String> {
    let rebuild = replica.rebuild.as_ref()?;
    let mut text = format!("{} of {}", human(rebuild.done_bytes), human(rebuild.total_bytes));
    if let Some(left) = replica.rebuild_seconds_left {
        text += &format!(", {}/s, {} left", human(rebuild.bytes_per_second), lasting(left));
    }
    Some(text)
}

/// A duration in its largest unit.
pub fn lasting(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

fn sentence(text: &str, since: &str) -> String {
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut characters = text.chars();
    let first = characters.next().map(char::to_uppercase).into_iter().flatten();
    first.chain(characters).chain(since.chars()).chain(['.']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each was waited for 60 s, and then only that it wasn't there in time was said.
    #[test]
    fn what_needs_a_person_is_an_obstacle_and_what_passes_by_itself_is_none() {
        let volume = "v1".parse().unwrap();
        let of = |reason, replica: Option<&str>| {
            let condition = Condition::new(reason, format!("{reason:?}")).next("do");
            Condition { replica: replica.map(ReplicaId::from), ..condition }
        };
        let none = of(Reason::NoReplica, None);
        let ended = |replica| of(Reason::ReplicaEnded, Some(replica));
        let damaged = |replica| of(Reason::ReplicaDamaged, Some(replica));
        let says = |conditions: &[Condition]| obstacle(&volume, conditions).map(|it| it.message);
        assert_eq!(says(&[]), None);
        assert_eq!(says(&[of(Reason::EngineEnded, None), ended("r1")]), None);
        assert_eq!(says(&[ended("r1"), none.clone()]), None, "r1 is started again");
        assert_eq!(says(&[damaged("r1"), ended("r1"), ended("r2"), none.clone()]), None);
        let error = obstacle(&volume, &[damaged("r1"), ended("r1"), none]).unwrap();
        assert_eq!(error.message, "volume v1 can't be attached: NoReplica; ReplicaDamaged");
        assert_eq!(error.next.as_deref(), Some("do"), "the same step once");
        assert!(says(&[of(Reason::RecordLost, None)]).is_some());
    }

    #[test]
    fn a_duration_is_told_in_its_largest_unit() {
        let told = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(lasting);
        assert_eq!(told, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]);
    }
}
