//! Everything that Python sees. No other module names pyo3.

mod aio;
mod client;
mod convert;
mod errors;
mod metrics;
mod rendezvous;
mod runtime;
mod store;
mod wait;

use pyo3::prelude::*;

#[pymodule(gil_used = true)]
mod _torchetcd {
    #[pymodule_export]
    use super::aio::{AsyncClient, AsyncStore, AsyncWatch, run_lease};
    #[pymodule_export]
    use super::client::{PyClient, prefix_end};
    #[pymodule_export]
    use super::metrics::metrics;
    #[pymodule_export]
    use super::rendezvous::{PyRendezvous, protocol_version, reopening};
    #[pymodule_export]
    use super::runtime::{begin_end, shutdown};
    #[pymodule_export]
    use super::store::PyStore;
}
