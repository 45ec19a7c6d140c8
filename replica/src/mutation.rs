//! Deliberate faults: each switches one rule off, so that the simulator can show that it notices.
//!
//! Only a build with the feature `mutations` has them; in any other [`is_on`] is `false` at compile
//! time and leaves nothing behind. The numbers are those of `docs/replication-rules.md`.

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Rule 5: a write is acknowledged before the arbiter has removed who lacks it.
    AcknowledgeBeforeRemoval,
}

impl Mutation {
    pub const ALL: &[Self] = &[Self::AcknowledgeBeforeRemoval];
}

#[cfg(feature = "mutations")]
thread_local! {
    static ON: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

/// Breaks a rule in this thread from here on, or none.
#[cfg(feature = "mutations")]
pub fn set(mutation: Option<Mutation>) {
    ON.set(mutation);
}

#[cfg(feature = "mutations")]
pub(crate) fn is_on(mutation: Mutation) -> bool {
    ON.get() == Some(mutation)
}

#[cfg(not(feature = "mutations"))]
pub(crate) const fn is_on(_: Mutation) -> bool {
    false
}
