//! Why there is no connection.

use crate::etcd::error::EtcdError;
use crate::etcd::metrics::Connect;

pub enum ConnectError {
    /// Another address, or a later attempt, may do.
    Unreachable(String),
    /// One side refuses the other's certificate or its version of TLS. That may be fixed while the call waits.
    Untrusted(String),
    /// etcd refuses the password that is in a file. That may be fixed while the call waits.
    LogInRefused(EtcdError),
    Final(EtcdError),
}

impl ConnectError {
    pub fn counted(&self) -> Connect {
        match self {
            Self::Unreachable(_) => Connect::Failed,
            Self::Untrusted(_) => Connect::Untrusted,
            Self::LogInRefused(_) | Self::Final(EtcdError::Refused { .. }) => Connect::LogInRefused,
            Self::Final(_) => Connect::Misconfigured,
        }
    }
}
