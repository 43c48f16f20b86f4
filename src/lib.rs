//! The native half of torchetcd. What Python sees of it is listed in [`python`].

pub mod etcd;
mod python;
pub mod rendezvous;
