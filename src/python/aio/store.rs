//! `AsyncStore`: the c10d store for asyncio, over a `Store`.

use std::sync::Arc;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use tokio::time::Instant;

use super::ask::ask;
use crate::python::errors::store_error;
use crate::python::store::{PyStore, owned, timeout};
use crate::store::{Store, StoreError};

/// A view of a `Store`: what one of them writes the other reads.
#[pyclass(module = "torchetcd._torchetcd", frozen)]
pub struct AsyncStore {
    store: Py<PyStore>,
}

#[pymethods]
impl AsyncStore {
    #[new]
    fn new(store: Py<PyStore>) -> Self {
        Self { store }
    }

    fn set<'py>(&self, py: Python<'py>, key: &[u8], value: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        let (key, value) = (key.to_vec(), value.to_vec());
        self.ask(py, |store, deadline| async move { store.set(&key, &value, deadline).await }, none)
    }

    fn get<'py>(&self, py: Python<'py>, key: &[u8], timeout_s: f64) -> PyResult<Bound<'py, PyAny>> {
        let (key, limit) = (key.to_vec(), timeout(timeout_s)?);
        self.ask(py, |store, _| async move { store.get(&key, limit).await }, bytes)
    }

    fn add<'py>(&self, py: Python<'py>, key: &[u8], n: i64) -> PyResult<Bound<'py, PyAny>> {
        let key = key.to_vec();
        self.ask(py, |store, deadline| async move { store.add(&key, n, deadline).await }, plain)
    }

    fn check<'py>(&self, py: Python<'py>, keys: Vec<PyBackedBytes>) -> PyResult<Bound<'py, PyAny>> {
        let keys = owned(keys);
        self.ask(py, |store, deadline| async move { store.check(&keys, deadline).await }, plain)
    }

    fn wait<'py>(
        &self,
        py: Python<'py>,
        keys: Vec<PyBackedBytes>,
        timeout_s: f64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (keys, limit) = (owned(keys), timeout(timeout_s)?);
        self.ask(py, |store, _| async move { store.wait(&keys, limit).await }, none)
    }

    fn compare_set<'py>(
        &self,
        py: Python<'py>,
        key: &[u8],
        expected: &[u8],
        desired: &[u8],
    ) -> PyResult<Bound<'py, PyAny>> {
        let (key, expected, desired) = (key.to_vec(), expected.to_vec(), desired.to_vec());
        self.ask(
            py,
            |store, deadline| async move {
                store.compare_set(&key, &expected, &desired, deadline).await
            },
            bytes,
        )
    }

    fn delete_key<'py>(&self, py: Python<'py>, key: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        let key = key.to_vec();
        self.ask(py, |store, deadline| async move { store.delete_key(&key, deadline).await }, plain)
    }

    fn num_keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, |store, deadline| async move { store.num_keys(deadline).await }, plain)
    }

    fn list_keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, |store, deadline| async move { store.list_keys(deadline).await }, several)
    }

    fn append<'py>(
        &self,
        py: Python<'py>,
        key: &[u8],
        value: &[u8],
    ) -> PyResult<Bound<'py, PyAny>> {
        let (key, value) = (key.to_vec(), value.to_vec());
        self.ask(
            py,
            |store, deadline| async move { store.append(&key, &value, deadline).await },
            none,
        )
    }

    fn multi_get<'py>(
        &self,
        py: Python<'py>,
        keys: Vec<PyBackedBytes>,
        timeout_s: f64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (keys, limit) = (owned(keys), timeout(timeout_s)?);
        self.ask(py, |store, _| async move { store.multi_get(&keys, limit).await }, several)
    }

    fn multi_set<'py>(
        &self,
        py: Python<'py>,
        keys: Vec<PyBackedBytes>,
        values: Vec<PyBackedBytes>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (keys, values) = (owned(keys), owned(values));
        self.ask(
            py,
            |store, deadline| async move { store.multi_set(&keys, &values, deadline).await },
            none,
        )
    }

    fn queue_push<'py>(
        &self,
        py: Python<'py>,
        key: &[u8],
        value: &[u8],
    ) -> PyResult<Bound<'py, PyAny>> {
        let (key, value) = (key.to_vec(), value.to_vec());
        self.ask(
            py,
            |store, deadline| async move { store.queue_push(&key, &value, deadline).await },
            none,
        )
    }

    /// Waits up to `timeout_s`; with `None` an empty queue is an error at once.
    #[pyo3(signature = (key, timeout_s))]
    fn queue_pop<'py>(
        &self,
        py: Python<'py>,
        key: &[u8],
        timeout_s: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (key, limit) = (key.to_vec(), timeout_s.map(timeout).transpose()?);
        let request_timeout = self.store.get().request_timeout();
        self.ask(
            py,
            move |store, _| async move { store.queue_pop(&key, limit, request_timeout).await },
            bytes,
        )
    }

    fn queue_len<'py>(&self, py: Python<'py>, key: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        let key = key.to_vec();
        self.ask(py, |store, deadline| async move { store.queue_len(&key, deadline).await }, plain)
    }
}

impl AsyncStore {
    fn ask<'py, T, F, Fut>(
        &self,
        py: Python<'py>,
        operation: F,
        convert: fn(Python<'_>, T) -> PyResult<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Store>, Instant) -> Fut,
        Fut: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let store = self.store.get();
        let deadline = Instant::now() + store.request_timeout();
        ask(py, operation(store.store(), deadline), move |py, answer| match answer {
            Ok(answer) => convert(py, answer),
            Err(error) => Err(store_error(py, &error)),
        })
    }
}

#[allow(clippy::unnecessary_wraps, reason = "one of several functions of one type")]
fn none(py: Python<'_>, (): ()) -> PyResult<Py<PyAny>> {
    Ok(py.None())
}

fn plain<T: for<'a> IntoPyObject<'a>>(py: Python<'_>, value: T) -> PyResult<Py<PyAny>> {
    value.into_py_any(py)
}

#[allow(clippy::needless_pass_by_value, reason = "one of several functions of one type")]
fn bytes(py: Python<'_>, value: Vec<u8>) -> PyResult<Py<PyAny>> {
    PyBytes::new(py, &value).into_py_any(py)
}

#[allow(clippy::needless_pass_by_value, reason = "one of several functions of one type")]
fn several(py: Python<'_>, values: Vec<Vec<u8>>) -> PyResult<Py<PyAny>> {
    values.iter().map(|value| PyBytes::new(py, value)).collect::<Vec<_>>().into_py_any(py)
}
