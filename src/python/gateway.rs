//! `Gateway`: what an agent serves to its own workers, for `worker_store=gateway`.

use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;

use super::runtime;
use super::store::PyStore;
use crate::gateway::Gateway;
use crate::process::PerProcess;

/// A server on the host's loopback. A forked child has none: it belongs to the process that made it.
#[pyclass(name = "Gateway", module = "torchetcd._torchetcd", frozen)]
pub struct PyGateway {
    serving: PerProcess<Mutex<Option<Serving>>>,
}

struct Serving {
    gateway: Gateway,
    /// No Python thread waits for it.
    _background: Box<dyn Send>,
}

impl PyGateway {
    fn with<T>(&self, use_it: impl FnOnce(&Gateway) -> T) -> PyResult<T> {
        let serving =
            self.serving.get().map(|it| it.lock().unwrap_or_else(PoisonError::into_inner));
        match serving.as_ref().and_then(|serving| serving.as_ref()) {
            Some(serving) => {
                let _runtime = runtime::handle().enter();
                Ok(use_it(&serving.gateway))
            }
            None => Err(PyRuntimeError::new_err(
                "This gateway is closed, or belongs to the process that this one was forked from.",
            )),
        }
    }
}

#[pymethods]
impl PyGateway {
    /// Listens at the first of the ports that is free; 0 is any. With `user` it answers processes of that user id only.
    #[new]
    #[allow(clippy::needless_pass_by_value, reason = "an argument of a Python constructor")]
    fn new(ports: Vec<u16>, user: Option<u32>) -> PyResult<Self> {
        let runtime = runtime::handle();
        let _runtime = runtime.enter();
        let gateway = Gateway::open(&ports, user)
            .map_err(|error| PyOSError::new_err((error.raw_os_error(), error.to_string())))?;
        let serving = PerProcess::new();
        let background = Box::new(runtime::in_background());
        serving.get_or_make(|| Mutex::new(Some(Serving { gateway, _background: background })));
        Ok(Self { serving })
    }

    /// Host and port, as workers connect to it.
    #[getter]
    fn address(&self) -> PyResult<(String, u16)> {
        let address = self.with(Gateway::address)?;
        Ok((address.ip().to_string(), address.port()))
    }

    /// Serves a store from now on, and ends the connections to the last one.
    fn serve(&self, store: &PyStore) -> PyResult<()> {
        self.with(|gateway| gateway.serve(store.round()))
    }

    /// What people should know of, since the last time; nothing where it is closed.
    fn remarks(&self) -> Vec<String> {
        self.with(Gateway::remarks).unwrap_or_default()
    }

    /// Ends it. Does nothing in a forked child.
    fn close(&self) {
        if let Some(serving) = self.serving.get() {
            drop(serving.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}
