//! Operations that wait for keys, by one watch each.
//!
//! One read tells what is missing, one watch over all of it from the next revision on tells when it
//! comes. Now and then a wait reads once more, should the watch not be one.

mod get;
mod presence;
mod waiter;

pub use waiter::{Waiter, Wake, seen, timed_out};
