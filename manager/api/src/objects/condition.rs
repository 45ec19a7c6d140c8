//! Conditions, as `metav1.Condition` has them, and what a person can do about each.

use ankole_replica::types::ReplicaId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::volume::Reason;

/// One thing that is so, or isn't, or can't be told. `type` is the same word as `reason` wherever a
/// condition tells of trouble: there is one of each type, and it is gone when the trouble is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: Reason,
    pub status: ConditionStatus,
    pub reason: Reason,
    /// That it is about, if it is about one. There is one condition of a type for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaId>,
    pub message: String,
    /// What a person can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Since when it has this status, whatever the message said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Timestamp>,
    /// The generation of the spec that it speaks of.
    #[serde(default)]
    pub observed_generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

impl Condition {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            kind: reason,
            status: ConditionStatus::True,
            reason,
            replica: None,
            message: message.into(),
            next: None,
            last_transition_time: None,
            observed_generation: 0,
        }
    }

    #[must_use]
    pub fn of(mut self, replica: &ReplicaId) -> Self {
        self.replica = Some(replica.clone());
        self
    }

    /// Whether `other` tells the same of the same.
    pub fn is_like(&self, other: &Self) -> bool {
        self.kind == other.kind && self.replica == other.replica
    }

    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        self.next = Some(step.into());
        self
    }
}

/// Conditions as they are now, one of each type, each dated: by when one of its type and status
/// began, which `before` knows, or `now`.
pub fn dated(
    conditions: Vec<Condition>,
    before: &[Condition],
    now: Timestamp,
    generation: u64,
) -> Vec<Condition> {
    let date = |mut condition: Condition| {
        let same = |it: &&Condition| it.is_like(&condition) && it.status == condition.status;
        let since = before.iter().find(same).and_then(|it| it.last_transition_time);
        condition.last_transition_time = Some(since.unwrap_or(now));
        condition.observed_generation = generation;
        condition
    };
    let mut merged: Vec<Condition> = Vec::new();
    for condition in conditions {
        match merged.iter_mut().find(|it| it.is_like(&condition)) {
            Some(first) => {
                first.message = format!("{}; {}", first.message, condition.message);
                first.next = first.next.take().or(condition.next);
            }
            None => merged.push(condition),
        }
    }
    merged.into_iter().map(date).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_date_while_its_words_change() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let ended = |text: &str| vec![Condition::new(Reason::EngineEnded, text)];
        let first = dated(ended("in 4 s"), &[], at(10), 1);
        let second = dated(ended("in 2 s"), &first, at(12), 2);
        assert_eq!(second[0].last_transition_time, Some(at(10)));
        assert_eq!((second[0].message.as_str(), second[0].observed_generation), ("in 2 s", 2));
        let mut other = ended("?");
        other[0].status = ConditionStatus::Unknown;
        assert_eq!(dated(other, &second, at(14), 2)[0].last_transition_time, Some(at(14)));
    }
}
