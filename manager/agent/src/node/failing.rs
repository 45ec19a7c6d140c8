//! An action that failed is told in the object's status and left alone for longer and longer. The
//! part is looked at meanwhile: what is said of it stays true.

use std::mem::{Discriminant, discriminant};
use std::time::{Duration, Instant};

use ankole_api::objects::Condition;

use crate::backoff::Backoff;

/// The last action of a part that failed, until it is done or not planned any more.
pub(super) struct Failing<A>(Option<Failed<A>>);

struct Failed<A> {
    action: Discriminant<A>,
    /// Of the spec for which it was tried: another one is tried at once.
    generation: u64,
    backoff: Backoff,
    not_before: Instant,
    told: Condition,
}

impl<A> Default for Failing<A> {
    fn default() -> Self {
        Self(None)
    }
}

impl<A> Failing<A> {
    /// How long this plan is to be left alone, and what is told meanwhile.
    pub(super) fn hold_off(
        &mut self,
        planned: &[A],
        generation: u64,
    ) -> Option<(Duration, Condition)> {
        let is_planned = |it: &Failed<A>| {
            it.generation == generation && planned.iter().any(|a| discriminant(a) == it.action)
        };
        self.0 = self.0.take().filter(is_planned);
        let failed = self.0.as_ref()?;
        let left = failed.not_before.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| (left, failed.told.clone()))
    }

    pub(super) fn failed(&mut self, action: &A, generation: u64, told: Condition) -> Duration {
        let action = discriminant(action);
        let before = self.0.take().filter(|it| it.action == action);
        let mut backoff = before.map_or(Backoff::default(), |it| it.backoff);
        let left = backoff.failed_now();
        let not_before = Instant::now() + left;
        self.0 = Some(Failed { action, generation, backoff, not_before, told });
        left
    }

    pub(super) fn done(&mut self, action: &A) {
        self.0 = self.0.take().filter(|it| it.action != discriminant(action));
    }
}

#[cfg(test)]
mod tests {
    use ankole_api::volume::Reason;

    use super::*;

    #[derive(PartialEq)]
    enum Action {
        Grow(u64),
        Start,
    }
    use Action::{Grow, Start};

    fn told() -> Condition {
        Condition::new(Reason::ActionFailed, "no room")
    }

    #[test]
    fn what_failed_is_left_alone_and_told_until_another_is_wanted() {
        let mut failing = Failing::default();
        assert_eq!(failing.hold_off(&[Grow(2)], 1), None);
        failing.failed(&Grow(2), 1, told());
        let (_, condition) = failing.hold_off(&[Start, Grow(2)], 1).unwrap();
        assert_eq!(condition, told());
        assert_eq!(failing.hold_off(&[Grow(1)], 2), None, "the wish changed");
        failing.failed(&Grow(1), 2, told());
        assert_eq!(failing.hold_off(&[Start], 2), None, "an engine that died is started at once");
        assert_eq!(failing.hold_off(&[Grow(1)], 2), None, "by the new engine it may work");
    }

    /// It was tried each second while a disk stayed full.
    #[test]
    fn each_failure_in_a_row_is_followed_by_a_longer_pause() {
        let mut failing = Failing::default();
        let mut pauses = (0..8).map(|_| failing.failed(&Grow(2), 1, told()));
        let first = pauses.next().unwrap();
        assert!(first > Duration::ZERO);
        assert_eq!(pauses.last().unwrap(), Duration::from_secs(30));
        failing.done(&Grow(2));
        assert_eq!(failing.failed(&Grow(2), 1, told()), first);
    }
}
