//! The one way to wait for the runtime from a Python thread.

use std::future::Future;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::runtime;

/// Python runs signal handlers only when asked to: this often while we wait.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);
const UNLIMITED: Duration = Duration::from_secs(365 * 86400);

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
    // Other threads run no signal handlers. And one that takes the GIL while the interpreter ends is
    // unwound by Python, through frames that cannot be: it must not come back to look around.
    let handles_signals = on_main_thread(py);
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let step = match left {
            Some(left) if handles_signals => SIGNAL_CHECK.min(left),
            None if handles_signals => SIGNAL_CHECK,
            Some(left) => left,
            None => UNLIMITED,
        };
        let (returned, received) = py.detach(move || {
            let received = receiver.recv_timeout(step);
            if matches!(received, Err(RecvTimeoutError::Disconnected))
                && runtime::ended()
                && !handles_signals
            {
                // The interpreter is about to end, and this thread with it.
                loop {
                    std::thread::park();
                }
            }
            (receiver, received)
        });
        receiver = returned;
        match received {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err(if runtime::ended() {
                    "the runtime of torchetcd has ended: the interpreter is shutting down"
                } else {
                    "an operation of torchetcd ended without a result: this is a bug in it"
                }));
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

/// Whether this is the thread that runs Python's signal handlers; taken for it where Python cannot say.
fn on_main_thread(py: Python<'_>) -> bool {
    let asked = py.import("threading").and_then(|threading| {
        let main = threading.call_method0("main_thread")?.getattr("ident")?;
        threading.call_method0("get_ident")?.eq(main)
    });
    asked.unwrap_or(true)
}
