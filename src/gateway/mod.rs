//! `TCPStore`'s wire protocol with etcd behind it: what an agent serves to its own workers on its host's loopback.
//!
//! A connection's queries are answered in order, each by [`crate::store::Store::handle`]. A wait is one of that store, so it ends
//! early when a member of the round is lost. The protocol has no errors: where there is one the connection ends, and
//! what happened is among [`Gateway::remarks`].

mod admit;
mod codec;
mod connection;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod query;
mod remarks;
mod round;
mod server;

pub use round::{Abort, Round};
pub use server::Gateway;
