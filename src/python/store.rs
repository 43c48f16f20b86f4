//! `Store`: the c10d store, for the `EtcdStore` in Python.

use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::PyClient;
use super::convert;
use super::errors::store_error;
use super::wait::wait;
use crate::process::{PerProcess, generation};
use crate::store::{Store, StoreError};

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

    /// Of what does not wait for others.
    pub(crate) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// Runs what does not wait for others.
    fn run<T, F, Fut>(&self, py: Python<'_>, operation: F) -> PyResult<T>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Store>, Instant) -> Fut,
        Fut: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let deadline = Instant::now() + self.request_timeout;
        wait(py, operation(self.store(), deadline))?.map_err(|error| store_error(py, &error))
    }
}

#[pymethods]
impl PyStore {
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

    fn set(&self, py: Python<'_>, key: &[u8], value: &[u8]) -> PyResult<()> {
        let (key, value) = (key.to_vec(), value.to_vec());
        self.run(py, |store, deadline| async move { store.set(&key, &value, deadline).await })
    }

    fn get<'py>(
        &self,
        py: Python<'py>,
        key: &[u8],
        timeout_s: f64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (key, timeout) = (key.to_vec(), timeout(timeout_s)?);
        let value = self.run(py, |store, _| async move { store.get(&key, timeout).await })?;
        Ok(PyBytes::new(py, &value))
    }

    fn add(&self, py: Python<'_>, key: &[u8], n: i64) -> PyResult<i64> {
        let key = key.to_vec();
        self.run(py, |store, deadline| async move { store.add(&key, n, deadline).await })
    }

    fn check(&self, py: Python<'_>, keys: Vec<PyBackedBytes>) -> PyResult<bool> {
        let keys = owned(keys);
        self.run(py, |store, deadline| async move { store.check(&keys, deadline).await })
    }

    fn wait(&self, py: Python<'_>, keys: Vec<PyBackedBytes>, timeout_s: f64) -> PyResult<()> {
        let (keys, timeout) = (owned(keys), timeout(timeout_s)?);
        self.run(py, |store, _| async move { store.wait(&keys, timeout).await })
    }

    fn compare_set<'py>(
        &self,
        py: Python<'py>,
        key: &[u8],
        expected: &[u8],
        desired: &[u8],
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (key, expected, desired) = (key.to_vec(), expected.to_vec(), desired.to_vec());
        let value = self.run(py, |store, deadline| async move {
            store.compare_set(&key, &expected, &desired, deadline).await
        })?;
        Ok(PyBytes::new(py, &value))
    }

    fn delete_key(&self, py: Python<'_>, key: &[u8]) -> PyResult<bool> {
        let key = key.to_vec();
        self.run(py, |store, deadline| async move { store.delete_key(&key, deadline).await })
    }

    fn num_keys(&self, py: Python<'_>) -> PyResult<i64> {
        self.run(py, |store, deadline| async move { store.num_keys(deadline).await })
    }

    fn list_keys<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let keys =
            self.run(py, |store, deadline| async move { store.list_keys(deadline).await })?;
        Ok(keys.iter().map(|key| PyBytes::new(py, key)).collect())
    }

    fn append(&self, py: Python<'_>, key: &[u8], value: &[u8]) -> PyResult<()> {
        let (key, value) = (key.to_vec(), value.to_vec());
        self.run(py, |store, deadline| async move { store.append(&key, &value, deadline).await })
    }

    fn multi_get<'py>(
        &self,
        py: Python<'py>,
        keys: Vec<PyBackedBytes>,
        timeout_s: f64,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let (keys, timeout) = (owned(keys), timeout(timeout_s)?);
        let values =
            self.run(py, |store, _| async move { store.multi_get(&keys, timeout).await })?;
        Ok(values.iter().map(|value| PyBytes::new(py, value)).collect())
    }

    fn multi_set(
        &self,
        py: Python<'_>,
        keys: Vec<PyBackedBytes>,
        values: Vec<PyBackedBytes>,
    ) -> PyResult<()> {
        let (keys, values) = (owned(keys), owned(values));
        self.run(
            py,
            |store, deadline| async move { store.multi_set(&keys, &values, deadline).await },
        )
    }

    fn queue_push(&self, py: Python<'_>, key: &[u8], value: &[u8]) -> PyResult<()> {
        let (key, value) = (key.to_vec(), value.to_vec());
        self.run(
            py,
            |store, deadline| async move { store.queue_push(&key, &value, deadline).await },
        )
    }

    /// Waits up to `timeout_s`; with `None` an empty queue is an error at once.
    #[pyo3(signature = (key, timeout_s))]
    fn queue_pop<'py>(
        &self,
        py: Python<'py>,
        key: &[u8],
        timeout_s: Option<f64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (key, timeout) = (key.to_vec(), timeout_s.map(timeout).transpose()?);
        let request_timeout = self.request_timeout;
        let value = self.run(py, |store, _| async move {
            store.queue_pop(&key, timeout, request_timeout).await
        })?;
        Ok(PyBytes::new(py, &value))
    }

    fn queue_len(&self, py: Python<'_>, key: &[u8]) -> PyResult<i64> {
        let key = key.to_vec();
        self.run(py, |store, deadline| async move { store.queue_len(&key, deadline).await })
    }
}

pub(crate) fn owned(keys: Vec<PyBackedBytes>) -> Vec<Vec<u8>> {
    keys.into_iter().map(|key| key.to_vec()).collect()
}

/// A negative time to wait is none.
pub(crate) fn timeout(seconds: f64) -> PyResult<Duration> {
    convert::duration("timeout_s", seconds.max(0.0))
}
