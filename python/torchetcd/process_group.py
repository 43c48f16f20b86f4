"""Process groups of torch that meet in etcd: `init_process_group(init_method="etcd-v3://...")`.

    etcd-v3://[user@]host[:port][,host[:port]...]/job[?option=value&...]

Importing this module makes the scheme known to torch. Where torchetcd is installed torch does so by itself
(entry point group `torch.backends`, torch 2.5 and later), unless TORCH_DEVICE_BACKEND_AUTOLOAD=0 is set.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from datetime import timedelta

from torch.distributed.elastic.rendezvous import RendezvousParameters

from torchetcd import _native
from torchetcd._defaults import JOIN_TIMEOUT_S
from torchetcd._rendezvous.group_url import GroupUrl, parse_url
from torchetcd._rendezvous.options import make_client
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous import EtcdRendezvous
from torchetcd.etcd_store import EtcdStore
from torchetcd_entry import SCHEME, register_schemes

__all__ = ["GroupUrl", "register", "rendezvous"]

_logger = logging.getLogger(__name__)

#: What says that all ranks are taken, or which one twice and by whom.
_CLAIMED = "claimed"

#: The node of each job that this process takes part in: it rejoins when a group is made again.
#: With the process that made it: in a forked child it is the parent's.
_nodes: dict[GroupUrl, tuple[int, EtcdRendezvous]] = {}


def register() -> None:
    """Make `etcd-v3://` known to torch in this process; does nothing when it is.

    It also has `env://` use the store of an agent with `worker_store=etcd`, where one has started this
    process.
    """
    register_schemes()


def rendezvous(url: str, timeout: timedelta | None = None) -> Iterator[tuple[EtcdStore, int, int]]:
    """Be torch's handler of the scheme: wait for all processes of the job, then give them a store.

    Processes that come again, by a restart or because the group is made again, get another store: nothing
    of the last one is seen.

    Args:
        url: As `init_process_group` completes it by rank and world size.
        timeout: How long to wait; `timeout` in the URL comes first.

    Raises:
        ValueError: if the URL cannot be used.
        RendezvousTimeoutError: if not all processes have come in time; says how many.
        RendezvousConnectionError: if etcd cannot be reached.
    """
    group = parse_url(url)
    if timeout is None:
        # torch names no time where it wants a store for its RPC, which may be used beside a group.
        group = group._replace(job=f"{group.job}#rpc")
    if group.timeout_s is None:
        group = group._replace(timeout_s=timeout.total_seconds() if timeout else JOIN_TIMEOUT_S)
    node = _node(group)
    version, place, world_size = node.rendezvous_barrier()
    # Nobody listens here.
    node._port.release()
    rank = place if group.rank is None else group.rank
    store = _store(node, version, "store", timeout)
    store._replaces_the_last(group.job)
    _claim(node, version, group, rank, world_size)
    _logger.info("Job '%s': rank %d of %d, in round %d.", group.job, rank, world_size, version)
    yield store, rank, world_size
    message = f"A store of {SCHEME}:// cannot be made again by the same rendezvous."
    raise RuntimeError(message)


def _node(group: GroupUrl) -> EtcdRendezvous:
    wanted, here = group.of_all_ranks(), os.getpid()
    for made, (pid, node) in list(_nodes.items()):
        same_job = (made.endpoints, made.job) == (wanted.endpoints, wanted.job)
        if pid != here or (same_job and made != wanted):
            # Does nothing in a child.
            node.leave()
            del _nodes[made]
    if wanted not in _nodes:
        node = EtcdRendezvous(
            _client(group),
            group.options.etcd_prefix,
            group.job,
            group.world_size,
            group.world_size,
            group.timeout_s or JOIN_TIMEOUT_S,
            0,
            options=group.options,
        )
        _nodes[wanted] = (here, node)
    return _nodes[wanted][1]


def _client(group: GroupUrl) -> Client:
    # Of these the endpoint alone is used.
    return make_client(
        RendezvousParameters(SCHEME, group.endpoints, group.job, 1, 1), group.options
    )


def _store(node: EtcdRendezvous, version: int, name: str, timeout: timedelta | None) -> EtcdStore:
    """Open a store of a round whose waits go on when a process ends: others may still write."""
    prefix = f"{node._round_path(version, name)}/"
    native = _native.Store(node.client._native, prefix.encode(), node._node.run_lease)
    return EtcdStore._of_round(node.client, prefix, native, timeout)


def _claim(node: EtcdRendezvous, version: int, group: GroupUrl, rank: int, world_size: int) -> None:
    """Take a rank, and wait until all are taken: if two processes want one, nobody else may wait for them."""
    timeout = timedelta(seconds=group.timeout_s or JOIN_TIMEOUT_S)
    # Two containers may have one name, and the same process in them.
    me = f"{node._name()}\n{secrets.token_hex(8)}"
    with _store(node, version, "ranks", timeout) as claims:
        other = claims.compare_set(str(rank), "", me).decode(errors="replace")
        if other != me:
            who = " and ".join(sorted(name.partition("\n")[0] for name in (me, other)))
            claims.set(_CLAIMED, f"{rank}, {who}")
        elif claims.add("claims", 1) == world_size:
            claims.set(_CLAIMED, "")
        twice = claims.get(_CLAIMED).decode(errors="replace")
    if twice:
        node.leave()
        message = (
            f"Two processes of the job '{group.job}' have rank {twice}: give each its own, or none."
        )
        raise RuntimeError(message)


register()
