//! Everything that Python sees. No other module names pyo3.

mod aio;
mod certificates;
mod client;
mod convert;
mod errors;
mod gateway;
mod lifecycle;
mod metrics;
mod rendezvous;
mod runtime;
mod store;
mod store_methods;
mod wait;

use pyo3::prelude::*;

#[pymodule(gil_used = true)]
mod _torchetcd {
    #[pymodule_export]
    use super::aio::{AsyncClient, AsyncStore, AsyncWatch};
    #[pymodule_export]
    use super::certificates::quorum_certificates;
    #[pymodule_export]
    use super::client::PyClient;
    #[pymodule_export]
    use super::convert::prefix_end;
    #[pymodule_export]
    use super::gateway::PyGateway;
    #[pymodule_export]
    use super::lifecycle::{begin_end, shutdown};
    #[pymodule_export]
    use super::metrics::metrics;
    #[pymodule_export]
    use super::rendezvous::{PyRendezvous, protocol_version, reopening, run_lease};
    #[pymodule_export]
    use super::store::PyStore;
}
