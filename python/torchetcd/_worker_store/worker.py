"""How a worker opens the store that its agent described (`description.py`).

What a worker starts inherits the description, too, and may make groups by `env://` that have nothing to do
with the worker's. Those are not meant: `process.py` decides for which process the description is, and
this module for which groups. All others get what torch makes of `env://`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from torchetcd import _native
from torchetcd._credentials import find_credentials
from torchetcd._worker_store.description import StoreDescription, read_description
from torchetcd._worker_store.process import claim, from_forkserver, in_round, this_process
from torchetcd.etcd import Client
from torchetcd.etcd_store import EtcdStore

_logger = logging.getLogger(__name__)

#: One for all groups of this process, so that a group that is made again needs no connection of its own.
_clients: dict[tuple[Any, ...], Client] = {}


def of_this_worker(url: str = "env://") -> StoreDescription | None:
    """Return what an agent has said to this process; `None` if it does not mean this group.

    Args:
        url: As torch completes it by rank and world size.

    Raises:
        ValueError: if it cannot be read.
    """
    claim()
    described = read_description()
    reason = _not_meant(described, _of_url(url).get("world_size", os.environ.get("WORLD_SIZE", "")))
    if reason:
        _logger.info(
            "The etcd store of run '%s' is not used for env://: %s.", described.run_id, reason
        )
        return None
    return described


def _not_meant(described: StoreDescription, world_size: str) -> str | None:
    # What is asked here must have the same answer in all processes of a group: if some of them used a
    # TCPStore, they would never meet. So not the rank, which some workers may have changed among them.
    if not in_round(vars(described)):
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


def rendezvous(
    described: StoreDescription, url: str, timeout: timedelta | None
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
    message = "A store of env:// cannot be made again by the same rendezvous."
    raise RuntimeError(message)


def _next_group(client: Client, described: StoreDescription, rank: int, world: int) -> str:
    """Return the name of the part that the next group of this rank has for itself.

    torch names the keys of each default group alike, and with a TCPStore the last one's are gone. Each
    rank is once in each group, so all ranks come to the same number. It is in etcd because a worker may be
    a shell that runs one program after the other.
    """
    with _open(client, described, "groups", None) as groups:
        return f"{world}/{groups.add(f'{world}/{rank}', 1) - 1}"


def _client(described: StoreDescription) -> Client:
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
            expected_cluster_id=described.cluster_id,
        )
    return _clients[known_by]


def _open(
    client: Client, described: StoreDescription, name: str, timeout: timedelta | None
) -> EtcdStore:
    """Open a part of the round's store."""
    prefix = f"{described.prefix}{name}/"
    native = _native.Store(client._native, prefix.encode(), described.lease)
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
