//! One connection to one member of the cluster.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{
    Client, ConnectOptions, Error as ClientError, KvClient, LeaseClient, WatchClient,
};
use tonic::transport::Channel;

use super::config::Config;
use super::endpoint::Endpoint;
use super::error::{EtcdError, Refusal, Verdict, classify, describe, describe_error};

/// HTTP/2 pings find a half-open connection. etcd closes connections that ping more often than each
/// 5 s (etcd issue 8905).
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Connection {
    pub endpoint: Endpoint,
    client: Client,
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
    /// Counts authentications, so that calls refused together authenticate once.
    token: tokio::sync::Mutex<()>,
    token_epoch: AtomicU64,
}

/// Why there is no connection.
pub(super) enum ConnectError {
    /// Another endpoint, or a later attempt, may do.
    Unreachable(String),
    Final(EtcdError),
}

impl Connection {
    pub async fn open(config: &Config, endpoint: &Endpoint) -> Result<Self, ConnectError> {
        let invalid = |error: &tonic::transport::Error| {
            ConnectError::Final(EtcdError::Configuration(format!(
                "The TLS settings for {endpoint} cannot be used: {}.",
                describe_error(error)
            )))
        };
        let mut builder = Channel::from_shared(endpoint.to_string())
            .map_err(|error| ConnectError::Final(EtcdError::Configuration(error.to_string())))?
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        if endpoint.tls {
            let tls = config.tls_config(endpoint).map_err(ConnectError::Final)?;
            builder = builder.tls_config(tls).map_err(|error| invalid(&error))?;
        }
        let channel = tokio::time::timeout(config.connect_timeout, builder.connect())
            .await
            .map_err(|_| {
                ConnectError::Unreachable(format!(
                    "no connection within {:.1} s",
                    config.connect_timeout.as_secs_f64()
                ))
            })?
            .map_err(|error| ConnectError::Unreachable(describe_error(&error)))?;
        let mut options = ConnectOptions::new().with_require_leader(true);
        if let Some(credentials) = &config.credentials {
            options = options.with_user(credentials.user.clone(), credentials.password.clone());
        }
        let authenticated = tokio::time::timeout(
            config.connect_timeout,
            Client::from_channel(etcd_client::Channel::Tonic(channel), Some(options)),
        );
        let client = match authenticated.await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(refused(endpoint, &error)),
            Err(_) => return Err(ConnectError::Unreachable("no answer to the log-in".into())),
        };
        Ok(Self {
            endpoint: endpoint.clone(),
            kv: client.kv_client().max_decoding_message_size(usize::MAX),
            watch: client.watch_client().max_decoding_message_size(usize::MAX),
            lease: client.lease_client(),
            client,
            token: tokio::sync::Mutex::new(()),
            token_epoch: AtomicU64::new(0),
        })
    }

    pub fn kv(&self) -> KvClient {
        self.kv.clone()
    }

    pub fn watch(&self) -> WatchClient {
        self.watch.clone()
    }

    pub fn lease(&self) -> LeaseClient {
        self.lease.clone()
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub fn token_epoch(&self) -> u64 {
        self.token_epoch.load(Ordering::Acquire)
    }

    /// Authenticates anew, unless another call did so since `seen` was read.
    pub async fn renew_token(&self, seen: u64) -> Result<(), ClientError> {
        let _guard = self.token.lock().await;
        if self.token_epoch() == seen {
            self.client.refresh_token().await?;
            self.token_epoch.store(seen + 1, Ordering::Release);
        }
        Ok(())
    }
}

fn refused(endpoint: &Endpoint, error: &ClientError) -> ConnectError {
    match classify(error) {
        Verdict::Final(kind @ Refusal::AuthenticationFailed) => {
            ConnectError::Final(EtcdError::Refused {
                endpoint: endpoint.to_string(),
                kind,
                message: describe(error),
            })
        }
        _ => ConnectError::Unreachable(describe(error)),
    }
}
