//! Calls to a cluster: one endpoint at a time, the next when it fails, a deadline on everything.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::candidates::{decides, open_endpoint};
use super::config::Config;
use super::connection::Connection;
use super::convert;
use super::endpoint::Endpoint;
use super::error::{ConnectError, EtcdError, Refusal, Verdict, classify, describe, is_answer};
use super::full;
use super::history::History;
use super::kv::{Range, RangeReply, Txn, TxnReply};
use super::metrics::{Connect, Ended, Retry, Rpc, metrics};
use super::race::{Progress, race};
use super::unique::{nth_lease_id, unique};
use super::watch::{WatchHub, WatchReceiver, WatchSpec};

/// How long an answer may take before the member is asked whether it is there at all; doubled each time
/// that it is. etcd's own limit is 5 s and two elections: then it answers with an error.
const LATE: Duration = Duration::from_secs(3);

/// How long the answer to that may take before the next endpoint is tried.
const PROOF: Duration = Duration::from_secs(3);

/// Longer than any job; keeps sums of times within their types.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86400);

/// How often one call takes a new token: each change of etcd's users can make the last one old.
const RENEWALS: u32 = 5;

/// A member that is busy so often in a row is left for another one.
const BUSY: u32 = 3;

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

/// A connection to a cluster. Clones share it.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    watches: WatchHub,
}

struct Shared {
    config: Config,
    state: Mutex<State>,
    history: History,
    /// Held while connecting, so that calls that need a connection share one, and the pauses.
    connecting: tokio::sync::Mutex<Pace>,
    /// Says it to the task that serves the watches, which makes no calls while all is well.
    closed: tokio::sync::watch::Sender<bool>,
}

/// When the endpoints may be tried again.
struct Pace {
    backoff: Backoff,
    /// While the password is refused.
    log_in: Backoff,
    next: Instant,
}

/// What came of one try at each endpoint.
enum Attempt {
    Connected(Arc<Connection>),
    NoneAnswered,
    LogInRefused,
}

impl Pace {
    fn begin_anew(&mut self) {
        self.backoff.reset();
        self.log_in.reset();
        self.next = Instant::now();
    }
}

struct State {
    current: Option<Arc<Connection>>,
    next_endpoint: usize,
    /// The address of the last connection that was given up.
    left: Option<SocketAddr>,
    /// Whether it had served before: then the next one is made without a pause.
    served: bool,
    /// Whether there ever was a connection: settings that worked once are not given up at once.
    connected: bool,
    /// Why there is no connection.
    causes: Causes,
    closed: bool,
}

impl Client {
    /// Does no I/O: the first call connects.
    pub fn new(config: Config) -> Self {
        // Clients of one cluster spread over its members.
        let next_endpoint =
            usize::try_from(unique() % (config.endpoints.len().max(1) as u128)).unwrap_or(0);
        let state = State {
            current: None,
            next_endpoint,
            left: None,
            served: false,
            connected: false,
            causes: Causes::default(),
            closed: false,
        };
        let pace =
            Pace { backoff: Backoff::default(), log_in: Backoff::log_in(), next: Instant::now() };
        let shared = Arc::new(Shared {
            config,
            state: Mutex::new(state),
            history: History::default(),
            connecting: tokio::sync::Mutex::new(pace),
            closed: tokio::sync::watch::Sender::new(false),
        });
        Self { watches: WatchHub::default(), shared }
    }

    /// The same connection without a part in its watches: for the task that serves them, which ends
    /// when the last client that can watch is gone.
    pub(super) fn without_watches(&self) -> Self {
        Self { watches: WatchHub::default(), shared: self.shared.clone() }
    }

    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    pub fn deadline_after(&self, timeout: Option<Duration>) -> Instant {
        Instant::now() + timeout.unwrap_or(self.shared.config.request_timeout).min(LONGEST)
    }

    pub async fn txn(
        &self,
        txn: &Txn,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<TxnReply, EtcdError> {
        let repeat = if txn.is_read_only() { Repeat::Read } else { repeat };
        let answer = self.call_as(Rpc::Txn, repeat, deadline, |connection| async move {
            // One without operations is answered by the member alone, which may be behind the others.
            let empty = txn.success.is_empty() && txn.failure.is_empty();
            let known = self.history().known();
            let known = if empty { known.at_any_revision() } else { known };
            let response = connection.kv().txn(convert::txn(txn)).await?;
            self.history().answered(response.header(), known);
            Ok(convert::txn_reply(&response))
        });
        let answer = answer.await;
        if let Err(EtcdError::Refused { kind: Refusal::NoSpace, .. }) = answer {
            if let Some(ranges) = full::ranges(txn) {
                return full::read_apart(self, &ranges, deadline).await;
            }
            if let Some(deletions) = full::deletes(txn) {
                return full::delete_apart(self, &deletions, repeat, deadline).await;
            }
        }
        answer
    }

    /// Deletes a key, or all up to an end. Answers with the revision and with how many there were.
    pub(super) async fn delete(
        &self,
        key: &[u8],
        range_end: Option<&[u8]>,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<(i64, i64), EtcdError> {
        self.call_as(Rpc::DeleteRange, repeat, deadline, |connection| async move {
            let known = self.history().known();
            let options = convert::delete_options(range_end);
            let response = connection.kv().delete(key, Some(options)).await?;
            self.history().answered(response.header(), known);
            let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
            Ok((revision, response.deleted()))
        })
        .await
    }

    /// Answers with the revision the range was read at.
    pub async fn range(
        &self,
        range: &Range,
        deadline: Instant,
    ) -> Result<(i64, RangeReply), EtcdError> {
        self.call_as(Rpc::Range, Repeat::Read, deadline, |connection| async move {
            let options = convert::range_options(range);
            let known = self.history().known();
            let response = connection.kv().get(range.key.clone(), Some(options)).await?;
            self.history().answered(response.header(), known);
            let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
            Ok((revision, convert::range_reply(response)))
        })
        .await
    }

    /// Grants a lease of the caller's own. Each attempt has an id of its own, see [`nth_lease_id`]. Answers with
    /// the id and the TTL. What an attempt whose answer was lost has granted holds no key, and runs out.
    pub async fn grant_new(
        &self,
        first: i64,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<(i64, Duration), EtcdError> {
        let ttl_s = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
        let attempts = AtomicU32::new(0);
        let (id, granted) = self
            .call_as(Rpc::LeaseGrant, Repeat::Safely, deadline, |connection| {
                let attempt = attempts.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                let id = nth_lease_id(first, attempt);
                async move {
                    let options = etcd_client::LeaseGrantOptions::new().with_id(id);
                    Ok((id, connection.lease().grant(ttl_s, Some(options)).await?.ttl()))
                }
            })
            .await?;
        Ok((id, Duration::from_secs(u64::try_from(granted).unwrap_or(0))))
    }

    /// Grants a lease that others may have been granted as well, under an id that all know.
    /// A lease that is there already under this id is taken as granted. Answers with the TTL that it has.
    pub async fn grant(
        &self,
        id: i64,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<Duration, EtcdError> {
        let ttl_s = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
        let granted = self
            .call_as(Rpc::LeaseGrant, Repeat::Safely, deadline, |connection| async move {
                let options = etcd_client::LeaseGrantOptions::new().with_id(id);
                Ok(connection.lease().grant(ttl_s, Some(options)).await?.ttl())
            })
            .await;
        let seconds = |ttl: i64| Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
        match granted {
            Err(EtcdError::Refused { kind: Refusal::LeaseExists, .. }) => {
                let known = self.time_to_live(id, deadline).await?;
                // It may have run out between the two: then the first use of it says so.
                Ok(known.map_or(ttl, |(_, granted)| granted))
            }
            other => other.map(seconds),
        }
    }

    /// A lease that is not there counts as revoked.
    pub async fn revoke(&self, id: i64, deadline: Instant) -> Result<(), EtcdError> {
        let revoked = self
            .call_as(Rpc::LeaseRevoke, Repeat::Safely, deadline, |connection| async move {
                connection.lease().revoke(id).await.map(drop)
            })
            .await;
        match revoked {
            Err(EtcdError::Refused { kind: Refusal::LeaseNotFound, .. }) => Ok(()),
            other => other,
        }
    }

    /// The remaining and the granted time of a lease; `None` when etcd does not have it.
    pub async fn time_to_live(
        &self,
        id: i64,
        deadline: Instant,
    ) -> Result<Option<(Duration, Duration)>, EtcdError> {
        let (ttl, granted) = self
            .call_as(Rpc::LeaseTimeToLive, Repeat::Read, deadline, |connection| async move {
                let response = connection.lease().time_to_live(id, None).await?;
                Ok((response.ttl(), response.granted_ttl()))
            })
            .await?;
        let Ok(ttl_s) = u64::try_from(ttl) else { return Ok(None) };
        let granted = Duration::from_secs(u64::try_from(granted).unwrap_or(0));
        Ok(Some((Duration::from_secs(ttl_s), granted)))
    }

    /// Renews a lease once; `false` when it is gone.
    pub async fn renew_once(&self, id: i64, deadline: Instant) -> Result<bool, EtcdError> {
        self.call_as(Rpc::LeaseKeepAlive, Repeat::Safely, deadline, |connection| async move {
            match connection.lease().keep_alive(id).await {
                // etcd-client reports a lease that is gone by this text only.
                Err(etcd_client::Error::LeaseKeepAliveError(text)) if text == "lease not found" => {
                    Ok(false)
                }
                Err(error) => Err(error),
                Ok(_) => Ok(true),
            }
        })
        .await
    }

    /// Opens a watch that outlives its connection; dropping the receiver ends it.
    pub fn watch(&self, spec: WatchSpec) -> WatchReceiver {
        self.watches.add(self, spec)
    }

    /// Ends the connection. Calls under way, which may have taken effect, and later ones fail with
    /// [`EtcdError::Closed`].
    pub fn close(&self) {
        {
            let mut state = self.state();
            state.closed = true;
            state.current = None;
        }
        self.shared.closed.send_replace(true);
    }

    pub(super) fn history(&self) -> &History {
        &self.shared.history
    }

    /// Returns when the client is closed.
    pub(super) async fn closed(&self) {
        // Cannot fail: the sender is ours.
        let _ = self.shared.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Returns when a call is to end as the client is closed. etcd 3.5.1 ends with a panic when a transaction that
    /// only reads is cancelled: its answer may still come.
    async fn ended(&self, only_reads: bool) {
        self.closed().await;
        if only_reads {
            tokio::time::sleep(LATE).await;
        }
    }

    /// Runs one request until it is answered for good or the deadline has come, and counts it.
    pub(super) async fn call_as<T, F, Fut>(
        &self,
        rpc: Rpc,
        repeat: Repeat,
        deadline: Instant,
        request: F,
    ) -> Result<T, EtcdError>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let started = Instant::now();
        let result = tokio::select! {
            result = self.call(repeat, deadline, request) => result,
            () = self.ended(rpc == Rpc::Txn && repeat == Repeat::Read) => Err(EtcdError::Closed),
        };
        metrics().call(rpc, Ended::of(rpc, &result), started.elapsed());
        result
    }

    /// As [`Client::call_as`], not counted.
    async fn call<T, F, Fut>(
        &self,
        repeat: Repeat,
        deadline: Instant,
        request: F,
    ) -> Result<T, EtcdError>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let started = Instant::now();
        let mut causes = Causes::default();
        let (mut backoff, mut busy) = (Backoff::default(), Backoff::busy());
        let mut renewals = 0;
        let mut maybe_applied = false;
        loop {
            let mut pause = None;
            let connection = if Instant::now() < deadline {
                tokio::time::timeout_at(deadline, self.connection()).await.ok()
            } else {
                None
            };
            match connection {
                None => {
                    causes.update(&self.state().causes);
                    return Err(causes.into_error(started, maybe_applied));
                }
                Some(Err(error)) => return Err(error),
                // The next attempt to connect pauses by itself.
                Some(Ok(None)) => continue,
                Some(Ok(Some(connection))) => {
                    let epoch = connection.token_epoch();
                    let error =
                        match self.answer(&connection, request(connection.clone()), deadline).await
                        {
                            Some(Ok(answer)) => return Ok(answer),
                            Some(Err(error)) => Some(error),
                            None => None,
                        };
                    let verdict = error.as_ref().map_or(Verdict::MaybeApplied, classify);
                    let text = error.as_ref().map_or_else(|| "no answer".to_string(), describe);
                    if let Some(retry) = Retry::of(&verdict) {
                        metrics().retry(retry);
                    }
                    match verdict {
                        Verdict::Final(kind) => return Err(connection.refusal(kind, &text)),
                        Verdict::Compacted => {
                            return Err(EtcdError::Compacted { requested: 0, oldest: 0 });
                        }
                        Verdict::StaleToken => {
                            if connection.user.is_none() || renewals == RENEWALS {
                                return Err(
                                    connection.refusal(Refusal::AuthenticationFailed, &text)
                                );
                            }
                            renewals += 1;
                            let renewal = connection.renew_token(epoch);
                            match tokio::time::timeout_at(deadline, renewal).await {
                                Ok(true) if renewals == 1 => continue,
                                // Refused with a new token: the users are being changed.
                                Ok(true) => {}
                                _ => self.discard(&connection),
                            }
                        }
                        Verdict::NotApplied | Verdict::NoAuthentication => {
                            self.discard(&connection);
                        }
                        Verdict::Busy => {
                            pause = Some(busy.pause());
                            self.leave_if_busy(&connection, busy.attempts());
                        }
                        Verdict::MaybeApplied => {
                            maybe_applied = repeat != Repeat::Read;
                            // Who answers "leader changed" or "request timed out" is there.
                            if error.as_ref().is_some_and(is_answer) {
                                pause = Some(backoff.pause());
                                self.leave_if_busy(&connection, backoff.attempts());
                            } else if error.is_some() {
                                self.discard(&connection);
                            }
                        }
                    }
                    causes.add(&connection.endpoint, text);
                    if maybe_applied && repeat == Repeat::Never {
                        return Err(causes.into_error(started, true));
                    }
                }
            }
            let pause = pause.unwrap_or_else(|| backoff.pause());
            tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
        }
    }

    /// The answer to a request; `None` when the member is silent or the deadline has come.
    async fn answer<T>(
        &self,
        connection: &Arc<Connection>,
        request: impl Future<Output = Result<T, etcd_client::Error>>,
        deadline: Instant,
    ) -> Option<Result<T, etcd_client::Error>> {
        let mut request = pin!(request);
        let mut limit = LATE;
        let mut applied = None;
        loop {
            let until = deadline.min(Instant::now() + limit);
            if let Ok(answer) = tokio::time::timeout_at(until, &mut request).await {
                connection.note_answer(answer.is_ok());
                return Some(answer);
            }
            let (client, connection) = (self.without_watches(), connection.clone());
            // Rare, and large.
            let proof = Box::pin(async move {
                let silent = client.leave_if_silent(&connection, PROOF, &mut applied).await;
                (silent, applied)
            });
            if Instant::now() >= deadline {
                // Not for this call, but the next one should not wait in vain as well.
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

    /// The present connection, or a new one to the first endpoint that answers; `None` when none did.
    pub(super) async fn connection(&self) -> Result<Option<Arc<Connection>>, EtcdError> {
        if let Some(connection) = self.current()? {
            return Ok(Some(connection));
        }
        let mut pace = self.shared.connecting.lock().await;
        if let Some(connection) = self.current()? {
            return Ok(Some(connection));
        }
        if std::mem::take(&mut self.state().served) {
            pace.begin_anew();
        }
        tokio::time::sleep_until(pace.next).await;
        let (pause, connection) = match Box::pin(self.connect()).await? {
            // A proxy may take connections and requests although there is nothing behind it.
            Attempt::Connected(connection) => (pace.backoff.pause(), Some(connection)),
            Attempt::NoneAnswered => (pace.backoff.pause(), None),
            Attempt::LogInRefused => (pace.log_in.pause(), None),
        };
        pace.next = Instant::now() + pause;
        Ok(connection)
    }

    /// A connection beside the present one, to another member if there is one: for what must not wait in the
    /// same queue. `None` where none can be had.
    pub(super) async fn connection_beside(&self, other: &Connection) -> Option<Arc<Connection>> {
        let first = self.state().next_endpoint;
        let opened = Box::pin(self.open_first(first, Some(other.address))).await;
        opened.into_iter().find_map(|(_, opened)| opened.ok()).map(Arc::new)
    }

    /// Tries each endpoint once, until one of them serves.
    async fn connect(&self) -> Result<Attempt, EtcdError> {
        let (first, left, connected_before) = {
            let mut state = self.state();
            let first = state.next_endpoint;
            state.next_endpoint += 1;
            (first, state.left, state.connected)
        };
        let mut untrusted = 0;
        let mut outcome = Attempt::NoneAnswered;
        for (number, opened) in self.open_first(first, left).await {
            metrics().connect(Connect::of(&opened, connected_before));
            let endpoint = &self.shared.config.endpoints[number];
            let mut state = self.state();
            match opened {
                Ok(connection) => {
                    let connection = Arc::new(connection);
                    if state.closed {
                        return Err(EtcdError::Closed);
                    }
                    state.connected = true;
                    state.next_endpoint = number + 1;
                    state.causes.remove(endpoint);
                    state.current = Some(connection.clone());
                    return Ok(Attempt::Connected(connection));
                }
                Err(ConnectError::Unreachable(cause)) => state.causes.add(endpoint, cause),
                Err(ConnectError::Untrusted(cause)) => {
                    untrusted += usize::from(!connected_before);
                    state.causes.add(endpoint, cause);
                }
                // Certificates are being replaced: a run that goes on must not end by that.
                Err(ConnectError::Final(EtcdError::Configuration(cause))) if connected_before => {
                    state.causes.add(endpoint, cause);
                }
                // So are passwords. The other members would say the same.
                Err(ConnectError::LogInRefused(error)) if connected_before => {
                    state.causes.add(endpoint, error.to_string());
                    outcome = Attempt::LogInRefused;
                }
                Err(ConnectError::LogInRefused(error) | ConnectError::Final(error)) => {
                    return Err(error);
                }
            }
        }
        if untrusted == self.shared.config.endpoints.len() {
            return Err(EtcdError::Untrusted { causes: self.state().causes.to_string() });
        }
        Ok(outcome)
    }

    /// Opens the first connection that can be had, and gives what became of each endpoint by then. `left` is
    /// the address that is tried last of those that one endpoint has.
    async fn open_first(
        &self,
        first: usize,
        left: Option<SocketAddr>,
    ) -> Vec<(usize, Result<Connection, ConnectError>)> {
        let config = &self.shared.config;
        let log_in = tokio::sync::Mutex::new(());
        let number_of = config.endpoints.len();
        let attempt = |number: usize, progress: Arc<Progress>| {
            let endpoint = &config.endpoints[number];
            self.state().causes.begin(endpoint);
            let log_in = &log_in;
            async move { (number, open_endpoint(config, endpoint, left, &progress, log_in).await) }
        };
        let order = (0..number_of).map(|number| (first + number) % number_of).collect();
        race(order, attempt, |(_, opened)| decides(opened)).await
    }

    fn current(&self) -> Result<Option<Arc<Connection>>, EtcdError> {
        let state = self.state();
        if state.closed { Err(EtcdError::Closed) } else { Ok(state.current.clone()) }
    }

    /// Leaves a connection that failed; the next call goes to the next endpoint.
    pub(super) fn discard(&self, connection: &Arc<Connection>) {
        let mut state = self.state();
        if state.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            state.current = None;
            state.left = Some(connection.address);
            state.served |= connection.served();
        }
    }

    /// Leaves a connection whose member has said `times` in a row that it is busy, if there are others:
    /// one that lags behind them says so too.
    pub(super) fn leave_if_busy(&self, connection: &Arc<Connection>, times: u32) {
        if times.is_multiple_of(BUSY) {
            self.leave_for_another(connection);
        }
    }

    /// Leaves a connection whose member answers, but not to all, if there are others.
    pub(super) fn leave_for_another(&self, connection: &Arc<Connection>) {
        if self.shared.config.endpoints.len() > 1 || !connection.alone {
            self.discard(connection);
        }
    }

    /// Leaves a connection whose member does not answer, or does nothing (see [`Connection::answers`]), and has
    /// its streams leave it too.
    pub(super) async fn leave_if_silent(
        &self,
        connection: &Arc<Connection>,
        limit: Duration,
        applied: &mut Option<u64>,
    ) -> bool {
        let silent = !connection.answers(limit, applied).await;
        if silent {
            self.discard(connection);
        }
        silent
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What went wrong last at each endpoint.
#[derive(Default)]
struct Causes(Vec<(Endpoint, String)>);

impl Causes {
    /// The deadline may come before there is any cause.
    fn begin(&mut self, endpoint: &Endpoint) {
        if self.0.iter().all(|(known, _)| known != endpoint) {
            self.add(endpoint, "no answer yet".into());
        }
    }

    fn add(&mut self, endpoint: &Endpoint, cause: String) {
        match self.0.iter_mut().find(|(known, _)| known == endpoint) {
            Some((_, last)) => *last = cause,
            None => self.0.push((endpoint.clone(), cause)),
        }
    }

    fn remove(&mut self, endpoint: &Endpoint) {
        self.0.retain(|(known, _)| known != endpoint);
    }

    /// Takes over what others found later.
    fn update(&mut self, others: &Self) {
        for (endpoint, cause) in &others.0 {
            self.add(endpoint, cause.clone());
        }
    }

    fn into_error(self, started: Instant, maybe_applied: bool) -> EtcdError {
        let causes = self.to_string();
        if maybe_applied {
            EtcdError::Ambiguous { causes }
        } else {
            EtcdError::Unreachable { waited: started.elapsed(), causes }
        }
    }
}

impl fmt::Display for Causes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no attempt ended before the deadline");
        }
        for (number, (endpoint, cause)) in self.0.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(f, "{separator}{endpoint}: {cause}")?;
        }
        Ok(())
    }
}
