//! One request until it is answered for good: repeated after what an error means, and never waited for beyond its
//! deadline.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::cluster::{Backoff, Causes, Cluster};
use super::error::{EtcdError, Refusal};
use super::metrics::{Ended, Rpc, metrics};
use super::transport::{Connection, describe};
use super::verdict::{Verdict, classify, is_answer};

/// How long an answer may take before the member is asked whether it is there at all; doubled each time
/// that it is. etcd's own limit is 5 s and two elections: then it answers with an error.
const LATE: Duration = Duration::from_secs(3);

/// How long the answer to that may take before the next endpoint is tried.
const PROOF: Duration = Duration::from_secs(3);

/// How often one call takes a new token: each change of etcd's users can make the last one old.
const RENEWALS: u32 = 5;

/// What may be done when the answer to a request was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Send it again: the request changes nothing.
    Read,
    /// Send it again: the request takes effect once however often it is applied.
    Safely,
    /// Report [`EtcdError::Ambiguous`]: the caller finds out.
    Never,
}

type Answer<T> = Result<T, etcd_client::Error>;

/// Runs one request until it is answered for good, the deadline has come or the client is closed, and counts it.
pub async fn call<T, F, Fut>(
    cluster: &Cluster,
    rpc: Rpc,
    repeat: Repeat,
    deadline: Instant,
    request: F,
) -> Result<T, EtcdError>
where
    F: Fn(Arc<Connection>) -> Fut,
    Fut: Future<Output = Answer<T>>,
{
    let started = Instant::now();
    let call = Call {
        cluster,
        repeat,
        deadline,
        started,
        causes: Causes::default(),
        backoff: Backoff::default(),
        busy: Backoff::busy(),
        renewals: 0,
        maybe_applied: false,
    };
    let result = tokio::select! {
        result = call.run(request) => result,
        () = cluster.closed() => Err(EtcdError::Closed),
    };
    metrics().call(rpc, counted(rpc, &result), started.elapsed());
    result
}

fn counted<T>(rpc: Rpc, result: &Result<T, EtcdError>) -> Ended {
    match result {
        Ok(_) => Ended::Ok,
        // What was asked for is so.
        Err(EtcdError::Refused { kind, .. })
            if matches!(
                (rpc, kind),
                (Rpc::LeaseGrant, Refusal::LeaseExists)
                    | (Rpc::LeaseRevoke, Refusal::LeaseNotFound)
                    | (Rpc::MemberRemove, Refusal::MemberNotFound)
                    | (Rpc::MemberPromote, Refusal::NotLearner)
            ) =>
        {
            Ended::Ok
        }
        Err(EtcdError::Refused { .. }) => Ended::Refused,
        Err(EtcdError::Unreachable { .. }) => Ended::Unreachable,
        Err(EtcdError::Ambiguous { .. }) => Ended::Ambiguous,
        Err(EtcdError::Compacted { .. }) => Ended::Compacted,
        Err(
            EtcdError::Untrusted { .. }
            | EtcdError::HistoryLost
            | EtcdError::Closed
            | EtcdError::Configuration(_),
        ) => Ended::Failed,
    }
}

/// A call under way.
struct Call<'a> {
    cluster: &'a Cluster,
    repeat: Repeat,
    deadline: Instant,
    started: Instant,
    causes: Causes,
    backoff: Backoff,
    busy: Backoff,
    /// Tokens that it took.
    renewals: u32,
    /// An attempt may have taken effect.
    maybe_applied: bool,
}

impl Call<'_> {
    async fn run<T, F, Fut>(mut self, request: F) -> Result<T, EtcdError>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Answer<T>>,
    {
        loop {
            let connection = self.connection().await?;
            let epoch = connection.token_epoch();
            let request = request(connection.clone());
            let error = match answer(self.cluster, &connection, request, self.deadline).await {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(error)) => Some(error),
                None => None,
            };
            let pause = self.failed(&connection, epoch, error.as_ref()).await?;
            tokio::time::sleep_until(self.deadline.min(Instant::now() + pause)).await;
        }
    }

    async fn connection(&mut self) -> Result<Arc<Connection>, EtcdError> {
        if Instant::now() < self.deadline
            && let Ok(connected) =
                tokio::time::timeout_at(self.deadline, self.cluster.connected()).await
        {
            return connected;
        }
        self.causes.update(self.cluster.causes());
        Err(self.causes.to_error(self.started.elapsed(), self.maybe_applied))
    }

    /// After an attempt without success (without an error where no answer came): the pause until the next one, or the
    /// error that ends the call.
    async fn failed(
        &mut self,
        connection: &Arc<Connection>,
        epoch: u64,
        error: Option<&etcd_client::Error>,
    ) -> Result<Duration, EtcdError> {
        let verdict = error.map_or(Verdict::MaybeApplied, classify);
        let text = error.map_or_else(|| "no answer".to_string(), describe);
        if let Some(retry) = verdict.counted() {
            metrics().retry(retry);
        }
        let pause = match verdict {
            Verdict::Final(kind) => return Err(connection.refusal(kind, &text)),
            Verdict::Compacted => return Err(EtcdError::Compacted { requested: 0, oldest: 0 }),
            Verdict::StaleToken => {
                if connection.user.is_none() || self.renewals == RENEWALS {
                    return Err(connection.refusal(Refusal::AuthenticationFailed, &text));
                }
                self.renewals += 1;
                let renewal = connection.renew_token(epoch);
                match tokio::time::timeout_at(self.deadline, renewal).await {
                    Ok(true) if self.renewals == 1 => return Ok(Duration::ZERO),
                    // Refused with a new token: the users are being changed.
                    Ok(true) => {}
                    _ => self.cluster.discard(connection),
                }
                self.backoff.pause()
            }
            Verdict::NotApplied | Verdict::NoAuthentication => {
                self.cluster.discard(connection);
                self.backoff.pause()
            }
            Verdict::Busy => {
                let pause = self.busy.pause();
                self.cluster.leave_if_busy(connection, self.busy.attempts());
                pause
            }
            Verdict::MaybeApplied => {
                self.maybe_applied = self.repeat != Repeat::Read;
                let pause = self.backoff.pause();
                // A member that answers "leader changed" or "request timed out" is there.
                if error.is_some_and(is_answer) {
                    self.cluster.leave_if_busy(connection, self.backoff.attempts());
                } else if error.is_some() {
                    self.cluster.discard(connection);
                }
                pause
            }
        };
        self.causes.add(&connection.endpoint, text);
        if self.maybe_applied && self.repeat == Repeat::Never {
            return Err(self.causes.to_error(self.started.elapsed(), true));
        }
        Ok(pause)
    }
}

/// The answer to a request; `None` when the member is silent or the deadline has come.
async fn answer<T>(
    cluster: &Cluster,
    connection: &Arc<Connection>,
    request: impl Future<Output = Answer<T>>,
    deadline: Instant,
) -> Option<Answer<T>> {
    let mut request = pin!(request);
    let mut limit = LATE;
    let mut applied = None;
    loop {
        let until = deadline.min(Instant::now() + limit);
        if let Ok(answer) = tokio::time::timeout_at(until, &mut request).await {
            connection.health.note_answer(answer.is_ok());
            return Some(answer);
        }
        let (cluster, connection) = (cluster.clone(), connection.clone());
        // Rare, and large.
        let proof = Box::pin(async move {
            let silent = cluster.leave_if_silent(&connection, PROOF, &mut applied).await;
            (silent, applied)
        });
        if Instant::now() >= deadline {
            // This call has no time left. The next one should not wait for a dead connection as well.
            tokio::spawn(proof);
            return None;
        }
        tokio::select! {
            answer = &mut request => return Some(answer),
            (silent, then) = proof => {
                if silent {
                    return None;
                }
                applied = then;
            }
        }
        limit *= 2;
    }
}
