//! What can go wrong.

use Fault::*;

/// A kind of fault; its name says what happens to a replica, if it doesn't name another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    LinksBreak,
    AllLinksBreak,
    /// Nobody reaches it for a while.
    Unreachable,
    /// Messages take up to 30 ms.
    FarAway,
    Killed,
    AllKilled,
    PowerLost,
    AllLosePower,
    /// Stopped, as by `SIGSTOP`, for a while.
    Hangs,
    /// Its process runs at 1 % of its speed.
    Crawls,
    DiskSlow,
    DiskFull,
    /// At some later call, in the middle of whatever that is.
    DiskFillsUp,
    WriteFails,
    SyncFails,
    /// A block of the head can't be read for a while.
    BlockUnreadable,
    /// A bit flips in a sealed layer.
    Rots,
    /// A page of a sealed layer's index reads as zeroes.
    PageLost,
    /// Its directory is deleted, and made by its agent.
    MadeAnew,
    /// Its directory is what it was some time ago.
    RolledBack,
    /// Its file system is shut down and mounted anew while its machine runs on.
    Remounted,
    /// It is killed, and nothing tells whether its file system is the one that it was.
    MountsHidden,
    EngineDies,
    /// The engine reads no answers for a while, and says nothing.
    EngineStops,
    /// Another engine is granted the volume; the old one lives on where nobody reaches it.
    VolumeMoves,
    /// The same, and the old one keeps a replica that the new one can't reach.
    VolumeSplits,
    Detached,
    ArbiterAway,
    /// The volume is to have another replica, or one fewer.
    OthersWanted,
    /// Others come in pairs.
    TwoAtOnce,
}

impl Fault {
    pub(super) const ALL: &[Self] = &[
        LinksBreak,
        AllLinksBreak,
        Unreachable,
        FarAway,
        Killed,
        AllKilled,
        PowerLost,
        AllLosePower,
        Hangs,
        Crawls,
        DiskSlow,
        DiskFull,
        DiskFillsUp,
        WriteFails,
        SyncFails,
        BlockUnreadable,
        Rots,
        PageLost,
        MadeAnew,
        RolledBack,
        Remounted,
        MountsHidden,
        EngineDies,
        EngineStops,
        VolumeMoves,
        VolumeSplits,
        Detached,
        ArbiterAway,
        OthersWanted,
        TwoAtOnce,
    ];

    /// It cuts no member off from the others, and takes nothing that it has: may happen while one is
    /// about to be lost for good.
    pub(super) fn keeps_members(self) -> bool {
        matches!(
            self,
            DiskFull
                | DiskFillsUp
                | EngineDies
                | EngineStops
                | VolumeMoves
                | ArbiterAway
                | Detached
                | FarAway
                | DiskSlow
                | Rots
                | PageLost
                | OthersWanted
        )
    }

    /// May happen while a member isn't what it was, and the others are needed to see it.
    pub(super) fn keeps_witnesses(self) -> bool {
        matches!(self, DiskFull | DiskFillsUp | EngineDies | Detached | DiskSlow)
    }
}
