"""A rendezvous on etcd v3 for torch's elastic agent.

The names are those of `torch.distributed.elastic.rendezvous.etcd_rendezvous`; the protocol is our own
(`docs/protocol.md`): one record says which round is current, one coordinator completes it, and no node
competes with the others for a shared value.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.events import NodeState, construct_and_record_rdzv_event
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from torchetcd._quorum.of_handler import naming_members, quorum_of
from torchetcd._quorum.quorum import Quorum
from torchetcd._rendezvous.handler_call import Call, master_of, state_of
from torchetcd._rendezvous.job_ending import ending_now, under_way
from torchetcd._rendezvous.local_address import host_name
from torchetcd._rendezvous.node import EtcdRendezvous
from torchetcd._rendezvous.observed_barrier import serve_metrics_if_asked
from torchetcd._rendezvous.options import Options, make_client, parse_options
from torchetcd._rendezvous.waits import stood_by_to_the_end
from torchetcd._worker_store import agent
from torchetcd._worker_store.gateway import WorkerGateway
from torchetcd._worker_store.process import forget
from torchetcd.errors import RendezvousDeniedError, RendezvousOverError

__all__ = [
    "EtcdRendezvous",
    "EtcdRendezvousHandler",
    "EtcdRendezvousRetryImmediately",
    "EtcdRendezvousRetryableFailure",
    "Options",
    "RendezvousDeniedError",
    "RendezvousOverError",
    "create_rdzv_handler",
    "parse_options",
]

_logger = logging.getLogger(__name__)


class EtcdRendezvousRetryableFailure(Exception):  # noqa: N818 - torch's name
    """Kept for scripts that import it; this implementation never raises it."""


class EtcdRendezvousRetryImmediately(Exception):  # noqa: N818 - torch's name
    """Kept for scripts that import it; this implementation never raises it."""


class EtcdRendezvousHandler(RendezvousHandler):
    """torch's interface to a rendezvous, for the elastic agent.

    Args:
        rdzv_impl: This node's part in the run: an `EtcdRendezvous`, a subclass, or any object with torch's
            methods, such as one that checks the node before it calls `rendezvous_barrier()` of another.
        local_addr: The address of this node that peers can reach. Without it one is chosen
            (`_rendezvous/local_address.py`).
        backend: The name that `get_backend` returns.
        hand_over: Hands a store in etcd to the workers of a round. Without it they use a TCPStore of their
            own.
        quorum: This agent's part in the quorum of an endpoint `job://...`.
        gateway: Makes what this agent serves to its workers as a TCPStore, when it first joins a round.
    """

    def __init__(  # noqa: PLR0913 - torch's three, and what an agent does for its workers
        self,
        rdzv_impl: EtcdRendezvous,
        local_addr: str | None = None,
        *,
        backend: str = "etcd",
        hand_over: Callable[[EtcdRendezvous, int, RendezvousStoreInfo], None] | None = None,
        quorum: Quorum | None = None,
        gateway: Callable[[], WorkerGateway] | None = None,
    ) -> None:
        self._hand_over = hand_over
        self._open_gateway = gateway
        self._gateway: WorkerGateway | None = None
        self._quorum = quorum
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

    @property
    def use_agent_store(self) -> bool:
        """Whether workers find their store at the agent, as torch's agent tells them."""
        return self._open_gateway is not None

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
            if self._gateway is None and self._open_gateway is not None:
                # Before the barrier: a port that is taken must not cost the others a round.
                self._gateway = self._open_gateway()
            try:
                with call.under_way(), naming_members(self._quorum):
                    version, rank, world_size = self._rdzv_impl.rendezvous_barrier()
            finally:
                self._ours = call.rdzv or self._ours
            store = self._rdzv_impl.setup_kv_store(version)
            if self._gateway is not None:
                master = self._gateway.hand_over(self._ours, version)
            else:
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
        if self._gateway is not None:
            self._gateway.log_remarks()
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

        A node outside the present world (a spare, one that joined late, one that was lost,
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
            if self._quorum is not None:
                self._quorum.left(self._ours, ended=closed)
        return closed

    def _leave(self) -> None:
        try:
            if self._gateway is not None:
                self._gateway.log_remarks()
                self._gateway.close()
                self._gateway = None
            forget(self.get_run_id())
            leaving = self._who_has("leave")
            if leaving is not None:
                leaving.leave()
        except Exception as exc:  # noqa: BLE001 - see `shutdown`
            # A lease that is not released expires.
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

    >>> from torch.distributed.elastic.rendezvous import RendezvousParameters
    >>> from torchetcd.etcd_rendezvous import create_rdzv_handler
    >>> params = RendezvousParameters("etcd-v3", endpoint, "docs-job", 1, 4, last_call_timeout=0)
    >>> handler = create_rdzv_handler(params)
    >>> world = handler.next_rendezvous()
    >>> world.rank, world.world_size
    (0, 1)
    >>> handler.shutdown()
    True

    Raises:
        ValueError: if a parameter is not valid, before anything is sent.
        RendezvousConnectionError: if etcd cannot be reached within `join_timeout`, or never could.
    """
    options = parse_options(params.config)
    serve_metrics_if_asked()
    hand_over = None
    quorum = quorum_of(params, options)
    if options.worker_store == "etcd":
        agent.check(options)
        hand_over = functools.partial(agent.hand_over, options)
    gateway = None
    if options.worker_store == "gateway":
        gateway = functools.partial(WorkerGateway, options)
    rdzv_impl = EtcdRendezvous(
        make_client(params, options) if quorum is None else quorum.client,
        options.etcd_prefix,
        params.run_id,
        params.min_nodes,
        params.max_nodes,
        options.join_timeout,
        options.last_call_timeout,
        options=options,
    )
    # What cannot work fails here, before an agent is made.
    try:
        with naming_members(quorum):
            if quorum is not None:
                quorum.start(options.join_timeout)
            rdzv_impl._look()
    except BaseException:
        if quorum is not None:
            # Nobody else ends its member before the interpreter ends.
            quorum.left(rdzv_impl, ended=False)
        raise
    return EtcdRendezvousHandler(
        rdzv_impl,
        params.local_addr,
        backend=params.backend,
        hand_over=hand_over,
        quorum=quorum,
        gateway=gateway,
    )
