//! What an error of the layers below means for the next step: the table of etcd's messages.

use std::error::Error;

use etcd_client::Error as ClientError;
use tonic::{Code, Status};

use super::error::Refusal;
use super::metrics::Retry;

/// What a failed attempt means for the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took no effect: try again, elsewhere.
    NotApplied,
    /// It took no effect, as the member has more to do than it can: try again later. Whoever went
    /// elsewhere at once would add to that.
    Busy,
    /// It may have taken effect.
    MaybeApplied,
    /// The token is not accepted any more: authenticate again, then try once more.
    StaleToken,
    /// There are no users here: as Go's client does, go on without a token.
    NoAuthentication,
    Compacted,
    Final(Refusal),
}

impl Verdict {
    /// What is counted of an attempt that was not the last one; `None` for what ends a call.
    pub fn counted(&self) -> Option<Retry> {
        match self {
            Self::NotApplied | Self::NoAuthentication => Some(Retry::NotApplied),
            Self::Busy => Some(Retry::Busy),
            Self::MaybeApplied => Some(Retry::AnswerLost),
            Self::StaleToken => Some(Retry::StaleToken),
            Self::Compacted | Self::Final(_) => None,
        }
    }
}

/// Sorts an answer of etcd. The messages are those of etcd's
/// `api/v3rpc/rpctypes/error.go`; codes alone do not tell: a stale token is `InvalidArgument` after a
/// change of the auth store, and an overloaded server answers `Unknown` or `ResourceExhausted`.
pub fn classify(error: &ClientError) -> Verdict {
    match error {
        ClientError::GRpcStatus(status) => classify_status(status),
        ClientError::InvalidArgs(_)
        | ClientError::InvalidUri(_)
        | ClientError::InvalidMetadataValue(_)
        | ClientError::Utf8Error(_) => Verdict::Final(Refusal::Other),
        _ => Verdict::MaybeApplied,
    }
}

pub fn classify_message(message: &str) -> Option<Verdict> {
    let has = |text: &str| message.contains(text);
    let verdict = if has("invalid auth token")
        || has("revision of auth store is old")
        // Until 3.5.2 the error of the layer below comes through.
        || has("revision in header is old")
        || has("user name is empty")
    {
        Verdict::StaleToken
    } else if has("required revision has been compacted") {
        Verdict::Compacted
    } else if has("requested lease not found") {
        Verdict::Final(Refusal::LeaseNotFound)
    } else if has("lease already exists") {
        Verdict::Final(Refusal::LeaseExists)
    } else if has("permission denied") {
        Verdict::Final(Refusal::PermissionDenied)
    } else if has("authentication is not enabled") {
        Verdict::NoAuthentication
    } else if has("authentication failed") {
        Verdict::Final(Refusal::AuthenticationFailed)
    } else if has("request is too large") || has("message larger than max") {
        Verdict::Final(Refusal::TooLarge)
    } else if has("database space exceeded") {
        Verdict::Final(Refusal::NoSpace)
    } else if has("corrupt cluster") {
        Verdict::Final(Refusal::Corrupt)
    } else if has("too many requests")
        // There is no leader, or it is being changed: etcd says that it was not proposed.
        || has("raft proposal dropped")
        // Of leases: more than a second's work waits to be applied.
        || has("waiting for the applied index took too long")
        // Of leases: the leader is not sure that it still is.
        || has("not a primary lessor")
    {
        Verdict::Busy
    } else if has("no leader") || has("not capable") || has("not supported for learner") {
        // Refused before it reached the log.
        Verdict::NotApplied
    } else {
        return classify_change(message).map(Verdict::Final);
    };
    Some(verdict)
}

/// What etcd says of changes of the members. It has looked at them before they reach the log, except for those of ids and
/// URLs, which it also looks at when it applies them: either way nothing was changed.
fn classify_change(message: &str) -> Option<Refusal> {
    const CHANGES: [(&str, Refusal); 9] = [
        ("member not found", Refusal::MemberNotFound),
        ("member ID already exist", Refusal::MemberExists),
        ("Peer URLs already exists", Refusal::PeerUrlExists),
        ("member URLs are invalid", Refusal::InvalidMemberUrls),
        ("not enough started members", Refusal::NotEnoughStartedMembers),
        // Its code is the one of answers that were lost.
        ("unhealthy cluster", Refusal::UnhealthyCluster),
        // The text of the next one begins this one.
        ("learner member which is in sync with leader", Refusal::LearnerNotReady),
        ("can only promote a learner member", Refusal::NotLearner),
        ("too many learner members", Refusal::TooManyLearners),
    ];
    CHANGES.into_iter().find_map(|(text, refusal)| message.contains(text).then_some(refusal))
}

fn classify_status(status: &Status) -> Verdict {
    if let Some(verdict) = classify_message(status.message()) {
        return verdict;
    }
    match status.code() {
        Code::Unauthenticated => Verdict::StaleToken,
        Code::Unavailable if was_not_sent(status) => Verdict::NotApplied,
        // "leader changed", "request timed out", "server stopped", a connection that broke: a write
        // may be in the log already.
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted
        | Code::ResourceExhausted
        | Code::DataLoss => Verdict::MaybeApplied,
        Code::PermissionDenied => Verdict::Final(Refusal::PermissionDenied),
        _ => Verdict::Final(Refusal::Other),
    }
}

/// Whether etcd itself said so, not the transport, nor a proxy that has nothing behind it: those answer by
/// a status too (a mesh's sidecar by `Unavailable`, a web server by what tonic makes of an HTTP status).
pub fn is_answer(error: &ClientError) -> bool {
    const SPEAKERS: [&str; 4] = ["etcdserver:", "auth:", "lease:", "mvcc:"];
    match error {
        ClientError::GRpcStatus(status) => {
            status.source().is_none()
                && SPEAKERS.iter().any(|speaker| status.message().starts_with(speaker))
        }
        _ => false,
    }
}

/// The connection had ended before the request, so that the request was not sent: the error of a channel whose one
/// connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection has ended")]
pub struct NotSent;

fn was_not_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<NotSent>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(code: Code, message: &str) -> Verdict {
        classify(&ClientError::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn a_stale_token_comes_under_several_codes() {
        for (code, message) in [
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old"),
            (Code::Unknown, "auth: revision in header is old"),
            (Code::InvalidArgument, "etcdserver: user name is empty"),
        ] {
            assert_eq!(verdict(code, message), Verdict::StaleToken, "{message}");
        }
    }

    #[test]
    fn a_write_may_be_in_the_log_when_the_leader_changed() {
        for message in ["etcdserver: leader changed", "etcdserver: request timed out"] {
            assert_eq!(verdict(Code::Unavailable, message), Verdict::MaybeApplied);
        }
    }

    #[test]
    fn a_request_without_a_connection_was_not_sent() {
        let error = Status::from_error(Box::new(tonic::ConnectError(Box::new(NotSent))));
        assert_eq!(classify(&ClientError::GRpcStatus(error)), Verdict::NotApplied);
        let error = Status::from_error(Box::new(std::io::Error::other("broken pipe")));
        assert_eq!(classify(&ClientError::GRpcStatus(error)), Verdict::MaybeApplied);
    }

    #[test]
    fn only_etcd_answers_for_etcd() {
        let answer =
            |code, text: &str| is_answer(&ClientError::GRpcStatus(Status::new(code, text)));
        assert!(answer(Code::Unavailable, "etcdserver: leader changed"));
        assert!(answer(Code::Unknown, "auth: revision in header is old"));
        assert!(!answer(Code::Unavailable, "no healthy upstream"));
        assert!(!answer(Code::Unimplemented, "grpc-status header missing, mapped from HTTP 404"));
    }

    #[test]
    fn a_member_that_differs_refuses_for_good() {
        let corrupt = Verdict::Final(Refusal::Corrupt);
        assert_eq!(verdict(Code::DataLoss, "etcdserver: corrupt cluster"), corrupt);
        assert_eq!(verdict(Code::Unknown, "raft proposal dropped"), Verdict::Busy);
    }

    #[test]
    fn overload_is_retried_and_a_full_disk_is_not() {
        for code in [Code::Unknown, Code::ResourceExhausted] {
            assert_eq!(verdict(code, "etcdserver: too many requests"), Verdict::Busy);
        }
        let waits = "etcdserver: request timed out, waiting for the applied index took too long";
        assert_eq!(verdict(Code::Unavailable, waits), Verdict::Busy);
        assert_eq!(
            verdict(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            Verdict::Final(Refusal::NoSpace)
        );
    }

    #[test]
    fn changes_of_the_members_are_for_the_caller_to_try_again() {
        for (code, message, refusal) in [
            (Code::Unavailable, "etcdserver: unhealthy cluster", Refusal::UnhealthyCluster),
            (
                // Where etcd maps it to no status, the code is this one.
                Code::Unknown,
                "etcdserver: re-configuration failed due to not enough started members",
                Refusal::NotEnoughStartedMembers,
            ),
            (
                Code::FailedPrecondition,
                "etcdserver: can only promote a learner member which is in sync with leader",
                Refusal::LearnerNotReady,
            ),
            (
                Code::FailedPrecondition,
                "etcdserver: can only promote a learner member",
                Refusal::NotLearner,
            ),
            (Code::NotFound, "etcdserver: member not found", Refusal::MemberNotFound),
            (
                Code::FailedPrecondition,
                "etcdserver: Peer URLs already exists",
                Refusal::PeerUrlExists,
            ),
            (
                Code::FailedPrecondition,
                "etcdserver: too many learner members in cluster",
                Refusal::TooManyLearners,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: given member URLs are invalid",
                Refusal::InvalidMemberUrls,
            ),
        ] {
            assert_eq!(verdict(code, message), Verdict::Final(refusal), "{message}");
        }
    }

    #[test]
    fn final_refusals() {
        for (code, message, refusal) in [
            (Code::NotFound, "etcdserver: requested lease not found", Refusal::LeaseNotFound),
            (Code::FailedPrecondition, "etcdserver: lease already exists", Refusal::LeaseExists),
            (Code::PermissionDenied, "etcdserver: permission denied", Refusal::PermissionDenied),
            (Code::InvalidArgument, "etcdserver: request is too large", Refusal::TooLarge),
            (Code::InvalidArgument, "etcdserver: duplicate key", Refusal::Other),
        ] {
            assert_eq!(verdict(code, message), Verdict::Final(refusal), "{message}");
        }
    }
}
