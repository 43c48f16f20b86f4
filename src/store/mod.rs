//! torch's c10d `Store` on etcd keys, with `TCPStore`'s semantics.
//!
//! A key `k` of the store is the etcd key `{prefix}/` + base64(`k`) and its value base64 too, as
//! `PyTorch`'s own `EtcdStore` lays them out. What else a store keeps lies beside them under names that
//! begin with a `.`, which base64 does not have: see [`keys`].
//!
//! [`Store::handle`] is the one way in. Writes take effect exactly once ([`crate::etcd::OnceTxns`]). Where an answer was lost, what the write
//! saw and did is read from etcd's history at its revision.

mod chunks;
mod core;
mod counter;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod keys;
mod ops;
mod queue;
mod read;
mod request;
mod value;
mod wait;

pub use self::core::Store;
pub use error::StoreError;
pub use request::{StoreReply, StoreRequest};
