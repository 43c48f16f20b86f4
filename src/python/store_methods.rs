//! The methods of a store in Python, once for the blocking class and the one of asyncio: each makes a `StoreRequest`,
//! which the class runs by its own `ask`.

use std::time::Duration;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use super::convert;
use crate::store::StoreReply;

/// The methods of `$class`, after its constructor.
macro_rules! store_methods {
    ($class:ident { $($new:tt)* }) => {
        #[pymethods]
        impl $class {
            $($new)*

            fn set<'py>(
                &self,
                py: Python<'py>,
                key: &[u8],
                value: &[u8],
            ) -> PyResult<Bound<'py, PyAny>> {
                self.ask(py, StoreRequest::Set { key: key.to_vec(), value: value.to_vec() })
            }

            fn get<'py>(
                &self,
                py: Python<'py>,
                key: &[u8],
                timeout_s: f64,
            ) -> PyResult<Bound<'py, PyAny>> {
                let (key, timeout) = (key.to_vec(), timeout(timeout_s)?);
                self.ask(py, StoreRequest::Get { key, timeout })
            }

            fn add<'py>(
                &self,
                py: Python<'py>,
                key: &[u8],
                n: i64,
            ) -> PyResult<Bound<'py, PyAny>> {
                self.ask(py, StoreRequest::Add { key: key.to_vec(), n })
            }

            fn check<'py>(
                &self,
                py: Python<'py>,
                keys: Vec<PyBackedBytes>,
            ) -> PyResult<Bound<'py, PyAny>> {
                self.ask(py, StoreRequest::Check { keys: owned(keys) })
            }

            fn wait<'py>(
                &self,
                py: Python<'py>,
                keys: Vec<PyBackedBytes>,
                timeout_s: f64,
            ) -> PyResult<Bound<'py, PyAny>> {
                let (keys, timeout) = (owned(keys), timeout(timeout_s)?);
                self.ask(py, StoreRequest::Wait { keys, timeout })
            }

            fn compare_set<'py>(
                &self,
                py: Python<'py>,
                key: &[u8],
                expected: &[u8],
                desired: &[u8],
            ) -> PyResult<Bound<'py, PyAny>> {
                let (key, expected, desired) =
                    (key.to_vec(), expected.to_vec(), desired.to_vec());
                self.ask(py, StoreRequest::CompareSet { key, expected, desired })
            }

            fn delete_key<'py>(
                &self,
                py: Python<'py>,
                key: &[u8],
            ) -> PyResult<Bound<'py, PyAny>> {
                self.ask(py, StoreRequest::DeleteKey { key: key.to_vec() })
            }

            fn num_keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                self.ask(py, StoreRequest::NumKeys)
            }

            fn list_keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                self.ask(py, StoreRequest::ListKeys)
            }

            fn append<'py>(
                &self,
                py: Python<'py>,
                key: &[u8],
                value: &[u8],
            ) -> PyResult<Bound<'py, PyAny>> {
                self.ask(py, StoreRequest::Append { key: key.to_vec(), value: value.to_vec() })
            }

            fn multi_get<'py>(
                &self,
                py: Python<'py>,
                keys: Vec<PyBackedBytes>,
                timeout_s: f64,
            ) -> PyResult<Bound<'py, PyAny>> {
                let (keys, timeout) = (owned(keys), timeout(timeout_s)?);
                self.ask(py, StoreRequest::MultiGet { keys, timeout })
            }

            fn multi_set<'py>(
                &self,
                py: Python<'py>,
                keys: Vec<PyBackedBytes>,
                values: Vec<PyBackedBytes>,
            ) -> PyResult<Bound<'py, PyAny>> {
                let (keys, values) = (owned(keys), owned(values));
                self.ask(py, StoreRequest::MultiSet { keys, values })
            }

            fn queue_push<'py>(
                &self,
                py: Python<'py>,
                key: &[u8],
                value: &[u8],
            ) -> PyResult<Bound<'py, PyAny>> {
                let (key, value) = (key.to_vec(), value.to_vec());
                self.ask(py, StoreRequest::QueuePush { key, value })
            }

            /// Waits up to `timeout_s`; with `None` an empty queue is an error at once.
            #[pyo3(signature = (key, timeout_s))]
            fn queue_pop<'py>(
                &self,
                py: Python<'py>,
                key: &[u8],
                timeout_s: Option<f64>,
            ) -> PyResult<Bound<'py, PyAny>> {
                let (key, timeout) = (key.to_vec(), timeout_s.map(timeout).transpose()?);
                self.ask(py, StoreRequest::QueuePop { key, timeout })
            }

            fn queue_len<'py>(
                &self,
                py: Python<'py>,
                key: &[u8],
            ) -> PyResult<Bound<'py, PyAny>> {
                self.ask(py, StoreRequest::QueueLen { key: key.to_vec() })
            }
        }
    };
}

pub(crate) use store_methods;

pub fn owned(keys: Vec<PyBackedBytes>) -> Vec<Vec<u8>> {
    keys.into_iter().map(|key| key.to_vec()).collect()
}

/// A negative time to wait is none.
pub fn timeout(seconds: f64) -> PyResult<Duration> {
    convert::duration("timeout_s", seconds.max(0.0))
}

pub fn reply(py: Python<'_>, reply: StoreReply) -> PyResult<Bound<'_, PyAny>> {
    match reply {
        StoreReply::Done => Ok(py.None().into_bound(py)),
        StoreReply::Bool(yes) => yes.into_bound_py_any(py),
        StoreReply::Number(number) => number.into_bound_py_any(py),
        StoreReply::Value(value) => Ok(PyBytes::new(py, &value).into_any()),
        StoreReply::Values(values) => {
            let values = values.iter().map(|value| PyBytes::new(py, value));
            values.collect::<Vec<_>>().into_bound_py_any(py)
        }
    }
}
