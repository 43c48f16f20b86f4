//! The one way to wait for the runtime from a Python thread.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::runtime;
use crate::process::generation;

/// Python runs signal handlers only when asked to: this often while we wait.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);
const UNLIMITED: Duration = Duration::from_secs(365 * 86400);

/// Waits for `future` without the GIL. A signal handler that raises ends the wait with its exception and
/// drops the future.
pub fn wait<T, F>(py: Python<'_>, future: F) -> PyResult<T>
where
    T: Send,
    F: Future<Output = T> + Send,
{
    wait_until(py, None, future)?.ok_or_else(|| PyRuntimeError::new_err("the wait ended early"))
}

/// As [`wait`]; `None` when `limit` has passed first, and then the future is dropped.
pub fn wait_until<T, F>(py: Python<'_>, limit: Option<Duration>, future: F) -> PyResult<Option<T>>
where
    T: Send,
    F: Future<Output = T> + Send,
{
    let deadline = limit.map(|limit| Instant::now() + limit);
    let handles_signals = on_main_thread(py);
    let process = generation();
    let mut future = pin!(future);
    // First this thread drives the runtime itself. Not for longer: it may have to wait for the GIL.
    let mut drive = true;
    loop {
        // Other threads run no signal handlers, so they need not come back to look around.
        let step = if drive || handles_signals { SIGNAL_CHECK } else { UNLIMITED };
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let step = Step {
            future: future.as_mut(),
            limit: left.map_or(step, |left| left.min(step)),
            drive,
            returns: handles_signals,
        };
        let done = py.detach(|| step.run()).map_err(|_| {
            PyRuntimeError::new_err("an operation of torchetcd panicked: this is a bug in it")
        })?;
        if let Some(output) = done {
            return Ok(Some(output));
        }
        if runtime::ended() {
            return Err(PyRuntimeError::new_err(
                "the runtime of torchetcd has ended: the interpreter is shutting down",
            ));
        }
        py.check_signals()?;
        if generation() != process {
            return Err(PyRuntimeError::new_err(
                "this process was forked in the middle of an operation of torchetcd",
            ));
        }
        if deadline.is_some_and(|at| Instant::now() >= at) {
            return Ok(None);
        }
        drive = false;
    }
}

/// A part of a wait, without the GIL.
struct Step<'a, F> {
    future: Pin<&'a mut F>,
    limit: Duration,
    drive: bool,
    /// Also when the interpreter ends.
    returns: bool,
}

impl<F: Future> Step<'_, F> {
    fn run(self) -> std::thread::Result<Option<F::Output>> {
        let Self { future, limit, drive, returns } = self;
        let result = catch_unwind(AssertUnwindSafe(|| {
            if runtime::ended() { None } else { runtime::run(future, limit, drive) }
        }));
        // A thread that takes the GIL while the interpreter ends is unwound by Python, through frames
        // that cannot be. It would end anyway.
        while runtime::ended() && !returns {
            std::thread::park();
        }
        result
    }
}

thread_local! {
    /// The process and whether this is the thread that runs Python's signal handlers in it.
    static ON_MAIN_THREAD: Cell<(u64, bool)> = const { Cell::new((u64::MAX, false)) };
}

/// Whether this is the thread that runs Python's signal handlers; taken for it where Python cannot say.
fn on_main_thread(py: Python<'_>) -> bool {
    let (process, known) = ON_MAIN_THREAD.get();
    if process == generation() {
        return known;
    }
    let asked = py.import("threading").and_then(|threading| {
        let main = threading.call_method0("main_thread")?.getattr("ident")?;
        threading.call_method0("get_ident")?.eq(main)
    });
    let is_main = asked.unwrap_or(true);
    ON_MAIN_THREAD.set((generation(), is_main));
    is_main
}
