"""Whom the benchmark of the barrier compares: torchetcd, torch's backends, NVIDIA's launcher and torchft.

All of them are made by a creator like torch's, and give a rank by `next_rendezvous`.
"""

from __future__ import annotations

import functools
import importlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import (
    create_backend as create_c10d,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from torchetcd import etcd_rendezvous, etcd_rendezvous_backend

Creator = Callable[[RendezvousParameters], RendezvousHandler]


@dataclass
class Backend:
    """Where a handler comes from, and how its creator names the seconds that a round may take."""

    package: str
    name: str
    #: None if what it needs is not installed.
    create: Creator | None
    timeout: str = "join_timeout"
    #: Whether it speaks etcd's v2 API.
    v2: bool = False
    #: Whom its nodes meet at: "etcd", a store in the "first" agent, or torchft's "lighthouse".
    server: str = "etcd"

    @property
    def full_name(self) -> str:
        return f"{self.package}:{self.name}"


def all_backends(python_etcd: bool) -> tuple[list[Backend], dict[str, str]]:
    """All of them, and why some, by full names, cannot run.

    They are had from their creators: what the names "etcd" and "etcd-v2" stand for depends on what is
    installed. Their modules are imported here, before the agents are forked.
    """
    known = [
        Backend("torchetcd", "etcd-v3", etcd_rendezvous.create_rdzv_handler),
        # Not what torchrun makes of a name: whoever wants it puts the two together.
        Backend("torchetcd", "dynamic", _dynamic(etcd_rendezvous_backend.create_backend)),
        Backend("torch", "c10d", _dynamic(create_c10d), server="first"),
        *_v2_backends(python_etcd),
        *_torchft_backends(),
        _nvrx_backend(),
    ]
    return known, {one.full_name: "not installed" for one in known if one.create is None}


def _dynamic(
    create_backend: Callable[[RendezvousParameters], Any], make: Any = create_handler
) -> Creator:
    def create(params: RendezvousParameters) -> RendezvousHandler:
        backend, store = create_backend(params)
        return make(store, backend, params)

    return create


def _v2_backends(python_etcd: bool) -> list[Backend]:
    if not python_etcd:
        return [Backend("torch", name, None, v2=True) for name in ("etcd", "etcd-v2")]
    from torch.distributed.elastic.rendezvous import etcd_rendezvous as torch_etcd
    from torch.distributed.elastic.rendezvous import etcd_rendezvous_backend as torch_backend

    return [
        Backend("torch", "etcd", torch_etcd.create_rdzv_handler, "timeout", v2=True),
        Backend("torch", "etcd-v2", _dynamic(torch_backend.create_backend), v2=True),
    ]


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _nvrx_backend() -> Backend:
    module = _imported("nvidia_resiliency_ext.fault_tolerance._ft_rendezvous")
    if module is None:
        return Backend("nvrx", "c10d", None)
    by_c10d = _dynamic(create_c10d, module.create_handler)

    def create(params: RendezvousParameters) -> Any:
        # Named by the process that has imported it, which is the same for all agents here.
        module.FT_LAUNCHER_IPC_SOCKET = f"{tempfile.gettempdir()}/nvrx-{os.getpid()}.socket"
        return _Tuples(by_c10d(params))

    return Backend("nvrx", "c10d", create, server="first")


class _Tuples:
    """A handler that returns a tuple, as torch's did until 2.4."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    def next_rendezvous(self) -> SimpleNamespace:
        store, rank, world_size = self._handler.next_rendezvous()
        return SimpleNamespace(rank=rank, world_size=world_size, store=store)


def _torchft_backends() -> list[Backend]:
    coordination = _imported("torchft.coordination")
    kinds = {"manager": _Manager, "lighthouse": _LighthouseAlone}
    if coordination is None:
        return [Backend("torchft", name, None) for name in kinds]
    return [
        Backend("torchft", name, functools.partial(kind, coordination), server="lighthouse")
        for name, kind in kinds.items()
    ]


class _Torchft:
    """What the bench calls of a handler, by torchft's own clients."""

    def __init__(self, coordination: Any, params: RendezvousParameters) -> None:
        self._timeout = timedelta(seconds=int(params.config["join_timeout"]))
        # A name of its own for each node, as torchft makes them.
        self._name = f"{os.getpid():08}"
        self._begin(coordination, params.endpoint)

    def _begin(self, coordination: Any, lighthouse: str) -> None:
        raise NotImplementedError

    def _place(self) -> tuple[int, int]:
        raise NotImplementedError

    def next_rendezvous(self) -> SimpleNamespace:
        rank, world_size = self._place()
        return SimpleNamespace(rank=rank, world_size=world_size, store=None)


class _Manager(_Torchft):
    """A Manager's server and client, with the options that torchft's `Manager` gives them."""

    def _begin(self, coordination: Any, lighthouse: str) -> None:
        self._server = coordination.ManagerServer(
            replica_id=self._name,
            lighthouse_addr=lighthouse,
            hostname="127.0.0.1",
            bind="127.0.0.1:0",
            store_addr="127.0.0.1:1",
            world_size=1,
            heartbeat_interval=timedelta(milliseconds=100),
            connect_timeout=timedelta(seconds=60),
            quorum_retries=0,
        )
        self._client = coordination.ManagerClient(self._server.address(), timedelta(seconds=60))

    def _place(self) -> tuple[int, int]:
        quorum = self._client._quorum(
            group_rank=0,
            step=0,
            checkpoint_metadata="",
            shrink_only=False,
            init_sync=True,
            timeout=self._timeout,
            commit_failures=0,
            reconfigure_handle="",
        )
        return quorum.replica_rank, quorum.replica_world_size


class _LighthouseAlone(_Torchft):
    """A client of the lighthouse, which tells who takes part and leaves ranks to the nodes."""

    def _begin(self, coordination: Any, lighthouse: str) -> None:
        self._client = coordination.LighthouseClient(lighthouse, timedelta(seconds=60))

    def _place(self) -> tuple[int, int]:
        quorum = self._client.quorum(self._name, self._timeout)
        names = sorted(member.replica_id for member in quorum.participants)
        return names.index(self._name), len(names)
