//! The one way to wait for the runtime from a Python thread.

use std::future::Future;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::runtime;

/// Python runs signal handlers only when asked to: this often while we wait.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

/// Runs `future` on the runtime and waits for it without the GIL. A signal handler that raises ends
/// the wait with its exception and drops the future.
pub fn wait<T, F>(py: Python<'_>, future: F) -> PyResult<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    wait_until(py, None, future)?.ok_or_else(|| PyRuntimeError::new_err("the wait ended early"))
}

/// As [`wait`]; `None` when `limit` has passed first, and then the future is dropped.
pub fn wait_until<T, F>(py: Python<'_>, limit: Option<Duration>, future: F) -> PyResult<Option<T>>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (sender, mut receiver) = sync_channel(1);
    let task = runtime::handle().spawn(async move {
        // The receiver is gone when the wait ended early.
        let _ = sender.send(future.await);
    });
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = deadline.map_or(SIGNAL_CHECK, |at| at.saturating_duration_since(Instant::now()));
        let step = SIGNAL_CHECK.min(left);
        let (returned, received) = py.detach(move || {
            let received = receiver.recv_timeout(step);
            (receiver, received)
        });
        receiver = returned;
        match received {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err(
                    "the runtime of torchetcd has ended: the interpreter is shutting down",
                ));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Err(raised) = py.check_signals() {
                    task.abort();
                    return Err(raised);
                }
                if deadline.is_some_and(|at| Instant::now() >= at) {
                    task.abort();
                    return Ok(None);
                }
            }
        }
    }
}
