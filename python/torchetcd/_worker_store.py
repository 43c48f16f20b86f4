"""The store that an agent hands to its workers: how it is described to them, and how they open it.

The description is an environment variable, which workers inherit whatever starts them (torch
`subprocess_handler.py` and `multiprocessing/api.py` both begin with the agent's environment). A restart
is a new round, and a new round's description replaces the last one before its workers start.

What a worker starts inherits it, too, and may make groups by `env://` that have nothing to do with the
worker's. It is not meant: `_worker_process.py` says which process is, and here is said for which groups.
Everybody else gets what torch makes of `env://`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from torchetcd._credentials import find_credentials
from torchetcd._env_handler import use_worker_store
from torchetcd._environment import PASSWORD, PASSWORD_FILE
from torchetcd._worker_process import (
    WORKER_STORE,
    claim,
    from_forkserver,
    in_round,
    this_process,
)

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousStoreInfo

    from torchetcd._params import Options
    from torchetcd.etcd import Client
    from torchetcd.etcd_rendezvous import EtcdRendezvous
    from torchetcd.etcd_store import EtcdStore

_logger = logging.getLogger(__name__)

_VERSION = 2
_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"

#: One for all groups of this process, so that a group that is made again needs no connection of its own.
_clients: dict[tuple[Any, ...], Client] = {}

#: Whether what this process forks is asked whether it is a worker.
_asks_forked: list[bool] = []


class Description(NamedTuple):
    """Where a round's store for workers is. Never with a password: workers find it as agents do."""

    run_id: str
    round: int
    endpoints: list[str]
    prefix: str
    lease: int
    user: str | None
    #: Where workers read the password, if it is not in the environment.
    password_file: str | None
    ca_cert: str | None
    ssl_cert: str | None
    ssl_cert_key: str | None
    read_timeout: float
    #: What torch's agents give to workers of this round.
    master_addr: str
    master_port: str
    #: The process that wrote it, and the one that it is for (`_worker_process.py`).
    agent: str
    worker: str | None
    #: As the worker was told. The agent did not know it yet.
    world_size: str | None


def check(options: Options) -> None:
    """Refuse what workers could not use.

    Raises:
        ValueError: if the password is known to this process only.
    """
    if options.password and not PASSWORD.get():
        message = (
            "The rendezvous parameter 'worker_store=etcd' needs the password in a file ('password_file' or "
            f"{PASSWORD_FILE.name}) or in {PASSWORD.name}, not in the parameter 'password': workers do not "
            "get it otherwise."
        )
        raise ValueError(message)
    use_worker_store()
    if not _asks_forked:
        # A worker that is forked imports nothing, and must not wait with it until it needs the store.
        os.register_at_fork(after_in_child=claim)
        _asks_forked.append(True)
    found = any(
        entry.value.startswith("torchetcd") for entry in entry_points(group="torch.backends")
    )
    if not found or os.environ.get(_AUTOLOAD, "1") != "1":
        reason = f"{_AUTOLOAD} is not 1" if found else "torchetcd is not installed as a package"
        _logger.warning(
            "worker_store=etcd reaches only workers that import torchetcd.process_group, because %s. The "
            "others use a TCPStore.",
            reason,
        )


def hand_over(
    options: Options, rdzv: EtcdRendezvous, version: int, master: RendezvousStoreInfo
) -> None:
    """Tell the workers that this process starts from now on to use the store of this round."""
    description = Description(
        run_id=rdzv._run_id,
        round=version,
        endpoints=rdzv.client.endpoints,
        prefix=f"{rdzv._round_path(version, 'workers')}/",
        lease=rdzv._node.run_lease,
        user=options.user,
        password_file=_absolute(options.password_file),
        ca_cert=_absolute(options.ca_cert),
        ssl_cert=_absolute(options.ssl_cert),
        ssl_cert_key=_absolute(options.ssl_cert_key),
        read_timeout=options.read_timeout,
        master_addr=master.master_addr,
        master_port=str(master.master_port),
        agent=this_process(),
        worker=None,
        world_size=None,
    )
    os.environ[WORKER_STORE] = json.dumps({"v": _VERSION, **description._asdict()})


def _absolute(path: str | None) -> str | None:
    # A worker may go to another folder.
    return None if path is None else os.path.abspath(path)


def of_this_worker(url: str = "env://") -> Description | None:
    """Return what an agent has said to this process; `None` if it does not mean this group.

    Args:
        url: As torch completes it by rank and world size.

    Raises:
        ValueError: if it cannot be read.
    """
    claim()
    described = _read()
    reason = _not_meant(described, _of_url(url).get("world_size", os.environ.get("WORLD_SIZE", "")))
    if reason:
        _logger.info(
            "The etcd store of run '%s' is not used for env://: %s.", described.run_id, reason
        )
        return None
    return described


def _not_meant(described: Description, world_size: str) -> str | None:
    # What is asked here must have the same answer in all processes of a group: if some of them used a
    # TCPStore, they would never meet. So not the rank, which some workers may have changed among them.
    if not in_round(described._asdict()):
        return "the environment names another run or another MASTER_ADDR or MASTER_PORT"
    if from_forkserver():
        return "a fork server does not know of the last round"
    here = this_process()
    if described.worker != here and (described.worker, described.agent) != (None, here):
        return "it is for the worker that has started this process"
    # A part of the workers that makes a group of its own would meet another part.
    if world_size != (described.world_size or world_size):
        return f"the world of the workers has {described.world_size} processes, not {world_size}"
    return None


def _read() -> Description:
    text = os.environ.get(WORKER_STORE, "")
    try:
        told = json.loads(text)
        version = told.pop("v")
        described = Description(**told) if version == _VERSION else None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as exc:
        message = f"{WORKER_STORE} is no description of a store, but {text[:80]!r}: unset it."
        raise ValueError(message) from exc
    if described is None:
        message = (
            f"{WORKER_STORE} is of version {version!r}, which this torchetcd does not know: agents and "
            "workers need the same version of it."
        )
        raise ValueError(message)
    return described


def rendezvous(
    described: Description, url: str, timeout: timedelta | None
) -> Iterator[tuple[EtcdStore, int, int]]:
    """Be torch's handler of `env://` on this store.

    Raises:
        ValueError: if rank or world size is not there.
    """
    query = _of_url(url)
    rank, world = _number("rank", query), _number("world_size", query)
    client = _client(described)
    # torch tells how long to wait where it wants a store for a process group. Its RPC has names of its own.
    name = "rpc" if timeout is None else _next_group(client, described, rank, world)
    store = _open(client, described, name, timeout)
    store._replaces_the_last("rpc" if timeout is None else "group of workers")
    _logger.info(
        "The worker of rank %d uses the etcd store %s of round %d.", rank, name, described.round
    )
    yield store, rank, world
    message = "A store of env:// cannot be made anew by the same rendezvous."
    raise RuntimeError(message)


def _next_group(client: Client, described: Description, rank: int, world: int) -> str:
    """Return the name of the part that the next group of this rank has for itself.

    torch names the keys of each default group alike, and with a TCPStore the last one's are gone. Each
    rank is once in each group, so all ranks come to the same number. It is in etcd because a worker may be
    a shell that runs one program after the other.
    """
    with _open(client, described, "groups", None) as groups:
        return f"{world}/{groups.add(f'{world}/{rank}', 1) - 1}"


def _client(described: Description) -> Client:
    from torchetcd.etcd import Client  # noqa: PLC0415 - only a worker needs it

    user, password, password_file = find_credentials(described.user, None, described.password_file)
    known_by = (
        *(",".join(described.endpoints), described.read_timeout),
        *(described.ca_cert, described.ssl_cert, described.ssl_cert_key),
        *(user, password, password_file),
    )
    if known_by not in _clients:
        cert = described.ssl_cert
        _clients[known_by] = Client(
            ",".join(described.endpoints),
            read_timeout=described.read_timeout,
            cert=(cert, described.ssl_cert_key or cert) if cert else None,
            ca_cert=described.ca_cert,
            username=user,
            password=password,
            password_file=password_file,
        )
    return _clients[known_by]


def _open(
    client: Client, described: Description, name: str, timeout: timedelta | None
) -> EtcdStore:
    """Open a part of the round's store."""
    from torchetcd._torchetcd import Store as NativeStore  # noqa: PLC0415 - starts threads
    from torchetcd.etcd_store import EtcdStore  # noqa: PLC0415 - imports torch

    prefix = f"{described.prefix}{name}/"
    native = NativeStore(client._native, prefix.encode(), described.lease)
    return EtcdStore._of_round(client, prefix, native, timeout)


def _of_url(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def _number(name: str, query: dict[str, str]) -> int:
    text: Any = query.get(name, os.environ.get(name.upper(), ""))
    try:
        return int(text)
    except ValueError:
        message = f"{name.upper()} must be a number in the environment of a worker, not {text!r}."
        raise ValueError(message) from None
