//! The connection that all calls, watches and leases of a client share: which one it is, and when it is left.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::candidates::{decides, open_endpoint};
use super::causes::Causes;
use super::endpoints::{Endpoints, Turn};
use super::pace::Pace;
use super::race::{Progress, race};
use crate::etcd::config::Config;
use crate::etcd::endpoint::Endpoint;
use crate::etcd::error::EtcdError;
use crate::etcd::history::History;
use crate::etcd::metrics::{Connect, metrics};
use crate::etcd::transport::{ConnectError, Connection};

/// A member that is busy so often in a row is left for another one.
const BUSY: u32 = 3;

/// Longer than any job; keeps sums of times within their types.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86400);

/// The way to a cluster. Clones share it.
#[derive(Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    /// Those of the settings until others are set.
    endpoints: watch::Sender<Arc<Endpoints>>,
    state: Mutex<State>,
    history: History,
    /// Held while connecting, so that calls that need a connection share one, and the pauses.
    connecting: tokio::sync::Mutex<Connecting>,
    /// Says it to the task that serves the watches, which makes no calls while all is well.
    closed: watch::Sender<bool>,
}

struct Connecting {
    pace: Pace,
    /// Of the endpoints.
    changes: watch::Receiver<Arc<Endpoints>>,
}

/// What came of one try at each endpoint.
enum Attempt {
    Connected(Arc<Connection>),
    NoneAnswered,
    LogInRefused,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Connection>>,
    turn: Turn,
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

impl Cluster {
    /// Does no I/O: the first call connects.
    pub fn new(config: Config) -> Self {
        let endpoints = Endpoints::new(config.endpoints.clone(), Vec::new());
        let (endpoints, changes) = watch::channel(Arc::new(endpoints));
        let connecting = Connecting { pace: Pace::default(), changes };
        let shared = Arc::new(Shared {
            config,
            endpoints,
            state: Mutex::default(),
            history: History::default(),
            connecting: tokio::sync::Mutex::new(connecting),
            closed: watch::Sender::new(false),
        });
        Self { shared }
    }

    pub fn endpoints(&self) -> Arc<Endpoints> {
        self.shared.endpoints.borrow().clone()
    }

    /// Does no I/O. A connection goes on for as long as it works, whatever its endpoint. Whoever is connecting
    /// starts over with these, at once.
    pub fn set_endpoints(&self, endpoints: Endpoints) {
        self.state().causes.retain(|endpoint| endpoints.is_first(endpoint));
        self.shared.endpoints.send_if_modified(|known| {
            let changed = **known != endpoints;
            if changed {
                *known = Arc::new(endpoints);
            }
            changed
        });
    }

    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    pub fn deadline_after(&self, timeout: Option<Duration>) -> Instant {
        Instant::now() + timeout.unwrap_or(self.shared.config.request_timeout).min(LONGEST)
    }

    pub fn history(&self) -> &History {
        &self.shared.history
    }

    /// Why there is no connection.
    pub fn causes(&self) -> Causes {
        self.state().causes.clone()
    }

    pub fn close(&self) {
        {
            let mut state = self.state();
            state.closed = true;
            state.current = None;
        }
        self.shared.closed.send_replace(true);
    }

    /// Returns when this is closed.
    pub async fn closed(&self) {
        // Cannot fail: the sender is ours.
        let _ = self.shared.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// The present connection, or a new one to the first endpoint that answers, however long that takes.
    pub async fn connected(&self) -> Result<Arc<Connection>, EtcdError> {
        loop {
            // Each attempt pauses by itself.
            if let Some(connection) = self.connection().await? {
                return Ok(connection);
            }
        }
    }

    /// `None` when no endpoint answered.
    async fn connection(&self) -> Result<Option<Arc<Connection>>, EtcdError> {
        if let Some(connection) = self.current()? {
            return Ok(Some(connection));
        }
        let mut connecting = self.shared.connecting.lock().await;
        let Connecting { pace, changes } = &mut *connecting;
        if let Some(connection) = self.current()? {
            return Ok(Some(connection));
        }
        if std::mem::take(&mut self.state().served) {
            pace.begin_anew();
        }
        // Its sender is ours.
        tokio::select! {
            biased;
            _ = changes.changed() => pace.begin_anew(),
            () = pace.due() => {}
        }
        let attempt = tokio::select! {
            attempt = Box::pin(self.connect()) => attempt?,
            // Those that are being tried may hang, and be gone for good.
            _ = changes.changed() => {
                pace.begin_anew();
                return Ok(None);
            }
        };
        match attempt {
            // A proxy may take connections and requests although there is nothing behind it.
            Attempt::Connected(connection) => {
                pace.pause();
                return Ok(Some(connection));
            }
            Attempt::NoneAnswered => pace.pause(),
            Attempt::LogInRefused => pace.pause_after_refused_log_in(),
        }
        Ok(None)
    }

    /// A connection beside the present one, to another member if there is one: for what must not wait in the
    /// same queue. `None` where none can be had.
    pub async fn connection_beside(&self, other: &Connection) -> Option<Arc<Connection>> {
        let candidates = self.state().turn.of(&self.endpoints());
        let opened = Box::pin(self.open_first(candidates, Some(other.address))).await;
        opened.into_iter().find_map(|(_, opened)| opened.ok()).map(Arc::new)
    }

    /// Tries the endpoints once, the rest of them in part, until one of them serves.
    async fn connect(&self) -> Result<Attempt, EtcdError> {
        let endpoints = self.endpoints();
        let (candidates, left, connected_before) = {
            let mut state = self.state();
            let candidates = state.turn.of(&endpoints);
            state.turn.tried();
            (candidates, state.left, state.connected)
        };
        let number_of = candidates.len();
        let mut untrusted = 0;
        let mut outcome = Attempt::NoneAnswered;
        for (endpoint, opened) in self.open_first(candidates, left).await {
            metrics().connect(counted(&opened, connected_before));
            let endpoint = &endpoint;
            let mut state = self.state();
            match opened {
                Ok(connection) => {
                    let connection = Arc::new(connection);
                    if state.closed {
                        return Err(EtcdError::Closed);
                    }
                    state.connected = true;
                    state.turn.connected(&endpoints, endpoint);
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
        if untrusted == number_of {
            return Err(EtcdError::Untrusted { causes: self.state().causes.to_string() });
        }
        Ok(outcome)
    }

    /// Opens the first connection that can be had, and gives what became of each endpoint by then. `left` is
    /// the address that is tried last of those that one endpoint has.
    async fn open_first(
        &self,
        candidates: Vec<Endpoint>,
        left: Option<SocketAddr>,
    ) -> Vec<(Endpoint, Result<Connection, ConnectError>)> {
        let config = &self.shared.config;
        let log_in = tokio::sync::Mutex::new(());
        let attempt = |endpoint: Endpoint, progress: Arc<Progress>| {
            self.state().causes.begin(&endpoint);
            let log_in = &log_in;
            async move {
                let opened = open_endpoint(config, &endpoint, left, &progress, log_in).await;
                (endpoint, opened)
            }
        };
        race(candidates, attempt, |(_, opened)| decides(opened)).await
    }

    fn current(&self) -> Result<Option<Arc<Connection>>, EtcdError> {
        let state = self.state();
        if state.closed { Err(EtcdError::Closed) } else { Ok(state.current.clone()) }
    }

    /// Leaves a connection that failed; the next call goes to the next endpoint.
    pub fn discard(&self, connection: &Arc<Connection>) {
        let mut state = self.state();
        if state.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            state.current = None;
            state.left = Some(connection.address);
            state.served |= connection.health.served();
        }
    }

    /// Leaves a connection whose member has said `times` in a row that it is busy, if there are others:
    /// one that lags behind them says so too.
    pub fn leave_if_busy(&self, connection: &Arc<Connection>, times: u32) {
        if times.is_multiple_of(BUSY) {
            self.leave_for_another(connection);
        }
    }

    /// Leaves a connection whose member answers, but not to all, if there are others.
    pub fn leave_for_another(&self, connection: &Arc<Connection>) {
        let others = self.endpoints().all().any(|endpoint| *endpoint != connection.endpoint);
        if others || !connection.alone {
            self.discard(connection);
        }
    }

    /// Leaves a connection whose member does not answer, or does nothing (see [`Connection::answers`]), and has
    /// its streams leave it too.
    pub async fn leave_if_silent(
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

fn counted(opened: &Result<Connection, ConnectError>, connected_before: bool) -> Connect {
    match opened {
        Ok(_) if connected_before => Connect::Again,
        Ok(_) => Connect::First,
        Err(error) => error.counted(),
    }
}
