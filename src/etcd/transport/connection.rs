//! One connection to one address of one member.

use std::net::SocketAddr;
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, KvClient, LeaseClient, WatchClient};

use super::dial::{Dialled, dial};
use super::error::ConnectError;
use super::explain::{describe, no_answer, refusal, silent};
use super::health::Health;
use super::token::{Token, log_in};
use crate::etcd::config::Config;
use crate::etcd::endpoint::Endpoint;
use crate::etcd::error::{EtcdError, Refusal};
use crate::etcd::verdict::{Verdict, classify, is_answer};

/// A larger answer is refused, not held in memory. The largest one that we ask for ourselves has the
/// values of 120 keys of a store.
const LARGEST_ANSWER: usize = 256 << 20;

pub struct Connection {
    pub endpoint: Endpoint,
    /// The one of the endpoint's host that it goes to.
    pub address: SocketAddr,
    /// Whether that is the only address of the host.
    pub alone: bool,
    /// Whose credentials there are.
    pub user: Option<String>,
    pub health: Health,
    client: Client,
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
    token: Token,
}

/// A member that serves, not yet logged in to.
pub struct Reached {
    address: SocketAddr,
    dialled: Dialled,
    client: Client,
}

impl Reached {
    pub async fn reach(
        config: &Config,
        endpoint: &Endpoint,
        address: SocketAddr,
        connected: impl FnOnce(),
    ) -> Result<Self, ConnectError> {
        let dialled = dial(config, endpoint, address).await?;
        connected();
        let client =
            Client::from_channel(Channel::Tonic(dialled.channel.clone()), Some(options(config)))
                .await
                .map_err(|error| ConnectError::Unreachable(describe(&error)))?;
        probe(config, endpoint, &dialled, client.clone()).await?;
        Ok(Self { address, dialled, client })
    }
}

fn options(config: &Config) -> ConnectOptions {
    ConnectOptions::new().with_require_leader(!config.as_it_is)
}

impl Connection {
    pub async fn open(
        config: &Config,
        endpoint: &Endpoint,
        alone: bool,
        reached: Reached,
    ) -> Result<Self, ConnectError> {
        let Reached { address, dialled, mut client } = reached;
        let mut anonymous = false;
        if let Some(credentials) = &config.credentials {
            let channel = Channel::Tonic(dialled.channel);
            match log_in(endpoint, credentials, channel, options(config)).await? {
                Some(authenticated) => client = authenticated,
                None => anonymous = true,
            }
        }
        Ok(Self {
            endpoint: endpoint.clone(),
            address,
            alone,
            user: config.credentials.as_ref().map(|credentials| credentials.user.clone()),
            health: Health::default(),
            kv: client.kv_client().max_decoding_message_size(LARGEST_ANSWER),
            // A refused message would end the stream, and the next stream would get it again. etcd limits what it
            // sends at once.
            watch: client.watch_client().max_decoding_message_size(usize::MAX),
            lease: client.lease_client(),
            client,
            token: Token::new(anonymous),
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

    pub fn refusal(&self, kind: Refusal, text: &str) -> EtcdError {
        refusal(&self.endpoint, self.user.as_deref(), kind, text)
    }

    /// Whether the member is there, when an answer is late: see [`Health::answers`].
    pub async fn answers(&self, limit: Duration, applied: &mut Option<u64>) -> bool {
        let mut client = self.client();
        self.health.answers(client.status(), limit, applied).await
    }

    pub fn token_epoch(&self) -> u64 {
        self.token.epoch()
    }

    /// See [`Token::renew`].
    pub async fn renew_token(&self, seen: u64) -> bool {
        self.token.renew(&self.client, seen).await
    }
}

/// Asks the member whether it serves. That a connection was made does not say it: a proxy or the kernel
/// may have taken it, with TLS 1.3 a client certificate is refused later, and a write that is sent into
/// a connection without an answer may take effect any time.
async fn probe(
    config: &Config,
    endpoint: &Endpoint,
    dialled: &Dialled,
    mut client: Client,
) -> Result<(), ConnectError> {
    match tokio::time::timeout(config.connect_timeout, client.status()).await {
        Ok(Ok(status)) if status.is_learner() && !config.as_it_is => {
            Err(ConnectError::Unreachable("it is a learner, which serves no clients".into()))
        }
        Ok(Ok(status)) if config.refuses(status.header()) => Err(ConnectError::Unreachable(
            "it belongs to another cluster than the one that is expected".into(),
        )),
        Ok(Ok(_)) => Ok(()),
        // Users without a token may not ask, but that is an answer too.
        Ok(Err(error)) if is_answer(&error) && classify(&error) != Verdict::NotApplied => Ok(()),
        Ok(Err(error)) => Err(no_answer(&dialled.seen, config, endpoint, &describe(&error))),
        Err(_) => Err(silent("no answer", config)),
    }
}
