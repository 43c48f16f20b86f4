"""The store that an agent hands to its workers: how it is described to them, and how they open it.

The description is an environment variable, which workers inherit whatever starts them (torch
`subprocess_handler.py` and `multiprocessing/api.py` both begin with the agent's environment). A restart
is a new round, and a new round's description replaces the last one before its workers start.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from torchetcd._autoload import WORKER_STORE, use_worker_store
from torchetcd._credentials import find_credentials

if TYPE_CHECKING:
    from torchetcd._params import Options
    from torchetcd.etcd_rendezvous import EtcdRendezvous
    from torchetcd.etcd_store import EtcdStore

_logger = logging.getLogger(__name__)

_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"

_groups: dict[str, Iterator[int]] = {}


class Description(NamedTuple):
    """Where a round's store for workers is. Never with a password: workers find it as agents do."""

    run_id: str
    round: int
    endpoints: list[str]
    prefix: str
    lease: int
    user: str | None
    ca_cert: str | None
    ssl_cert: str | None
    ssl_cert_key: str | None
    read_timeout: float


def check(options: Options) -> None:
    """Refuse what workers could not use.

    Raises:
        ValueError: if the password is known to this process only.
    """
    if options.password and not os.environ.get("TORCHETCD_PASSWORD"):
        message = (
            "The rendezvous parameter 'worker_store=etcd' needs the password in TORCHETCD_PASSWORD_FILE or "
            "TORCHETCD_PASSWORD, not in the parameter 'password': workers get it from their environment."
        )
        raise ValueError(message)
    use_worker_store()
    found = any(
        entry.value.startswith("torchetcd.") for entry in entry_points(group="torch.backends")
    )
    if not found or os.environ.get(_AUTOLOAD, "1") != "1":
        reason = f"{_AUTOLOAD} is not 1" if found else "torchetcd is not installed as a package"
        _logger.warning(
            "worker_store=etcd reaches only workers that import torchetcd.process_group, because %s. The "
            "others use a TCPStore.",
            reason,
        )


def hand_over(rdzv: EtcdRendezvous, options: Options, version: int) -> None:
    """Tell the workers that this process starts from now on to use the store of this round."""
    description = Description(
        run_id=rdzv._run_id,
        round=version,
        endpoints=rdzv.client.endpoints,
        prefix=rdzv.get_path(f"/rdzv/v_{version}/workers/"),
        lease=rdzv._node.run_lease,
        user=options.user,
        ca_cert=_absolute(options.ca_cert),
        ssl_cert=_absolute(options.ssl_cert),
        ssl_cert_key=_absolute(options.ssl_cert_key),
        read_timeout=options.read_timeout,
    )
    os.environ[WORKER_STORE] = json.dumps({"v": 1, **description._asdict()})


def forget(run_id: str) -> None:
    """Let the workers of this run use a TCPStore, whatever an agent around this one has said."""
    # What cannot be read is for the worker to complain of.
    with contextlib.suppress(ValueError):
        if os.environ.get(WORKER_STORE) and _read().run_id == run_id:
            del os.environ[WORKER_STORE]


def _absolute(path: str | None) -> str | None:
    # A worker may go to another folder.
    return None if path is None else os.path.abspath(path)


def of_this_worker() -> Description | None:
    """Return what an agent has said to this process; `None` if another one has started it.

    Raises:
        ValueError: if it cannot be read.
    """
    described = _read()
    # A launcher may be started by a worker, with another rendezvous, and its workers inherit all of this.
    other = os.environ.get("TORCHELASTIC_RUN_ID") != described.run_id
    if other or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _logger.info("The store of run '%s' is not for this process.", described.run_id)
        return None
    return described


def _read() -> Description:
    text = os.environ.get(WORKER_STORE, "")
    try:
        told = json.loads(text)
        version = told.pop("v")
        described = Description(**told) if version == 1 else None
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
    query = dict(parse_qsl(urlsplit(url).query))
    rank, world = _number("rank", query), _number("world_size", query)
    # torch names the keys of each default group alike, and with a TCPStore the last one's are gone. It
    # tells how long to wait where it wants a store for a process group. Its RPC has names of its own.
    number = _groups.setdefault(described.prefix, itertools.count())
    name = "rpc" if timeout is None else str(next(number))
    store = open_store(described, name, timeout)
    _logger.info(
        "The worker of rank %d uses the etcd store %s of round %d.", rank, name, described.round
    )
    yield store, rank, world
    message = "A store of env:// cannot be made anew by the same rendezvous."
    raise RuntimeError(message)


def open_store(described: Description, name: str, timeout: timedelta | None) -> EtcdStore:
    """Open a part of the round's store."""
    from torchetcd._torchetcd import Store as NativeStore  # noqa: PLC0415 - starts threads
    from torchetcd.etcd import Client  # noqa: PLC0415 - only a worker needs it
    from torchetcd.etcd_store import EtcdStore  # noqa: PLC0415 - imports torch

    user, password, password_file = find_credentials(described.user, None)
    cert = described.ssl_cert
    client = Client(
        ",".join(described.endpoints),
        read_timeout=described.read_timeout,
        cert=(cert, described.ssl_cert_key or cert) if cert else None,
        ca_cert=described.ca_cert,
        username=user,
        password=password,
        password_file=password_file,
    )
    prefix = f"{described.prefix}{name}/"
    native = NativeStore(client._native, prefix.encode(), described.lease)
    return EtcdStore._of_round(client, prefix, native, timeout)


def _number(name: str, query: dict[str, str]) -> int:
    text: Any = query.get(name, os.environ.get(name.upper(), ""))
    try:
        return int(text)
    except ValueError:
        message = f"{name.upper()} must be a number in the environment of a worker, not {text!r}."
        raise ValueError(message) from None
