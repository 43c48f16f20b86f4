//! The native half of torchetcd. What Python sees of it is listed in `python/mod.rs`.
//!
//! Without the feature `python` this is the core alone: that is how its tests are built, and what shows
//! that nothing below `python/` needs pyo3.

pub mod certificates;
#[cfg(test)]
mod corpus;
pub mod etcd;
pub mod gateway;
pub mod process;
#[cfg(feature = "python")]
mod python;
pub mod rendezvous;
#[cfg(test)]
mod sim;
pub mod store;
