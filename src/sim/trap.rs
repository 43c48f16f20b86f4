//! A fault that strikes at the worst moment: just after a certain key was written.

use super::rng::Rng;

/// What springs the trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Opened,
    Joined,
    LastCall,
    Coordinator,
    Member,
    Completed,
    Waiting,
    Deleted,
    /// A watch ended because its next revision was compacted away.
    Compacted,
    LeaseLost,
}

const MOMENTS: [Moment; 11] = [
    Moment::Opened,
    Moment::Joined,
    Moment::LastCall,
    Moment::Coordinator,
    Moment::Member,
    Moment::Member,
    Moment::Completed,
    Moment::Waiting,
    Moment::Deleted,
    Moment::Compacted,
    Moment::LeaseLost,
];

#[derive(Clone, Copy, Debug)]
pub enum Victim {
    /// The node that sent the write; its answer is on its way.
    Writer,
    /// Whose key it is.
    Owner,
    Anybody,
}

#[derive(Clone, Copy, Debug)]
pub enum Blow {
    Crash,
    Leave,
    Pause,
    Partition,
    BreakWatches,
    Compact,
    Outage,
    Forbid,
    Close,
}

#[derive(Clone, Copy, Debug)]
pub struct Trap {
    pub moment: Moment,
    /// How many such writes it lets pass.
    pub spared: usize,
    pub victim: Victim,
    pub blow: Blow,
}

impl Trap {
    pub fn any(rng: &mut Rng, closes: bool) -> Option<Self> {
        let mut blows = vec![
            Blow::Crash,
            Blow::Leave,
            Blow::Leave,
            Blow::Pause,
            Blow::Pause,
            Blow::Partition,
            Blow::Partition,
            Blow::BreakWatches,
            Blow::Compact,
            Blow::Outage,
            Blow::Forbid,
        ];
        if closes {
            blows.extend([Blow::Close; 4]);
        }
        Some(Self {
            moment: rng.pick(&MOMENTS)?,
            spared: if rng.chance(500) { 0 } else { rng.below(4) },
            victim: rng.pick(&[Victim::Writer, Victim::Owner, Victim::Anybody])?,
            blow: rng.pick(&blows)?,
        })
    }
}
