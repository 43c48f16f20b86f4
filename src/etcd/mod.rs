//! A client of the etcd v3 API: endpoints, TLS, authentication, deadlines, retries, leases, watches
//! and transactions that take effect exactly once.
//!
//! The wire protocol is `etcd-client`'s. What this layer adds is what Go's clientv3 has and that crate
//! leaves to its users: the choice of the endpoint, the meaning of every error, watches that resume, and
//! leases that are renewed for as long as etcd has them.

mod branch;
mod call;
mod client;
mod cluster;
mod config;
mod convert;
mod endpoint;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod history;
pub mod kv;
mod lease;
mod maintenance;
mod members;
pub mod metrics;
mod nospace;
mod once;
#[cfg(test)]
mod overload;
mod requests;
#[cfg(test)]
pub mod test_server;
mod transport;
mod unique;
mod verdict;
mod watch;

pub use branch::{Branch, Nested, Slot};
pub use call::Repeat;
pub use client::Client;
pub use config::{Config, Credentials, Password, TlsFiles};
pub use endpoint::{Endpoint, InvalidEndpoint, parse_endpoints};
pub use error::{EtcdError, Refusal};
pub use lease::{KeepAlive, LeaseState};
pub use maintenance::{Alarm, MemberStatus};
pub use members::{Knowledge, Member};
pub use once::{OnceOutcome, OnceTxns};
pub use unique::{nth_lease_id, uniform, unique, unique_lease_id};
pub use watch::{WatchMessage, WatchReceiver, WatchSpec};
