//! `AsyncStore`: the c10d store for asyncio, over a `Store`.

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use super::ask::ask;
use crate::python::errors::store_error;
use crate::python::store::PyStore;
use crate::python::store_methods::{owned, reply, store_methods, timeout};
use crate::store::StoreRequest;

/// A view of a `Store`: what one of them writes the other reads.
#[pyclass(module = "torchetcd._torchetcd", frozen)]
pub struct AsyncStore {
    store: Py<PyStore>,
}

impl AsyncStore {
    fn ask<'py>(&self, py: Python<'py>, request: StoreRequest) -> PyResult<Bound<'py, PyAny>> {
        let store = self.store.get();
        let (store, limit) = (store.store(), store.request_timeout());
        let answer = async move { store.handle(request, limit).await };
        ask(py, answer, |py, answer| match answer {
            Ok(answer) => reply(py, answer).map(Bound::unbind),
            Err(error) => Err(store_error(py, &error)),
        })
    }
}

store_methods! { AsyncStore {
    #[new]
    fn new(store: Py<PyStore>) -> Self {
        Self { store }
    }
} }
