//! The identity of this client at etcd: the log-in, and the token that it returns.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};

use super::error::ConnectError;
use super::explain::{describe, refusal};
use crate::etcd::config::{Credentials, Password};
use crate::etcd::endpoint::Endpoint;
use crate::etcd::error::Refusal;
use crate::etcd::metrics::metrics;
use crate::etcd::verdict::{Verdict, classify};

/// etcd hashes a password for about 60 ms of its CPU's time, and many clients may come at once.
const LOG_IN: Duration = Duration::from_secs(30);

/// The token of one connection.
pub struct Token {
    /// There are credentials, but etcd had authentication turned off.
    anonymous: bool,
    /// Held while authenticating, so that calls refused together authenticate once.
    renewal: tokio::sync::Mutex<()>,
    /// Counts authentications.
    epoch: AtomicU64,
}

impl Token {
    pub fn new(anonymous: bool) -> Self {
        Self { anonymous, renewal: tokio::sync::Mutex::default(), epoch: AtomicU64::new(0) }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Authenticates again, unless another call did so since `seen` was read. `false` where a new connection is needed.
    pub async fn renew(&self, client: &Client, seen: u64) -> bool {
        let _guard = self.renewal.lock().await;
        if self.epoch() != seen {
            return true;
        }
        let renewed = !self.anonymous
            && matches!(tokio::time::timeout(LOG_IN, client.refresh_token()).await, Ok(Ok(())));
        metrics().log_in(renewed);
        if renewed {
            self.epoch.store(seen + 1, Ordering::Release);
        }
        renewed
    }
}

/// A client with a token, over an existing channel. `None` where etcd has authentication turned off.
pub async fn log_in(
    endpoint: &Endpoint,
    credentials: &Credentials,
    channel: etcd_client::Channel,
    options: ConnectOptions,
) -> Result<Option<Client>, ConnectError> {
    // Apart from the runtime's thread, as with TLS files.
    let password = credentials.password.clone();
    let password = match tokio::task::spawn_blocking(move || password.read()).await {
        Ok(password) => password.map_err(ConnectError::Final)?,
        Err(error) => return Err(ConnectError::Unreachable(error.to_string())),
    };
    let options = options.with_user(credentials.user.clone(), password);
    let log_in = Client::from_channel(channel, Some(options));
    let error = match tokio::time::timeout(LOG_IN, log_in).await {
        Ok(Ok(authenticated)) => return Ok(Some(authenticated)),
        Ok(Err(error)) => error,
        Err(_) => return Err(ConnectError::Unreachable("no answer to the log-in".into())),
    };
    let text = describe(&error);
    match classify(&error) {
        Verdict::NoAuthentication => Ok(None),
        Verdict::Final(kind @ Refusal::AuthenticationFailed) => {
            let error = refusal(endpoint, Some(&credentials.user), kind, &text);
            Err(match credentials.password {
                Password::Given(_) => ConnectError::Final(error),
                Password::File(_) => ConnectError::LogInRefused(error),
            })
        }
        _ => Err(ConnectError::Unreachable(text)),
    }
}
