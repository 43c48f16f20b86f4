//! Errors of a connection, in words for whoever set it up.

use std::error::Error as _;
use std::io;

use etcd_client::Error as ClientError;
use rustls::{AlertDescription, CertificateError, Error};
use tonic::transport;

use super::error::ConnectError;
use super::observed::{Broke, FirstBytes, Seen};
use super::tls::{is_of_another_secret, webpki_error};
use crate::etcd::config::{Config, TlsFiles};
use crate::etcd::endpoint::Endpoint;
use crate::etcd::error::{EtcdError, Refusal};

pub const WHICH_PORT: &str = "is this the peer, metrics or HTTP-only port? Clients use the one of \
                          --listen-client-urls, by default 2379";

pub fn silent(what: &str, config: &Config) -> ConnectError {
    let limit = config.connect_timeout.as_secs_f64();
    ConnectError::Unreachable(format!("{what} within {limit:.1} s"))
}

pub fn no_handshake(files: &TlsFiles, seen: &Seen, error: &io::Error) -> ConnectError {
    if seen.first() == Some(FirstBytes::Http1) {
        return ConnectError::Unreachable("it answers without TLS (does it want http?)".into());
    }
    match Broke::of(error) {
        Broke::Tls(error) => tls_failure(files, &error),
        Broke::Closed => ConnectError::Unreachable(format!("{error} (does it want http?)")),
        Broke::Io => ConnectError::Unreachable(error.to_string()),
    }
}

/// Says why the first request over a connection had no answer of etcd's.
pub fn no_answer(seen: &Seen, config: &Config, endpoint: &Endpoint, text: &str) -> ConnectError {
    let (first, broke) = (seen.first(), seen.broke());
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

/// Says what rustls' error means for whoever set this up.
fn tls_failure(files: &TlsFiles, error: &Error) -> ConnectError {
    match error {
        Error::InvalidCertificate(why) => ConnectError::Untrusted(not_trusted(files, why, error)),
        Error::AlertReceived(alert) => refused(files, *alert, error),
        Error::PeerIncompatible(_) => ConnectError::Untrusted(no_common_ground("", error)),
        // The other side speaks no TLS.
        Error::InvalidMessage(_) => {
            ConnectError::Unreachable(format!("{error} (does it want http?)"))
        }
        _ => ConnectError::Unreachable(error.to_string()),
    }
}

fn not_trusted(files: &TlsFiles, why: &CertificateError, error: &Error) -> String {
    match (why, &files.ca_cert) {
        (CertificateError::UnknownIssuer, Some(path)) => {
            format!("its certificate is not signed by a CA in '{}' ({error})", path.display())
        }
        (CertificateError::UnknownIssuer, None) => format!(
            "its certificate is not signed by a CA that this system trusts, and no CA certificate \
             was given ({error})"
        ),
        (CertificateError::NotValidForName, _) => format!("{error}; {NAMES}"),
        (CertificateError::NotValidForNameContext { presented, .. }, _) if presented.is_empty() => {
            format!("{error}; {NAMES}")
        }
        _ if is_of_another_secret(why) => {
            "its certificate is made of another secret than ours: all \
             agents of a job need the same one"
                .into()
        }
        _ => match webpki_error(why) {
            Some(webpki::Error::CaUsedAsEndEntity) => format!(
                "its certificate is a CA's (basicConstraints CA:TRUE), and only where the CA file \
                 holds this very certificate can a server use it: make the server's own with \
                 `openssl req -x509 -CA ... -CAkey ... -addext basicConstraints=CA:FALSE` ({error})"
            ),
            Some(webpki::Error::UnsupportedCertVersion) => format!(
                "its certificate is an X.509 one of version 1, which names no host: make one of \
                 version 3, with `-addext subjectAltName=DNS:...` ({error})"
            ),
            _ => error.to_string(),
        },
    }
}

/// Go's clients look nowhere else either.
const NAMES: &str = "the names are those of the extension subjectAltName (with openssl: \
                     `-addext subjectAltName=DNS:name,IP:address`), not the common name";

fn refused(files: &TlsFiles, alert: AlertDescription, error: &Error) -> ConnectError {
    use AlertDescription as Alert;
    match alert {
        Alert::NoCertificate
        | Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::CertificateRequired
        | Alert::UnknownCA
        | Alert::AccessDenied => ConnectError::Untrusted(match files.identity() {
            Some(files) => format!("it refuses the client certificate ({files}): {error}"),
            None => format!("it wants a client certificate, and none was given: {error}"),
        }),
        Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity => {
            // With TLS 1.2, OpenSSL says no more than this of a missing certificate.
            let hint = match files.identity() {
                Some(_) => "",
                None => ", or wants a client certificate, and none was given",
            };
            ConnectError::Untrusted(no_common_ground(hint, error))
        }
        _ => ConnectError::Unreachable(error.to_string()),
    }
}

fn no_common_ground(hint: &str, error: &Error) -> String {
    format!("it speaks no TLS 1.2 or 1.3 with a cipher that we have{hint}: {error}")
}

/// etcd takes no writes until somebody has done this, but it goes on renewing leases.
const NO_SPACE: &str = "its alarm NOSPACE is on: delete what nobody needs (torchetcd purge RUN, etcdctl del \
                        --prefix KEY), then compact its history, defragment every member and disarm the \
                        alarm, by etcdctl, or give it a larger --quota-backend-bytes";

/// Says of whom it is that etcd refuses something.
pub fn refusal(endpoint: &Endpoint, user: Option<&str>, kind: Refusal, text: &str) -> EtcdError {
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

/// One line for people.
pub fn describe(error: &ClientError) -> String {
    match error {
        ClientError::GRpcStatus(status) => {
            let source = status.source();
            // tonic's wrapper says nothing of the cause.
            if let Some(wrapper) = source
                && is_wrapper(wrapper)
                && wrapper.to_string() == status.message()
            {
                return describe_error(wrapper);
            }
            let mut text = if status.message().is_empty() {
                format!("{:?}", status.code())
            } else {
                status.message().to_string()
            };
            append_sources(&mut text, source);
            text
        }
        ClientError::TransportError(error) => describe_error(error),
        other => other.to_string(),
    }
}

pub fn describe_error(error: &(dyn std::error::Error + 'static)) -> String {
    if let (true, Some(source)) = (is_wrapper(error), error.source()) {
        return describe_error(source);
    }
    let mut text = error.to_string();
    append_sources(&mut text, error.source());
    text
}

/// What tonic puts around the cause of what went wrong on a connection.
fn is_wrapper(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<transport::Error>()
}

fn append_sources(text: &mut String, mut source: Option<&(dyn std::error::Error + 'static)>) {
    while let Some(error) = source {
        let inner = error.to_string();
        if !is_wrapper(error) && !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        source = error.source();
    }
}
