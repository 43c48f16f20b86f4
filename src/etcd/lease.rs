//! Keeping a lease alive for as long as etcd has it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use tokio::sync::watch;
use tokio::time::Instant;

use super::cluster::{Backoff, Cluster};
use super::convert::is_lease_gone;
use super::metrics::{RenewalResult, metrics};
use super::requests;
use super::transport::Connection;
use super::unique::uniform;
use super::verdict::{Verdict, classify};

/// Leases longer than this are renewed by a short call each time; shorter ones keep a stream open.
const STREAM_UP_TO: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    Alive,
    /// etcd said that it does not have the lease. Silence of etcd never means that: an outage longer
    /// than the TTL must not cost a membership that etcd still knows (it extends leases on recovery).
    Lost,
}

/// Renews a lease at a third of the TTL that etcd says it has, until it is lost or this is dropped.
pub struct KeepAlive {
    state: watch::Receiver<LeaseState>,
    task: tokio::task::JoinHandle<()>,
}

impl KeepAlive {
    /// Renews it after `first` and then at a third of its TTL. Must be called within the runtime.
    pub fn start(client: impl Into<Cluster>, id: i64, ttl: Duration, first: Duration) -> Self {
        let cluster = client.into();
        let (sender, state) = watch::channel(LeaseState::Alive);
        let task = tokio::spawn(async move {
            tokio::select! {
                () = renew_until_lost(&cluster, id, ttl, first) => {
                    sender.send_replace(LeaseState::Lost);
                }
                // Nobody can renew it any more, which is no loss yet.
                () = cluster.closed() => {}
            }
        });
        Self { state, task }
    }

    pub fn state(&self) -> LeaseState {
        *self.state.borrow()
    }

    /// Returns when the lease is lost; pending otherwise.
    pub async fn lost(&mut self) {
        if self.state.wait_for(|state| *state == LeaseState::Lost).await.is_err() {
            // The task was aborted: nobody renews and nobody reports.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn renew_until_lost(cluster: &Cluster, id: i64, ttl: Duration, first: Duration) {
    let mut period = ttl / 3;
    let mut due = Instant::now() + first;
    let mut backoff = Backoff::default();
    let mut busy = 0;
    let mut way = Way::default();
    loop {
        tokio::time::sleep_until(due).await;
        // Measured from the request: the answer's travel must not stretch the period.
        let asked = Instant::now();
        let outcome = if ttl > STREAM_UP_TO {
            renew_by_call(cluster, id).await
        } else {
            // At first half of what is left of the lease, so that there is time for another stream.
            let all = period * (1 << backoff.attempts().min(3));
            let patience = Patience { limit: answer_limit(ttl), all };
            renew_by_stream(cluster, id, patience, &mut way).await
        };
        // A second renewal was due before the first one came.
        let late = due.elapsed() > period;
        metrics().renewal(outcome.counted(late));
        match outcome {
            Renewal::Renewed(granted) => {
                period = granted.unwrap_or(period * 3) / 3;
                // Thousands that began at once are not to go on renewing at once.
                due = asked + period.mul_f64(uniform(0.9..=1.0));
                backoff.reset();
                busy = 0;
            }
            Renewal::Gone => return,
            Renewal::Busy(connection) => {
                way.stream = None;
                busy += 1;
                cluster.leave_if_busy(&connection, busy);
                // Time for several attempts, but not for all to come at once.
                tokio::time::sleep(period.mul_f64(uniform(0.25..=0.5))).await;
            }
            Renewal::Late(connection) => {
                let beside = cluster.connection_beside(&connection);
                way = Way { stream: None, beside: in_time(period, beside).await };
                // It is due.
                let _ = backoff.pause();
            }
            Renewal::Failed => {
                way = Way::default();
                // At once at first: a short TTL leaves little time.
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

enum Renewal {
    /// For this time, where etcd has said it: it may be another one's lease, of another TTL.
    Renewed(Option<Duration>),
    Gone,
    /// etcd has too much to do. It ends the stream then.
    Busy(Arc<Connection>),
    /// The member is there, but not its answer.
    Late(Arc<Connection>),
    Failed,
}

impl Renewal {
    fn counted(&self, late: bool) -> RenewalResult {
        match self {
            Self::Renewed(_) if late => RenewalResult::Late,
            Self::Renewed(_) => RenewalResult::InTime,
            Self::Gone => RenewalResult::Lost,
            Self::Busy(_) => RenewalResult::Busy,
            Self::Late(_) | Self::Failed => RenewalResult::Failed,
        }
    }
}

async fn renew_by_call(cluster: &Cluster, id: i64) -> Renewal {
    match requests::renew_once(cluster, id, Instant::now() + Duration::from_secs(30)).await {
        Ok(true) => Renewal::Renewed(None),
        Ok(false) => Renewal::Gone,
        Err(_) => Renewal::Failed,
    }
}

/// How the lease is renewed at present.
#[derive(Default)]
struct Way {
    stream: Option<Stream>,
    /// A connection of its own, where the client's own did not answer in time: much that is read on that one
    /// can hold up all else on it (with TLS, etcd before 3.4.26 and 3.5.9; etcd issue 15402), and its member
    /// may be one that cannot renew at present.
    beside: Option<Arc<Connection>>,
}

async fn in_time(
    limit: Duration,
    connection: impl Future<Output = Option<Arc<Connection>>>,
) -> Option<Arc<Connection>> {
    tokio::time::timeout(limit, connection).await.ok().flatten()
}

/// An open stream and the connection it is on.
struct Stream {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    connection: Arc<Connection>,
    /// Of the token it was opened with.
    epoch: u64,
}

/// How long one answer may take: after a member has fallen silent there must be time for another one.
fn answer_limit(ttl: Duration) -> Duration {
    (ttl / 6).min(Duration::from_secs(3))
}

async fn renew_by_stream(cluster: &Cluster, id: i64, patience: Patience, way: &mut Way) -> Renewal {
    let Some(opened) = &mut way.stream else {
        return open_stream(cluster, id, patience, way).await;
    };
    let answer = async {
        opened.keeper.keep_alive().await?;
        opened.answers.message().await
    };
    match while_it_answers(cluster, &opened.connection, patience, answer).await {
        Some(Ok(Some(answer))) if answer.ttl() > 0 => {
            Renewal::Renewed(u64::try_from(answer.ttl()).ok().map(Duration::from_secs))
        }
        Some(Ok(Some(_))) => Renewal::Gone,
        Some(Ok(None)) => {
            cluster.discard(&opened.connection);
            Renewal::Failed
        }
        Some(Err(error)) => failed(cluster, &opened.connection, opened.epoch, &error).await,
        None => late(&opened.connection),
    }
}

fn late(connection: &Arc<Connection>) -> Renewal {
    if connection.health.is_silent() { Renewal::Failed } else { Renewal::Late(connection.clone()) }
}

/// How long an answer is waited for: each time it is late, until the member has to prove that it is there,
/// and in all.
#[derive(Clone, Copy)]
struct Patience {
    limit: Duration,
    all: Duration,
}

/// Waits for an answer while the member proves to be there whenever it is late: opening another stream
/// would only add to what a slow member has to do. Not longer than the patience, though: the stream may
/// be stuck where the member is not. A follower forwards a renewal to the leader, and where that one has
/// fallen silent it holds the stream for 7 s (etcd's `ReqTimeout`), whoever leads by then; a member that is
/// being defragmented renews nothing.
async fn while_it_answers<T>(
    cluster: &Cluster,
    connection: &Arc<Connection>,
    patience: Patience,
    answer: impl Future<Output = T>,
) -> Option<T> {
    let end = Instant::now() + patience.all;
    let mut limit = patience.limit;
    let mut applied = None;
    let mut answer = pin!(answer);
    loop {
        let late = end.min(Instant::now() + limit);
        if let Ok(answer) = tokio::time::timeout_at(late, &mut answer).await {
            connection.health.note_answer(true);
            return Some(answer);
        }
        tokio::select! {
            answer = &mut answer => return Some(answer),
            silent = cluster.leave_if_silent(connection, patience.limit, &mut applied) => {
                if silent {
                    return None;
                }
            }
            () = tokio::time::sleep_until(end) => return None,
        }
        limit *= 2;
    }
}

/// Opening a stream renews the lease: etcd-client sends the first request with it.
async fn open_stream(cluster: &Cluster, id: i64, patience: Patience, way: &mut Way) -> Renewal {
    let connection = match &way.beside {
        Some(connection) => connection.clone(),
        None => match cluster.connected().await {
            Ok(connection) => connection,
            Err(_) => return Renewal::Failed,
        },
    };
    let epoch = connection.token_epoch();
    let opening = async { connection.lease().keep_alive(id).await };
    match while_it_answers(cluster, &connection, patience, opening).await {
        Some(Ok((keeper, answers))) => {
            way.stream = Some(Stream { keeper, answers, connection, epoch });
            Renewal::Renewed(None)
        }
        Some(Err(error)) if is_lease_gone(&error) => Renewal::Gone,
        Some(Err(error)) => failed(cluster, &connection, epoch, &error).await,
        None => late(&connection),
    }
}

/// Sees to it that the next stream can do better.
async fn failed(
    cluster: &Cluster,
    connection: &Arc<Connection>,
    epoch: u64,
    error: &etcd_client::Error,
) -> Renewal {
    let verdict = classify(error);
    if verdict == Verdict::Busy {
        return Renewal::Busy(connection.clone());
    }
    let stale = verdict == Verdict::StaleToken;
    if !(stale && connection.renew_token(epoch).await) {
        cluster.discard(connection);
    }
    Renewal::Failed
}

#[cfg(test)]
mod tests {
    use super::super::test_server::{Server, binary};
    use super::*;

    #[test]
    fn a_client_that_is_closed_renews_no_more() {
        let Some(binary) = binary() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("one").block_on(async {
            let server = Server::start(&binary).await;
            let (client, other) = (server.client(), server.client());
            let deadline = Instant::now() + Duration::from_secs(60);
            let ttl = client.grant(7, Duration::from_secs(3), deadline).await.expect("granted");
            let keep_alive = KeepAlive::start(client.clone(), 7, ttl, Duration::ZERO);
            tokio::time::sleep(2 * ttl).await;
            assert!(other.time_to_live(7, deadline).await.expect("answered").is_some());
            client.close();
            while other.time_to_live(7, deadline).await.expect("answered").is_some() {
                assert!(Instant::now() < deadline, "it is still renewed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            // That it runs out is no word of etcd.
            assert_eq!(keep_alive.state(), LeaseState::Alive);
        });
    }
}
