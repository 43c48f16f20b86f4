//! The guards that the simulator takes away, one by one, to see that it notices. Outside of tests they
//! all stand: [`wrong`] is then a constant.

/// A protocol without one of its guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// The completing transaction does not look whether the control record is the one it knows.
    UnguardedCompletion,
    /// All attempts to complete a round share their member keys.
    AnyAttempt,
    /// A member key that was read makes a member, whatever the control record says by then.
    UncheckedMembership,
    /// Who takes the coordinator's place begins a new last call.
    ForgetsLastCall,
    /// Members watch for losses from the completion on, whatever was written just before it.
    WatchesFromFinal,
    /// The member of the last rank does not watch that of the first.
    LastWatchesNobody,
    /// Who sees a loss does not tell the others.
    UntoldLoss,
    /// A node that is denied takes no notice.
    IgnoresDenial,
    /// Who was replaced by another of its `node_id` replaces that one in turn.
    FightsBack,
}

#[cfg(not(test))]
pub(super) const fn wrong(_: Variant) -> bool {
    false
}

#[cfg(test)]
pub(super) fn wrong(variant: Variant) -> bool {
    super::sim::hooks::get().variant == Some(variant)
}
