//! One connection to one member of the cluster.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, KvClient, LeaseClient, WatchClient};
use tokio::sync::watch;
use tokio::time::Instant;

use super::config::{Config, Credentials, Password};
use super::dial::{Dialled, dial, silent};
use super::endpoint::Endpoint;
use super::error::{ConnectError, EtcdError, Refusal, Verdict, classify, describe, is_answer};
use super::metrics::metrics;

/// etcd hashes a password for about 60 ms of its CPU's time, and many clients may come at once.
const LOG_IN: Duration = Duration::from_secs(30);

/// A larger answer is refused, not held in memory. The largest one that we ask for ourselves has the
/// values of 120 keys of a store.
const LARGEST_ANSWER: usize = 256 << 20;

pub(super) struct Connection {
    pub endpoint: Endpoint,
    /// The one of the endpoint's host that it goes to.
    pub address: SocketAddr,
    /// Whether that is the only address of the host.
    pub alone: bool,
    /// Whose credentials there are.
    pub user: Option<String>,
    client: Client,
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
    /// Whether there are credentials but etcd had authentication turned off.
    anonymous: bool,
    /// Counts authentications, so that calls refused together authenticate once.
    token: tokio::sync::Mutex<()>,
    token_epoch: AtomicU64,
    silent: watch::Sender<bool>,
    /// Held while the member is being asked.
    proof: tokio::sync::Mutex<Proof>,
    opened: Instant,
    /// Milliseconds after `opened` at which the last answer came.
    heard: AtomicU64,
    served: AtomicBool,
}

/// What the member said last of itself.
struct Proof {
    at: Instant,
    /// Where the log of its cluster was applied by it then.
    applied: Option<u64>,
}

/// A member that serves, not yet logged in to.
pub(super) struct Reached {
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
        let client = client(&dialled, options()).await?;
        probe(config, endpoint, &dialled, client.clone()).await?;
        Ok(Self { address, dialled, client })
    }
}

fn options() -> ConnectOptions {
    ConnectOptions::new().with_require_leader(true)
}

async fn client(dialled: &Dialled, options: ConnectOptions) -> Result<Client, ConnectError> {
    let channel = etcd_client::Channel::Tonic(dialled.channel.clone());
    Client::from_channel(channel, Some(options))
        .await
        .map_err(|error| ConnectError::Unreachable(describe(&error)))
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
            match log_in(endpoint, credentials, &dialled).await? {
                Some(authenticated) => client = authenticated,
                None => anonymous = true,
            }
        }
        Ok(Self {
            endpoint: endpoint.clone(),
            address,
            alone,
            user: config.credentials.as_ref().map(|credentials| credentials.user.clone()),
            kv: client.kv_client().max_decoding_message_size(LARGEST_ANSWER),
            // What a stream refused it would ask for again and again; etcd limits what it sends at once.
            watch: client.watch_client().max_decoding_message_size(usize::MAX),
            lease: client.lease_client(),
            client,
            anonymous,
            token: tokio::sync::Mutex::new(()),
            token_epoch: AtomicU64::new(0),
            silent: watch::Sender::new(false),
            proof: tokio::sync::Mutex::new(Proof { at: Instant::now(), applied: None }),
            opened: Instant::now(),
            heard: AtomicU64::new(0),
            served: AtomicBool::new(false),
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

    /// Something has come from the member.
    pub fn note_answer(&self, served: bool) {
        self.heard.store(self.age_ms(), Ordering::Relaxed);
        if served {
            self.served.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it did what it was asked for, once at least.
    pub fn served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the member is there, when an answer is late. It is asked for what it can say by itself:
    /// it may be slow because thousands want something at once, and who then left it, connected anew
    /// and asked again would add to that. Those who wonder at the same time share one question.
    ///
    /// Where it says that it has applied nothing since `applied`, which it had said while the same answer was
    /// waited for, it does not work off a queue: its disk hangs, or it is being defragmented, and the other
    /// members may well serve.
    pub async fn answers(&self, limit: Duration, applied: &mut Option<u64>) -> bool {
        let (wondered, wondered_ms) = (Instant::now(), self.age_ms());
        let mut proof = self.proof.lock().await;
        if self.is_silent() {
            return false;
        }
        if proof.at < wondered {
            let said = tokio::time::timeout(limit, self.client().status()).await;
            let answers = match &said {
                Ok(Ok(_)) => true,
                Ok(Err(error)) => is_answer(error) && classify(error) != Verdict::NotApplied,
                // Others may have got theirs.
                Err(_) => self.heard.load(Ordering::Relaxed) > wondered_ms,
            };
            if !answers {
                self.silent.send_replace(true);
                return false;
            }
            proof.at = Instant::now();
            // Versions before 3.4 do not say it.
            let said = said.ok().and_then(Result::ok).map(|said| said.raft_applied_index());
            proof.applied = said.filter(|index| *index > 0);
        }
        let stalled = applied.is_some() && *applied == proof.applied;
        *applied = proof.applied;
        if stalled {
            self.silent.send_replace(true);
        }
        !stalled
    }

    pub fn is_silent(&self) -> bool {
        *self.silent.borrow()
    }

    /// Returns when the member did not answer in time: streams need not wait for a ping to be lost.
    pub async fn fell_silent(&self) {
        // Cannot fail: the sender is ours.
        let _ = self.silent.subscribe().wait_for(|silent| *silent).await;
    }

    pub fn token_epoch(&self) -> u64 {
        self.token_epoch.load(Ordering::Acquire)
    }

    /// Authenticates anew, unless another call did so since `seen` was read. `false` where a new
    /// connection is needed.
    pub async fn renew_token(&self, seen: u64) -> bool {
        let _guard = self.token.lock().await;
        if self.token_epoch() != seen {
            return true;
        }
        let renewed = !self.anonymous
            && matches!(
                tokio::time::timeout(LOG_IN, self.client.refresh_token()).await,
                Ok(Ok(()))
            );
        metrics().log_in(renewed);
        if renewed {
            self.token_epoch.store(seen + 1, Ordering::Release);
        }
        renewed
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
        Ok(Ok(status)) if status.is_learner() => {
            Err(ConnectError::Unreachable("it is a learner, which serves no clients".into()))
        }
        Ok(Ok(_)) => Ok(()),
        // Users without a token may not ask, but that is an answer too.
        Ok(Err(error)) if is_answer(&error) && classify(&error) != Verdict::NotApplied => Ok(()),
        Ok(Err(error)) => Err(dialled.no_answer(config, endpoint, &describe(&error))),
        Err(_) => Err(silent("no answer", config)),
    }
}

/// etcd takes no writes until somebody has done this, but it goes on renewing leases.
const NO_SPACE: &str = "its alarm NOSPACE is on: delete what nobody needs (torchetcd purge RUN, etcdctl del \
                        --prefix KEY), then compact its history, defragment every member and disarm the \
                        alarm, by etcdctl, or give it a larger --quota-backend-bytes";

/// Says of whom it is that etcd refuses something.
fn refusal(endpoint: &Endpoint, user: Option<&str>, kind: Refusal, text: &str) -> EtcdError {
    let message = match (kind, user) {
        (Refusal::AuthenticationFailed | Refusal::PermissionDenied, Some(user)) => {
            format!("{text} (user '{user}')")
        }
        (Refusal::NoSpace, _) => format!("{text} ({NO_SPACE})"),
        (Refusal::AuthenticationFailed, None) => format!("it wants a user and a password ({text})"),
        _ => text.to_string(),
    };
    EtcdError::Refused { endpoint: endpoint.to_string(), kind, message }
}

/// `None` where etcd has authentication turned off.
async fn log_in(
    endpoint: &Endpoint,
    credentials: &Credentials,
    dialled: &Dialled,
) -> Result<Option<Client>, ConnectError> {
    // Apart from the runtime's thread, as with TLS files.
    let password = credentials.password.clone();
    let password = match tokio::task::spawn_blocking(move || password.read()).await {
        Ok(password) => password.map_err(ConnectError::Final)?,
        Err(error) => return Err(ConnectError::Unreachable(error.to_string())),
    };
    let options = options().with_user(credentials.user.clone(), password);
    let channel = etcd_client::Channel::Tonic(dialled.channel.clone());
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
