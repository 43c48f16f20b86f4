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
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from torch.distributed.elastic.rendezvous import RendezvousParameters

from torchetcd import _native
from torchetcd._defaults import GROUP_PREFIX, JOIN_TIMEOUT_S
from torchetcd._rendezvous.options import Options, make_client, parse_options
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous import EtcdRendezvous
from torchetcd.etcd_store import EtcdStore
from torchetcd_entry import SCHEME, register_schemes

__all__ = ["GroupUrl", "register", "rendezvous"]

_logger = logging.getLogger(__name__)

#: What says that all ranks are taken, or which one twice and by whom.
_CLAIMED = "claimed"

#: Those of the handler's parameters that mean something here. What is secret stays out of URLs.
_OPTIONS = (
    "protocol",
    "ca_cert",
    "cacert",
    "ssl_cert",
    "cert",
    "ssl_cert_key",
    "key",
    "password_file",
    "etcd_prefix",
    "keep_alive_ttl",
    "read_timeout",
    "run_ttl",
)
_SECRETS = ("user", "username", "password", "passwd", "token")

#: The node of each job that this process takes part in: it rejoins when a group is made again.
#: With the process that made it: in a forked child it is the parent's.
_nodes: dict[GroupUrl, tuple[int, EtcdRendezvous]] = {}


class GroupUrl(NamedTuple):
    """What a URL says, checked; `rank` of `None` leaves it to the order in which processes come."""

    endpoints: str
    job: str
    rank: int | None
    world_size: int
    timeout_s: float | None
    options: Options

    def of_all_ranks(self) -> GroupUrl:
        """Return what two groups of one process have in common."""
        return self._replace(rank=None, timeout_s=None)


def register() -> None:
    """Make `etcd-v3://` known to torch in this process; does nothing when it is.

    It also has `env://` use the store of an agent with `worker_store=etcd`, where one has started this
    process.
    """
    register_schemes()


def parse_url(url: str) -> GroupUrl:
    """Read the URL of a process group; rank and world size may come from the environment.

    Raises:
        ValueError: in one sentence that says what is wrong, without what might be a password.
    """
    parts = urlsplit(url)
    user, at, endpoints = parts.netloc.rpartition("@")
    if parts.scheme != SCHEME:
        raise _error(f"'{parts.scheme}' is not the scheme '{SCHEME}'")
    if ":" in user:
        raise _error(
            "a password must not stand in it: give it by TORCHETCD_PASSWORD_FILE or TORCHETCD_PASSWORD"
        )
    if not endpoints or (at and not user):
        raise _error(f"hosts of etcd are missing; expected {SCHEME}://host:2379/job")
    job = unquote(parts.path.strip("/"))
    if not job:
        raise _error(f"the name of the job is missing; expected {SCHEME}://{endpoints}/job")
    query = _query(parts.query)
    config: dict[str, str] = {name: query.pop(name) for name in _OPTIONS if name in query}
    config.setdefault("etcd_prefix", GROUP_PREFIX)
    if user:
        config["user"] = unquote(user)
    world_size = _whole("world_size", query.pop("world_size", None), least=1)
    rank = _whole("rank", query.pop("rank", None), least=0, needed=False)
    timeout = _whole("timeout", query.pop("timeout", None), least=1, needed=False, inherited=False)
    if query:
        known = ", ".join(("rank", "world_size", "timeout", *_OPTIONS))
        raise _error(f"'{next(iter(query))}' is not one of its options: {known}")
    if world_size is None or (rank is not None and rank >= world_size):
        raise _error(f"the rank must be 0 to {(world_size or 0) - 1}, not {rank}")
    try:
        options = parse_options(config)
    except ValueError as exc:
        raise _error(str(exc).rstrip(".")) from exc
    return GroupUrl(endpoints, job, rank, world_size, timeout, options)


def rendezvous(url: str, timeout: timedelta | None = None) -> Iterator[tuple[EtcdStore, int, int]]:
    """Be torch's handler of the scheme: wait for all processes of the job, then give them a store.

    Processes that come again, by a restart or because the group is made anew, get another store: nothing
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
    message = f"A store of {SCHEME}:// cannot be made anew by the same rendezvous."
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
        message = f"Two processes of the job '{group.job}' have rank {twice}: give each its own, or none any."
        raise RuntimeError(message)


def _query(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
    except ValueError:
        raise _error("what follows the '?' must be option=value, joined by '&'") from None
    query: dict[str, str] = {}
    for name, value in pairs:
        if name.lower() in _SECRETS:
            raise _error(
                f"'{name}' must not stand in what follows the '?': the user stands before the '@' or in "
                "TORCHETCD_USER, the password in TORCHETCD_PASSWORD_FILE or TORCHETCD_PASSWORD"
            )
        if name in query:
            raise _error(f"'{name}' is given twice")
        query[name] = value
    return query


def _whole(
    name: str, text: str | None, *, least: int, needed: bool = True, inherited: bool = True
) -> int | None:
    variable = name.upper()
    where = f"'{name}'"
    if text is None and inherited and os.environ.get(variable):
        text, where = os.environ[variable], f"{variable} in the environment"
    if text is None:
        if needed:
            raise _error(f"'{name}' is missing, and {variable} is not set in the environment")
        return None
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise _error(f"{where} must be a whole number, at least {least}, not {text!r}")
    return int(text)


def _error(reason: str) -> ValueError:
    return ValueError(f"Error initializing torch.distributed using {SCHEME}://: {reason}.")


register()
