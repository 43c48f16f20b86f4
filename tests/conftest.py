"""One etcd server for all tests, and names in it that no two tests share."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer

if TYPE_CHECKING:
    from bench import Bench
    from whole_process import Zygote


def eventually(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait for what no event announces, such as the end of another process."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        pause.wait(0.02)


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[EtcdServer]:
    """Run the server that the tests share."""
    with EtcdServer() as server:
        yield server


@pytest.fixture
def client(etcd_server: EtcdServer) -> Iterator[Client]:
    """Provide a client of the shared server."""
    with etcd_server.get_client() as made:
        yield made


@pytest.fixture
def prefix() -> str:
    """Provide a directory that no other test uses."""
    return f"/test_{uuid.uuid4().hex}"


@pytest.fixture
def run_id() -> str:
    """Provide a run that no other test uses."""
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    """Provide the process that whole programs are forked from."""
    from whole_process import Zygote

    with Zygote() as made:
        yield made


@pytest.fixture(scope="module")
def running_bench() -> Iterator[Bench]:
    """Run the cluster that the tests of one file hurt."""
    from bench import Bench

    with Bench() as made:
        yield made


@pytest.fixture
def bench(running_bench: Bench) -> Iterator[Bench]:
    """Provide the fault bench (`tests/faults/bench.py`) with everything whole."""
    running_bench.told.clear()
    yield running_bench
    print("What was done:", *running_bench.told, sep="\n  ")  # shown if the test fails
    running_bench.mend()


@pytest.fixture(scope="class")
def etcd_suite(request: pytest.FixtureRequest, etcd_server: EtcdServer) -> None:
    """Give a `unittest.TestCase` the shared server as `cls.server`.

    Use it as `@pytest.mark.usefixtures("etcd_suite")`.
    """
    request.cls.server = etcd_server
