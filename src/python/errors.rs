//! The one place where the core's errors become Python exceptions. Those are defined in Python, on
//! torch's bases, and looked up by name when the first one is raised: `import torchetcd` must not
//! import torch, and a look-up that fails (an interpreter that is shutting down) must not panic as
//! pyo3's `import_exception!` does.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::etcd::{EtcdError, InvalidEndpoint, Refusal};
use crate::rendezvous::RendezvousError;
use crate::store::StoreError;

const CLIENT: &str = "torchetcd.etcd";
const STORE: &str = "torchetcd.errors";
const RENDEZVOUS: &str = "torch.distributed.elastic.rendezvous.api";

fn raise(py: Python<'_>, module: &str, class: &str, text: String) -> PyErr {
    let made = py.import(module).and_then(|module| module.getattr(class)?.call1((text,)));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// As the python-etcd shaped client raises it; also the cause chained to other exceptions.
pub fn etcd_error(py: Python<'_>, error: &EtcdError) -> PyErr {
    let text = error.to_string();
    let class = match error {
        EtcdError::Unreachable { .. } | EtcdError::Untrusted { .. } => "EtcdConnectionFailed",
        EtcdError::Ambiguous { .. } => "EtcdAmbiguous",
        EtcdError::Compacted { .. } | EtcdError::HistoryLost => "EtcdEventIndexCleared",
        EtcdError::Refused { kind, .. } => match kind {
            Refusal::PermissionDenied | Refusal::AuthenticationFailed => {
                "EtcdInsufficientPermissions"
            }
            Refusal::NoSpace => "EtcdNoSpace",
            _ => "EtcdException",
        },
        EtcdError::Closed => return PyRuntimeError::new_err(text),
        EtcdError::Configuration(_) => return PyValueError::new_err(text),
    };
    let raised = raise(py, CLIENT, class, text);
    if let EtcdError::Refused { kind, .. } = error
        && let Err(error) = raised.value(py).setattr("refusal", kind.name())
    {
        return error;
    }
    raised
}

pub fn invalid_endpoint(error: &InvalidEndpoint) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// As torch's handlers raise it; a failure of etcd is chained as the cause.
pub fn rendezvous_error(py: Python<'_>, error: &RendezvousError) -> PyErr {
    let text = error.to_string();
    match error {
        RendezvousError::Closed(_) => raise(py, RENDEZVOUS, "RendezvousClosedError", text),
        RendezvousError::Timeout(_) => raise(py, RENDEZVOUS, "RendezvousTimeoutError", text),
        RendezvousError::Unreadable(_) | RendezvousError::Replaced { .. } => {
            raise(py, RENDEZVOUS, "RendezvousStateError", text)
        }
        RendezvousError::Denied(_) => raise(py, STORE, "RendezvousDeniedError", text),
        RendezvousError::Left => PyRuntimeError::new_err(text),
        RendezvousError::Etcd(cause) => {
            let raised = raise(py, RENDEZVOUS, "RendezvousConnectionError", text);
            raised.set_cause(py, Some(etcd_error(py, cause)));
            raised
        }
    }
}

pub fn state_error(py: Python<'_>, text: String) -> PyErr {
    raise(py, RENDEZVOUS, "RendezvousStateError", text)
}

/// As torch's stores raise it; a failure of etcd is chained as the cause.
pub fn store_error(py: Python<'_>, error: &StoreError) -> PyErr {
    let text = error.to_string();
    let (class, cause) = match error {
        StoreError::Timeout { .. } => ("StoreTimeoutError", None),
        StoreError::MemberLost { .. } => ("MemberLostError", None),
        StoreError::QueueEmpty { .. } => ("QueueEmptyError", None),
        StoreError::LeaseLost | StoreError::Foreign { .. } => ("StoreError", None),
        StoreError::NotAnInteger { .. }
        | StoreError::TooLarge { .. }
        | StoreError::UnevenLists { .. } => return PyValueError::new_err(text),
        StoreError::OutcomeUnknown { cause, .. } => ("StoreOutcomeUnknownError", Some(cause)),
        StoreError::Etcd(cause) => match cause {
            EtcdError::Unreachable { .. } | EtcdError::Untrusted { .. } => {
                ("StoreConnectionError", Some(cause))
            }
            EtcdError::Ambiguous { .. } => ("StoreOutcomeUnknownError", Some(cause)),
            EtcdError::Refused { kind: Refusal::TooLarge, .. } => {
                return PyValueError::new_err(text);
            }
            EtcdError::Closed | EtcdError::Configuration(_) => return etcd_error(py, cause),
            EtcdError::Compacted { .. } | EtcdError::HistoryLost | EtcdError::Refused { .. } => {
                ("StoreError", Some(cause))
            }
        },
    };
    let raised = raise(py, STORE, class, text);
    if let Some(cause) = cause {
        raised.set_cause(py, Some(etcd_error(py, cause)));
    }
    raised
}
