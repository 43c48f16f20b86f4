//! `AsyncWatch`: one watch of etcd, whose messages are awaited one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::sync::{Mutex, watch};

use super::ask::ask;
use crate::etcd::{EtcdError, WatchMessage, WatchReceiver};
use crate::process::PerProcess;
use crate::python::convert;
use crate::python::errors::etcd_error;
use crate::python::runtime;

/// Ends at etcd when it is gone.
#[pyclass(module = "torchetcd._torchetcd", frozen)]
pub struct AsyncWatch {
    /// Of the process that began it: in a forked child nothing comes.
    watch: PerProcess<Arc<Mutex<Watch>>>,
    start_revision: i64,
    closed: watch::Sender<bool>,
    /// 0 where compaction did not end it.
    oldest: Arc<AtomicI64>,
}

struct Watch {
    /// `None` once it was closed.
    receiver: Option<WatchReceiver>,
    /// What was received and not taken: a call that is cancelled must lose nothing.
    message: Option<Arc<WatchMessage>>,
}

impl AsyncWatch {
    pub fn new(receiver: WatchReceiver, start_revision: i64) -> Self {
        let watch = PerProcess::new();
        watch.get_or_make(|| {
            Arc::new(Mutex::new(Watch { receiver: Some(receiver), message: None }))
        });
        Self { watch, start_revision, closed: watch::Sender::new(false), oldest: Arc::default() }
    }
}

#[pymethods]
impl AsyncWatch {
    /// The next message, and the same one again until `take`: `(revision, None)` when the watch has
    /// begun, which sees all after that revision, and `(revision, events)` from then on.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let Some(watch) = self.watch.get().cloned() else {
            return Err(PyRuntimeError::new_err(
                "This watch belongs to another process, from which this one was forked: begin a new one here.",
            ));
        };
        let requested = self.start_revision;
        let (known, mut closed) = (self.oldest.clone(), self.closed.subscribe());
        let next = async move {
            let mut watch = watch.lock().await;
            let Watch { receiver, message } = &mut *watch;
            if let (Some(receiver), None) = (receiver, &*message) {
                tokio::select! {
                    next = receiver.next() => *message = Some(Arc::new(next)),
                    _ = closed.wait_for(|closed| *closed) => {}
                }
            }
            message.clone().unwrap_or_else(|| Arc::new(WatchMessage::Failed(EtcdError::Closed)))
        };
        ask(py, next, move |py, message| {
            let error = match &*message {
                WatchMessage::Started(revision) => {
                    return (*revision, py.None()).into_py_any(py);
                }
                WatchMessage::Events(events) => {
                    let revision = events.last().map_or(0, |event| event.kv().mod_revision);
                    let events = events.iter().map(|event| convert::event(py, event));
                    let events = events.collect::<PyResult<Vec<_>>>()?;
                    return (revision, events).into_py_any(py);
                }
                WatchMessage::Compacted { oldest } => {
                    let oldest = *oldest;
                    known.store(oldest, Ordering::SeqCst);
                    EtcdError::Compacted { requested, oldest }
                }
                WatchMessage::HistoryLost => EtcdError::HistoryLost,
                WatchMessage::Failed(error) => error.clone(),
            };
            Err(etcd_error(py, &error))
        })
    }

    /// The oldest revision that etcd has, where compaction has ended the watch.
    #[getter]
    fn compacted(&self) -> Option<i64> {
        Some(self.oldest.load(Ordering::SeqCst)).filter(|oldest| *oldest > 0)
    }

    /// Ends the watch, and a call of `next` that is under way.
    fn close(&self) {
        let Some(watch) = self.watch.get().cloned() else { return };
        self.closed.send_replace(true);
        // A call that was cancelled may be about to let go of it.
        runtime::handle().spawn(async move { watch.lock().await.receiver = None });
    }

    /// What `next` gave is done with.
    fn take(&self) {
        // Held only while a call waits, and then there is nothing to be taken.
        if let Some(Ok(mut watch)) = self.watch.get().map(|watch| watch.try_lock()) {
            watch.message = None;
        }
    }
}
