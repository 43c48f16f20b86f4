//! The tokio runtime: one for the process, started at first use, two named threads.

use std::sync::Mutex;
use std::time::Duration;

use pyo3::prelude::*;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::process::PerProcess;

static RUNTIME: PerProcess<Mutex<State>> = PerProcess::new();

struct State {
    runtime: Option<Runtime>,
    handle: Handle,
}

/// The handle of this process's runtime. Its threads never attach to Python.
pub fn handle() -> Handle {
    let state = RUNTIME.get_or_make(|| {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("torchetcd")
            .enable_all()
            .build()
            .unwrap_or_else(|error| panic!("the runtime's threads cannot be started: {error}"));
        Mutex::new(State { handle: runtime.handle().clone(), runtime: Some(runtime) })
    });
    lock(state).handle.clone()
}

/// Whether [`shutdown`] was called.
pub fn ended() -> bool {
    RUNTIME.get().is_some_and(|state| lock(state).runtime.is_none())
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Ends the runtime's threads. Registered with `atexit` by the package: a thread that outlives the
/// interpreter can crash it (pyo3-async-runtimes issue 40).
#[pyfunction]
pub fn shutdown(py: Python<'_>) {
    py.detach(|| {
        if let Some(state) = RUNTIME.get() {
            let runtime = lock(state).runtime.take();
            if let Some(runtime) = runtime {
                runtime.shutdown_timeout(Duration::from_secs(1));
            }
        }
    });
}
