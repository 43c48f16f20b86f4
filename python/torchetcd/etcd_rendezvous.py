"""A rendezvous on etcd v3 for torch's elastic agent.

The names are those of `torch.distributed.elastic.rendezvous.etcd_rendezvous`; the protocol is our own
(`docs/protocol.md`): one record says which round is current, one coordinator completes it, and no node
competes with the others for a shared value.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch.distributed import Store
from torch.distributed.elastic.events import NodeState, construct_and_record_rdzv_event
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousStoreInfo,
)

from torchetcd import _counts
from torchetcd._address import host_name, local_address
from torchetcd._closed import SHUTDOWN
from torchetcd._ending import Ending, ending_now, under_way
from torchetcd._errors import RendezvousDeniedError, RendezvousOverError
from torchetcd._lifecycle import leave_at_end, leaving_on_signals
from torchetcd._master_port import MasterPort
from torchetcd._names import prefix_path, run_segment
from torchetcd._observe import ObservedBarrier, serve_metrics_if_asked
from torchetcd._params import Options, default_options, make_client, parse_options
from torchetcd._ranks import check_segments
from torchetcd._waiting import closed_error, stood_by_to_the_end, wait_for_place
from torchetcd._worker_process import forget
from torchetcd.etcd import as_client
from torchetcd.etcd_store import EtcdStore

if TYPE_CHECKING:
    from torchetcd.etcd import Client

__all__ = [
    "EtcdRendezvous",
    "EtcdRendezvousHandler",
    "EtcdRendezvousRetryImmediately",
    "EtcdRendezvousRetryableFailure",
    "RendezvousDeniedError",
    "RendezvousOverError",
    "create_rdzv_handler",
]

_logger = logging.getLogger(__name__)


class EtcdRendezvousRetryableFailure(Exception):  # noqa: N818 - torch's name
    """Kept for scripts that import it; this implementation never raises it."""


class EtcdRendezvousRetryImmediately(Exception):  # noqa: N818 - torch's name
    """Kept for scripts that import it; this implementation never raises it."""


class EtcdRendezvous:
    """One node's part in the rounds of one run.

    The seven positional arguments are torch's (`etcd_rendezvous.py`, `EtcdRendezvous.__init__`).

    Args:
        client: A `torchetcd.etcd.Client`, or a client of python-etcd whose address is taken.
        prefix: The prefix of all keys, with or without slashes around it.
        run_id: The name of the run. Runs with different names never see each other.
        num_min_workers: Nodes that a world needs.
        num_max_workers: Nodes that a world has at most; more of them wait as spares.
        timeout: Seconds within which `rendezvous_barrier` must succeed.
        last_call_timeout: Seconds to wait for more nodes once `num_min_workers` have joined.
        options: The other parameters; their defaults when not given.

    Raises:
        ValueError: if an argument is out of range, or a name is none that etcd can hold.
        RendezvousConnectionError: if etcd cannot be reached.
        RendezvousStateError: if the run's state in etcd cannot be read.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - torch's signature
        self,
        client: Client,
        prefix: str,
        run_id: str | int,
        num_min_workers: int,
        num_max_workers: int,
        timeout: float,
        last_call_timeout: float,
        *,
        options: Options | None = None,
    ) -> None:
        from torchetcd._torchetcd import Rendezvous  # noqa: PLC0415 - starts threads

        if not 1 <= num_min_workers <= num_max_workers:
            message = (
                "The numbers of nodes must satisfy 1 <= min_nodes <= max_nodes, not min_nodes "
                f"{num_min_workers} and max_nodes {num_max_workers}."
            )
            raise ValueError(message)
        self.client = as_client(client)
        options = options or default_options()
        check_segments(options.segment, num_min_workers, num_max_workers)
        self._run_id = str(run_id)
        if self._run_id in {"", "none", "None"}:
            _logger.warning(
                "The run id is '%s', torchrun's default: every job on this etcd that gives none either "
                "will join this one. Give each job its own --rdzv-id.",
                self._run_id,
            )
        self._prefix = prefix_path(prefix)
        self._run_path = f"{self._prefix}run_{run_segment(self._run_id)}"
        self._num_min_workers = num_min_workers
        self._num_max_workers = num_max_workers
        self._timeout = timeout
        self._last_call_timeout = last_call_timeout
        self._host = local_address(self.client.endpoints)
        self._node = Rendezvous(
            self.client._native,
            self._run_path,
            min_nodes=num_min_workers,
            max_nodes=num_max_workers,
            join_timeout_s=timeout,
            last_call_timeout_s=last_call_timeout,
            survivor_grace_s=options.survivor_grace,
            reopen_if_closed=options.if_closed == "reopen",
            close_timeout_s=options.close_timeout,
            keep_alive_ttl_s=options.keep_alive_ttl,
            run_ttl_s=options.run_ttl,
            restart_on_member_loss=options.on_member_loss == "restart",
            host=host_name(self._host),
            rank_order=options.rank_order,
            segment=options.segment,
            infra_rank=options.infra_rank,
            domain=options.domain,
            node_id=options.node_id,
        )
        self._port = MasterPort(options.master_port)
        self._told_why = False
        self._news: str | None = None
        self._in_barrier = threading.Lock()
        self._stores: list[tuple[int, EtcdStore]] = []
        # Not at the end of the interpreter, when stores may be used to the last.
        weakref.finalize(self, _give_up, self._stores).atexit = False
        leave_at_end(self, self._node)
        # Fails here and now when etcd cannot be reached, and learns the run's state, which the barrier
        # needs in any case.
        self._node.closed()

    def rendezvous_barrier(self) -> tuple[int, int, int]:
        """Take part in the next round and wait until it is complete.

        Returns:
            The round's number, this node's rank and the number of nodes.

        Raises:
            RendezvousClosedError: if the run is or becomes closed.
            RendezvousDeniedError: if this node is or comes to be on the run's deny list.
            RendezvousTimeoutError: if the round is not complete in time; says who has joined.
            RendezvousConnectionError: if etcd cannot be reached for so long.
            RendezvousStateError: if the run's state in etcd cannot be read, or another agent has taken this
                node's `node_id`.
            RuntimeError: if another thread is in it already.
        """
        version, rank, world_size, _ = self._barrier(None)
        return version, rank, world_size

    def _barrier(self, local_addr: str | None) -> tuple[int, int, int, RendezvousStoreInfo]:
        if not self._in_barrier.acquire(blocking=False):
            # Raises in a forked child, where it is not said that anybody will release the lock.
            self._node.progress()
            message = (
                f"Another thread is in rendezvous_barrier() or next_rendezvous() of run '{self._run_id}': a "
                "node takes part once, in one thread."
            )
            raise RuntimeError(message)
        try:
            return self._join(local_addr)
        finally:
            self._in_barrier.release()

    def _join(self, local_addr: str | None) -> tuple[int, int, int, RendezvousStoreInfo]:
        observed = ObservedBarrier(
            self._run_id, self._node, self._num_min_workers, self._num_max_workers
        )
        with observed, self._port.reserved() as port, leaving_on_signals(self._node.leave):
            self._told_why = False
            self._node.join(local_addr or self._host, port)
            try:
                version, rank, world_size, addr, master_port = wait_for_place(
                    self._node, self._run_id, self._num_min_workers, self._num_max_workers
                )
            except RendezvousClosedError as exc:
                raise closed_error(self._node, self._run_id, exc) from None
            except RendezvousError:
                raise
            except BaseException:
                # A signal or a bug ended the wait: the others must not count on this node.
                self._node.leave()
                raise
            observed.completed(version, rank, world_size)
            if rank == 0:
                self._port.keep()
        if remark := self._node.remark():
            _logger.warning("Run '%s', round %d: %s.", self._run_id, version, remark)
        return version, rank, world_size, RendezvousStoreInfo(addr, master_port)

    def num_nodes_waiting(self) -> int:
        """Return how many nodes could change the world of this member; asks nobody."""
        waiting = self._node.num_nodes_waiting()
        if waiting and not self._told_why:
            # Once per round: agents ask up to ten times a second.
            self._told_why = True
            more = (_counts.NODES_WAITING, f"{waiting} more nodes want to join")
            cause, reason = self._node.broken() or more
            _counts.world_changes(self._run_id, cause)
            self._news = f"The world will be formed anew: {reason}."
            _logger.info("Run '%s': the world will be formed anew: %s.", self._run_id, reason)
        return waiting

    def is_closed(self) -> bool:
        """Return whether the run is closed; asks etcd at most once, then a watch tells."""
        return self._node.closed() is not None

    def set_closed(self, reason: str = "set_closed() was called") -> None:
        """Close the run for good: every blocked or later barrier raises RendezvousClosedError.

        Args:
            reason: Why, for who asks later.
        """
        self._node.close(self._name(), reason)
        _counts.run_closed(self._run_id)

    def _close_as_member(self, ending: Ending) -> str | None:
        """Close the run if this node is a live member of its last world; else return why it was not."""
        kept_open = self._node.close(self._name(), SHUTDOWN, *ending, only_member=True)
        if kept_open is None:
            _counts.run_closed(self._run_id)
        return kept_open

    def _name(self) -> str:
        return f"{host_name(self._host)} (pid {os.getpid()})"

    def leave(self) -> None:
        """Give up membership at once, without closing the run."""
        self._node.leave()
        self._port.release()

    def get_path(self, path: str) -> str:
        """Return the etcd key of `path` within this run."""
        return f"{self._run_path}/{path.lstrip('/')}"

    def _round_path(self, rdzv_version: int, name: str) -> str:
        """Return the etcd key of a part of what the members of a round share.

        A round that begins anew, after its record was deleted, has the same number but another attempt.
        """
        return self.get_path(f"/rdzv/v_{rdzv_version}/{self._node.attempt(rdzv_version)}/{name}")

    def setup_kv_store(self, rdzv_version: int) -> Store:
        """Return the store of a round, shared by its members.

        A wait in it ends early when a member of the round is lost.
        """
        native = self._node.store(rdzv_version)
        store = EtcdStore._of_round(self.client, self._round_path(rdzv_version, "kv"), native)
        # A store stays alive until it is closed, because C++ may use it. Nobody uses one of two rounds
        # ago: its keys are deleted when the next round completes.
        for version, old in self._stores:
            if version < rdzv_version - 1:
                old.close()
        self._stores[:] = [kept for kept in self._stores if kept[0] >= rdzv_version - 1]
        self._stores.append((rdzv_version, store))
        return store

    def store_extra_data(self, rdzv_version: int, key: str, value: Any) -> None:
        """Keep a value that the nodes of a round can load by `load_extra_data`.

        Args:
            rdzv_version: The round.
            key: Any string.
            value: Anything that JSON can hold.
        """
        with self._extra_data(rdzv_version) as store:
            store.set(key, json.dumps(value))

    def load_extra_data(self, rdzv_version: int, key: str, timeout: float | None = None) -> Any:
        """Wait for a value that a node of the round stores, and return it.

        Args:
            rdzv_version: The round.
            key: As given to `store_extra_data`.
            timeout: Seconds to wait; the barrier's timeout without it (torch waits for ever).

        Raises:
            LookupError: if it is not there in time; also a `torch.distributed.DistStoreError`.
            RendezvousStateError: if the value was not stored by `store_extra_data`.
        """
        with self._extra_data(rdzv_version) as store:
            store.set_timeout(timedelta(seconds=self._timeout if timeout is None else timeout))
            value = store.get(key)
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as exc:
            path = self._round_path(rdzv_version, "extra_data")
            message = f"The extra data '{key}' below the etcd key '{path}' is not JSON: {exc}."
            raise RendezvousStateError(message) from exc

    def _extra_data(self, rdzv_version: int) -> EtcdStore:
        native = self._node.store(rdzv_version, "extra_data")
        return EtcdStore._of_round(
            self.client, self._round_path(rdzv_version, "extra_data"), native
        )


class EtcdRendezvousHandler(RendezvousHandler):
    """torch's interface to a rendezvous, for the elastic agent.

    Args:
        rdzv_impl: This node's part in the run.
        local_addr: The address of this node that peers can reach; see `torchetcd._address` for how one
            is chosen without it.
        backend: The name that `get_backend` returns.
        hand_over: Hands a store in etcd to the workers of a round. Without it they use a TCPStore of their
            own.
    """

    def __init__(
        self,
        rdzv_impl: EtcdRendezvous,
        local_addr: str | None = None,
        *,
        backend: str = "etcd",
        hand_over: Callable[[EtcdRendezvous, int, RendezvousStoreInfo], None] | None = None,
    ) -> None:
        self._hand_over = hand_over
        self._rdzv_impl = rdzv_impl
        self._local_addr = local_addr
        self._backend = backend
        # This agent may be started while an error of an earlier one is handled.
        self._before = under_way()

    def get_backend(self) -> str:
        """Return the name of the backend."""
        return self._backend

    def get_run_id(self) -> str:
        """Return the run id."""
        return self._rdzv_impl._run_id

    def next_rendezvous(self) -> RendezvousInfo:
        """Take part in the next round. See `EtcdRendezvous.rendezvous_barrier` for what it raises.

        Raises:
            RendezvousOverError: a `RendezvousClosedError` and a `SystemExit` with code 0, in a spare whose
                job has succeeded.
        """
        method = "next_rendezvous"
        self._before = under_way()
        self._record(method, "The node attempts to join the next round of the rendezvous.")
        try:
            version, rank, world_size, master = self._rdzv_impl._barrier(self._local_addr)
            store = self._rdzv_impl.setup_kv_store(version)
            if self._hand_over is None:
                forget(self.get_run_id())
            else:
                self._hand_over(self._rdzv_impl, version, master)
        except RendezvousClosedError as exc:
            if not stood_by_to_the_end(self._rdzv_impl._node):
                self._record(method, f"{type(exc).__name__}: {exc}", NodeState.FAILED)
                raise
            message = (
                f"The job '{self.get_run_id()}' has succeeded, and this node was a spare of it."
            )
            self._record(method, message, NodeState.SUCCEEDED)
            _logger.info("%s", message)
            raise RendezvousOverError(f"{message} {exc}") from None
        except Exception as exc:
            self._record(method, f"{type(exc).__name__}: {exc}", NodeState.FAILED)
            raise
        message = (
            f"The node has joined round {version} of the rendezvous '{self.get_run_id()}' as rank {rank} "
            f"in a world of size {world_size}."
        )
        self._record(method, message, rank=rank)
        _logger.info("%s", message)
        return RendezvousInfo(store, rank, world_size, master)

    def is_closed(self) -> bool:
        """Return whether the run is closed."""
        return self._rdzv_impl.is_closed()

    def set_closed(self) -> None:
        """Close the run for good."""
        self._close("set_closed")

    def num_nodes_waiting(self) -> int:
        """Return how many nodes could change the world of this member."""
        waiting = self._rdzv_impl.num_nodes_waiting()
        news, self._rdzv_impl._news = self._rdzv_impl._news, None
        if news:
            self._record("num_nodes_waiting", news)
        return waiting

    def shutdown(self) -> bool:
        """Close the run if this node is a member of its last world, and leave it in any case.

        A node that is no part of the present world (a spare, one that came too late, one that was lost,
        denied or replaced) leaves the run as it is: its members go on. How the job ended stands in the
        record of the close, by the exception that is under way.

        Returns:
            Whether the run is closed. torch's launcher calls this when the agent ends in order or by
            an error, but not when a signal ends it (torch `launcher/api.py`).
        """
        how = ending_now(host_name(self._rdzv_impl._host), self._before)
        self._before = None
        try:
            if kept_open := self._close("shutdown", how):
                _logger.warning(
                    "Run '%s' is left open: %s.", self.get_run_id(), kept_open.rstrip(".")
                )
                return False
        except RendezvousError as exc:
            _logger.warning("Run '%s' could not be closed: %s", self.get_run_id(), exc)
            return False
        finally:
            self._rdzv_impl.leave()
            forget(self.get_run_id())
        return True

    def _close(self, method: str, how: Ending | None = None) -> str | None:
        """Close the run, as a member if it says how the job ended; return why it was left open."""
        kept_open = None
        try:
            if how is None:
                self._rdzv_impl.set_closed(f"{method}() was called")
            else:
                kept_open = self._rdzv_impl._close_as_member(how)
        except Exception as exc:
            self._record(method, f"{type(exc).__name__}: {exc}", NodeState.FAILED)
            raise
        what = "left" if kept_open else "closed"
        message = f"The node has {what} the rendezvous '{self.get_run_id()}'."
        self._record(method, message, NodeState.SUCCEEDED)
        return kept_open

    def _record(
        self,
        method: str,
        message: str,
        state: NodeState = NodeState.RUNNING,
        rank: int | None = None,
    ) -> None:
        # At transitions only: one event costs half a millisecond (it inspects the stack).
        construct_and_record_rdzv_event(
            name=f"{type(self).__name__}.{method}",
            run_id=self.get_run_id(),
            message=message,
            node_state=state,
            hostname=self._local_addr or self._rdzv_impl._host,
            pid=os.getpid(),
            rank=rank,
        )


def create_rdzv_handler(params: RendezvousParameters) -> EtcdRendezvousHandler:
    """Create a handler from torch's parameters; `docs/reference/parameters.md` has all.

    Raises:
        ValueError: if a parameter is not valid, before anything is sent.
        RendezvousConnectionError: if etcd cannot be reached.
    """
    options = parse_options(params.config)
    serve_metrics_if_asked()
    hand_over = None
    if options.worker_store == "etcd":
        from torchetcd import _worker_store  # noqa: PLC0415 - most agents do without

        _worker_store.check(options)
        hand_over = functools.partial(_worker_store.hand_over, options)
    rdzv_impl = EtcdRendezvous(
        make_client(params, options),
        options.etcd_prefix,
        params.run_id,
        params.min_nodes,
        params.max_nodes,
        options.join_timeout,
        options.last_call_timeout,
        options=options,
    )
    return EtcdRendezvousHandler(
        rdzv_impl,
        params.local_addr,
        backend=params.backend,
        hand_over=hand_over,
    )


def _give_up(stores: list[tuple[int, EtcdStore]]) -> None:
    for _, store in stores:
        store._give_up()
