//! What can go wrong between us and etcd, as callers see it.

use std::time::Duration;

/// A failure of a call to etcd.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    /// The request never took effect and etcd could not be reached until the deadline.
    #[error("etcd did not answer within {}: {causes}", seconds(*.waited))]
    Unreachable { waited: Duration, causes: String },
    /// TLS was refused at every endpoint, by us or by them, and never came about: waiting would not help.
    #[error("no TLS connection to etcd can be made: {causes}")]
    Untrusted { causes: String },
    /// The request was sent and its answer lost: it may or may not have taken effect.
    #[error("the answer of etcd was lost, the request may have taken effect: {causes}")]
    Ambiguous { causes: String },
    /// etcd refused. It would refuse again, or until the cluster has changed, which is for the caller to wait for.
    #[error("etcd at {endpoint} refused the request: {message}")]
    Refused { endpoint: String, kind: Refusal, message: String },
    /// The revision asked for is compacted away.
    #[error("{}", compacted(*requested, *oldest))]
    Compacted { requested: i64, oldest: i64 },
    /// What was read and watched before is of no more use, nor are leases.
    #[error(
        "etcd has another history than before: it was restored from a backup, wiped, or replaced by \
         another cluster"
    )]
    HistoryLost,
    /// This client was closed.
    #[error("the etcd client is closed")]
    Closed,
    /// Options that cannot work (a missing file, a certificate that is not valid).
    #[error("{0}")]
    Configuration(String),
}

/// Why etcd refused. Those of changes of the members say what holds at present: the client does not try again by itself,
/// as nobody knows how long it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    LeaseNotFound,
    LeaseExists,
    PermissionDenied,
    /// Wrong user or password.
    AuthenticationFailed,
    TooLarge,
    NoSpace,
    /// etcd found that its members differ, and accepts nothing until somebody has repaired that.
    Corrupt,
    /// No member has this id, or it was removed: an id is not used twice.
    MemberNotFound,
    /// A member with these peer URLs was added within the same moment.
    MemberExists,
    /// A member, a learner included, has one of these peer URLs.
    PeerUrlExists,
    InvalidMemberUrls,
    /// With the change the cluster could lose its majority: a member that was added has not started yet.
    NotEnoughStartedMembers,
    /// The member that was asked has not been connected to enough of the others for 5 s.
    UnhealthyCluster,
    /// The member votes already.
    NotLearner,
    /// The learner has less than 9 tenths of the leader's log.
    LearnerNotReady,
    /// There are as many as `--max-learners` allows: one, unless it is set.
    TooManyLearners,
    Other,
}

impl Refusal {
    /// As callers in Python see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::LeaseNotFound => "lease_not_found",
            Self::LeaseExists => "lease_exists",
            Self::PermissionDenied => "permission_denied",
            Self::AuthenticationFailed => "authentication_failed",
            Self::TooLarge => "too_large",
            Self::NoSpace => "no_space",
            Self::Corrupt => "corrupt",
            Self::MemberNotFound => "member_not_found",
            Self::MemberExists => "member_exists",
            Self::PeerUrlExists => "peer_url_exists",
            Self::InvalidMemberUrls => "invalid_member_urls",
            Self::NotEnoughStartedMembers => "not_enough_started_members",
            Self::UnhealthyCluster => "unhealthy_cluster",
            Self::NotLearner => "not_learner",
            Self::LearnerNotReady => "learner_not_ready",
            Self::TooManyLearners => "too_many_learners",
            Self::Other => "other",
        }
    }
}

/// A refused read does not say which revision etcd still has; the end of a watch does.
fn compacted(requested: i64, oldest: i64) -> String {
    if oldest == 0 {
        return "the history of etcd that would tell is compacted away".into();
    }
    format!("revision {requested} is compacted away (the oldest that etcd still has is {oldest})")
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
