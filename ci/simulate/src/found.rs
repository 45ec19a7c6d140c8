//! Seeds that found a bug when it was there.

/// The seed and what broke. A seed is a history of the simulator as it is: when the world changes,
/// it becomes another history, and the story remains.
pub const FOUND: &[(u64, &str)] = &[
    (3, "a replica could not be rebuilt while a removed layer waited for its join"),
    (66, "a full disk while a layer was filled made its replica fail for good"),
    (205, "a write that ended during a sync was taken for synced by the next flush"),
    (604, "a join showed the removed layer's blocks in place of those that a rebuild had copied"),
    (751, "a copy that a snapshot overtook left its blocks marked as never flushed"),
];
