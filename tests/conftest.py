"""One etcd server for all tests of a process, names in it that no two tests share, and the order of tests.

`make test` runs several processes (pytest-xdist), each with an etcd, a zygote and a fault bench of its own.
"""

from __future__ import annotations

import gc
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer

if TYPE_CHECKING:
    from support.faults.bench import Bench
    from support.processes.nodes import Run
    from support.processes.zygote import Zygote

# What helpers assert is told as what tests assert.
pytest.register_assert_rewrite("support")

#: Whoever asks for one of them needs an etcd; `server` is one of a file's own. What starts an etcd in another
#: way is marked by hand.
_ETCD_FIXTURES = {"etcd_server", "server", "zygote", "agent_zygote", "bench"}
#: Stands in for etcd where there must not be one, and says so.
_NO_ETCD = Path(__file__).parent / "support" / "etcd" / "absent.sh"

_WITH_TORCH_ALONE = {"tests/project/test_package.py", "tests/unit/test_ending.py"}

_benches: list[Bench] = []


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs an etcd, the rest as `unit`; what takes long begins first: the end waits for nobody."""
    for item in items:
        if _ETCD_FIXTURES & _fixtures(item):
            item.add_marker("needs_etcd")
        elif not item.get_closest_marker("needs_etcd"):
            item.add_marker("unit")
    items.sort(key=_place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process the next test, in this order, but some of them all to one.

    Those of `_WITH_TORCH_ALONE` share a process that has imported torch. In `faults/` a bench is made once:
    with two of them on two cores, members that nothing is done to find no leader for many seconds. (The
    groups of pytest-xdist do nothing with pytest 9.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if "/faults/" in nodeid:
                return "bench"
            return "torch alone" if nodeid.partition("::")[0] in _WITH_TORCH_ALONE else nodeid

    config.option.loadscopereorder = False
    return Scheduler(config, log)


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what all modules made: tests that fork collect often."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """End the bench also where a run is broken off."""
    _end_benches()


def _end_benches() -> None:
    while _benches:
        _benches.pop().__exit__(None, None, None)


def _fixtures(item: pytest.Item | None) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


def _place(item: pytest.Item) -> tuple[bool, float, bool]:
    """The bench, then by the seconds that tests are said to take, then the others, unit tests last."""
    slow = item.get_closest_marker("slow")
    takes = float(slow.args[0]) if slow is not None else 0.0
    return "bench" not in _fixtures(item), -takes, item.get_closest_marker("unit") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, Any, Any]:
    """Hide etcd from unit tests, and end the bench with the last test that wants it.

    Its three members cost time while they do nothing.
    """
    from support.costs import counted

    with counted(item.nodeid), pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("unit"):
            patch.setenv("TORCHELASTIC_ETCD_BINARY_PATH", str(_NO_ETCD))
        try:
            return (yield)
        finally:
            if "bench" not in _fixtures(nextitem):
                _end_benches()


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


@pytest.fixture
def run(etcd_server: EtcdServer, client: Client) -> Iterator[Run]:
    """Provide a run whose nodes are gone in the end."""
    from support.processes.nodes import Run

    with Run(etcd_server.get_endpoint(), client) as made:
        yield made


@pytest.fixture(scope="session")
def running_zygote() -> Iterator[Zygote]:
    """Run the process that whole programs are forked from."""
    from support.processes.zygote import Zygote

    with Zygote() as made:
        yield made


@pytest.fixture
def zygote(running_zygote: Zygote) -> Iterator[Zygote]:
    """Provide it, and end what a failed test leaves."""
    yield running_zygote
    running_zygote.end_all()


@pytest.fixture(scope="session")
def agent_zygote() -> Iterator[Zygote]:
    """Provide what agents of torchrun are forked from; it knows of torchetcd what torch itself loads."""
    from support.processes.zygote import Zygote

    with Zygote("torch.distributed.run", TORCH_LOGS="torchetcd") as made:
        yield made


@pytest.fixture(scope="session")
def torch_alone() -> Iterator[Zygote]:
    """Provide a process that has imported torch but for the last line, which loads what is beside it."""
    from support.processes.zygote import Zygote

    with Zygote("torch", TORCH_DEVICE_BACKEND_AUTOLOAD="0") as made:
        yield made


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Provide the fault bench (`support/faults/bench.py`), whole; the tests of a process share one."""
    from support.faults.bench import Bench

    if not _benches:
        _benches.append(Bench().__enter__())
    bench = _benches[0]
    bench.told.clear()
    yield bench
    print("What was done:", *bench.told, sep="\n  ")  # shown if the test fails
    bench.mend()


@pytest.fixture(scope="class")
def etcd_suite(request: pytest.FixtureRequest, etcd_server: EtcdServer) -> None:
    """Give a `unittest.TestCase` the shared server as `cls.server`.

    Use it as `@pytest.mark.usefixtures("etcd_suite")`.
    """
    request.cls.server = etcd_server
