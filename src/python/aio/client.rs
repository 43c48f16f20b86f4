//! `AsyncClient`: etcd's own operations for asyncio, over the connection of a `Client`.

use std::time::Duration;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::ask::ask;
use super::watch::AsyncWatch;
use crate::etcd::kv::Range;
use crate::etcd::{self, Client, EtcdError, Repeat, WatchSpec};
use crate::python::client::PyClient;
use crate::python::convert;
use crate::python::errors::etcd_error;
use crate::python::runtime;

/// A view of a `Client`: it has no connection of its own.
#[pyclass(module = "torchetcd._torchetcd", frozen)]
pub struct AsyncClient {
    client: Py<PyClient>,
}

#[pymethods]
impl AsyncClient {
    #[new]
    fn new(client: Py<PyClient>) -> Self {
        Self { client }
    }

    /// `safely` says that the transaction takes effect once however often it is applied, so that it is sent
    /// again when its answer was lost.
    #[pyo3(signature = (compares, success, failure, *, safely=false, timeout_s=None))]
    fn txn<'py>(
        &self,
        py: Python<'py>,
        compares: &Bound<'py, PyList>,
        success: &Bound<'py, PyList>,
        failure: &Bound<'py, PyList>,
        safely: bool,
        timeout_s: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let txn = convert::txn(compares, success, failure)?;
        let repeat = if safely { Repeat::Safely } else { Repeat::Never };
        self.ask(
            py,
            timeout_s,
            move |client, deadline| async move { client.txn(&txn, repeat, deadline).await },
            |py, reply| {
                (reply.succeeded, reply.revision, convert::replies(py, &reply.replies)?)
                    .into_py_any(py)
            },
        )
    }

    #[pyo3(signature = (
        key, range_end=None, *, limit=0, keys_only=false, count_only=false, revision=0,
        timeout_s=None
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python method")]
    fn range<'py>(
        &self,
        py: Python<'py>,
        key: Vec<u8>,
        range_end: Option<Vec<u8>>,
        limit: i64,
        keys_only: bool,
        count_only: bool,
        revision: i64,
        timeout_s: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let range = Range { key, range_end, limit, keys_only, count_only, revision };
        self.ask(
            py,
            timeout_s,
            move |client, deadline| async move { client.range(&range, deadline).await },
            |py, (revision, reply)| (revision, convert::range_reply(py, &reply)?).into_py_any(py),
        )
    }

    /// `start_revision` 0 means from now on.
    #[pyo3(signature = (key, range_end=None, start_revision=0))]
    fn watch(&self, key: Vec<u8>, range_end: Option<Vec<u8>>, start_revision: i64) -> AsyncWatch {
        let _runtime = runtime::handle().enter();
        let spec = WatchSpec { key, range_end, start_revision, ..WatchSpec::default() };
        AsyncWatch::new(self.client.get().client().watch(spec), start_revision)
    }

    #[pyo3(signature = (ttl_s, lease_id=0))]
    fn lease_grant<'py>(
        &self,
        py: Python<'py>,
        ttl_s: u64,
        lease_id: i64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let id = if lease_id == 0 { etcd::unique_lease_id() } else { lease_id };
        self.ask(
            py,
            None,
            move |client, deadline| async move {
                client.grant(id, Duration::from_secs(ttl_s), deadline).await
            },
            move |py, _granted| id.into_py_any(py),
        )
    }

    fn lease_revoke<'py>(&self, py: Python<'py>, lease_id: i64) -> PyResult<Bound<'py, PyAny>> {
        self.ask(
            py,
            None,
            move |client, deadline| async move { client.revoke(lease_id, deadline).await },
            |py, ()| Ok(py.None()),
        )
    }

    /// Whether etcd still has the lease, which has its whole TTL again then.
    fn lease_keep_alive_once<'py>(
        &self,
        py: Python<'py>,
        lease_id: i64,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.ask(
            py,
            None,
            move |client, deadline| async move { client.renew_once(lease_id, deadline).await },
            |py, there| there.into_py_any(py),
        )
    }

    /// Remaining and granted seconds; `None` when etcd does not have the lease.
    fn lease_time_to_live<'py>(
        &self,
        py: Python<'py>,
        lease_id: i64,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.ask(
            py,
            None,
            move |client, deadline| async move { client.time_to_live(lease_id, deadline).await },
            |py, found| {
                found.map(|(left, granted)| (left.as_secs(), granted.as_secs())).into_py_any(py)
            },
        )
    }

    #[pyo3(signature = (timeout_s=None))]
    fn version<'py>(&self, py: Python<'py>, timeout_s: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        self.ask(
            py,
            timeout_s,
            |client, deadline| async move { client.version(deadline).await },
            |py, version| version.into_py_any(py),
        )
    }

    /// Of that endpoint, by a connection of its own; of any without one.
    #[pyo3(signature = (endpoint=None, *, timeout_s=None))]
    fn status<'py>(
        &self,
        py: Python<'py>,
        endpoint: Option<&str>,
        timeout_s: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let tls = self.client.get().tls();
        let endpoint = convert::endpoint(endpoint, tls)?;
        self.ask(
            py,
            timeout_s,
            |client, deadline| async move { client.status(endpoint, deadline).await },
            |py, status| convert::status(status).into_py_any(py),
        )
    }

    #[pyo3(signature = (timeout_s=None))]
    fn members<'py>(&self, py: Python<'py>, timeout_s: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        self.ask(
            py,
            timeout_s,
            |client, deadline| async move { client.members(deadline).await },
            |py, members| convert::members(members).into_py_any(py),
        )
    }

    #[pyo3(signature = (timeout_s=None))]
    fn alarms<'py>(&self, py: Python<'py>, timeout_s: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        self.ask(
            py,
            timeout_s,
            |client, deadline| async move { client.alarms(deadline).await },
            |py, alarms| {
                let alarms = alarms.into_iter().map(|alarm| (alarm.member, alarm.kind));
                alarms.collect::<Vec<_>>().into_py_any(py)
            },
        )
    }
}

impl AsyncClient {
    fn ask<'py, T, F, Fut, C>(
        &self,
        py: Python<'py>,
        timeout_s: Option<f64>,
        request: F,
        convert: C,
    ) -> PyResult<Bound<'py, PyAny>>
    where
        T: Send + 'static,
        F: FnOnce(Client, tokio::time::Instant) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>> + Send + 'static,
        C: for<'a> FnOnce(Python<'a>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    {
        let timeout = timeout_s.map(|value| convert::duration("timeout_s", value)).transpose()?;
        let client = self.client.get().client();
        let deadline = client.deadline_after(timeout);
        ask(py, request(client, deadline), |py, answer| match answer {
            Ok(answer) => convert(py, answer),
            Err(error) => Err(etcd_error(py, &error)),
        })
    }
}
