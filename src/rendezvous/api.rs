//! What goes into a node's protocol core and what comes out of it: plain types.

use std::time::Duration;

use super::keys::{Keys, RoundId};
use super::records::{
    Closed, Denial, Ended, Labels, Master, NodeInfo, RankOrder, UnreadableRecord,
};
use super::variant::Variant;
use crate::etcd::kv::{Txn, TxnReply};
use crate::etcd::{EtcdError, WatchMessage, WatchSpec};

/// Time since an origin of the driver's choice.
pub type Time = Duration;
pub type CallId = u64;
pub type WatchId = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMemberLoss {
    /// A lost member makes the others' `num_nodes_waiting` positive: their agents rejoin.
    Restart,
    Ignore,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub keys: Keys,
    pub min: usize,
    pub max: usize,
    pub join_timeout: Duration,
    pub last_call: Duration,
    /// How long a round waits, after it was opened, for live members of the last world.
    pub survivor_grace: Duration,
    pub close_timeout: Duration,
    /// TTL of the node's lease.
    pub ttl: Duration,
    /// TTL of the run's lease.
    pub run_ttl: Duration,
    pub on_member_loss: OnMemberLoss,
    /// A node that comes to a closed run whose members have all gone opens it again.
    pub reopen_if_closed: bool,
    /// The newest version of the protocol that this node knows, and that of a run that it creates.
    pub version: u32,
    pub node: NodeInfo,
    pub labels: Labels,
    pub order: RankOrder,
    /// The Unix time at [`Time`] zero; the driver sets it.
    pub epoch: Duration,
    /// For lease ids and for pauses that must differ between nodes.
    pub seed: u64,
    pub tuning: Tuning,
}

/// What is the same for all nodes, and other than that only for tests.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// etcd takes 128 operations in a transaction.
    pub members_per_txn: usize,
    /// How many join keys are read at once.
    pub join_page: i64,
    /// The guard that is missing.
    #[cfg(test)]
    pub variant: Option<Variant>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            members_per_txn: 120,
            join_page: 2000,
            #[cfg(test)]
            variant: None,
        }
    }
}

impl Settings {
    /// Whether this node lacks a guard of the protocol, so that a test sees that the simulator notices.
    #[cfg(test)]
    pub fn wrong(&self, variant: Variant) -> bool {
        self.tuning.variant == Some(variant)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "tests look")]
    pub const fn wrong(&self, _: Variant) -> bool {
        false
    }

    /// The number alone comes back, when an operator has deleted the run's keys.
    pub fn is_same(&self, a: &RoundId, b: &RoundId) -> bool {
        if self.wrong(Variant::RoundByNumber) { a.round == b.round } else { a == b }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Take part in the next round. The result comes as [`Action::Joined`].
    Join(Master),
    /// Stop joining and give up membership: the lease is revoked, nobody waits for it to run out.
    Leave,
    /// Close the run for good. The result comes as [`Action::Closed`].
    Close(Close),
    /// Learn the run's state without taking part; comes as [`Action::Observed`].
    Observe,
    Answer(CallId, Result<Answer, EtcdError>),
    Watched(WatchId, WatchMessage),
    /// etcd does not have this lease any more: the node's or the run's.
    LeaseLost(i64),
    /// Nothing but the time.
    Tick,
}

/// The wish to close the run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Close {
    pub by: String,
    pub reason: String,
    /// Unix time in seconds.
    pub at: u64,
    pub ended: Option<Ended>,
    /// Only if this node is a live member of the last completed world. Whoever else ends only leaves.
    pub only_member: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Txn(TxnReply),
    /// This lease, for so long by etcd's own word.
    Granted(i64, Duration),
    /// What the lease has left; `None` when it is gone.
    TimeToLive(Option<Duration>),
}

/// Which lease to grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// One of the node's own. The first attempt asks for this id, each later one for another
    /// (`etcd::nth_lease_id`).
    New(i64),
    /// One that others may have been granted already, whose id all know.
    Shared(i64),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Run it as often as needed until it is answered: repeating it is harmless.
    Txn(CallId, Txn, Time),
    Grant(CallId, Wanted, Duration, Time),
    TimeToLive(CallId, i64, Time),
    /// Best effort: a lease that cannot be revoked runs out.
    Revoke(i64),
    /// Stop renewing: it stays for as long as others renew it, or until it runs out.
    Abandon(i64),
    /// Renew a lease of this TTL until it is revoked, abandoned or lost, for the first time after so long;
    /// in place of an earlier one of the same lease. The loss is an input.
    KeepAlive(i64, Duration, Duration),
    Watch(WatchId, WatchSpec),
    Unwatch(WatchId),
    /// Nobody waits for this call any more: it must not go on.
    Cancel(CallId),
    Joined(Result<Outcome, RendezvousError>),
    /// `Some` where the run was left as it is, with the reason.
    Closed(Result<Option<String>, RendezvousError>),
    Observed(Result<(), RendezvousError>),
}

/// A place in a completed round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub round: u64,
    pub attempt: String,
    pub rank: u32,
    pub world: u32,
    pub master: Master,
}

impl Outcome {
    pub fn id(&self) -> RoundId {
        RoundId { round: self.round, attempt: self.attempt.clone() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RendezvousError {
    #[error("The run was closed by {by}: {reason}", by = .0.by, reason = .0.reason)]
    Closed(Closed),
    #[error("{0}")]
    Timeout(String),
    #[error("{0}")]
    Etcd(#[from] EtcdError),
    #[error(transparent)]
    Unreadable(#[from] UnreadableRecord),
    #[error(transparent)]
    Denied(#[from] DeniedNode),
    #[error(
        "{node} is not in the run any more: another agent, {by}, has taken its node_id '{node_id}'. \
         Each agent needs a node_id of its own."
    )]
    Replaced { node: NodeInfo, node_id: String, by: NodeInfo },
    #[error("The node has left the rendezvous.")]
    Left,
}

/// That a node is denied, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{node} may not take part in the run: {what} '{name}' was denied by {by}: {reason}. It is admitted \
     again by `torchetcd allow`, or when the etcd key '{key}' is deleted.",
    by = said(&.denial.by, "somebody unknown"),
    reason = said(&.denial.reason, "no reason given")
)]
pub struct DeniedNode {
    pub node: NodeInfo,
    /// Which of its names.
    pub what: &'static str,
    pub name: String,
    pub denial: Denial,
    pub key: String,
}

fn said<'a>(text: &'a str, otherwise: &'static str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// Why a member's world is over, or no longer whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// This node's own lease.
    LeaseLost,
    MemberLost,
    /// Somebody opened another round, or the run's state is gone.
    NextRound,
    /// This node was denied or replaced, or the run is led by another version.
    Excluded,
}

impl Cause {
    /// As metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::LeaseLost => "lease_lost",
            Self::MemberLost => "member_lost",
            Self::NextRound => "next_round",
            Self::Excluded => "excluded",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub id: RoundId,
    pub cause: Cause,
    /// For people.
    pub reason: String,
}

/// What can be told without asking etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Nodes that could change the world of this member, lost members among them.
    pub waiting: usize,
    pub closed: Option<Closed>,
    /// Seconds: the TTL of the run's lease, as its record has it; 0 where that is not known.
    pub run_ttl: u64,
    pub progress: Progress,
    /// Why nobody should wait any longer for a member of this round.
    pub broken: Option<Broken>,
    /// The state of the run is being watched.
    pub observed: bool,
    /// Why this node is none of the run: it was denied, or replaced.
    pub excluded: Option<String>,
    /// The run was closed while this node waited for a place in it.
    pub parked: bool,
    /// What people should know of the last round's ranks and limits.
    pub remark: Option<String>,
}

/// For the log lines of a node that waits in the barrier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub round: u64,
    /// The completed round that is current.
    pub current: Option<RoundId>,
    /// As the coordinator last told; 0 when it has not told yet.
    pub joined: usize,
    pub last_call: bool,
    /// The round is complete without this node, which waits for the next one.
    pub spare: bool,
    /// This node counts among those who have joined a round that is not complete.
    pub entered: bool,
    pub member: Option<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub rank: u32,
    pub world: u32,
}
