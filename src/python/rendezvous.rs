//! `Rendezvous`: one node of a run, for the handler in Python.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;
use tokio::sync::oneshot;

use super::client::PyClient;
use super::convert::{self, duration};
use super::errors::{rendezvous_error, state_error};
use super::store::PyStore;
use super::wait::{wait, wait_until};
use super::{lifecycle, runtime};
use crate::etcd::unique;
use crate::process::PerProcess;
use crate::rendezvous::{
    Close, Ended, Handle, Keys, LONGEST_ADDRESS, LONGEST_LABEL, Labels, Master, NodeInfo,
    OnMemberLoss, Opening, Outcome, RankOrder, Reader, RendezvousError, RoundId, Settings, Tuning,
    VERSION, reopen,
};

/// Round, rank, world size, master address and port.
type Joined = (u64, u32, u32, String, u16);
type Phases = (Option<f64>, Option<f64>, Option<f64>, Option<f64>);
type Joining = oneshot::Receiver<Result<Outcome, RendezvousError>>;
/// By whom, why and when (Unix time); how the job ended and in which words; number and size of the last
/// world; the TTL of what is kept of the run, in seconds.
type Closed = (String, String, u64, Option<String>, Option<String>, Option<u64>, Option<u32>, u64);

/// Of how many rounds this node knows the attempt, for their stores.
const ROUNDS: usize = 4;

/// One node of one run. It belongs to the process that made it: a forked child must not renew or
/// revoke its parent's lease.
#[pyclass(name = "Rendezvous", module = "torchetcd._torchetcd", frozen)]
pub struct PyRendezvous {
    client: Py<PyClient>,
    keys: Keys,
    handle: PerProcess<Handle>,
    pid: u32,
    joining: Mutex<Option<Joining>>,
    /// The rounds that this node was in, the last one first.
    rounds: Mutex<VecDeque<RoundId>>,
}

impl PyRendezvous {
    fn handle(&self) -> PyResult<&Handle> {
        self.handle.get().ok_or_else(|| {
            PyRuntimeError::new_err(format!(
                "This rendezvous belongs to process {} and cannot be used in process {}, which was \
                 forked from it: make a new one here.",
                self.pid,
                std::process::id()
            ))
        })
    }

    /// One that this node was in, or that is current.
    fn round_id(&self, py: Python<'_>, round: u64) -> PyResult<RoundId> {
        let own = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = own.iter().find(|id| id.round == round) {
            return Ok(id.clone());
        }
        drop(own);
        let current = self.handle()?.status().progress.current;
        current.filter(|id| id.round == round).ok_or_else(|| {
            state_error(
                py,
                format!("This node was in no round {round}, and it is not the current one."),
            )
        })
    }
}

/// The version of the protocol that this package speaks.
#[pyfunction]
pub fn protocol_version() -> u32 {
    VERSION
}

/// The lease that all nodes of a run share, by the run's prefix.
#[pyfunction]
pub fn run_lease(run_prefix: &str) -> i64 {
    Keys::new(run_prefix).run_lease()
}

/// The one way to reopen a closed run, for operators: what a transaction must check and write, as
/// `AsyncClient.txn` takes it. `control` is the record of the close, of that revision.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "arguments of a Python function")]
pub fn reopening<'py>(
    py: Python<'py>,
    control: &[u8],
    mod_revision: i64,
    run_path: &str,
    by: String,
    why: String,
    at: u64,
    if_members_gone: bool,
) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>)> {
    let keys = Keys::new(run_path);
    let reader = Reader { newest: VERSION };
    let closed = reader
        .control(&keys.control(), control)
        .map_err(|error| rendezvous_error(py, &error.into()))?;
    let opening = Opening { by, at, why };
    let again = reopen::from_outside(&keys, &closed, mod_revision, opening, if_members_gone);
    Ok((convert::compares(py, &again.guards)?, convert::writes(py, &again.writes)?))
}

fn order_of(name: &str, segment: usize) -> PyResult<RankOrder> {
    RankOrder::of(name, segment).ok_or_else(|| {
        let text = format!("There is no rank_order '{name}' in segments of {segment}.");
        PyValueError::new_err(text)
    })
}

fn check_label(name: &str, label: Option<&str>) -> PyResult<()> {
    if label.is_some_and(|label| label.is_empty() || label.len() > LONGEST_LABEL) {
        return Err(PyValueError::new_err(format!("{name} must have 1 to {LONGEST_LABEL} bytes.")));
    }
    Ok(())
}

#[pymethods]
impl PyRendezvous {
    #[new]
    #[pyo3(signature = (
        client, run_prefix, *, min_nodes, max_nodes, join_timeout_s, last_call_timeout_s,
        close_timeout_s, keep_alive_ttl_s, run_ttl_s, restart_on_member_loss, host, survivor_grace_s,
        reopen_if_closed=false, rank_order="stable", segment=1, infra_rank=None, domain=None, node_id=None,
        version=None
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python constructor")]
    fn new(
        client: Py<PyClient>,
        run_prefix: &str,
        min_nodes: usize,
        max_nodes: usize,
        join_timeout_s: f64,
        last_call_timeout_s: f64,
        close_timeout_s: f64,
        keep_alive_ttl_s: f64,
        run_ttl_s: f64,
        restart_on_member_loss: bool,
        host: String,
        survivor_grace_s: f64,
        reopen_if_closed: bool,
        rank_order: &str,
        segment: usize,
        infra_rank: Option<u64>,
        domain: Option<String>,
        node_id: Option<String>,
        version: Option<u32>,
    ) -> PyResult<Self> {
        if min_nodes < 1 || max_nodes < min_nodes {
            return Err(PyValueError::new_err(format!(
                "The numbers of nodes must satisfy 1 <= min_nodes <= max_nodes, not min_nodes \
                 {min_nodes} and max_nodes {max_nodes}."
            )));
        }
        let order = order_of(rank_order, segment)?;
        if order.smallest(min_nodes) > max_nodes {
            return Err(PyValueError::new_err(format!(
                "No world of {min_nodes} to {max_nodes} nodes is made of whole segments of {segment}."
            )));
        }
        for (name, label) in [("domain", &domain), ("node_id", &node_id)] {
            check_label(name, label.as_deref())?;
        }
        let pid = std::process::id();
        let keys = Keys::new(run_prefix);
        let settings = Settings {
            keys: keys.clone(),
            min: min_nodes,
            max: max_nodes,
            join_timeout: duration("join_timeout_s", join_timeout_s)?,
            last_call: duration("last_call_timeout_s", last_call_timeout_s)?,
            close_timeout: duration("close_timeout_s", close_timeout_s)?,
            survivor_grace: duration("survivor_grace_s", survivor_grace_s)?,
            reopen_if_closed,
            version: version.unwrap_or(VERSION),
            ttl: duration("keep_alive_ttl_s", keep_alive_ttl_s)?,
            run_ttl: duration("run_ttl_s", run_ttl_s)?,
            on_member_loss: if restart_on_member_loss {
                OnMemberLoss::Restart
            } else {
                OnMemberLoss::Ignore
            },
            node: NodeInfo { host, pid },
            labels: Labels { node_id, infra_rank, domain },
            order,
            epoch: Duration::ZERO,
            seed: u64::from_le_bytes(unique().to_le_bytes()[..8].try_into().unwrap_or_default()),
            tuning: Tuning::default(),
        };
        let handle = PerProcess::new();
        handle.get_or_make(|| {
            let _runtime = runtime::handle().enter();
            Handle::start(client.get().client(), settings)
        });
        let (joining, rounds) = (Mutex::default(), Mutex::default());
        Ok(Self { client, keys, handle, pid, joining, rounds })
    }

    /// Starts to join the next round, offering this address to the workers if the node becomes rank 0.
    fn join(&self, master_addr: String, master_port: u16) -> PyResult<()> {
        if lifecycle::ending() {
            // A daemon thread would come back after it was taken out of its run.
            return Err(PyRuntimeError::new_err(
                "The interpreter is ending: no round is joined any more.",
            ));
        }
        if master_addr.is_empty() || master_addr.len() > LONGEST_ADDRESS {
            return Err(PyValueError::new_err(format!(
                "The local address must have 1 to {LONGEST_ADDRESS} bytes, not {}.",
                master_addr.len()
            )));
        }
        let receiver = self.handle()?.join(Master { addr: master_addr, port: master_port });
        *self.joining.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiver);
        Ok(())
    }

    /// Round, rank, world size, master address and port; `None` when `timeout_s` passed first.
    fn wait_joined(&self, py: Python<'_>, timeout_s: f64) -> PyResult<Option<Joined>> {
        let limit = duration("timeout_s", timeout_s)?;
        let receiver = self.joining.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut receiver) = receiver else {
            return Err(PyRuntimeError::new_err("The node is not joining a round."));
        };
        // The receiver comes back from the wait that timed out, for the next one.
        let (back, mut returned) = oneshot::channel();
        let finished = wait_until(py, None, async move {
            let result = tokio::time::timeout(limit, &mut receiver).await;
            if result.is_err() {
                // Dropped only with the whole call.
                let _ = back.send(receiver);
            }
            result
        })?;
        match finished {
            Some(Ok(Ok(Ok(outcome)))) => {
                let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
                rounds.push_front(outcome.id());
                rounds.truncate(ROUNDS);
                drop(rounds);
                let master = outcome.master;
                Ok(Some((outcome.round, outcome.rank, outcome.world, master.addr, master.port)))
            }
            Some(Ok(Ok(Err(error)))) => Err(rendezvous_error(py, &error)),
            Some(Ok(Err(_))) => Err(rendezvous_error(py, &RendezvousError::Left)),
            Some(Err(_)) | None => {
                let receiver = returned.try_recv().ok();
                *self.joining.lock().unwrap_or_else(PoisonError::into_inner) = receiver;
                Ok(None)
            }
        }
    }

    /// Round, nodes joined as the coordinator last told, whether the last call runs, whether this node
    /// waits outside of a complete round.
    fn progress(&self) -> PyResult<(u64, usize, bool, bool)> {
        let progress = self.handle()?.status().progress;
        Ok((progress.round, progress.joined, progress.last_call, progress.spare))
    }

    /// Seconds since the last `join` until this node had entered a round, was a spare, the last call
    /// began, the barrier ended; `None` for what did not happen.
    fn phases(&self) -> PyResult<Phases> {
        let phases = self.handle()?.phases();
        let seconds = |phase: Option<Duration>| phase.map(|since| since.as_secs_f64());
        Ok((
            seconds(phases.entered),
            seconds(phases.spare),
            seconds(phases.last_call),
            seconds(phases.ended),
        ))
    }

    /// The id of the lease that everything of the run is under that outlasts its nodes.
    #[getter]
    fn run_lease(&self) -> i64 {
        self.keys.run_lease()
    }

    fn num_nodes_waiting(&self) -> PyResult<usize> {
        Ok(self.handle()?.status().waiting)
    }

    /// Why the world of this member is over, or no longer whole, for metrics and for people; `None` while it is.
    fn broken(&self) -> PyResult<Option<(&'static str, String)>> {
        let broken = self.handle()?.status().broken;
        Ok(broken.map(|broken| (broken.cause.name(), broken.reason)))
    }

    /// Why this node is none of the run: it was denied, or replaced.
    fn excluded(&self) -> PyResult<Option<String>> {
        Ok(self.handle()?.status().excluded)
    }

    /// Whether the run was closed while this node waited for a place in it.
    fn parked(&self) -> PyResult<bool> {
        Ok(self.handle()?.status().parked)
    }

    /// What people should know of the last round, such as limits that differ between nodes.
    fn remark(&self) -> PyResult<Option<String>> {
        Ok(self.handle()?.status().remark)
    }

    /// The close of the run: by whom, why, when and how it ended. `None` while it is open. Only the first call
    /// asks etcd; then a watch reports it.
    fn closed(&self, py: Python<'_>) -> PyResult<Option<Closed>> {
        let handle = self.handle()?;
        if !handle.status().observed {
            let observed = handle.observe();
            wait(py, observed)?
                .unwrap_or(Err(RendezvousError::Left))
                .map_err(|error| rendezvous_error(py, &error))?;
        }
        let status = self.handle()?.status();
        Ok(status.closed.map(|closed| {
            let (result, text) = closed.ended.map(|ended| (ended.result, ended.text)).unzip();
            let (round, world) = closed.last.map(|last| (last.id.round, last.world)).unzip();
            (closed.by, closed.reason, closed.at, result, text, round, world, status.run_ttl)
        }))
    }

    /// The attempt that completed a round that this node was in, or that is current: a part of its keys.
    fn attempt(&self, py: Python<'_>, round: u64) -> PyResult<String> {
        Ok(self.round_id(py, round)?.attempt)
    }

    /// A store of a round, below its key `name`. Its waits end early when the round is over.
    #[pyo3(signature = (round, name="kv"))]
    fn store(&self, py: Python<'_>, round: u64, name: &str) -> PyResult<PyStore> {
        let id = self.round_id(py, round)?;
        let prefix = self.keys.round_store(&id, name).into_bytes();
        let handle = self.handle()?;
        let broken = {
            let _runtime = runtime::handle().enter();
            handle.broken(id)
        };
        let lease = self.keys.run_lease();
        Ok(PyStore::with_abort(self.client.clone_ref(py), prefix, lease, None, Some(broken)))
    }

    /// Closes the run for good, and keeps how the job ended. With `only_member` only if this node is a live
    /// member of the last completed world; returns why it did not otherwise.
    #[pyo3(signature = (by, reason, result=None, text=None, only_member=false))]
    fn close(
        &self,
        py: Python<'_>,
        by: String,
        reason: String,
        result: Option<String>,
        text: Option<String>,
        only_member: bool,
    ) -> PyResult<Option<String>> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let ended = result.map(|result| Ended { result, text: text.unwrap_or_default() });
        let done = self.handle()?.close(Close { by, reason, at, ended, only_member });
        wait(py, done)?
            .unwrap_or(Err(RendezvousError::Left))
            .map_err(|error| rendezvous_error(py, &error))
    }

    /// Gives up membership at once, without closing the run. Does nothing in a forked child.
    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(handle) = self.handle.get() {
            // Bounded by the driver; where the runtime has ended there is nothing to leave.
            wait(py, handle.leave()).map(|_| ())?;
        }
        Ok(())
    }
}
