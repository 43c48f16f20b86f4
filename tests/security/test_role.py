"""A role that may touch the keys of one run and nothing else is enough for all that a run does."""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import subprocess
import traceback
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic import events
from torch.distributed.elastic.events import handlers
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousParameters,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from support import ROOT
from support.etcd.users import CHEAP, ROOT_PASSWORD, Users
from support.processes.agents import Job
from support.processes.nodes import PREFIX, TTL, Run, join_all
from torchetcd.etcd import Client, EtcdInsufficientPermissions
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_rendezvous_backend import create_backend
from torchetcd.etcd_server import EtcdServer, find_binary
from torchetcd.etcd_store import EtcdStore, StoreError

pytestmark = pytest.mark.needs_etcd

# Found nowhere by chance.
PASSWORD = "marker-5f1d7c"
DOCS = ROOT / "docs" / "security.md"

WORKER = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
with open(f"{sys.argv[1]}.{dist.get_rank()}", "wb") as seen:
    for name in ("cmdline", "environ"):
        seen.write(open(f"/proc/self/{name}", "rb").read())
    # And of the agent.
    import os
    for name in ("cmdline", "environ"):
        seen.write(open(f"/proc/{os.getppid()}/{name}", "rb").read())
print("sum", int(total), flush=True)
dist.destroy_process_group()
"""


class Limited:
    """A server with users who may each touch one run."""

    def __init__(self, server: EtcdServer) -> None:
        self.server = server
        self.endpoint = server.get_endpoint()
        self.users = Users(server)
        self.root = server.get_client(username="root", password=ROOT_PASSWORD)

    def run(self, run_id: str = "") -> Run:
        """Make a run, and the user of its name who may touch its keys."""
        run = Run(self.endpoint, self.root, run_id or uuid.uuid4().hex)
        self.users.add(run.run_id, PASSWORD, prefix=f"{run.path}/")
        return run

    def client(self, user: str) -> Client:
        return self.server.get_client(username=user, password=PASSWORD)

    def handler(self, run_id: str, user: str, **config: Any) -> EtcdRendezvousHandler:
        return create_rdzv_handler(_parameters(self.endpoint, run_id, user, **config))


@pytest.fixture(scope="module")
def limited() -> Iterator[Limited]:
    with EtcdServer(extra_args=[CHEAP]) as server:
        made = Limited(server)
        with made.root:
            yield made


def _parameters(endpoint: str, run_id: str, user: str, **config: Any) -> RendezvousParameters:
    defaults = {"user": user, "password": PASSWORD, "join_timeout": 60, "read_timeout": 10}
    return RendezvousParameters(
        "etcd-v3", endpoint, run_id, 1, 1, local_addr="127.0.0.1", **(defaults | config)
    )


class TestEnough:
    @pytest.mark.slow(20)
    @pytest.mark.timeout(400)
    def test_torchrun(
        self, limited: Limited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two agents and their workers; and the password is seen nowhere."""
        file, seen = tmp_path / "password", tmp_path / "seen"
        file.write_text(f"{PASSWORD}\n")
        for name in [name for name in os.environ if name.startswith("TORCHETCD_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("TORCHETCD_PASSWORD_FILE", str(file))
        monkeypatch.setenv("LOGLEVEL", "DEBUG")
        monkeypatch.setenv("TORCH_LOGS", "+torchetcd,+torch.distributed")
        monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "INFO")
        monkeypatch.setenv("RUST_LOG", "trace")
        monkeypatch.setenv("GRPC_TRACE", "all")
        with limited.run() as run:
            monkeypatch.setenv("TORCHETCD_USER", run.run_id)
            job = Job(run, tmp_path)
            try:
                script = job.script(WORKER)
                agents = [job.agent("2", script, seen) for _ in range(2)]
                texts = [agent.end() for agent in agents]
            finally:
                job.end()
            assert run.control()["state"] == "closed"
        assert all("sum 2" in text for text in texts)
        assert all("rdzv_configs" in text and "torchetcd" in text for text in texts)
        assert all(PASSWORD not in text for text in texts)
        for rank in range(2):
            processes = (tmp_path / f"seen.{rank}").read_bytes()
            # It was looked at, and the name of the file is what there is.
            assert str(file).encode() in processes
            assert PASSWORD.encode() not in processes

    def test_a_member_is_lost(self, limited: Limited) -> None:
        with limited.run() as run:
            config = {"user": run.run_id, "password": PASSWORD, "keep_alive_ttl": TTL}
            nodes = run.nodes(3, min_nodes=2, max_nodes=3, **config)
            places = join_all(nodes)
            lost = nodes.pop(places.index(max(places)))
            lost.kill()
            for node in nodes:
                assert node.call("await_waiting", 30.0) == 1
            join_all(nodes)
            assert nodes[0].call("shutdown")
            assert nodes[1].call("is_closed")

    def test_the_whole_life_of_a_handler(self, limited: Limited) -> None:
        with limited.run() as run:
            handler = limited.handler(run.run_id, run.run_id)
            info = handler.next_rendezvous()
            handler._rdzv_impl.store_extra_data(1, "key", {"a": 1})
            assert handler._rdzv_impl.load_extra_data(1, "key", 10) == {"a": 1}
            with info.store as store:
                _use(store)
            assert handler.num_nodes_waiting() == 0
            assert not handler.is_closed()
            assert handler.shutdown()

    def test_a_store(self, limited: Limited) -> None:
        with (
            limited.run() as run,
            limited.client(run.run_id) as client,
            EtcdStore(client, f"{run.path}/mine") as store,
        ):
            _use(store)

    def test_the_backend(self, limited: Limited) -> None:
        """It needs its state's key, and the store that torch has for all runs."""
        user = run_id = uuid.uuid4().hex
        limited.users.add(user, PASSWORD, prefix=f"/torch/elastic/rendezvous/{run_id}")
        limited.users.allow(user, "/torch/elastic/store/")
        params = _parameters(limited.endpoint, run_id, user)
        backend, store = create_backend(params)
        handler = create_handler(store, backend, params)
        info = handler.next_rendezvous()
        info.store.set("key", "value")
        assert info.store.get("key") == b"value"
        assert handler.shutdown()


def _use(store: Any) -> None:
    store.set_timeout(timedelta(seconds=20))
    store.set("key", "value")
    assert store.get("key") == b"value"
    assert store.add("counter", 2) == 2
    assert store.compare_set("key", "value", "other") == b"other"
    store.append("key", "!")
    store.multi_set(["a", "b"], ["1", "2"])
    assert store.multi_get(["a", "b"]) == [b"1", b"2"]
    store.queue_push("queue", "first")
    assert store.queue_pop("queue") == b"first"
    store.wait(["a"], timedelta(seconds=10))
    assert store.check(["a"])
    assert store.delete_key("a")
    assert {"b", "counter", "key"} <= set(store.list_keys())
    assert store.num_keys() >= 3


class TestNotMore:
    """etcd refuses the rest, and who asked is told who may not, and where."""

    def _said(self, limited: Limited, user: str, error: type[Exception], call: Any) -> None:
        said = (
            rf"^[^\n]*http://{limited.endpoint}[^\n]*permission denied \(user '{re.escape(user)}'\)"
        )
        with pytest.raises(error, match=said) as caught:
            call()
        assert PASSWORD not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize("other", ["{}2", "{}/below", "{}%2Fbelow", "", "another", "{}/.."])
    def test_another_run(self, limited: Limited, other: str) -> None:
        with limited.run() as run:
            run_id = other.format(run.run_id)
            call = lambda: limited.handler(run_id, run.run_id)  # noqa: E731
            self._said(limited, run.run_id, RendezvousConnectionError, call)

    def test_another_prefix(self, limited: Limited) -> None:
        with limited.run() as run:
            call = lambda: limited.handler(run.run_id, run.run_id, etcd_prefix="/x")  # noqa: E731
            self._said(limited, run.run_id, RendezvousConnectionError, call)

    def test_keys_and_stores_of_another_run(self, limited: Limited) -> None:
        with limited.run() as run, limited.run() as other, limited.client(run.run_id) as client:
            handler = limited.handler(other.run_id, other.run_id)
            handler.next_rendezvous().store.set("key", "theirs")
            user = run.run_id
            with EtcdStore(client, f"{other.path}/rdzv/v_1/kv") as store:
                calls: list[Callable[[], object]] = [
                    lambda: store.get("key"),
                    lambda: store.set("key", "mine"),
                    lambda: store.add("key", 1),
                    lambda: store.delete_key("key"),
                    store.list_keys,
                ]
                for call in calls:
                    self._said(limited, user, StoreError, call)
            control = f"{other.path}/rdzv/head/control"
            for call in (
                lambda: client.read(control),
                lambda: client.write(control, "x"),
                lambda: client.delete(control),
                lambda: client.watch(control, timeout=10),
            ):
                self._said(limited, user, EtcdInsufficientPermissions, call)
            # The lease of a node, and so all its keys.
            lease = _lease_of_a_node(limited, other)
            self._said(
                limited,
                user,
                EtcdInsufficientPermissions,
                lambda: client._native.lease_revoke(lease),
            )
            assert other.control()["state"] == "final"
            assert handler.shutdown()


def _lease_of_a_node(limited: Limited, run: Run) -> int:
    (key,) = run.keys("/rdzv/round/1/member")
    lease = limited.root.read(key).lease
    assert isinstance(lease, int)
    return lease


class TestSeenNowhere:
    def test_events_and_logs(
        self,
        limited: Limited,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Whatever is logged, and what torch records as events, with and without success."""
        # torch's destination of events of a rendezvous, and the loggers that it keeps.
        monkeypatch.setitem(handlers._log_handlers, "dynamic_rendezvous", caplog.handler)
        monkeypatch.setattr(events, "_events_loggers", {})
        with limited.run() as run, caplog.at_level(logging.DEBUG):
            handler = limited.handler(run.run_id, run.run_id)
            handler.next_rendezvous()
            handler.shutdown()
            with pytest.raises(RendezvousClosedError):
                handler.next_rendezvous()
            with pytest.raises(RendezvousConnectionError, match="permission denied"):
                limited.handler("another", run.run_id)
            with pytest.raises(RendezvousConnectionError, match="invalid user ID"):
                limited.handler(run.run_id, "nobody")
        logging.getLogger("torchelastic-events-dynamic_rendezvous").removeHandler(caplog.handler)
        assert "has joined round 1" in caplog.text
        assert any('"node_state"' in record.getMessage() for record in caplog.records)
        shown = caplog.text + "".join(repr(vars(record)) for record in caplog.records)
        assert PASSWORD not in shown


def test_the_commands_of_the_docs(tmp_path: Path) -> None:
    """What `docs/security.md` says about users and roles does what it says."""
    etcdctl = Path(find_binary()).parent / "etcdctl"
    if not etcdctl.is_file():
        pytest.skip("there is no etcdctl beside this etcd")
    commands = re.findall(r"<!-- runs as a test -->\n```sh\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert commands
    password = tmp_path / "torchetcd-password"
    with EtcdServer(extra_args=[CHEAP]) as server:
        environment = os.environ | {
            "ETCDCTL_API": "3",
            "ETCDCTL_ENDPOINTS": server.get_endpoint(),
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
        }
        # As the name of a program: the package's own wrapper of it may be missing.
        shutil.copy(etcdctl, tmp_path / "etcdctl")
        ran = subprocess.run(
            ["/bin/sh", "-eux", "-c", "\n".join(commands)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        secret = password.read_text().strip()
        assert secret not in ran.stdout
        parameters = functools.partial(_parameters, server.get_endpoint(), user="my-job")
        handler = create_rdzv_handler(parameters("my-job", password=secret))
        assert handler.next_rendezvous().rank == 0
        assert handler.shutdown()
        for other in ("other", "my-job-2"):
            with pytest.raises(RendezvousConnectionError, match="permission denied"):
                create_rdzv_handler(parameters(other, password=secret))
    assert f" {PREFIX}/run_my-job/\n" in "\n".join(commands)
