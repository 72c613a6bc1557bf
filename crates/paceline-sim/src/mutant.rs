//! Wrong protocols: each leaves out or turns round one rule. A simulator that does not catch them proves nothing.

/// One rule broken. What the rule protects from is in ELECTION's schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// The fence asks only whether the successor's claim exists.
    FenceWithoutSecondHalf,
    /// The fence looks at its own claim before the successor's.
    FenceHalvesSwapped,
    /// Old claims are unlinked from the newest to the oldest.
    ClaimsCollectedDescending,
    /// A linked claim counts without listing again and without looking whether it still stands.
    NoRelistAfterLink,
    /// Segments name whole databases, whatever is written there later.
    AdoptionWithoutBound,
    /// The predecessor's rows are read before the claim is linked.
    ReadBeforeClaim,
    /// The newest claim's database is adopted, complete or not.
    NoCompletenessMark,
    /// The fence is checked before the commit instead of after it.
    FenceBeforeCommit,
    /// A predecessor's file is removed without asking the fence.
    PredecessorDeletedWhileFenced,
    /// The next epoch follows the highest claim only.
    EpochByClaimsAlone,
    /// `complete` is committed before the directories are synced.
    CompleteBeforeDirectorySync,
    /// The predecessor's rows are adopted as they are seen, synced or not.
    AdoptedRowsUnsynced,
    /// A channel is resumed at the best position any survivor has.
    ResumeAtBestPosition,
    /// A channel's new events are published before the missing tail arrived.
    NewerEventsBeforeTail,
    /// A follower delivers whatever comes.
    NoDedupeByPosition,
    /// Followers keep no events for a new owner.
    FramesDroppedAtOnce,
    /// Lost events are not shown.
    NoGap,
    /// An operation is acknowledged when the heir's socket took it.
    VolatileAcknowledgedWhenWritten,
    /// Conflated batches and snapshots lose the identities of operations.
    ConflationDropsOperationIds,
    /// What a session carries and offers does not say that a key was reset.
    ResetNotRemembered,
    /// A build claims over stores that it cannot read.
    OldBuildOverNewerStore,
    /// A session does not tell its next owner which of its layers are open.
    LayersNotToldAnew,
    /// Followers are not told that layers have gone.
    LayersStay,
    /// Whoever asks for a key fetches it, although another does.
    FetchesNotShared,
    /// A response counts although its key was invalidated or written since its request began.
    OvertakenResponsesKept,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::FenceWithoutSecondHalf,
        Self::FenceHalvesSwapped,
        Self::ClaimsCollectedDescending,
        Self::NoRelistAfterLink,
        Self::AdoptionWithoutBound,
        Self::ReadBeforeClaim,
        Self::NoCompletenessMark,
        Self::FenceBeforeCommit,
        Self::PredecessorDeletedWhileFenced,
        Self::EpochByClaimsAlone,
        Self::CompleteBeforeDirectorySync,
        Self::AdoptedRowsUnsynced,
        Self::ResumeAtBestPosition,
        Self::NewerEventsBeforeTail,
        Self::NoDedupeByPosition,
        Self::FramesDroppedAtOnce,
        Self::NoGap,
        Self::VolatileAcknowledgedWhenWritten,
        Self::ConflationDropsOperationIds,
        Self::ResetNotRemembered,
        Self::OldBuildOverNewerStore,
        Self::LayersNotToldAnew,
        Self::LayersStay,
        Self::FetchesNotShared,
        Self::OvertakenResponsesKept,
    ];
}
