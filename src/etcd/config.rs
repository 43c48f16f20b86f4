//! How to reach etcd and who we are there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::endpoint::Endpoint;
use super::error::EtcdError;

/// PEM files for TLS. Without a CA the system's roots are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca_cert: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl TlsFiles {
    /// The files of the client certificate, for messages.
    pub(super) fn identity(&self) -> Option<String> {
        let cert = self.cert.as_ref()?;
        Some(match &self.key {
            Some(key) if key != cert => format!("'{}', key '{}'", cert.display(), key.display()),
            _ => format!("'{}'", cert.display()),
        })
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: Password,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    Given(String),
    /// Read anew for each log-in, so that a password replaced on disk is taken up.
    File(PathBuf),
}

impl Password {
    pub(super) fn read(&self) -> Result<String, EtcdError> {
        let path = match self {
            Self::Given(text) => return Ok(text.clone()),
            Self::File(path) => path,
        };
        let unusable = |why: &dyn fmt::Display| {
            EtcdError::Configuration(format!("The password file '{}' {why}.", path.display()))
        };
        // Neither the text nor an error that may quote it goes into the message.
        let bytes = std::fs::read(path)
            .map_err(|error| unusable(&format!("cannot be read: {}", error.kind())))?;
        let text = String::from_utf8(bytes).map_err(|_| unusable(&"holds no UTF-8 text"))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(unusable(&"is empty"));
        }
        if password.contains(['\r', '\n']) {
            return Err(unusable(&"holds more than one line"));
        }
        Ok(password.to_string())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub endpoints: Vec<Endpoint>,
    pub tls: TlsFiles,
    pub credentials: Option<Credentials>,
    pub connect_timeout: Duration,
    /// For calls whose caller names no deadline.
    pub request_timeout: Duration,
}

impl Config {
    /// Reads the files anew for each connection, so that a certificate replaced on disk is taken up.
    pub(super) fn tls_config(&self, endpoint: &Endpoint) -> Result<ClientTlsConfig, EtcdError> {
        let mut tls = ClientTlsConfig::new().domain_name(endpoint.host.clone());
        tls = match &self.tls.ca_cert {
            Some(path) => tls.ca_certificate(Certificate::from_pem(read(
                path,
                "CA certificate",
                CERTIFICATE,
            )?)),
            None => tls.with_native_roots(),
        };
        match (&self.tls.cert, &self.tls.key) {
            (None, None) => {}
            (Some(cert), key) => {
                let pem = read(cert, "client certificate", CERTIFICATE)?;
                // As python-etcd takes it: one file may hold both the certificate and its key.
                let key = read(key.as_ref().unwrap_or(cert), "client key", PRIVATE_KEY)?;
                tls = tls.identity(Identity::from_pem(pem, key));
            }
            (None, Some(_)) => {
                return Err(EtcdError::Configuration(
                    "A client key was given without the client certificate it belongs to.".into(),
                ));
            }
        }
        Ok(tls)
    }
}

/// What the first lines of PEM blocks hold.
const CERTIFICATE: &str = "BEGIN CERTIFICATE-----";
const PRIVATE_KEY: &str = "PRIVATE KEY-----";

/// Reads a file in which there must be a PEM block: a CA file without one would only show as a server
/// that is not trusted.
fn read(path: &Path, what: &str, block: &str) -> Result<Vec<u8>, EtcdError> {
    let unusable = |why: &dyn fmt::Display| {
        EtcdError::Configuration(format!("The {what} file '{}' {why}.", path.display()))
    };
    let pem = std::fs::read(path).map_err(|error| unusable(&format!("cannot be read: {error}")))?;
    let text = String::from_utf8_lossy(&pem);
    if !text.contains(block) {
        return Err(unusable(&format!("holds no PEM block '{block}'")));
    }
    if block == PRIVATE_KEY && text.contains("ENCRYPTED") {
        return Err(unusable(&"is encrypted, and there is nobody to ask for its password"));
    }
    Ok(pem)
}
