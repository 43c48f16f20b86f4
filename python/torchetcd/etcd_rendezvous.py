"""A rendezvous on etcd v3 for torch's elastic agent.

The names are those of `torch.distributed.elastic.rendezvous.etcd_rendezvous`; the protocol is our own
(`docs/protocol.md`): one record says which round is current, one coordinator completes it, and no node
competes with the others for a shared value.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.distributed.elastic.events import NodeState, construct_and_record_rdzv_event
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from torchetcd import _counts, _native, _worker_handover
from torchetcd._address import host_name, local_address
from torchetcd._call import Call, master_of, present_call, state_of
from torchetcd._closed import SHUTDOWN
from torchetcd._ending import Ending, ending_now, ending_of_world, under_way
from torchetcd._errors import RendezvousDeniedError, RendezvousOverError
from torchetcd._lifecycle import leave_at_end, leaving_on_signals
from torchetcd._master_port import MasterPort
from torchetcd._names import prefix_path, run_segment
from torchetcd._observe import (
    ObservedBarrier,
    run_closed,
    serve_metrics_if_asked,
    world_changes,
)
from torchetcd._params import Options, default_options, make_client, parse_options
from torchetcd._ranks import check_segments
from torchetcd._round_stores import RoundStores
from torchetcd._values import check_nodes, check_seconds
from torchetcd._waiting import (
    closed_error,
    stood_by_to_the_end,
    wait_for_etcd,
    wait_for_place,
    why_command,
)
from torchetcd._worker_process import forget
from torchetcd.etcd import as_client

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


class EtcdRendezvous(RoundStores):
    """One node's part in the rounds of one run.

    The seven positional arguments are torch's (`etcd_rendezvous.py`, `EtcdRendezvous.__init__`). Nothing is
    sent to etcd before it is used.

    Args:
        client: A `torchetcd.etcd.Client`, or a client of python-etcd whose address is taken.
        prefix: The prefix of all keys, with or without slashes around it.
        run_id: The name of the run. Runs with different names never see each other.
        num_min_workers: Nodes that a world needs.
        num_max_workers: Nodes that a world has at most; more of them wait as spares.
        timeout: Seconds within which `rendezvous_barrier` must succeed. An etcd that is not there yet is
            waited for as long before.
        last_call_timeout: Seconds to wait for more nodes once `num_min_workers` have joined.
        options: The other parameters; their defaults when not given.

    Raises:
        ValueError: if an argument is out of range, or a name is none that etcd can hold.
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
        check_nodes(num_min_workers, num_max_workers)
        check_seconds("timeout", timeout)
        check_seconds("last_call_timeout", last_call_timeout)
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
        self._node = _native.Rendezvous(
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
            host=host_name(),
            rank_order=options.rank_order,
            segment=options.segment,
            infra_rank=options.infra_rank,
            domain=options.domain,
            node_id=options.node_id,
        )
        self._port = MasterPort(options.master_port)
        self._look_s, self._looked = options.close_timeout, False
        self._told_why = False
        self._news: str | None = None
        self._in_barrier = threading.Lock()
        super().__init__()
        leave_at_end(self, self._node)

    def _look(self) -> None:
        """Look at the run once, which the barrier needs in any case, and wait for etcd if it is not there."""
        if self._looked:
            return
        control = self.get_path("rdzv/head/control").encode()
        wait_for_etcd(
            self._node.closed,
            self._look_s,
            lambda limit: self.client._native.txn(
                [], [("get", control, None, 0, False, 0)], [], limit
            ),
            self._run_id,
            self._timeout,
        )
        self._looked = True

    @functools.cached_property
    def _own_address(self) -> str:
        """The address that is offered where nobody gives one. It may ask name servers."""
        return local_address(self.client.endpoints)

    def rendezvous_barrier(self) -> tuple[int, int, int]:
        """Take part in the next round and wait until it is complete.

        Returns:
            The round's number, this node's rank and the number of nodes.

        Raises:
            RendezvousClosedError: if the run is or becomes closed.
            RendezvousDeniedError: if this node is or comes to be on the run's deny list.
            RendezvousTimeoutError: if the round is not complete in time; says who has joined.
            RendezvousConnectionError: if etcd cannot be reached for so long, or never could.
            RendezvousStateError: if the run's state in etcd cannot be read, or another agent has taken this
                node's `node_id`.
            RuntimeError: if another thread is in it already.
        """
        call = present_call(self)
        version, rank, world_size, call.master = self._barrier(call.local_addr)
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
        self._look()
        local_addr = local_addr or self._own_address
        why = why_command(self._run_id, self.client.endpoints, self._prefix)
        observed = ObservedBarrier(
            self._run_id, self._node, self._num_min_workers, self._num_max_workers
        )
        with observed, self._port.reserved() as port, leaving_on_signals(self._node.leave):
            self._told_why = False
            self._node.join(local_addr, port)
            try:
                version, rank, world_size, addr, master_port = wait_for_place(
                    self._node, self._run_id, self._num_min_workers, self._num_max_workers, why
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
            world_changes(self._run_id, cause)
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
        call = present_call(self)
        if call.ending is not None:
            call.kept_open = self._close_as_member(call.ending)
            return
        self._node.close(self._name(), reason)
        run_closed(self._run_id)

    def _close_as_member(self, ending: Ending) -> str | None:
        """Close the run if this node is a live member of its last world; else return why it was not."""
        ending = ending_of_world(ending, host_name(), self._node.broken())
        kept_open = self._node.close(self._name(), SHUTDOWN, *ending, only_member=True)
        if kept_open is None:
            run_closed(self._run_id)
        return kept_open

    def _name(self) -> str:
        return f"{host_name()} (pid {os.getpid()})"

    def leave(self) -> None:
        """Give up membership at once, without closing the run."""
        self._node.leave()
        self._port.release()


class EtcdRendezvousHandler(RendezvousHandler):
    """torch's interface to a rendezvous, for the elastic agent.

    Args:
        rdzv_impl: This node's part in the run: an `EtcdRendezvous`, a subclass, or any object with torch's
            methods, such as one that checks the node before it calls `rendezvous_barrier()` of another.
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
        #: Whom `rdzv_impl` has called, if it is none itself.
        self._ours = rdzv_impl
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
        call = Call(local_addr=self._local_addr)
        try:
            try:
                with call.under_way():
                    version, rank, world_size = self._rdzv_impl.rendezvous_barrier()
            finally:
                self._ours = call.rdzv or self._ours
            store = self._rdzv_impl.setup_kv_store(version)
            master = call.master or master_of(rank, store, self._local_addr)
            if self._hand_over is None:
                forget(self.get_run_id())
            else:
                self._hand_over(self._ours, version, master)
        except RendezvousClosedError as exc:
            if call.rdzv is None or not stood_by_to_the_end(call.rdzv._node):
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
        asked = self._who_has("is_closed")
        if asked is not None:
            return bool(asked.is_closed())
        return state_of(self._rdzv_impl).get("status") == "closed"

    def set_closed(self) -> None:
        """Close the run for good."""
        self._close("set_closed", Call())

    def num_nodes_waiting(self) -> int:
        """Return how many nodes could change the world of this member."""
        asked = self._who_has("num_nodes_waiting")
        if asked is not None:
            waiting = int(asked.num_nodes_waiting())
        else:
            state = state_of(self._rdzv_impl)
            waiting = int(state["num_workers_waiting"]) if state.get("status") == "final" else 0
        news = getattr(self._ours, "_news", None)
        if news:
            self._ours._news = None
            self._record("num_nodes_waiting", news)
        return waiting

    def shutdown(self) -> bool:
        """Close the run if this node is a member of its last world, and leave it in any case.

        A node that is no part of the present world (a spare, one that came too late, one that was lost,
        denied or replaced) leaves the run as it is: its members go on. How the job ended stands in the
        record of the close, by the exception that is under way.

        Returns:
            Whether the run is closed. torch's launcher calls this when the agent ends in order or by
            an error, but not when a signal ends it (torch `launcher/api.py`). It raises no `Exception`: the
            error that the job ended with is what people must see.
        """
        closed = False
        try:
            call = Call(ending=ending_now(host_name(), self._before))
            self._close("shutdown", call)
            closed = call.kept_open is None
            if call.kept_open:
                _logger.warning(
                    "Run '%s' is left open: %s.", self.get_run_id(), call.kept_open.rstrip(".")
                )
        except Exception as exc:  # noqa: BLE001 - torch's launcher calls this while the job's error goes on
            _logger.warning("Run '%s' could not be closed: %s", self._rdzv_impl._run_id, exc)
        finally:
            self._before = None
            self._leave()
        return closed

    def _leave(self) -> None:
        try:
            forget(self.get_run_id())
            leaving = self._who_has("leave")
            if leaving is not None:
                leaving.leave()
        except Exception as exc:  # noqa: BLE001 - see `shutdown`
            # A lease that is not given back runs out.
            _logger.warning("Run '%s' could not be left in order: %s", self.get_run_id(), exc)

    def _who_has(self, method: str) -> Any:
        """Return who can be asked for what torch's rendezvous does not have; `None` if nobody can."""
        return next((it for it in (self._rdzv_impl, self._ours) if hasattr(it, method)), None)

    def _close(self, method: str, call: Call) -> None:
        """Close the run, as a member if the call says how the job ended."""
        try:
            with call.under_way():
                self._rdzv_impl.set_closed()
        except Exception as exc:
            self._record(method, f"{type(exc).__name__}: {exc}", NodeState.FAILED)
            raise
        what = "left" if call.kept_open else "closed"
        message = f"The node has {what} the rendezvous '{self.get_run_id()}'."
        self._record(method, message, NodeState.SUCCEEDED)

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
            hostname=self._local_addr or host_name(),
            pid=os.getpid(),
            rank=rank,
        )


def create_rdzv_handler(params: RendezvousParameters) -> EtcdRendezvousHandler:
    """Create a handler from torch's parameters; `docs/reference/parameters.md` has all.

    Raises:
        ValueError: if a parameter is not valid, before anything is sent.
        RendezvousConnectionError: if etcd cannot be reached within `join_timeout`, or never could.
    """
    options = parse_options(params.config)
    serve_metrics_if_asked()
    hand_over = None
    if options.worker_store == "etcd":
        _worker_handover.check(options)
        hand_over = functools.partial(_worker_handover.hand_over, options)
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
    # What cannot work fails here, before an agent is made.
    rdzv_impl._look()
    return EtcdRendezvousHandler(
        rdzv_impl,
        params.local_addr,
        backend=params.backend,
        hand_over=hand_over,
    )
