"""`worker_store=etcd`: what an agent tells its workers, and which process takes it for its own."""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousParameters

from torchetcd._worker_store import worker as of_worker
from torchetcd._worker_store.description import read_description
from torchetcd._worker_store.env_scheme import use_worker_store
from torchetcd._worker_store.process import WORKER_STORE, this_process
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_server import EtcdServer
from torchetcd.process_group import register

# For the start of interpreters with torch, on a busy machine.
PATIENCE_S = 120
HANDLERS = importlib.import_module("torch.distributed.rendezvous")._rendezvous_handlers


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RANK", "WORLD_SIZE", "ROLE_WORLD_SIZE", "TORCHETCD_USER", "TORCHETCD_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    # As an agent would, which says it to its workers and not to tests that come later.
    monkeypatch.setitem(HANDLERS, "env", HANDLERS["env"])
    yield
    os.environ.pop(WORKER_STORE, None)


@pytest.fixture
def handler_parameters(etcd_server: EtcdServer, run_id: str) -> RendezvousParameters:
    return RendezvousParameters(
        "etcd-v3",
        etcd_server.get_endpoint(),
        run_id,
        1,
        1,
        local_addr="127.0.0.1",
        last_call_timeout=0,
        worker_store="etcd",
    )


@pytest.fixture
def as_worker(
    handler_parameters: RendezvousParameters, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EtcdRendezvousHandler]:
    """Be an agent and the worker that it starts, in one process."""
    handler = create_rdzv_handler(handler_parameters)
    told = {"RANK": "0", "WORLD_SIZE": "1", "ROLE_WORLD_SIZE": "1"}
    told |= {"TORCHELASTIC_RUN_ID": handler.get_run_id(), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    next_round(handler, monkeypatch)
    yield handler
    handler.shutdown()


def next_round(handler: EtcdRendezvousHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what torch's agent does: workers are told what the rendezvous says."""
    master = handler.next_rendezvous().bootstrap_store_info
    monkeypatch.setenv("MASTER_ADDR", master.master_addr)
    monkeypatch.setenv("MASTER_PORT", str(master.master_port))


def test_each_round_has_its_own(
    as_worker: EtcdRendezvousHandler, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = env_store()
    first.set("key", "value")
    next_round(as_worker, monkeypatch)
    second = env_store()
    assert not second.check(["key"])
    second.set("key", "again")
    # The first is gone with its round.
    assert not first.check(["key"])
    path = f"/torchelastic/p2p/run_{as_worker.get_run_id()}/rdzv"
    found = client.read(path, recursive=True)
    values = [leaf for leaf in found.leaves if "/workers/" in leaf.key]
    assert values
    assert all("/v_2/" in leaf.key and leaf.ttl for leaf in values)


@pytest.mark.usefixtures("as_worker")
def test_each_group_of_a_worker_has_its_own() -> None:
    for _ in range(2):
        # Would hang or fail on what the first one has left.
        dist.init_process_group("gloo")
        store = dist.distributed_c10d._get_default_store()
        assert not store.check(["left over"])
        store.set("left over", "")
        dist.barrier()
        dist.destroy_process_group()
    rpc = next(dist.rendezvous("env://"))[0]
    assert rpc.prefix == next(dist.rendezvous("env://"))[0].prefix


@pytest.mark.usefixtures("as_worker")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TORCHELASTIC_RUN_ID", "another"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ("MASTER_ADDR", "localhost"),
        ("MASTER_PORT", "1"),
        # A part of the workers.
        ("ROLE_WORLD_SIZE", "2"),
    ],
)
def test_only_for_what_the_agent_has_told(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    assert is_meant()
    with monkeypatch.context() as changed:
        changed.setenv(name, value)
        assert not is_meant()
        changed.delenv(name)
        assert is_meant() == (name in {"ROLE_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"})
    assert is_meant()


@pytest.mark.usefixtures("as_worker")
def test_only_for_the_world_of_the_worker() -> None:
    with forked(is_meant, "env://?rank=0&world_size=1") as told:
        assert told()
    # The description is the child's own from its start; its environment tells the size of the world.
    with forked(is_meant, "env://?rank=0&world_size=2") as told:
        assert not told()


@pytest.mark.usefixtures("as_worker")
def test_only_for_the_process_that_took_it_first() -> None:
    assert is_meant()
    # A worker that is forked by the agent, and what that one forks.
    with forked(child_and_grandchild) as told:
        assert told() == (True, False)
    # Not for a process that had the number earlier.
    description = json.loads(os.environ[WORKER_STORE])
    for worker in (f"{os.getpid()}@0", "1@1"):
        os.environ[WORKER_STORE] = json.dumps(description | {"worker": worker})
        assert not is_meant()
    os.environ[WORKER_STORE] = json.dumps(description | {"worker": this_process()})
    assert is_meant()


@pytest.mark.slow(10)
@pytest.mark.timeout(2 * PATIENCE_S)
@pytest.mark.usefixtures("as_worker")
def test_a_program_that_begins_again_in_its_process() -> None:
    """As one does that needs another environment."""
    again = "import torch.distributed as d; print(type(next(d.rendezvous('env://'))[0]).__name__)"
    source = f"import os, sys, torch; os.execv(sys.executable, [sys.executable, '-c', {again!r}])"
    assert output(source) == "EtcdStore"
    # As a child, to which all the same is told.
    source = f"import subprocess, sys, torch; subprocess.run([sys.executable, '-c', {again!r}])"
    assert output(source) == "TCPStore"


def test_an_agent_without_it_takes_it_back(
    handler_parameters: RendezvousParameters, etcd_server: EtcdServer, run_id: str
) -> None:
    handler = create_rdzv_handler(handler_parameters)
    handler.next_rendezvous()
    assert os.environ[WORKER_STORE]
    # It is in a launcher that a worker of the one above has started.
    del handler
    endpoint = etcd_server.get_endpoint()
    conf = {"local_addr": "127.0.0.1", "last_call_timeout": 0}
    for name, known in (("another", True), (run_id, False)):
        inner = create_rdzv_handler(RendezvousParameters("etcd-v3", endpoint, name, 1, 1, **conf))
        inner.next_rendezvous()
        assert (WORKER_STORE in os.environ) == known
        inner.shutdown()


def test_it_ends_with_the_run(handler_parameters: RendezvousParameters) -> None:
    handler = create_rdzv_handler(handler_parameters)
    handler.next_rendezvous()
    assert os.environ[WORKER_STORE]
    handler.shutdown()
    assert WORKER_STORE not in os.environ


def test_no_secret_is_handed_on(
    etcd_server: EtcdServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = RendezvousParameters(
        "etcd-v3",
        etcd_server.get_endpoint(),
        run_id,
        1,
        1,
        local_addr="127.0.0.1",
        last_call_timeout=0,
        worker_store="etcd",
        user="ann",
        password="hunter2",
    )
    with pytest.raises(ValueError, match="needs the password in a file .*TORCHETCD_PASSWORD_FILE"):
        create_rdzv_handler(parameters)
    # This etcd has no users, and takes them all.
    monkeypatch.setenv("TORCHETCD_PASSWORD", "hunter2")
    handler = create_rdzv_handler(parameters)
    handler.next_rendezvous()
    assert '"ann"' in os.environ[WORKER_STORE]
    assert "hunter2" not in os.environ[WORKER_STORE]
    handler.shutdown()


def test_the_file_with_the_password_is_handed_on(
    etcd_server: EtcdServer, run_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its path only, from the root: a worker may go to another folder."""
    (tmp_path / "secret").write_text("hunter2")
    monkeypatch.chdir(tmp_path)
    conf = {"worker_store": "etcd", "user": "ann", "password_file": "secret"}
    parameters = RendezvousParameters(
        "etcd-v3", etcd_server.get_endpoint(), run_id, 1, 1, last_call_timeout=0, **conf
    )
    handler = create_rdzv_handler(parameters)
    handler.next_rendezvous()
    told = os.environ[WORKER_STORE]
    assert json.loads(told)["password_file"] == str(tmp_path / "secret")
    assert "hunter2" not in told
    client = of_worker._client(read_description())
    assert client._password_file == str(tmp_path / "secret")
    handler.shutdown()


@pytest.mark.usefixtures("as_worker")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("yes", "is no description of a store, but 'yes': unset it"),
        ("[]", "is no description"),
        ('{"v": 3}', "is no description"),
        ('{"v": 4}', "is of version 4"),
    ],
)
def test_a_description_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str, told: str) -> None:
    register()
    monkeypatch.setenv(WORKER_STORE, text)
    with pytest.raises(ValueError, match=f"{WORKER_STORE} {told}"):
        next(dist.rendezvous("env://"))


def test_an_unknown_kind(etcd_server: EtcdServer, run_id: str) -> None:
    parameters = RendezvousParameters(
        "etcd-v3", etcd_server.get_endpoint(), run_id, 1, 1, worker_store="redis"
    )
    with pytest.raises(
        ValueError, match="'worker_store' must be tcp or etcd or gateway, not 'redis'"
    ):
        create_rdzv_handler(parameters)


def test_torch_that_loads_nothing_by_itself(
    handler_parameters: RendezvousParameters,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    create_rdzv_handler(handler_parameters).shutdown()
    assert "worker_store" not in caplog.text
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    create_rdzv_handler(handler_parameters).shutdown()
    assert "only workers that import torchetcd.process_group" in caplog.text


@pytest.mark.usefixtures("as_worker")
def test_a_script_that_imports_it() -> None:
    source = """
import torch.distributed as dist
handlers = dist.rendezvous.__globals__["_rendezvous_handlers"]
assert "etcd-v3" not in handlers
import torchetcd.process_group
assert "etcd-v3" in handlers
store = next(dist.rendezvous("env://"))[0]
assert type(store).__name__ == "EtcdStore", store
store.set("key", "value")
"""
    output(source, TORCH_DEVICE_BACKEND_AUTOLOAD="0")


@pytest.mark.usefixtures("as_worker")
def test_env_is_torchs_own_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    use_worker_store()
    monkeypatch.setenv("MASTER_PORT", "0")
    store = next(dist.rendezvous("env://"))[0]
    assert isinstance(store, dist.TCPStore)


def env_store() -> Any:
    return next(dist.rendezvous("env://", timeout=dist.default_pg_timeout))[0]


def is_meant(url: str = "env://") -> bool:
    return of_worker.of_this_worker(url) is not None


@contextlib.contextmanager
def forked(work: Callable[..., Any], *args: Any) -> Iterator[Callable[[], Any]]:
    """Run it in a forked process, and provide what returns its result."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    with warnings.catch_warnings():
        # This process has threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = fork.Process(target=lambda: theirs.send(work(*args)))
        process.start()
    theirs.close()
    try:
        yield ours.recv
    finally:
        process.join(PATIENCE_S)
        ours.close()


def child_and_grandchild() -> tuple[bool, bool]:
    with forked(is_meant) as told:
        return is_meant(), told()


def output(source: str, **env: str) -> str:
    """Run it as a program, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", source],
        check=True,
        timeout=PATIENCE_S,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.strip()
