//! The end of the interpreter, in two steps: nodes take leave and none may join any more; then the threads end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pyo3::prelude::*;

use super::{aio, runtime};

/// How long the end of the interpreter waits for each thread.
const END: Duration = Duration::from_secs(1);

static ENDING: AtomicBool = AtomicBool::new(false);

/// Whether [`begin_end`] was called. Looked at with the GIL held, under which it is called.
pub fn ending() -> bool {
    ENDING.load(Ordering::SeqCst)
}

/// Says that the interpreter is about to end.
#[pyfunction]
pub fn begin_end() {
    ENDING.store(true, Ordering::SeqCst);
}

/// Ends the runtime's thread and that of asyncio's futures. The package registers it with `atexit`: a thread that
/// outlives the interpreter can crash it (pyo3-async-runtimes issue 40).
#[pyfunction]
pub fn shutdown(py: Python<'_>) {
    runtime::end(END);
    aio::end(py, END);
}
