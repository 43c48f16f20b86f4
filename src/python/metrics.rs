//! `metrics()`: what was counted between this process and etcd.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::etcd::metrics::{BOUNDS_S, Labelled, metrics as counted};

/// The counters of this process, as `torchetcd.metrics` reads them. Never waits, and asks nobody.
#[pyfunction]
pub fn metrics(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let snapshot = counted().snapshot();
    let all = PyDict::new(py);
    all.set_item("bounds_s", BOUNDS_S)?;
    let calls = PyDict::new(py);
    for call in snapshot.calls {
        let of = PyDict::new(py);
        of.set_item("results", dict(py, call.ended)?)?;
        of.set_item("classes", call.classes)?;
        of.set_item("seconds", call.seconds)?;
        calls.set_item(call.rpc, of)?;
    }
    all.set_item("rpcs", calls)?;
    for (group, counters) in snapshot.groups {
        all.set_item(group, dict(py, counters)?)?;
    }
    Ok(all)
}

fn dict(py: Python<'_>, counters: Labelled) -> PyResult<Bound<'_, PyDict>> {
    let made = PyDict::new(py);
    for (label, number) in counters {
        made.set_item(label, number)?;
    }
    Ok(made)
}
