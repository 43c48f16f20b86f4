//! What can happen to a world.

use super::index::NodeIx;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Crash,
    CrashCoordinator,
    Leave,
    Start,
    Pause,
    PauseCoordinator,
    Partition,
    BreakWatches,
    Compact,
    Outage,
    LeaderChange,
    WorkersFail,
    Finish,
    Trap,
    /// The rights of a node are taken away for a while.
    Forbid,
    /// etcd has no space left for a while.
    Full,
    /// etcd is wiped and restarts.
    Wipe,
    Reopen,
    CloseByOperator,
    Deny,
    Allow,
    Evict,
    DeleteAll,
    Restart,
    Double,
}

impl Fault {
    pub const ALL: [Self; 25] = [
        Self::Crash,
        Self::CrashCoordinator,
        Self::Leave,
        Self::Start,
        Self::Pause,
        Self::PauseCoordinator,
        Self::Partition,
        Self::BreakWatches,
        Self::Compact,
        Self::Outage,
        Self::LeaderChange,
        Self::WorkersFail,
        Self::Finish,
        Self::Trap,
        Self::Forbid,
        Self::Full,
        Self::Wipe,
        Self::Reopen,
        Self::CloseByOperator,
        Self::Deny,
        Self::Allow,
        Self::Evict,
        Self::DeleteAll,
        Self::Restart,
        Self::Double,
    ];

    /// In how many of a thousand scenarios it happens. A run without most of what people do from outside is
    /// what there mostly is.
    pub fn share(self) -> u64 {
        match self {
            Self::Wipe => 60,
            Self::Full | Self::DeleteAll | Self::Evict => 120,
            Self::Reopen | Self::CloseByOperator | Self::Deny | Self::Allow | Self::Forbid => 200,
            Self::Restart | Self::Double | Self::LeaderChange => 200,
            _ => 420,
        }
    }
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub enum Recovery {
    Resume(NodeIx),
    Reconnect(NodeIx),
    Permit(NodeIx),
    EtcdIsBack,
    EtcdHasSpace,
}
