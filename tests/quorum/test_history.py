"""What is read and written while members are replaced has an order that explains it."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from support.faults.checks import check, check_sums
from support.faults.store_clients import COUNTERS, Clients
from support.quorum import PATIENCE_S, Job
from support.waiting import eventually
from torchetcd.etcd_store import EtcdStore

pytestmark = [pytest.mark.needs_etcd, pytest.mark.timeout(900)]


def _replace_leader(job: Job, *, with_data: bool) -> None:
    """Lose the leader with its agent, wait until a candidate has its place, and start a new candidate."""
    before = job.serving()
    leader = job.leader()
    job.lose(job.agent_at(leader))
    left = before - {leader}
    eventually(lambda: len(job.serving()) == 3, PATIENCE_S)
    job.await_members(*left, *(job.serving() - left))
    if not with_data:
        shutil.rmtree(job.folder_of(leader))
    job.start().finish()


@pytest.mark.slow(240)
def test_ten_replacements(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(5)
    job.start_all(4)
    job.await_members(*(entry.port for entry in job.entries.first))
    endpoints = ",".join(entry.name for entry in job.entries.all)
    prefix = f"/quorum_{uuid.uuid4().hex}"
    (tmp_path / "history").mkdir()
    clients = Clients(tmp_path / "history")
    try:
        for number in range(2):
            clients.start(f"client-{number}", endpoints, prefix, seed=number, threads=2)
        for number in range(10):
            _replace_leader(job, with_data=number % 2 == 0)
        clients.stop()
    finally:
        clients.close()
    history = clients.history()
    with job.client() as client, EtcdStore(client, prefix) as store:
        check_sums(history, {key: store.add(key, 0) for key in COUNTERS})
    check(history)
    assert history.errors == []
    assert len(history.calls) > 1000
