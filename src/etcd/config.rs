//! How to reach etcd and who we are there.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use etcd_client::ResponseHeader;

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
    /// Read again for each log-in, so that a password replaced on disk is used.
    File(PathBuf),
}

impl Password {
    /// It blocks, as TLS files do: see `tls::client_config`.
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
    /// A member is asked as it is, without a leader or as a learner too: for what it answers by itself.
    pub as_it_is: bool,
    /// The only cluster whose members are used; any without it. A member that is asked as it is may be of another one.
    pub cluster: Option<u64>,
}

impl Config {
    /// Whether an answer is of a cluster that is not meant.
    pub(super) fn refuses(&self, header: Option<&ResponseHeader>) -> bool {
        let told = header.map_or(0, ResponseHeader::cluster_id);
        !self.as_it_is && told != 0 && self.cluster.is_some_and(|expected| expected != told)
    }
}
