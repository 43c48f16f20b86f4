//! Keeping a lease alive for as long as etcd has it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use tokio::sync::watch;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::client::Client;
use super::connection::Connection;
use super::error::{Verdict, classify};
use super::metrics::{Renewal as Counted, metrics};

/// Leases longer than this are renewed by a short call each time; shorter ones keep a stream open.
const STREAM_UP_TO: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    Alive,
    /// etcd said that it does not have the lease. Silence of etcd never means that: an outage longer
    /// than the TTL must not cost a membership that etcd still knows (it extends leases on recovery).
    Lost,
}

/// Renews a lease at a third of its TTL until it is lost or this is dropped.
pub struct KeepAlive {
    state: watch::Receiver<LeaseState>,
    task: tokio::task::JoinHandle<()>,
}

impl KeepAlive {
    /// Renews it after `first` and then at a third of its TTL. Must be called within the runtime.
    pub fn start(client: Client, id: i64, ttl: Duration, first: Duration) -> Self {
        let (sender, state) = watch::channel(LeaseState::Alive);
        let task = tokio::spawn(async move {
            renew_until_lost(&client, id, ttl, first).await;
            sender.send_replace(LeaseState::Lost);
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

async fn renew_until_lost(client: &Client, id: i64, ttl: Duration, first: Duration) {
    let period = ttl / 3;
    let mut due = Instant::now() + first;
    let mut backoff = Backoff::default();
    let mut busy = 0;
    let mut stream = None;
    loop {
        tokio::time::sleep_until(due).await;
        // Measured from the request: the answer's travel must not stretch the period.
        let asked = Instant::now();
        let outcome = if ttl > STREAM_UP_TO {
            renew_by_call(client, id).await
        } else {
            renew_by_stream(client, id, answer_limit(ttl), &mut stream).await
        };
        // A second renewal was due before the first one came.
        let late = due.elapsed() > period;
        metrics().renewal(outcome.counted(late));
        match outcome {
            Renewal::Renewed => {
                due = asked + period;
                backoff.reset();
                busy = 0;
            }
            Renewal::Gone => return,
            Renewal::Busy(connection) => {
                stream = None;
                busy += 1;
                client.leave_if_busy(&connection, busy);
                // Time for several attempts, but not for all to come at once.
                tokio::time::sleep(period.mul_f64(rand::random_range(0.25..=0.5))).await;
            }
            Renewal::Failed => {
                stream = None;
                // At once at first: a short TTL leaves little time.
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

enum Renewal {
    Renewed,
    Gone,
    /// etcd has too much to do. It ends the stream then.
    Busy(Arc<Connection>),
    Failed,
}

impl Renewal {
    fn counted(&self, late: bool) -> Counted {
        match self {
            Self::Renewed if late => Counted::Late,
            Self::Renewed => Counted::InTime,
            Self::Gone => Counted::Lost,
            Self::Busy(_) => Counted::Busy,
            Self::Failed => Counted::Failed,
        }
    }
}

async fn renew_by_call(client: &Client, id: i64) -> Renewal {
    match client.renew_once(id, Instant::now() + Duration::from_secs(30)).await {
        Ok(true) => Renewal::Renewed,
        Ok(false) => Renewal::Gone,
        Err(_) => Renewal::Failed,
    }
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
    (ttl / 6).clamp(Duration::from_secs(1), Duration::from_secs(3))
}

async fn renew_by_stream(
    client: &Client,
    id: i64,
    limit: Duration,
    stream: &mut Option<Stream>,
) -> Renewal {
    let Some(opened) = stream else { return open_stream(client, id, limit, stream).await };
    let answer = async {
        opened.keeper.keep_alive().await?;
        opened.answers.message().await
    };
    match while_it_answers(client, &opened.connection, limit, answer).await {
        Some(Ok(Some(answer))) if answer.ttl() > 0 => Renewal::Renewed,
        Some(Ok(Some(_))) => Renewal::Gone,
        Some(Ok(None)) => {
            client.discard(&opened.connection);
            Renewal::Failed
        }
        Some(Err(error)) => failed(client, &opened.connection, opened.epoch, &error).await,
        None => Renewal::Failed,
    }
}

/// Waits for an answer for as long as the member proves to be there whenever it is late: opening
/// another stream would only add to what a slow member has to do. Not for ever, though: the stream may
/// be lost where the member is not.
async fn while_it_answers<T>(
    client: &Client,
    connection: &Arc<Connection>,
    limit: Duration,
    answer: impl Future<Output = T>,
) -> Option<T> {
    let mut answer = pin!(answer);
    for doubled in 0..4 {
        if let Ok(answer) = tokio::time::timeout(limit * (1 << doubled), &mut answer).await {
            connection.note_answer();
            return Some(answer);
        }
        tokio::select! {
            answer = &mut answer => return Some(answer),
            silent = client.leave_if_silent(connection, limit) => if silent { return None },
        }
    }
    None
}

/// Opening a stream renews the lease: etcd-client sends the first request with it.
async fn open_stream(
    client: &Client,
    id: i64,
    limit: Duration,
    stream: &mut Option<Stream>,
) -> Renewal {
    let connection = loop {
        match client.connection().await {
            Ok(Some(connection)) => break connection,
            // The next attempt to connect pauses by itself.
            Ok(None) => {}
            Err(_) => return Renewal::Failed,
        }
    };
    let epoch = connection.token_epoch();
    let opening = async { connection.lease().keep_alive(id).await };
    match while_it_answers(client, &connection, limit, opening).await {
        Some(Ok((keeper, answers))) => {
            *stream = Some(Stream { keeper, answers, connection, epoch });
            Renewal::Renewed
        }
        Some(Err(etcd_client::Error::LeaseKeepAliveError(text))) if text == "lease not found" => {
            Renewal::Gone
        }
        Some(Err(error)) => failed(client, &connection, epoch, &error).await,
        None => Renewal::Failed,
    }
}

/// Sees to it that the next stream can do better.
async fn failed(
    client: &Client,
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
        client.discard(connection);
    }
    Renewal::Failed
}
