//! Deliberate faults: each switches one rule off, so that the simulator can show that it notices.
//!
//! Only a build with the feature `mutations` has them; in any other [`is_on`] is `false` at compile
//! time and leaves nothing behind. The numbers are those of `docs/replication-rules.md`.

/// Makes the enum, the list of all and the text for each from one table.
macro_rules! mutations {
    ($($(#[doc = $what:literal])+ $name:ident: $rule:literal,)+) => {
        /// A rule that is broken on purpose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutation {
            $($(#[doc = $what])+ $name,)+
        }

        impl Mutation {
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The rule's number, or what it is called there.
            pub const fn rule(self) -> &'static str {
                match self {
                    $(Self::$name => $rule,)+
                }
            }

            /// What goes wrong, in words.
            pub const fn what(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($what),+).trim_ascii(),)+
                }
            }
        }
    };
}

mutations! {
    /// an engine opens a volume whose record names another one
    UngrantedEngineOpens: "1",
    /// a write is acknowledged before the arbiter has removed who lacks it
    AcknowledgeBeforeRemoval: "5",
    /// a write is acknowledged before the survivors know that a member is out
    AcknowledgeBeforeSurvivorsKnow: "5",
    /// nobody is removed for answering nothing
    SilentMemberKept: "5",
    /// members are removed without asking the others whether they still answer
    NoPing: "5",
    /// a change of the record whose answer was lost is taken for refused
    AmbiguousIsRefused: "6",
    /// a fenced engine answers its clients, with errors
    FencedEngineAnswers: "7",
    /// the set becomes empty when nobody answers
    LastMemberRemoved: "10",
    /// a read is answered whether or not the members' leases hold
    ReadWithoutLease: "9",
    /// a write is acknowledged whether or not the members' leases hold
    AcknowledgeWithoutLease: "9",
    /// a lease is counted from the answer that renewed it, not from the request
    RenewLeaseAtAnswer: "9",
    /// an engine counts on all of a lease, however slow its clock is
    LeaseWithoutMargin: "9",
    /// a replica welcomes another engine while the lease of the one before runs
    ForgetLeaseOnFence: "9",
    /// a restarted replica doesn't know whom it has lent to
    LesseeForgotten: "9",
    /// an open leaves out members that still lend to the engine before
    LenderIsSilent: "9",
    /// a member that may have lost writes stays when it reconnects
    SuspectStays: "10a",
    /// a replica says that it can't have lost writes, whatever happened
    SuspectIsContinuous: "10a",
    /// a member that is back as another process isn't compared where it has marks
    AnotherProcessNotCompared: "10a",
    /// an older copy of a directory counts as the copy that was there
    OlderCopyBelieved: "10b",
    /// a round is called agreed before all members have begun it
    AgreedBeforeBegun: "10b",
    /// a file system that was mounted anew counts as the one that was there
    RemountIsContinuous: "10a",
    /// a fence is believed before it is durable
    FenceNotDurable: "2",
    /// an engine is welcomed while requests of the older one still run
    OldIoNotAwaited: "2",
    /// an older session is welcomed after a newer one
    OldSessionAccepted: "3",
    /// a directory that was made anew counts as the copy that was there
    WrongIncarnationAccepted: "4",
    /// reads don't wait for writes to the same blocks
    ReadOutsideLock: "11",
    /// a replica confirms a write that it has yet to do
    ConfirmedTooEarly: "12",
    /// no region is ever marked; also shows what marking costs
    NoMarks: "13",
    /// a region is marked once its data is written
    MarkAfterWrite: "13",
    /// a region is written before its mark is durable
    MarkNotSynced: "13",
    /// marks go while writes are on their way to some members
    ClearEarly: "14",
    /// a mark goes before the sums of its region are durable
    ClearBeforeIndex: "14",
    /// marks go without a sync of the data
    ClearWithoutFlush: "14",
    /// marks go while writes run that not all members have
    ClearWithoutLock: "14",
    /// a block is repaired while it may be written
    RepairWithoutLock: "19",
    /// a block's checksum is its CRC32C, and blocks with the same one count as equal
    ChecksumIsCrc: "17",
    /// a checksum made from what the disk had wins over a client's
    UnverifiedWins: "20",
    /// a flush doesn't wait until it is durable which blocks are there
    FlushWithoutIndex: "16",
    /// an index page that the disk lost reads as if it had never been
    LostPageIsEmpty: "16a",
    /// an index page is in the log before it is durable
    LoggedBeforePage: "16a",
    /// after a crash nobody looks for index pages that the log doesn't know
    NewPagesNotLookedFor: "16a",
    /// a flush joins a round that is on its way
    FlushJoinsRunning: "17",
    /// a flush leaves out the data that an earlier process wrote
    EarlierDataUnsynced: "17",
    /// a flush leaves out the index pages that an earlier process wrote
    EarlierIndexUnsynced: "17",
    /// what a write leaves of a block is read while others may write it
    EdgesReadOutsideLock: "18",
    /// a member whose disk is full leaves, however few remain
    FullMemberLeaves: "21",
    /// a region is read before it is the same on all members
    ReadBeforeSettled: "settle",
    /// a snapshot seals regions that differ
    SnapshotUnsettled: "snapshot",
    /// a snapshot is taken while writes are on their way
    SnapshotUndrained: "snapshot",
    /// a change of the chain begins before all members have the room for it
    ChangeWithoutRoom: "21",
    /// acknowledgements don't need the replica that is being added
    PromotionNotNeeded: "promote 2",
    /// a replica is recorded before what it has is durable
    PromotionUnflushed: "promote 3",
    /// what only the target of a rebuild wrote isn't looked at
    RebuildIgnoresTargetsMarks: "rebuild",
    /// a rebuild looks at what was written in this generation, not since the target left
    DeltaFromWrongBase: "rebuild",
    /// a target that confirms little is sent more and more
    BacklogUnbounded: "rebuild",
    /// the head is copied while it is written
    RebuildWithoutLock: "rebuild",
    /// what a rebuild looks at isn't marked at its target before the first copy
    TargetNotMarked: "rebuild",
    /// a sealed layer counts as the members' one by its number alone
    AnyCutAdopted: "rebuild",
    /// marked regions keep the stamp of the generation in which they were written
    NoRestamping: "remove",
    /// a stamp goes with its mark
    StampsGoWithMarks: "remove",
    /// joined blocks count before their data is durable
    JoinedDataUnsynced: "join",
    /// joined blocks count before their sums are durable
    JoinedSumsUnsynced: "join",
    /// what a child hides is freed before the layer has forgotten it durably
    FreedBeforeForgotten: "join",
    /// blocks are freed under a head whose own are not durable yet
    FreedUnderUnflushed: "join",
    /// what a killed process left in the slots is believed before it is durable
    SlotsBelievedUnsynced: "open",
    /// a member that may hold acknowledged writes is left out, and those that lost some go on
    OpenWithoutMissing: "open",
    /// an open removes members without asking the others whether they still answer
    OpenWithoutPing: "5",
    /// an open that lost who it stayed with asks nobody whom it has had removed
    OpenByWhatIsLeft: "open",
    /// a change of the chain that only some members have isn't made on the others
    ChainsNotEqualized: "open",
    /// bytes are served whose sum is wrong
    SumsUnchecked: "P5",
    /// which regions a layer has is found by asking for each region of the volume
    OccupiedIsSearched: "cost",
    /// what changed between two snapshots is told of the newer one alone
    ChangedOfNewestAlone: "readers",
    /// which regions are marked is found by reading the whole intent map
    MarksAreSearched: "cost",
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
