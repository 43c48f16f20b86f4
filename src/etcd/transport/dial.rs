//! One TCP connection to one address, with TLS where that is asked for, and what came of it.
//!
//! A channel of tonic would reconnect by itself when its connection is gone: it would not check what it
//! reaches, use the earlier certificates, and not notify its user. The channels made here do not reconnect: a
//! dead connection stays dead, and a request that finds it dead was not sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint as ChannelBuilder, Uri};

use super::error::ConnectError;
use super::explain::{WHICH_PORT, describe_error, no_handshake, silent};
use super::observed::{Observed, Seen};
use super::tls;
use crate::etcd::config::{Config, TlsFiles};
use crate::etcd::endpoint::Endpoint;
use crate::etcd::error::EtcdError;
use crate::etcd::verdict::NotSent;

/// HTTP/2 pings find a half-open connection, while a call or a stream is open: etcd closes connections that
/// ping more often than each 5 s (etcd issue 8905), or at all while nothing is open (gRPC's
/// `PermitWithoutStream`, which etcd leaves off).
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// All addresses of an endpoint's host. Those of a name come in the order of the resolver.
pub async fn addresses(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, ConnectError> {
    if let Ok(ip) = endpoint.host.parse() {
        return Ok(vec![SocketAddr::new(ip, endpoint.port)]);
    }
    match tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await {
        Ok(found) => Ok(found.collect()),
        Err(error) => Err(ConnectError::Unreachable(format!("dns error: {error}"))),
    }
}

/// A connection that was made, and what its bytes have shown so far.
pub struct Dialled {
    pub channel: Channel,
    pub seen: Seen,
}

pub async fn dial(
    config: &Config,
    endpoint: &Endpoint,
    address: SocketAddr,
) -> Result<Dialled, ConnectError> {
    let seen = Seen::default();
    match tokio::time::timeout(config.connect_timeout, connect(config, endpoint, address, &seen))
        .await
    {
        Ok(Ok(channel)) => Ok(Dialled { channel, seen }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(silent("no connection", config)),
    }
}

async fn connect(
    config: &Config,
    endpoint: &Endpoint,
    address: SocketAddr,
    seen: &Seen,
) -> Result<Channel, ConnectError> {
    // Before there is a connection: a server may end one that is silent while a file is waited for.
    let tls = if endpoint.tls { Some(tls_config(&config.tls).await?) } else { None };
    let tcp = TcpStream::connect(address)
        .await
        .map_err(|error| ConnectError::Unreachable(error.to_string()))?;
    // Not on a connection that has gone already.
    let _ = tcp.set_nodelay(true);
    let tcp = Observed { stream: tcp, seen: seen.clone(), carries_tls: endpoint.tls };
    let Some(tls) = tls else { return channel(endpoint, tcp).await };
    let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| {
        ConnectError::Final(EtcdError::Configuration(format!(
            "The host '{}' of the etcd endpoint {endpoint} cannot be in a certificate: {error}.",
            endpoint.host
        )))
    })?;
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name, tcp)
        .await
        .map_err(|error| no_handshake(&config.tls, seen, &error))?;
    if stream.get_ref().1.alpn_protocol() != Some(tls::HTTP2) {
        return Err(ConnectError::Unreachable(format!(
            "it offers no HTTP/2 over TLS: {WHICH_PORT}"
        )));
    }
    channel(endpoint, Observed { stream, seen: seen.clone(), carries_tls: false }).await
}

/// Files are read apart from the runtime's thread: it renews the leases of the process, and a file may be on a
/// file system that hangs.
async fn tls_config(files: &TlsFiles) -> Result<rustls::ClientConfig, ConnectError> {
    let files = files.clone();
    match tokio::task::spawn_blocking(move || tls::client_config(&files)).await {
        Ok(config) => config.map_err(ConnectError::Final),
        Err(error) => Err(ConnectError::Unreachable(error.to_string())),
    }
}

/// A channel over this one stream.
async fn channel<S>(endpoint: &Endpoint, stream: S) -> Result<Channel, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let internal = |error: &dyn std::fmt::Display| {
        ConnectError::Final(EtcdError::Configuration(format!("{endpoint}: {error}")))
    };
    let uri: Uri = endpoint.to_string().parse().map_err(|error| internal(&error))?;
    // To tonic there is no TLS, as there is nothing left to do about it; requests say `https`.
    let plain = Endpoint { tls: false, ..endpoint.clone() }.to_string();
    let builder = ChannelBuilder::from_shared(plain)
        .map_err(|error| internal(&error))?
        .origin(uri)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false);
    let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(stream.ok_or(NotSent))
    });
    builder
        .connect_with_connector(connector)
        .await
        .map_err(|error| ConnectError::Unreachable(describe_error(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::endpoint::parse_endpoints;
    use crate::etcd::verdict::{Verdict, classify};

    #[tokio::test]
    async fn a_request_on_a_connection_that_has_ended_was_not_sent() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let config = Config {
            endpoints: parse_endpoints(&address.to_string(), false).expect("an endpoint"),
            tls: TlsFiles::default(),
            credentials: None,
            connect_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            as_it_is: false,
            cluster: None,
        };
        let dialling = dial(&config, &config.endpoints[0], address);
        let (dialled, accepted) = tokio::join!(dialling, listener.accept());
        drop(accepted);
        let Ok(Dialled { channel, .. }) = dialled else { panic!("no connection") };
        let channel = etcd_client::Channel::Tonic(channel);
        let mut client = etcd_client::Client::from_channel(channel, None).await.expect("a client");
        // The first one may find the connection's end.
        let _ = client.status().await;
        let error = client.status().await.expect_err("nobody answers");
        assert_eq!(classify(&error), Verdict::NotApplied, "{error:?}");
    }
}
