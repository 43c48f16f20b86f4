//! Watches that outlive their connection.

mod hub;
mod message;
mod names;
mod session;

pub use hub::{WatchHub, WatchReceiver};
pub use message::{WatchMessage, WatchSpec};
