//! `Store`: the c10d store, for the `EtcdStore` in Python.

use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use tokio::sync::watch;

use super::client::PyClient;
use super::convert;
use super::errors::store_error;
use super::store_methods::{owned, reply, store_methods, timeout};
use super::wait::wait;
use crate::gateway::Round;
use crate::process::{PerProcess, generation};
use crate::store::{Store, StoreRequest};

/// Why the waits of a store end, once there is a reason.
pub(crate) type Abort = watch::Receiver<Option<String>>;

/// A store over a client. A forked child gets a connection and receipts of its own.
#[pyclass(name = "Store", module = "torchetcd._torchetcd", frozen)]
pub struct PyStore {
    client: Py<PyClient>,
    prefix: Vec<u8>,
    lease: i64,
    request_timeout: Duration,
    /// With the process whose runtime serves it.
    abort: Option<(u64, Abort)>,
    store: PerProcess<Arc<Store>>,
}

impl PyStore {
    /// `request_timeout` limits what does not wait for others; without one the client's does.
    pub(crate) fn with_abort(
        client: Py<PyClient>,
        prefix: Vec<u8>,
        lease: i64,
        request_timeout: Option<Duration>,
        abort: Option<Abort>,
    ) -> Self {
        let request_timeout =
            request_timeout.unwrap_or_else(|| client.get().config().request_timeout);
        let abort = abort.map(|abort| (generation(), abort));
        Self { client, prefix, lease, request_timeout, abort, store: PerProcess::new() }
    }

    pub(crate) fn store(&self) -> Arc<Store> {
        let made = self.store.get_or_make(|| {
            let abort = self.abort.as_ref().filter(|(process, _)| *process == generation());
            Arc::new(Store::new(
                self.client.get().client(),
                &self.prefix,
                self.lease,
                abort.map(|(_, abort)| abort.clone()),
            ))
        });
        made.clone()
    }

    /// The same store for the clients of a gateway.
    pub(crate) fn round(&self) -> Round {
        let abort = self.abort.as_ref().filter(|(process, _)| *process == generation());
        Round::new(
            self.client.get().client(),
            &self.prefix,
            self.lease,
            self.request_timeout,
            abort.map(|(_, abort)| abort.clone()),
        )
    }

    /// Of what does not wait for others.
    pub(crate) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    fn ask<'py>(&self, py: Python<'py>, request: StoreRequest) -> PyResult<Bound<'py, PyAny>> {
        let (store, limit) = (self.store(), self.request_timeout);
        match wait(py, async move { store.handle(request, limit).await })? {
            Ok(answer) => reply(py, answer),
            Err(error) => Err(store_error(py, &error)),
        }
    }
}

store_methods! { PyStore {
    #[new]
    #[pyo3(signature = (client, prefix, lease=0, request_timeout_s=None))]
    fn new(
        client: Py<PyClient>,
        prefix: Vec<u8>,
        lease: i64,
        request_timeout_s: Option<f64>,
    ) -> PyResult<Self> {
        let request_timeout = request_timeout_s
            .map(|seconds| convert::duration("request_timeout_s", seconds))
            .transpose()?;
        Ok(Self::with_abort(client, prefix, lease, request_timeout, None))
    }
} }
