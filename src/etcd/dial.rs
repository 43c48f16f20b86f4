//! One TCP connection to one address, with TLS where that is asked for, and what came of it.
//!
//! A channel of tonic's would connect anew by itself when its connection is gone: without a look at what it
//! reaches, with the certificates of before, and with no word to its user. The channels made here do not: what
//! is dead stays dead, and a request that finds it so was not sent.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint as ChannelBuilder, Uri};

use super::config::{Config, TlsFiles};
use super::endpoint::Endpoint;
use super::error::{ConnectError, EtcdError, describe_error};
use super::tls::{self, Failure};

/// HTTP/2 pings find a half-open connection, while a call or a stream is open: etcd closes connections that
/// ping more often than each 5 s (etcd issue 8905), or at all while nothing is open (gRPC's
/// `PermitWithoutStream`, which etcd leaves off).
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// What an answer begins with that is one of HTTP/1.
const HTTP1: &[u8] = b"HTTP/1";

/// All addresses of an endpoint's host. Those of a name come in the order of the resolver.
pub(super) async fn addresses(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, ConnectError> {
    if let Ok(ip) = endpoint.host.parse() {
        return Ok(vec![SocketAddr::new(ip, endpoint.port)]);
    }
    match tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await {
        Ok(found) => Ok(found.collect()),
        Err(error) => Err(ConnectError::Unreachable(format!("dns error: {error}"))),
    }
}

/// A connection that was made, and what its bytes have shown so far.
pub(super) struct Dialled {
    pub channel: Channel,
    seen: Seen,
}

/// What the wire has shown. Errors lose their types on their way through h2 and hyper, so they are taken
/// down here.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<SeenCells>);

#[derive(Debug, Default)]
struct SeenCells {
    /// The first bytes on the TCP connection itself.
    first: OnceLock<FirstBytes>,
    /// How the stream ended, that of TLS where there is TLS.
    broke: OnceLock<Broke>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstBytes {
    Http1,
    TlsRecord,
    Other,
}

#[derive(Debug)]
enum Broke {
    Tls(rustls::Error),
    /// Closed or reset by the other side.
    Closed,
    Io,
}

impl FirstBytes {
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            // A handshake or an alert of any version.
            [0x15 | 0x16, 0x03, ..] => Self::TlsRecord,
            _ if bytes.starts_with(HTTP1) => Self::Http1,
            _ => Self::Other,
        }
    }
}

impl Broke {
    fn of(error: &io::Error) -> Self {
        if let Some(error) = tls_error(error) {
            return Self::Tls(error.clone());
        }
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io,
        }
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

pub(super) async fn dial(
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

pub(super) fn silent(what: &str, config: &Config) -> ConnectError {
    let limit = config.connect_timeout.as_secs_f64();
    ConnectError::Unreachable(format!("{what} within {limit:.1} s"))
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

const WHICH_PORT: &str = "is this the peer, metrics or HTTP-only port? Clients use the one of \
                          --listen-client-urls, by default 2379";

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
        std::future::ready(stream.ok_or_else(|| io::Error::other("the connection has ended")))
    });
    builder
        .connect_with_connector(connector)
        .await
        .map_err(|error| ConnectError::Unreachable(describe_error(&error)))
}

fn no_handshake(files: &TlsFiles, seen: &Seen, error: &io::Error) -> ConnectError {
    if seen.0.first.get() == Some(&FirstBytes::Http1) {
        return ConnectError::Unreachable("it answers without TLS (does it want http?)".into());
    }
    match Broke::of(error) {
        Broke::Tls(error) => tls_failure(files, &error),
        Broke::Closed => ConnectError::Unreachable(format!("{error} (does it want http?)")),
        Broke::Io => ConnectError::Unreachable(error.to_string()),
    }
}

fn tls_failure(files: &TlsFiles, error: &rustls::Error) -> ConnectError {
    match tls::explain(files, error) {
        Failure::Untrusted(text) => ConnectError::Untrusted(text),
        Failure::NoTls(text) => ConnectError::Unreachable(format!("{text} (does it want http?)")),
        Failure::Other(text) => ConnectError::Unreachable(text),
    }
}

impl Dialled {
    /// Says why the first request over the connection had no answer of etcd's.
    pub(super) fn no_answer(
        &self,
        config: &Config,
        endpoint: &Endpoint,
        text: &str,
    ) -> ConnectError {
        let (first, broke) = (self.seen.0.first.get(), self.seen.0.broke.get());
        // With TLS 1.3 a client certificate is refused only after the handshake.
        if let Some(Broke::Tls(error)) = broke {
            return tls_failure(&config.tls, error);
        }
        let closed = matches!(broke, Some(Broke::Closed));
        ConnectError::Unreachable(match (endpoint.tls, first) {
            (false, Some(FirstBytes::Http1)) => format!("it answers in HTTP/1: {WHICH_PORT}"),
            (false, Some(FirstBytes::TlsRecord)) => format!("{text} (does it want https?)"),
            // Go's TLS server closes without a word.
            (false, None) if closed => format!("{text} (does it want https?)"),
            // The alert that says so can be lost: the connection is reset behind it.
            (true, _) if closed => match config.tls.identity() {
                None => format!("{text} (does it want a client certificate?)"),
                Some(files) => format!("{text} (does it accept the client certificate {files}?)"),
            },
            _ => text.to_string(),
        })
    }
}

/// A stream that takes down what it shows.
struct Observed<S> {
    stream: S,
    seen: Seen,
    /// Its end shows as that of the stream above.
    carries_tls: bool,
}

impl<S> Observed<S> {
    fn ended(&self, how: Broke) {
        if !self.carries_tls {
            // A second end tells no more than the first.
            let _ = self.seen.0.broke.set(how);
        }
    }

    /// What came of a write, after a note of its failure: it may be the first to find the end.
    fn wrote<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &outcome {
            self.ended(Broke::of(error));
        }
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        let fresh = &buf.filled()[before..];
        match &outcome {
            Err(error) => self.ended(Broke::of(error)),
            Ok(()) if fresh.is_empty() => self.ended(Broke::Closed),
            Ok(()) if self.seen.0.first.get().is_none() => {
                let _ = self.seen.0.first.set(FirstBytes::of(fresh));
            }
            Ok(()) => {}
        }
        Poll::Ready(outcome)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.wrote(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
