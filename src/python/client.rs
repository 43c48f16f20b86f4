//! `Client`: etcd's own operations, for the python-etcd shaped client and as the address of stores
//! and handlers.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::convert;
use super::errors::{etcd_error, invalid_endpoint};
use super::wait::{wait, wait_until};
use crate::etcd::{
    self, Client, Config, Credentials, Endpoint, EtcdError, Knowledge, Password, Repeat, TlsFiles,
    WatchMessage, WatchSpec,
};
use crate::process::PerProcess;

/// A connection to an etcd cluster that is made at the first call, and again in a forked child.
#[pyclass(name = "Client", module = "torchetcd._torchetcd", frozen)]
pub struct PyClient {
    config: Config,
    /// Those that are used at present. Locked only while attached to Python, and nothing of Python is done meanwhile, so
    /// that no fork from Python finds it locked.
    endpoints: Mutex<Listed>,
    client: PerProcess<Client>,
}

/// Those to try first, and the rest.
type Listed = (Vec<Endpoint>, Vec<Endpoint>);

impl PyClient {
    pub fn client(&self) -> Client {
        let made = self.client.get_or_make(|| {
            let client = Client::new(self.config.clone());
            let (first, rest) = self.listed().clone();
            client.set_endpoints(first, rest);
            client
        });
        made.clone()
    }

    fn listed(&self) -> MutexGuard<'_, Listed> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }
}

#[pymethods]
impl PyClient {
    #[new]
    #[pyo3(signature = (
        endpoints, *, tls=false, ca_cert=None, cert=None, key=None, user=None, password=None,
        password_file=None, connect_timeout_s=5.0, request_timeout_s=60.0, cluster_id=None
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python constructor")]
    fn new(
        endpoints: &str,
        tls: bool,
        ca_cert: Option<PathBuf>,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
        user: Option<String>,
        password: Option<String>,
        password_file: Option<PathBuf>,
        connect_timeout_s: f64,
        request_timeout_s: f64,
        cluster_id: Option<u64>,
    ) -> PyResult<Self> {
        let endpoints =
            etcd::parse_endpoints(endpoints, tls).map_err(|error| invalid_endpoint(&error))?;
        let password = match (password, password_file) {
            (Some(_), Some(_)) => {
                return Err(PyValueError::new_err(
                    "A password and a file with a password were given: only one of them can be.",
                ));
            }
            (Some(password), None) => Some(Password::Given(password)),
            (None, file) => file.map(Password::File),
        };
        let credentials = match (user, password) {
            (Some(user), Some(password)) => Some(Credentials { user, password }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(PyValueError::new_err("A user was given without a password."));
            }
            (None, Some(_)) => {
                return Err(PyValueError::new_err("A password was given without a user."));
            }
        };
        let config = Config {
            endpoints,
            tls: TlsFiles { ca_cert, cert, key },
            credentials,
            connect_timeout: convert::duration("connect_timeout_s", connect_timeout_s)?,
            request_timeout: convert::duration("request_timeout_s", request_timeout_s)?,
            as_it_is: false,
            cluster: cluster_id,
        };
        let endpoints = Mutex::new((config.endpoints.clone(), Vec::new()));
        Ok(Self { config, endpoints, client: PerProcess::new() })
    }

    #[getter]
    fn endpoints(&self) -> Vec<String> {
        let listed = self.listed();
        listed.0.iter().chain(&listed.1).map(ToString::to_string).collect()
    }

    /// Replaces the endpoints, for stores and handlers that share this client too. It asks nobody: a connection goes on
    /// for as long as it works. Each attempt to connect tries all of `endpoints`, then a few of the `rest`.
    #[pyo3(signature = (endpoints, rest=Vec::new()))]
    #[allow(clippy::needless_pass_by_value, reason = "what Python gives")]
    fn set_endpoints(&self, endpoints: Vec<String>, rest: Vec<String>) -> PyResult<()> {
        let parsed = |list: &[String]| {
            let each = list.iter().map(|text| etcd::parse_endpoints(text, self.tls()));
            let all = each.collect::<Result<Vec<_>, _>>().map_err(|error| invalid_endpoint(&error));
            all.map(|lists| lists.concat())
        };
        let listed = (parsed(&endpoints)?, parsed(&rest)?);
        if listed.0.is_empty() && listed.1.is_empty() {
            return Err(PyValueError::new_err("A client needs at least one endpoint of etcd."));
        }
        self.listed().clone_from(&listed);
        self.client().set_endpoints(listed.0, listed.1);
        Ok(())
    }

    #[pyo3(signature = (compares, success, failure, timeout_s=None))]
    fn txn<'py>(
        &self,
        py: Python<'py>,
        compares: &Bound<'py, PyList>,
        success: &Bound<'py, PyList>,
        failure: &Bound<'py, PyList>,
        timeout_s: Option<f64>,
    ) -> PyResult<(bool, i64, Bound<'py, PyList>)> {
        let txn = convert::txn(compares, success, failure)?;
        let reply = self.run(py, timeout_s, move |client, deadline| async move {
            client.txn(&txn, Repeat::Never, deadline).await
        })?;
        Ok((reply.succeeded, reply.revision, convert::replies(py, &reply.replies)?))
    }

    /// Blocks until an event at or after `start_revision`, then the revision of the last one and
    /// all of them; `None` when `timeout_s` passed first.
    fn watch<'py>(
        &self,
        py: Python<'py>,
        key: Vec<u8>,
        range_end: Option<Vec<u8>>,
        start_revision: i64,
        timeout_s: f64,
    ) -> PyResult<Option<(i64, Vec<Bound<'py, PyTuple>>)>> {
        let limit = convert::duration("timeout_s", timeout_s)?;
        let client = self.client();
        let message = wait_until(py, Some(limit), async move {
            let spec = WatchSpec { key, range_end, start_revision, ..WatchSpec::default() };
            let mut watch = client.watch(spec);
            loop {
                match watch.next().await {
                    WatchMessage::Started(_) => {}
                    message => return message,
                }
            }
        })?;
        match message {
            None | Some(WatchMessage::Started(_)) => Ok(None),
            Some(WatchMessage::Events(events)) => {
                let revision = events.last().map_or(0, |event| event.kv().mod_revision);
                let events = events.iter().map(|event| convert::event(py, event));
                Ok(Some((revision, events.collect::<PyResult<_>>()?)))
            }
            Some(WatchMessage::Compacted { oldest }) => {
                Err(etcd_error(py, &EtcdError::Compacted { requested: start_revision, oldest }))
            }
            Some(WatchMessage::HistoryLost) => Err(etcd_error(py, &EtcdError::HistoryLost)),
            Some(WatchMessage::Failed(error)) => Err(etcd_error(py, &error)),
        }
    }

    #[pyo3(signature = (ttl_s, lease_id=0))]
    fn lease_grant(&self, py: Python<'_>, ttl_s: u64, lease_id: i64) -> PyResult<i64> {
        let id = if lease_id == 0 { etcd::unique_lease_id() } else { lease_id };
        self.run(py, None, move |client, deadline| async move {
            client.grant(id, Duration::from_secs(ttl_s), deadline).await
        })?;
        Ok(id)
    }

    fn lease_revoke(&self, py: Python<'_>, lease_id: i64) -> PyResult<()> {
        self.run(py, None, move |client, deadline| async move {
            client.revoke(lease_id, deadline).await
        })
    }

    /// Whether etcd still has the lease, which has its whole TTL again then.
    fn lease_keep_alive_once(&self, py: Python<'_>, lease_id: i64) -> PyResult<bool> {
        self.run(py, None, move |client, deadline| async move {
            client.renew_once(lease_id, deadline).await
        })
    }

    /// Remaining and granted seconds; the first is -1 when etcd does not have the lease.
    fn lease_time_to_live(&self, py: Python<'_>, lease_id: i64) -> PyResult<(i64, i64)> {
        let found = self.run(py, None, move |client, deadline| async move {
            client.time_to_live(lease_id, deadline).await
        })?;
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Ok(found.map_or((-1, 0), |(left, granted)| (seconds(left), seconds(granted))))
    }

    #[pyo3(signature = (timeout_s=None))]
    fn version(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<String> {
        self.run(py, timeout_s, |client, deadline| async move { client.version(deadline).await })
    }

    #[pyo3(signature = (timeout_s=None))]
    fn members(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<Vec<String>> {
        self.run(
            py,
            timeout_s,
            |client, deadline| async move { client.member_urls(deadline).await },
        )
    }

    /// What the member at that endpoint says of itself, by a connection of its own, also where it has no leader or is a
    /// learner; without one any member that serves.
    #[pyo3(signature = (endpoint=None, timeout_s=None))]
    fn status(
        &self,
        py: Python<'_>,
        endpoint: Option<&str>,
        timeout_s: Option<f64>,
    ) -> PyResult<convert::StatusParts> {
        let endpoint = convert::endpoint(endpoint, self.tls())?;
        let status = self.run(py, timeout_s, |client, deadline| async move {
            client.status(endpoint, deadline).await
        })?;
        Ok(convert::status(status))
    }

    /// All members. With `linearizable=False` it is what one member knows, by a connection of its own. It needs no
    /// leader, but has to be a voter that has had a leader since it started.
    #[pyo3(signature = (timeout_s=None, linearizable=true, endpoint=None))]
    fn member_list(
        &self,
        py: Python<'_>,
        timeout_s: Option<f64>,
        linearizable: bool,
        endpoint: Option<&str>,
    ) -> PyResult<Vec<convert::MemberParts>> {
        let endpoint = convert::endpoint(endpoint, self.tls())?;
        let knowledge = if linearizable { Knowledge::Cluster } else { Knowledge::Member };
        let members = self.run(py, timeout_s, move |client, deadline| async move {
            client.member_list(endpoint, knowledge, deadline).await
        })?;
        Ok(convert::members(members))
    }

    /// The id of the new member, and all members. Not sent again after an answer that was lost.
    #[pyo3(signature = (peer_urls, is_learner, timeout_s=None))]
    fn member_add(
        &self,
        py: Python<'_>,
        peer_urls: Vec<String>,
        is_learner: bool,
        timeout_s: Option<f64>,
    ) -> PyResult<(u64, Vec<convert::MemberParts>)> {
        let (id, members) = self.run(py, timeout_s, move |client, deadline| async move {
            client.member_add(peer_urls, is_learner, deadline).await
        })?;
        Ok((id, convert::members(members)))
    }

    /// All members. One that votes already counts as promoted.
    #[pyo3(signature = (member_id, timeout_s=None))]
    fn member_promote(
        &self,
        py: Python<'_>,
        member_id: u64,
        timeout_s: Option<f64>,
    ) -> PyResult<Vec<convert::MemberParts>> {
        let members = self.run(py, timeout_s, move |client, deadline| async move {
            client.member_promote(member_id, deadline).await
        })?;
        Ok(convert::members(members))
    }

    /// All members. A missing one counts as removed.
    #[pyo3(signature = (member_id, timeout_s=None))]
    fn member_remove(
        &self,
        py: Python<'_>,
        member_id: u64,
        timeout_s: Option<f64>,
    ) -> PyResult<Vec<convert::MemberParts>> {
        let members = self.run(py, timeout_s, move |client, deadline| async move {
            client.member_remove(member_id, deadline).await
        })?;
        Ok(convert::members(members))
    }

    fn close(&self) {
        if let Some(client) = self.client.get() {
            client.close();
        }
    }
}

impl PyClient {
    /// For endpoints that name no scheme: what the others have.
    pub fn tls(&self) -> bool {
        self.config.endpoints.iter().any(|known| known.tls)
    }

    fn run<T, F, Fut>(&self, py: Python<'_>, timeout_s: Option<f64>, request: F) -> PyResult<T>
    where
        T: Send + 'static,
        F: FnOnce(Client, tokio::time::Instant) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>> + Send + 'static,
    {
        let timeout = timeout_s.map(|value| convert::duration("timeout_s", value)).transpose()?;
        let client = self.client();
        let deadline = client.deadline_after(timeout);
        wait(py, request(client, deadline))?.map_err(|error| etcd_error(py, &error))
    }
}
