//! Deliberate faults: each switches one rule off, so that the simulator can show that it notices.
//!
//! Only a build with the feature `mutations` has them; in any other [`is_on`] is `false` at compile
//! time and leaves nothing behind. The numbers are those of `docs/replication-rules.md`.

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Rule 5: a write is acknowledged before the arbiter has removed who lacks it.
    AcknowledgeBeforeRemoval,
    /// Rebuild: what only the target wrote isn't looked at.
    RebuildIgnoresTargetsMarks,
    /// Rebuild: what was written since the present generation, not since the target left.
    DeltaFromWrongBase,
    /// Rule 11: the head is copied while it is written.
    RebuildWithoutLock,
    /// Promote, step 2: acknowledgements don't need the target before it is recorded.
    PromoteWithoutNeeding,
    /// Promote, step 3: the target is recorded before what it has is durable.
    PromoteWithoutFlush,
}

impl Mutation {
    pub const ALL: &[Self] = &[
        Self::AcknowledgeBeforeRemoval,
        Self::RebuildIgnoresTargetsMarks,
        Self::DeltaFromWrongBase,
        Self::RebuildWithoutLock,
        Self::PromoteWithoutNeeding,
        Self::PromoteWithoutFlush,
    ];
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
