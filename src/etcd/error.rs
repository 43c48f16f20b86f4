//! What can go wrong between us and etcd, and what may be done about it.

use std::time::Duration;

use etcd_client::Error as ClientError;
use tonic::{Code, Status};

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
    /// etcd refused, and would refuse again.
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
    /// Options that cannot work (a missing file, a certificate that is none).
    #[error("{0}")]
    Configuration(String),
}

/// Why etcd refused for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    LeaseNotFound,
    LeaseExists,
    PermissionDenied,
    /// Wrong user or password.
    AuthenticationFailed,
    TooLarge,
    NoSpace,
    /// etcd found that its members differ, and takes nothing until somebody has mended that.
    Corrupt,
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

/// Why there is no connection.
pub(super) enum ConnectError {
    /// Another endpoint, or a later attempt, may do.
    Unreachable(String),
    /// One side refuses the other's certificate or its version of TLS; that may be mended.
    Untrusted(String),
    /// etcd does not take the password that is in a file; that may be mended.
    LogInRefused(EtcdError),
    Final(EtcdError),
}

/// What a failed attempt means for the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
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

/// Sorts an answer of etcd. The messages are those of etcd's
/// `api/v3rpc/rpctypes/error.go`; codes alone do not tell: a stale token is `InvalidArgument` after a
/// change of the auth store, and an overloaded server answers `Unknown` or `ResourceExhausted`.
pub(super) fn classify(error: &ClientError) -> Verdict {
    match error {
        ClientError::GRpcStatus(status) => classify_status(status),
        ClientError::InvalidArgs(_)
        | ClientError::InvalidUri(_)
        | ClientError::InvalidMetadataValue(_)
        | ClientError::Utf8Error(_) => Verdict::Final(Refusal::Other),
        _ => Verdict::MaybeApplied,
    }
}

pub(super) fn classify_message(message: &str) -> Option<Verdict> {
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
        return None;
    };
    Some(verdict)
}

fn classify_status(status: &Status) -> Verdict {
    if let Some(verdict) = classify_message(status.message()) {
        return verdict;
    }
    match status.code() {
        Code::Unauthenticated => Verdict::StaleToken,
        Code::Unavailable if connect_failed(status) => Verdict::NotApplied,
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
pub(super) fn is_answer(error: &ClientError) -> bool {
    const SPEAKERS: [&str; 4] = ["etcdserver:", "auth:", "lease:", "mvcc:"];
    match error {
        ClientError::GRpcStatus(status) => {
            std::error::Error::source(status).is_none()
                && SPEAKERS.iter().any(|speaker| status.message().starts_with(speaker))
        }
        _ => false,
    }
}

/// Whether there was no connection any more, so that no request was sent. A channel of ours connects once
/// (see `dial.rs`).
fn connect_failed(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// tonic's text around the cause of what went wrong on a connection.
const TRANSPORT: &str = "transport error";

/// One line for people.
pub(super) fn describe(error: &ClientError) -> String {
    match error {
        ClientError::GRpcStatus(status) => {
            if let (TRANSPORT, Some(source)) = (status.message(), std::error::Error::source(status))
            {
                return describe_error(source);
            }
            let mut text = if status.message().is_empty() {
                format!("{:?}", status.code())
            } else {
                status.message().to_string()
            };
            append_sources(&mut text, std::error::Error::source(status));
            text
        }
        ClientError::TransportError(error) => describe_error(error),
        other => other.to_string(),
    }
}

pub(super) fn describe_error(error: &(dyn std::error::Error + 'static)) -> String {
    if let (TRANSPORT, Some(source)) = (error.to_string().as_str(), error.source()) {
        return describe_error(source);
    }
    let mut text = error.to_string();
    append_sources(&mut text, error.source());
    text
}

fn append_sources(text: &mut String, mut source: Option<&(dyn std::error::Error + 'static)>) {
    while let Some(error) = source {
        let inner = error.to_string();
        if inner != TRANSPORT && !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        source = error.source();
    }
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
        let why = std::io::Error::other("the certificate was refused, the name is gone, ...");
        let error = tonic::Status::from_error(Box::new(tonic::ConnectError(Box::new(why))));
        assert_eq!(classify(&ClientError::GRpcStatus(error)), Verdict::NotApplied);
        let error = tonic::Status::from_error(Box::new(std::io::Error::other("broken pipe")));
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
