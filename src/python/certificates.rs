//! `quorum_certificates`: TLS for an etcd that the agents of a job run among themselves.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::certificates::{CertificatesError, certificates};

/// The certificate of the CA that all who have the secret share, a certificate of one's own for these hosts, and its
/// key, all in PEM. Without hosts it is one for clients only.
#[pyfunction]
#[allow(clippy::needless_pass_by_value, reason = "what Python gives")]
pub fn quorum_certificates(
    secret: &[u8],
    hosts: Vec<String>,
) -> PyResult<(String, String, String)> {
    match certificates(secret, &hosts) {
        Ok(made) => Ok((made.ca, made.cert, made.key.to_string())),
        Err(error @ CertificatesError::Library(_)) => {
            Err(PyRuntimeError::new_err(error.to_string()))
        }
        Err(error) => Err(PyValueError::new_err(error.to_string())),
    }
}
