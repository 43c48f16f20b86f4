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

#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
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
            Some(path) => tls.ca_certificate(Certificate::from_pem(read(path, "CA certificate")?)),
            None => tls.with_native_roots(),
        };
        match (&self.tls.cert, &self.tls.key) {
            (None, None) => {}
            (Some(cert), key) => {
                let pem = read(cert, "client certificate")?;
                // As python-etcd takes it: one file may hold both the certificate and its key.
                let key = match key {
                    Some(path) => read(path, "client key")?,
                    None => pem.clone(),
                };
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

fn read(path: &Path, what: &str) -> Result<Vec<u8>, EtcdError> {
    std::fs::read(path).map_err(|error| {
        EtcdError::Configuration(format!(
            "The {what} file '{}' cannot be read: {error}.",
            path.display()
        ))
    })
}
