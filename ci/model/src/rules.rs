//! The rules that can be switched off. Numbers are those of `docs/replication-rules.md`.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// 1: an engine works only with a generation granted to its own instance.
    GrantFirst,
    /// 2: a replica that has answered a newer engine refuses the older one.
    RefuseOlderEngine,
    /// 2: it answers `Hello` only when what older sessions had submitted has ended.
    FenceBeforeAnswer,
    /// 3: sessions order the connections of one engine, generations don't.
    SessionsOrder,
    /// 4: a replica of another incarnation than the record's isn't that member.
    CheckIncarnation,
    /// 5: a write that a member lacks is acknowledged only without it in the record.
    RemoveBeforeAcknowledge,
    /// 5: the survivors answered after the failure.
    PingBeforeChange,
    /// 5: ... and have made the new set durable.
    AdvanceBeforeAcknowledge,
    /// 6: a change is repeated until the answer is definite.
    RepeatUntilDefinite,
    /// 6: until then an acknowledgement needs the old set and the new one.
    AcknowledgeNeedsUnion,
    /// 6: ... and a read needs the leases of both.
    ReadNeedsLeasesOfUnion,
    /// The arbiter compares the record's version before it swaps.
    CompareBeforeSwap,
    /// 7: an engine that learns that it is fenced answers nothing, not even an error.
    FencedAnswersNothing,
    /// 9: a replica answers another instance only when the lease it lent has run out.
    HelloWaitsForLease,
    /// 9: ... also when it has been restarted since, and forgot what it had lent.
    RestartRemembersLease,
    /// 9: a read is answered only with the leases of all members.
    ReadNeedsAllLeases,
    /// 10: the last member stays in the record.
    LastMemberStays,
    /// 10a: a member that may have lost writes doesn't come back within the session.
    SuspectStaysAway,
    /// Open, 3: a suspect leaves when a continuous member answered.
    SuspectLeavesAtOpen,
    /// Open, 4: if only suspects answered, all of the set must have.
    OpenWaitsForTheMissing,
    /// Settle: members are made equal before the first read.
    SettleBeforeRead,
    /// Promote, 2: acknowledgements and flushes need the replica before it is added.
    CandidateConfirms,
    /// Promote, 3: it has synced everything before it is added.
    ReadyBeforeAdd,
    /// Not in the rules: an *acknowledgement* needs the leases of all members too. Without it P4
    /// isn't true to the letter: A confirms, answers a newer engine, then B, which hasn't heard of
    /// that one, confirms. That does harm when the members lose power in between: the newer engine
    /// opens with what is left, and the older acknowledges what isn't.
    AcknowledgeNeedsLeases,
}

impl Rule {
    pub const ALL: [Self; 24] = [
        Self::GrantFirst,
        Self::RefuseOlderEngine,
        Self::FenceBeforeAnswer,
        Self::SessionsOrder,
        Self::CheckIncarnation,
        Self::RemoveBeforeAcknowledge,
        Self::PingBeforeChange,
        Self::AdvanceBeforeAcknowledge,
        Self::RepeatUntilDefinite,
        Self::AcknowledgeNeedsUnion,
        Self::ReadNeedsLeasesOfUnion,
        Self::CompareBeforeSwap,
        Self::FencedAnswersNothing,
        Self::HelloWaitsForLease,
        Self::RestartRemembersLease,
        Self::ReadNeedsAllLeases,
        Self::LastMemberStays,
        Self::SuspectStaysAway,
        Self::SuspectLeavesAtOpen,
        Self::OpenWaitsForTheMissing,
        Self::SettleBeforeRead,
        Self::CandidateConfirms,
        Self::ReadyBeforeAdd,
        Self::AcknowledgeNeedsLeases,
    ];
}

impl Rule {
    /// Where it stands in the rules.
    pub const fn number(self) -> &'static str {
        match self {
            Self::GrantFirst => "1",
            Self::RefuseOlderEngine | Self::FenceBeforeAnswer => "2",
            Self::SessionsOrder => "3",
            Self::CheckIncarnation => "4",
            Self::RemoveBeforeAcknowledge
            | Self::PingBeforeChange
            | Self::AdvanceBeforeAcknowledge => "5",
            Self::RepeatUntilDefinite
            | Self::AcknowledgeNeedsUnion
            | Self::ReadNeedsLeasesOfUnion => "6",
            Self::CompareBeforeSwap => "§1, CAS",
            Self::FencedAnswersNothing => "7",
            Self::HelloWaitsForLease | Self::ReadNeedsAllLeases => "9",
            Self::RestartRemembersLease => "9, not said",
            Self::LastMemberStays => "10",
            Self::SuspectStaysAway => "10a",
            Self::SuspectLeavesAtOpen => "Open 3",
            Self::OpenWaitsForTheMissing => "Open 4",
            Self::SettleBeforeRead => "Settle",
            Self::CandidateConfirms => "Promote 2",
            Self::ReadyBeforeAdd => "Promote 3",
            Self::AcknowledgeNeedsLeases => "9, for writes",
        }
    }
}

/// Which rules hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules(u32);

impl Rules {
    pub const ALL: Self = Self((1 << Rule::ALL.len()) - 1);

    pub const fn without(self, rule: Rule) -> Self {
        Self(self.0 & !(1 << rule as u32))
    }

    pub const fn has(self, rule: Rule) -> bool {
        self.0 & 1 << rule as u32 != 0
    }
}
