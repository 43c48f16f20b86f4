//! Between Python's tuples and the core's plain values, for the python-etcd shaped client.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use super::errors::invalid_endpoint;
use crate::etcd::kv::{
    self, Compare, Event, KeyValue, Op, OpReply, Ordering, Range, RangeReply, Target, Txn,
};
use crate::etcd::{Endpoint, Member, MemberStatus, parse_endpoints};

/// Longer than any job; keeps sums of times within their types.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86400);

/// A number of seconds from Python.
pub fn duration(name: &str, seconds: f64) -> PyResult<Duration> {
    let duration = Duration::try_from_secs_f64(seconds);
    duration.map(|given| given.min(LONGEST)).map_err(|_| {
        PyValueError::new_err(format!(
            "{name} must be a finite number of seconds that is not negative, not {seconds}."
        ))
    })
}

/// An endpoint from Python; `tls` is for one that names no scheme.
pub fn endpoint(given: Option<&str>, tls: bool) -> PyResult<Option<Endpoint>> {
    let parsed = given.map(|given| parse_endpoints(given, tls)).transpose();
    let endpoints = parsed.map_err(|error| invalid_endpoint(&error))?;
    Ok(endpoints.and_then(|endpoints| endpoints.into_iter().next()))
}

pub type MemberParts = (u64, String, Vec<String>, Vec<String>, bool);

pub fn members(members: Vec<Member>) -> Vec<MemberParts> {
    let parts = members.into_iter().map(|member| {
        let Member { id, name, peer_urls, client_urls, is_learner } = member;
        (id, name, peer_urls, client_urls, is_learner)
    });
    parts.collect()
}

/// Ids, raft, sizes, errors.
pub type StatusParts =
    ((String, u64, u64, i64, u64, bool), (u64, u64, u64), (i64, i64, i64), Vec<String>);

pub fn status(status: MemberStatus) -> StatusParts {
    let MemberStatus {
        version,
        cluster,
        member,
        revision,
        leader,
        is_learner,
        raft_term,
        raft_index,
        raft_applied_index,
        db_size,
        db_size_in_use,
        db_quota,
        errors,
    } = status;
    let ids = (version, cluster, member, revision, leader, is_learner);
    let raft = (raft_term, raft_index, raft_applied_index);
    (ids, raft, (db_size, db_size_in_use, db_quota), errors)
}

pub fn txn(
    compares: &Bound<'_, PyList>,
    success: &Bound<'_, PyList>,
    failure: &Bound<'_, PyList>,
) -> PyResult<Txn> {
    Ok(Txn {
        compares: compares.iter().map(|item| compare(&item)).collect::<PyResult<_>>()?,
        success: success.iter().map(|item| op(&item)).collect::<PyResult<_>>()?,
        failure: failure.iter().map(|item| op(&item)).collect::<PyResult<_>>()?,
    })
}

fn compare(item: &Bound<'_, PyAny>) -> PyResult<Compare> {
    let parts = item.cast::<PyTuple>()?;
    let operand = parts.get_item(3)?;
    let target = match parts.get_item(0)?.extract::<String>()?.as_str() {
        "value" => Target::Value(operand.extract::<Vec<u8>>()?),
        "version" => Target::Version(operand.extract()?),
        "create" => Target::CreateRevision(operand.extract()?),
        "mod" => Target::ModRevision(operand.extract()?),
        "lease" => Target::Lease(operand.extract()?),
        other => return Err(PyValueError::new_err(format!("unknown comparison target '{other}'"))),
    };
    let ordering = match parts.get_item(2)?.extract::<String>()?.as_str() {
        "=" => Ordering::Equal,
        "!=" => Ordering::NotEqual,
        "<" => Ordering::Less,
        ">" => Ordering::Greater,
        other => return Err(PyValueError::new_err(format!("unknown comparison '{other}'"))),
    };
    let range_end = if parts.len() > 4 { parts.get_item(4)?.extract()? } else { None };
    Ok(Compare { key: parts.get_item(1)?.extract()?, range_end, ordering, target })
}

fn op(item: &Bound<'_, PyAny>) -> PyResult<Op> {
    let parts = item.cast::<PyTuple>()?;
    Ok(match parts.get_item(0)?.extract::<String>()?.as_str() {
        "put" => Op::Put {
            key: parts.get_item(1)?.extract()?,
            value: parts.get_item(2)?.extract()?,
            lease: parts.get_item(3)?.extract()?,
        },
        "get" => Op::Get(Range {
            key: parts.get_item(1)?.extract()?,
            range_end: parts.get_item(2)?.extract()?,
            limit: parts.get_item(3)?.extract()?,
            keys_only: parts.get_item(4)?.extract()?,
            revision: parts.get_item(5)?.extract()?,
            ..Range::default()
        }),
        "delete" => Op::Delete {
            key: parts.get_item(1)?.extract()?,
            range_end: parts.get_item(2)?.extract()?,
        },
        "txn" => Op::Txn(txn(
            parts.get_item(1)?.cast()?,
            parts.get_item(2)?.cast()?,
            parts.get_item(3)?.cast()?,
        )?),
        other => return Err(PyValueError::new_err(format!("unknown operation '{other}'"))),
    })
}

/// As [`txn`] takes them.
pub fn compares<'py>(py: Python<'py>, compares: &[Compare]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for Compare { key, range_end, ordering, target } in compares {
        let (of, operand) = match target {
            Target::Value(value) => ("value", PyBytes::new(py, value).into_any()),
            Target::Version(number) => ("version", number.into_pyobject(py)?.into_any()),
            Target::CreateRevision(number) => ("create", number.into_pyobject(py)?.into_any()),
            Target::ModRevision(number) => ("mod", number.into_pyobject(py)?.into_any()),
            Target::Lease(number) => ("lease", number.into_pyobject(py)?.into_any()),
        };
        let sign = match ordering {
            Ordering::Equal => "=",
            Ordering::NotEqual => "!=",
            Ordering::Less => "<",
            Ordering::Greater => ">",
        };
        let end = range_end.as_ref().map(|end| PyBytes::new(py, end));
        list.append((of, PyBytes::new(py, key), sign, operand, end))?;
    }
    Ok(list)
}

/// As [`txn`] takes them; reads and nested transactions are left out.
pub fn writes<'py>(py: Python<'py>, writes: &[Op]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for write in writes {
        match write {
            Op::Put { key, value, lease } => {
                list.append(("put", PyBytes::new(py, key), PyBytes::new(py, value), *lease))?;
            }
            Op::Delete { key, range_end } => {
                let end = range_end.as_ref().map(|end| PyBytes::new(py, end));
                list.append(("delete", PyBytes::new(py, key), end))?;
            }
            Op::Get(_) | Op::Txn(_) => {}
        }
    }
    Ok(list)
}

pub fn replies<'py>(py: Python<'py>, replies: &[OpReply]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for reply in replies {
        match reply {
            OpReply::Put => list.append(py.None())?,
            OpReply::Delete(deleted) => list.append(*deleted)?,
            OpReply::Get(range) => list.append(range_reply(py, range)?)?,
            OpReply::Txn { succeeded, replies: inner } => {
                list.append((*succeeded, self::replies(py, inner)?))?;
            }
        }
    }
    Ok(list)
}

pub fn range_reply<'py>(py: Python<'py>, range: &RangeReply) -> PyResult<Bound<'py, PyTuple>> {
    let kvs = range.kvs.iter().map(|kv| key_value(py, kv)).collect::<PyResult<Vec<_>>>()?;
    (kvs, range.count, range.more).into_pyobject(py)
}

fn key_value<'py>(py: Python<'py>, kv: &KeyValue) -> PyResult<Bound<'py, PyTuple>> {
    (
        PyBytes::new(py, &kv.key),
        PyBytes::new(py, &kv.value),
        kv.create_revision,
        kv.mod_revision,
        kv.version,
        kv.lease,
    )
        .into_pyobject(py)
}

pub fn event<'py>(py: Python<'py>, event: &Event) -> PyResult<Bound<'py, PyTuple>> {
    let kind = match event {
        Event::Put(_) => "put",
        Event::Delete(_) => "delete",
    };
    (kind, key_value(py, event.kv())?, py.None()).into_pyobject(py)
}

#[pyfunction]
pub fn prefix_end<'py>(py: Python<'py>, prefix: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &kv::prefix_end(prefix))
}
