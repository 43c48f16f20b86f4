//! A client of the etcd v3 API: endpoints, TLS, authentication, deadlines, retries, leases, watches
//! and transactions that take effect exactly once.
//!
//! The wire protocol is `etcd-client`'s. What this layer adds is what Go's clientv3 has and that crate
//! leaves to its users: the choice of the endpoint, the meaning of every error, watches that resume, and
//! leases that are renewed for as long as etcd has them.

mod backoff;
mod candidates;
mod client;
mod config;
mod connection;
mod convert;
mod dial;
mod endpoint;
mod error;
mod full;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod history;
pub mod kv;
mod lease;
mod maintenance;
pub mod metrics;
mod names;
mod once;
#[cfg(test)]
mod overload;
mod race;
mod session;
#[cfg(test)]
pub mod test_server;
mod tls;
mod unique;
mod watch;

pub use client::{Client, Repeat};
pub use config::{Config, Credentials, Password, TlsFiles};
pub use endpoint::{Endpoint, InvalidEndpoint, parse_endpoints};
pub use error::{EtcdError, Refusal};
pub use lease::{KeepAlive, LeaseState};
pub use maintenance::{Alarm, Member, MemberStatus};
pub use once::{OnceOutcome, OnceTxns};
pub use unique::{nth_lease_id, uniform, unique, unique_lease_id};
pub use watch::{WatchMessage, WatchReceiver, WatchSpec};
