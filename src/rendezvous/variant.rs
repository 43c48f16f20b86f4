//! The guards that the simulator takes away, one by one, to see that it notices. Outside of tests they
//! all stand: no setting can take one away then, see `Settings::wrong`.

/// A protocol without one of its guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The completing transaction does not look whether the control record is the one it knows.
    UnguardedCompletion,
    /// All attempts to complete a round share their member keys.
    AnyAttempt,
    /// A member key that was read makes a member, whatever the control record says by then.
    UncheckedMembership,
    /// A node that takes the coordinator's place begins a new last call.
    ForgetsLastCall,
    /// The last call is written and deleted without the coordinator's key, which guards the next change of it.
    LastCallAlone,
    /// Members watch for losses from the completion on, whatever was written just before it.
    WatchesFromFinal,
    /// The member of the last rank does not watch that of the first.
    LastWatchesNobody,
    /// A member that sees a loss does not tell the others.
    UntoldLoss,
    /// A node that is denied takes no notice.
    IgnoresDenial,
    /// A node that was replaced by another of its `node_id` replaces that one in turn.
    FightsBack,
    /// Whoever ends closes the run, a spare or a node of an earlier round, too.
    ClosesFromOutside,
    /// The time of the barrier runs while a node waits in a full world.
    DeadlineWhileParked,
    /// A record of a version that this node does not know is passed over as garbage is.
    TakesNewerRecords,
    /// The usher counts by its own limits, and those who are denied.
    CountsUnadmitted,
    /// Rounds are told apart by their numbers alone.
    RoundByNumber,
    /// The first renewal of a lease is timed from the answer of its grant.
    RenewsFromAnswer,
    /// A round does not wait for members of the last world that are still there.
    LastCallLeavesSurvivors,
    /// A close forgets which world was the last one.
    ForgetsPrevious,
    /// A node that closes the run does not notice that it was closed and reopened meanwhile.
    MissesReopening,
    /// A barrier that ends leaves its call under way, and takes the answer for one to the next.
    KeepsCallOfFinished,
    /// The run's lease is renewed by the node's own setting, whatever TTL it has.
    OwnTtl,
    /// A run that restarts under the lease of the last one of its name is assumed to live as long as this
    /// node would let it.
    KnowsLeaseOfLastRun,
    /// Calls of a node that has left go on.
    CallsGoOn,
}
