//! What the user wants of a volume, in one word. Pure.

use ankole_api::volume::Volume;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Its replicas exist and are recorded.
    Formatted,
    Attached {
        read_only: bool,
    },
    Detached,
    /// The same, unless somebody uses it: this standalone ends, and its processes can do without.
    LeftIfUsed,
    /// No process of it; nothing else changes while a person chooses a copy.
    Still,
    /// Nothing is left of it.
    Gone,
}

/// `stopping`: this standalone ends. Tickets stay, so the next one attaches the volume again.
pub fn validate(volume: &Volume, stopping: bool) -> Wanted {
    let spec = &volume.spec;
    if stopping {
        Wanted::LeftIfUsed
    } else if spec.deleting {
        Wanted::Gone
    } else if volume.status.unformatted {
        Wanted::Formatted
    } else if spec.tickets.is_empty() {
        Wanted::Detached
    } else {
        Wanted::Attached { read_only: spec.tickets.iter().all(|ticket| ticket.read_only) }
    }
}
