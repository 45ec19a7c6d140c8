//! What it has found, with the seeds of then.

/// The seed and what broke. A seed is a history of the simulator as it was: when the world changes,
/// it becomes another history, and the story remains.
pub const FOUND: &[(u64, &str)] = &[
    (3, "a replica could not be rebuilt while a removed layer waited for its join"),
    (66, "a full disk while a layer was filled made its replica fail for good"),
    (205, "a write that ended during a sync was taken for synced by the next flush"),
    (604, "a join showed the removed layer's blocks in place of those that a rebuild had copied"),
    (884, "a member that came back while the survivors were asked stayed without being asked"),
    (751, "a copy that a snapshot overtook left its blocks marked as never flushed"),
    (790, "looking at sums after a restart undid what a flush had noted meanwhile"),
    (288, "a flush after a restart left out the index pages of the process before"),
    (448, "a write that came during an Advance marked its region with the older generation"),
    (957, "settling made a block absent below which a join had freed the removed layer's"),
    (22, "a change of the chain that a killed process had left unsynced was taken for done"),
    (488, "a rebuild took what a removed layer and its child hold from two sources"),
    (1431, "a rebuild left out a removed layer that only its source had yet to join"),
    (549, "an expansion that found no room left marks past the end, which nobody could settle"),
    (273, "a replica that had expanded alone kept marks past the end, which nobody cleared"),
    (
        1118,
        "a revert during a rebuild forgot that a power cut had gone before: a layer's sums were believed",
    ),
    (
        1_795_252_623_001_735,
        "a write between the question what is marked and its answer left marks that nobody cleared",
    ),
    (1_795_253_013_001_068, "an engine that had lost a member woke up for a settling without end"),
    (
        1_795_300_000_005_474,
        "a replica's own cut was believed: another engine had given its number to another one",
    ),
    (
        1_795_300_000_029_526,
        "a torn page had the sum of bytes that no block means; torn again, they came back as the block",
    ),
    (
        1_795_400_000_022_552,
        "a sync that failed while a rebuild took the chain over didn't fail the replica",
    ),
    (
        1_795_400_000_022_778,
        "a copy that found no room left a block unreadable, and the only other member left",
    ),
    (1_795_400_000_027_797, "a member that was lost before it told its marks wasn't asked again"),
    (
        1_795_500_000_002_866,
        "the engine opened with the chain from before a change that it had just rolled forward",
    ),
    (
        1_795_500_000_005_475,
        "a replica that had failed for good answered the ping that says who may stay alone",
    ),
    (
        1_795_500_000_015_479,
        "a join counted although a page had found no room: a restart lost its blocks",
    ),
    (
        1_795_600_000_010_174,
        "a full disk under a layer that was being filled failed its replica for good",
    ),
    (
        1_795_700_000_006_885,
        "after a power cut and then a kill nobody looked for sums that mean nothing",
    ),
];
