//! From a future of etcd's runtime to one of asyncio.

use std::future::Future;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3_async_runtimes::TaskLocals;
use pyo3_async_runtimes::generic::future_into_py_with_locals;
use tokio::task::JoinHandle;

use super::bridge::AsyncioRuntime;
use crate::python::runtime;

/// Runs `future` on the runtime. What is returned is a future of the running event loop, with the result
/// that `convert` makes of the output; cancelling it drops `future`.
pub fn ask<'py, T, F, C>(py: Python<'py>, future: F, convert: C) -> PyResult<Bound<'py, PyAny>>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
    C: for<'a> FnOnce(Python<'a>, T) -> PyResult<Py<PyAny>> + Send + 'static,
{
    if runtime::ended() {
        return Err(PyRuntimeError::new_err(
            "the runtime of torchetcd has ended: the interpreter is shutting down",
        ));
    }
    let locals = TaskLocals::with_running_loop(py)?;
    let driven = runtime::in_background();
    let mut running = Running(runtime::handle().spawn(future));
    future_into_py_with_locals::<AsyncioRuntime, _, _>(py, locals, async move {
        let output = (&mut running.0).await;
        drop(driven);
        Ok(Reply(Box::new(move |py| match output {
            Ok(output) => convert(py, output),
            Err(_) => Err(PyRuntimeError::new_err(
                "an operation of torchetcd panicked: this is a bug in it",
            )),
        })))
    })
}

/// Ends with whoever waits for it.
struct Running<T>(JoinHandle<T>);

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer that becomes a value of Python, or an exception, where that may be made.
struct Reply(Box<Made>);

type Made = dyn for<'a> FnOnce(Python<'a>) -> PyResult<Py<PyAny>> + Send;

impl<'py> IntoPyObject<'py> for Reply {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        (self.0)(py).map(|made| made.into_bound(py))
    }
}
