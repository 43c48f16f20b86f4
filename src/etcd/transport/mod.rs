//! One connection to one address: how it is dialled, what it shows of the member behind it, and what its errors mean
//! to people. Which connection is taken, and when it is left, is the business of `cluster`.

mod connection;
mod dial;
mod error;
mod explain;
mod health;
mod observed;
mod tls;
mod token;

pub use connection::{Connection, Reached};
pub use dial::addresses;
pub use error::ConnectError;
pub use explain::{describe, silent};
