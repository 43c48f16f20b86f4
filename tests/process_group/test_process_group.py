"""`init_process_group(init_method="etcd-v3://...")`: URLs, jobs that come again, ranks; in real processes."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousTimeoutError

from support.etcd.users import Users
from support.waiting import eventually
from torchetcd._rendezvous.group_url import parse_url
from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer
from torchetcd.process_group import register

URL = "etcd-v3://localhost:2379/job?world_size=2"
PATIENCE_S = 60


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHETCD_USER", "TORCHETCD_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


class Process:
    """A forked process, which does what it is told in its main thread."""

    def __init__(self) -> None:
        fork = multiprocessing.get_context("fork")
        self._pipe, child = fork.Pipe()
        self._process = fork.Process(target=_serve, args=(child,), daemon=True)
        self._process.start()
        child.close()

    def start(self, work: Callable[..., Any], *args: Any) -> None:
        self._pipe.send((work.__name__, args))

    def finish(self) -> Any:
        assert self._pipe.poll(PATIENCE_S), "no answer"
        failed, answer = self._pipe.recv()
        if failed:
            raise AssertionError(answer)
        return answer

    def call(self, work: Callable[..., Any], *args: Any) -> Any:
        self.start(work, *args)
        return self.finish()

    def kill(self) -> None:
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection) -> None:
    while True:
        try:
            work, args = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            answer = (False, globals()[work](*args))
        except BaseException:
            answer = (True, traceback.format_exc())
        pipe.send(answer)


def begin(url: str, rank: int = -1, world: int = -1) -> tuple[int, int]:
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world)
    return dist.get_rank(), dist.get_world_size()


def total() -> int:
    """Add one for each process."""
    told = torch.ones(1)
    dist.all_reduce(told)
    return int(told)


def put(key: str) -> None:
    dist.distributed_c10d._get_default_store().set(key, "here")


def has(key: str) -> bool:
    return bool(dist.distributed_c10d._get_default_store().check([key]))


def end() -> None:
    dist.destroy_process_group()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    made = [Process(), Process()]
    yield made
    for process in made:
        process.kill()


@pytest.fixture
def url(etcd_server: EtcdServer) -> str:
    return f"etcd-v3://{etcd_server.get_endpoint()}/{uuid.uuid4().hex}"


def all_do(processes: list[Process], work: Callable[..., Any], *args: Any) -> list[Any]:
    for process in processes:
        process.start(work, *args)
    return [process.finish() for process in processes]


def all_begin(processes: list[Process], url: str) -> None:
    for rank, process in enumerate(processes):
        process.start(begin, url, rank, len(processes))
    for rank, process in enumerate(processes):
        assert process.finish() == (rank, len(processes))


class TestUrl:
    def test_with_all_in_it(self) -> None:
        url = "etcd-v3://ann%40ops@h1:2379,h2/team/job%20a?rank=1&world_size=4&keep_alive_ttl=5&timeout=9"
        os.environ["TORCHETCD_PASSWORD"] = "pass phrase"
        try:
            group = parse_url(url)
        finally:
            del os.environ["TORCHETCD_PASSWORD"]
        assert group[:5] == ("h1:2379,h2", "team/job a", 1, 4, 9)
        assert (group.options.user, group.options.password) == ("ann@ops", "pass phrase")
        assert group.options.keep_alive_ttl == 5
        assert "pass phrase" not in repr(group)

    def test_ranks_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setenv("WORLD_SIZE", "5")
        assert parse_url("etcd-v3://h/j")[2:4] == (3, 5)
        # What the URL says comes first.
        assert parse_url("etcd-v3://h/j?rank=0&world_size=2")[2:4] == (0, 2)

    def test_an_ipv6_address(self) -> None:
        assert parse_url("etcd-v3://[::1]:2379,h2/job?world_size=1").endpoints == "[::1]:2379,h2"

    def test_a_rank_is_not_needed(self) -> None:
        assert parse_url(URL).rank is None

    @pytest.mark.parametrize(
        ("url", "told"),
        [
            ("etcd-v3:///job?world_size=1", "hosts of etcd are missing"),
            ("etcd-v3://h1:2379?world_size=1", "the name of the job is missing"),
            ("etcd-v3://h1/?world_size=1", "the name of the job is missing"),
            ("etcd-v3://h1/job", "'world_size' is missing, and WORLD_SIZE is not set"),
            ("etcd-v3://h1/job?world_size=0", "at least 1, not '0'"),
            ("etcd-v3://h1/job?world_size=two", "at least 1, not 'two'"),
            ("etcd-v3://h1/job?world_size=2&rank=2", "the rank must be 0 to 1, not 2"),
            ("etcd-v3://h1/job?world_size=2&rank=-1", "at least 0, not '-1'"),
            ("etcd-v3://h1/job?world_size=2&rank=1&rank=0", "'rank' is given twice"),
            ("etcd-v3://h1/job?world_size=2&rang=1", "'rang' is not one of its options: rank,"),
            ("etcd-v3://h1/job?world_size", "must be option=value"),
            ("etcd-v3://h1/job?world_size=2&timeout=soon", "'timeout' must be a whole number"),
            ("etcd-v3://h1/job?world_size=2&keep_alive_ttl=1", "'keep_alive_ttl' must be a whole"),
            ("etcd-v3://h1/job?world_size=2&protocol=ftp", "must be http or https, not 'ftp'"),
            (
                "etcd-v3://h1/job?world_size=2&ca_cert=/no/ca.pem",
                "'/no/ca.pem', which does not exist",
            ),
            ("etcd-v3://ann@h1/job?world_size=2", "'ann' was given without a password"),
            ("tcp://h1/job?world_size=2", "'tcp' is not the scheme 'etcd-v3'"),
        ],
    )
    def test_that_cannot_be_used(self, url: str, told: str) -> None:
        with pytest.raises(ValueError, match="^Error initializing torch.distributed using") as info:
            parse_url(url)
        message = str(info.value)
        assert told in message
        assert message.endswith(".")
        assert message.count("\n") == 0

    @pytest.mark.parametrize(
        "url",
        [
            "etcd-v3://ann:hunter2@h1/job?world_size=2",
            "etcd-v3://h1/job?world_size=2&password=hunter2",
            "etcd-v3://h1/job?world_size=2&Password=hunter2",
        ],
    )
    def test_a_password_is_refused_and_not_shown(self, url: str) -> None:
        with pytest.raises(ValueError, match="TORCHETCD_PASSWORD_FILE") as info:
            parse_url(url)
        assert "hunter2" not in str(info.value)

    def test_an_endpoint_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="endpoint 'h1:port' is not valid"):
            dist.init_process_group(
                "gloo", init_method="etcd-v3://h1:port/job", rank=0, world_size=1
            )


class TestGroup:
    def test_a_collective(self, processes: list[Process], url: str) -> None:
        all_begin(processes, url)
        assert all_do(processes, total) == [2, 2]

    def test_a_group_that_is_made_again(self, processes: list[Process], url: str) -> None:
        """torch names the keys of both alike: the second group must not see those of the first."""
        for _ in range(2):
            all_begin(processes, url)
            assert all_do(processes, total) == [2, 2]
            assert not processes[1].call(has, "left over")
            processes[0].call(put, "left over")
            assert processes[1].call(has, "left over")
            all_do(processes, end)

    def test_a_job_that_was_killed_and_is_started_again(
        self, processes: list[Process], url: str
    ) -> None:
        url += "?keep_alive_ttl=2"
        all_begin(processes, url)
        processes[0].call(put, "left over")
        for process in processes:
            process.kill()
        processes[:] = [Process(), Process()]
        all_begin(processes, url)
        assert all_do(processes, total) == [2, 2]
        assert not processes[1].call(has, "left over")

    def test_one_process_ends_while_others_wait_for_a_third(
        self, processes: list[Process], url: str
    ) -> None:
        """As with a TCPStore, an end is no reason to stop waiting for somebody else."""
        processes.append(Process())
        all_begin(processes, url)
        processes[0].start(wait_for, "late")
        processes[1].call(leave_jobs)
        # They know of it: with a store of agents the wait would end now.
        processes[2].call(await_loss)
        processes[2].call(put, "late")
        processes[0].finish()

    def test_ranks_in_the_order_of_arrival(self, processes: list[Process], url: str) -> None:
        places = all_do(processes, begin, f"{url}?world_size=2")
        assert sorted(map(tuple, places)) == [(0, 2), (1, 2)]
        assert all_do(processes, total) == [2, 2]

    def test_a_rank_that_two_have(self, processes: list[Process], url: str) -> None:
        """All are told, also who has a rank of its own: it would wait for the one that nobody has."""
        pids = sorted(process.call(own_pid) for process in processes)
        processes.append(Process())
        for process, rank in zip(processes, (0, 0, 1), strict=True):
            process.start(first_step, f"{url}?rank={rank}&world_size=3&timeout={PATIENCE_S}")
        told = {process.finish() for process in processes}
        assert len(told) == 1, told
        (text,) = told
        assert re.search(
            r"have rank 0, \S+ \(pid \d+\) and \S+ \(pid \d+\): give each its own", text
        )
        assert sorted(map(int, re.findall(r"pid (\d+)", text))) == pids
        # None of it is left.
        for rank, process in enumerate(processes):
            process.start(first_step, f"{url}?rank={rank}&world_size=3&timeout={PATIENCE_S}")
        assert [process.finish() for process in processes] == ["", "", ""]

    def test_a_process_that_does_not_come(self, url: str) -> None:
        began = time.monotonic()
        with pytest.raises(RendezvousTimeoutError, match="1 of at least 2 nodes joined, 1 missing"):
            dist.init_process_group("gloo", init_method=f"{url}?rank=0&world_size=2&timeout=1")
        assert time.monotonic() - began < 20

    def test_a_process_that_was_forked(self, url: str) -> None:
        """It has a place of its own: its parent's lease is not its to renew."""
        url += "?rank=0&world_size=1&timeout=30"
        assert first_step(url) == ""
        child = Process()
        # There is one place.
        leave_jobs()
        try:
            assert child.call(first_step, url) == ""
        finally:
            child.kill()

    def test_rpc_and_a_group_of_one_job(self, url: str) -> None:
        """torch gives its RPC no timeout; the store of the group must not be replaced by its own."""
        url += "?rank=0&world_size=1"
        group = next(dist.rendezvous(url, timeout=dist.default_pg_timeout))[0]
        group.set("key", "value")
        rpc = next(dist.rendezvous(url))[0]
        assert rpc.prefix != group.prefix
        assert not rpc.check(["key"])
        assert group.get("key") == b"value"

    def test_nothing_is_left_for_ever(self, client: Client, url: str) -> None:
        job = url.rpartition("/")[2]
        store = next(
            dist.rendezvous(f"{url}?rank=0&world_size=1", timeout=dist.default_pg_timeout)
        )[0]
        store.set("key", "value")
        found = client.read(f"/torchetcd/groups/run_{job}", recursive=True)
        values = [leaf for leaf in found.leaves if "/store/" in leaf.key]
        assert values
        # All of it is under a lease.
        assert all(leaf.ttl for leaf in found.leaves if not leaf.dir), [
            leaf.key for leaf in found.leaves if not leaf.ttl
        ]

    @pytest.mark.needs_etcd
    def test_with_a_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with EtcdServer() as server:
            users = Users(server)
            users.add("ann", "hers", prefix="/torchetcd/groups/run_job/")
            monkeypatch.setenv("TORCHETCD_PASSWORD", "hers")
            url = f"etcd-v3://ann@{server.get_endpoint()}/job?rank=0&world_size=1&timeout=30"
            store = next(dist.rendezvous(url, timeout=dist.default_pg_timeout))[0]
            store.set("key", "value")
            assert store.get("key") == b"value"
            store.client.close()


def wait_for(key: str) -> None:
    dist.distributed_c10d._get_default_store().wait([key])


def leave_jobs() -> None:
    """What the end of a process does."""
    from torchetcd import process_group

    for _, node in process_group._nodes.values():
        node.leave()


def await_loss() -> None:
    from torchetcd import process_group

    (_, node), *_ = process_group._nodes.values()
    eventually(node._node.broken, PATIENCE_S)


def own_pid() -> int:
    return os.getpid()


def first_step(url: str) -> str:
    """Go as far as the store, and say what was wrong."""
    try:
        next(dist.rendezvous(url, timeout=dist.default_pg_timeout))
    except RuntimeError as exc:
        return str(exc)
    return ""


class TestRegistration:
    def test_nothing_has_to_be_imported(self, url: str) -> None:
        source = f"""
import sys, torch.distributed as dist
loaded = [name for name in sys.modules if name.startswith("torchetcd.")]
assert not loaded, loaded
env = dist.rendezvous.__globals__["_rendezvous_handlers"]["env"]
assert env.__module__ == "torch.distributed.rendezvous", env
dist.init_process_group("gloo", init_method="{url}", rank=0, world_size=1)
dist.barrier()
dist.destroy_process_group()
"""
        subprocess.run([sys.executable, "-c", source], check=True, timeout=PATIENCE_S)

    def test_twice(self) -> None:
        register()
        register()
