//! One connection to one member of the cluster.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, KvClient, LeaseClient, WatchClient};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::config::{Config, Password};
use super::endpoint::Endpoint;
use super::error::{EtcdError, Refusal, Verdict, classify, describe, describe_error, is_answer};
use super::metrics::metrics;

/// HTTP/2 pings find a half-open connection. etcd closes connections that ping more often than each
/// 5 s (etcd issue 8905).
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// etcd hashes a password for about 60 ms of its CPU's time, and many clients may come at once.
const LOG_IN: Duration = Duration::from_secs(30);

/// A larger answer is refused, not held in memory. The largest one that we ask for ourselves has the
/// values of 120 keys of a store.
const LARGEST_ANSWER: usize = 256 << 20;

pub(super) struct Connection {
    pub endpoint: Endpoint,
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
    /// When the member last proved to be there; held while it is being asked.
    proved: tokio::sync::Mutex<Instant>,
    opened: Instant,
    /// Milliseconds after `opened` at which the last answer came.
    heard: AtomicU64,
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

impl Connection {
    pub async fn open(config: &Config, endpoint: &Endpoint) -> Result<Self, ConnectError> {
        let channel = connect(config, endpoint).await?;
        let options = ConnectOptions::new().with_require_leader(true);
        let raw = || etcd_client::Channel::Tonic(channel.clone());
        let mut client = Client::from_channel(raw(), Some(options.clone()))
            .await
            .map_err(|error| ConnectError::Unreachable(describe(&error)))?;
        probe(config, endpoint, client.clone()).await?;
        let mut anonymous = false;
        if let Some(credentials) = &config.credentials {
            let password = credentials.password.read().map_err(ConnectError::Final)?;
            let options = options.with_user(credentials.user.clone(), password);
            let log_in = Client::from_channel(raw(), Some(options));
            match tokio::time::timeout(LOG_IN, log_in).await {
                Ok(Ok(authenticated)) => client = authenticated,
                Ok(Err(error)) if classify(&error) == Verdict::NoAuthentication => anonymous = true,
                Ok(Err(error)) => {
                    let text = describe(&error);
                    return Err(match classify(&error) {
                        Verdict::Final(kind @ Refusal::AuthenticationFailed) => {
                            let error = refusal(endpoint, Some(&credentials.user), kind, &text);
                            match credentials.password {
                                Password::Given(_) => ConnectError::Final(error),
                                Password::File(_) => ConnectError::LogInRefused(error),
                            }
                        }
                        _ => ConnectError::Unreachable(text),
                    });
                }
                Err(_) => {
                    return Err(ConnectError::Unreachable("no answer to the log-in".into()));
                }
            }
        }
        Ok(Self {
            endpoint: endpoint.clone(),
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
            proved: tokio::sync::Mutex::new(Instant::now()),
            opened: Instant::now(),
            heard: AtomicU64::new(0),
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
    pub fn note_answer(&self) {
        self.heard.store(self.age_ms(), Ordering::Relaxed);
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the member is there, when an answer is late. It is asked for what it can say by itself:
    /// it may be slow because thousands want something at once, and who then left it, connected anew
    /// and asked again would add to that. Those who wonder at the same time share one question.
    pub async fn answers(&self, limit: Duration) -> bool {
        let (wondered, wondered_ms) = (Instant::now(), self.age_ms());
        let mut proved = self.proved.lock().await;
        if *proved >= wondered {
            return true;
        }
        if *self.silent.borrow() {
            return false;
        }
        let answers = match tokio::time::timeout(limit, self.client().status()).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => is_answer(&error) && classify(&error) != Verdict::NotApplied,
            // Others may have got theirs.
            Err(_) => self.heard.load(Ordering::Relaxed) > wondered_ms,
        };
        if answers {
            *proved = Instant::now();
        } else {
            self.silent.send_replace(true);
        }
        answers
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

async fn connect(config: &Config, endpoint: &Endpoint) -> Result<Channel, ConnectError> {
    let mut builder = Channel::from_shared(endpoint.to_string())
        .map_err(|error| ConnectError::Final(EtcdError::Configuration(error.to_string())))?
        .connect_timeout(config.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    if endpoint.tls {
        let tls = config.tls_config(endpoint).map_err(ConnectError::Final)?;
        builder = builder
            .tls_config(tls)
            .map_err(|error| ConnectError::Final(unusable(config, endpoint, &error)))?;
    }
    match tokio::time::timeout(config.connect_timeout, builder.connect()).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(unreachable(config, endpoint, describe_error(&error))),
        Err(_) => Err(silent("no connection", config)),
    }
}

fn unusable(config: &Config, endpoint: &Endpoint, error: &tonic::transport::Error) -> EtcdError {
    let mut text = describe_error(error).trim_end_matches('.').to_string();
    if text.contains("no native certs") {
        text = "this system has no CA certificates, and none was given".into();
    }
    let ca = config.tls.ca_cert.as_ref().map(|path| format!("CA '{}'", path.display()));
    let identity = config.tls.identity().map(|files| format!("client certificate {files}"));
    let files = ca.into_iter().chain(identity).collect::<Vec<_>>().join(", ");
    let files = if files.is_empty() { files } else { format!(" ({files})") };
    EtcdError::Configuration(format!(
        "The TLS settings for {endpoint} cannot be used{files}: {text}."
    ))
}

/// Asks the member whether it serves. That a connection was made does not say it: a proxy or the kernel
/// may have taken it, with TLS 1.3 a client certificate is refused later, and a write that is sent into
/// a connection without an answer may take effect any time.
async fn probe(
    config: &Config,
    endpoint: &Endpoint,
    mut client: Client,
) -> Result<(), ConnectError> {
    match tokio::time::timeout(config.connect_timeout, client.status()).await {
        Ok(Ok(status)) if status.is_learner() => {
            Err(ConnectError::Unreachable("it is a learner, which serves no clients".into()))
        }
        Ok(Ok(_)) => Ok(()),
        // Users without a token may not ask, but that is an answer too.
        Ok(Err(error)) if is_answer(&error) && classify(&error) != Verdict::NotApplied => Ok(()),
        Ok(Err(error)) => Err(unreachable(config, endpoint, describe(&error))),
        Err(_) => Err(silent("no answer", config)),
    }
}

fn silent(what: &str, config: &Config) -> ConnectError {
    let limit = config.connect_timeout.as_secs_f64();
    ConnectError::Unreachable(format!("{what} within {limit:.1} s"))
}

/// Says what the texts of rustls and hyper mean for who set this up.
fn unreachable(config: &Config, endpoint: &Endpoint, text: String) -> ConnectError {
    let has = |part: &str| text.contains(part);
    if !endpoint.tls {
        // What comes back from a TLS server is no HTTP/2.
        let hint = if has("refused") || has("dns error") { "" } else { " (does it want https?)" };
        return ConnectError::Unreachable(format!("{text}{hint}"));
    }
    if has("invalid peer certificate") {
        return ConnectError::Untrusted(match (&config.tls.ca_cert, has("UnknownIssuer")) {
            (Some(path), true) => {
                format!("its certificate is not signed by a CA in '{}' ({text})", path.display())
            }
            (None, true) => format!(
                "its certificate is not signed by a CA that this system trusts, and no CA certificate \
                 was given ({text})"
            ),
            _ => text,
        });
    }
    let alert = text.split_once("received fatal alert: ").map(|(_, alert)| alert);
    let about_certificate = ["Certificate", "UnknownCA", "AccessDenied"];
    if alert.is_some_and(|alert| about_certificate.iter().any(|part| alert.contains(part))) {
        return ConnectError::Untrusted(match config.tls.identity() {
            Some(files) => format!("it refuses the client certificate ({files}): {text}"),
            None => format!("it wants a client certificate, and none was given: {text}"),
        });
    }
    if alert
        .is_some_and(|alert| alert.contains("HandshakeFail") || alert.contains("ProtocolVersion"))
    {
        // With TLS 1.2, OpenSSL says no more than this of a missing certificate.
        let hint = match config.tls.identity() {
            Some(_) => "",
            None => ", or wants a client certificate, and none was given",
        };
        return ConnectError::Untrusted(format!(
            "it speaks no TLS 1.2 or 1.3 with a cipher that we have{hint}: {text}"
        ));
    }
    let no_tls = has("handshake eof") || has("InvalidContentType") || has("corrupt message");
    ConnectError::Unreachable(match config.tls.identity() {
        _ if no_tls => format!("{text} (does it want http?)"),
        // With TLS 1.3 the alert that says so can be lost: the connection is reset behind it.
        None if has("closed") || has("reset") => {
            format!("{text} (does it want a client certificate, or http?)")
        }
        Some(files) if has("closed") || has("reset") => {
            format!("{text} (does it accept the client certificate {files}?)")
        }
        _ => text,
    })
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
