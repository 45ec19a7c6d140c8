//! Why replicas leave is said once and not at every attempt to have them back.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::types::ReplicaId;

/// After so long the same is said again.
const AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Complaints(HashMap<ReplicaId, (String, Instant)>);

impl Complaints {
    /// Whether that hasn't been said of this replica lately. Numbers in it don't count: a wait that
    /// gets shorter is the same one.
    pub(super) fn is_new(&mut self, now: Instant, replica: &ReplicaId, reason: &str) -> bool {
        let gist: String = reason.chars().filter(|char| !char.is_ascii_digit()).collect();
        let said = self.0.get(replica);
        if said.is_some_and(|(said, at)| *said == gist && now < *at + AGAIN) {
            return false;
        }
        self.0.insert(replica.clone(), (gist, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_reason_is_said_once_a_minute_and_another_one_at_once() {
        let (start, replica) = (Instant::now(), ReplicaId("r0".into()));
        let mut complaints = Complaints::default();
        assert!(complaints.is_new(start, &replica, "may still read for 900 ms"));
        assert!(!complaints.is_new(start, &replica, "may still read for 700 ms"));
        assert!(complaints.is_new(start, &ReplicaId("r1".into()), "may still read for 700 ms"));
        assert!(complaints.is_new(start, &replica, "nobody listens"));
        assert!(complaints.is_new(start + AGAIN, &replica, "nobody listens"));
    }
}
