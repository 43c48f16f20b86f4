"""One node's part in the rounds of a run: `EtcdRendezvous`."""

from __future__ import annotations

import functools
import logging
import os
import threading

from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousStoreInfo,
)

from torchetcd import _native, _run_counts
from torchetcd._at_exit import leave_at_end, leaving_on_signals
from torchetcd._closed_run import SHUTDOWN
from torchetcd._key_names import prefix_path, run_segment
from torchetcd._rendezvous.handler_call import present_call
from torchetcd._rendezvous.job_ending import Ending, ending_of_world
from torchetcd._rendezvous.local_address import host_name, local_address
from torchetcd._rendezvous.master_port import MasterPort
from torchetcd._rendezvous.observed_barrier import ObservedBarrier, run_closed, world_changes
from torchetcd._rendezvous.options import Options, default_options
from torchetcd._rendezvous.rank_source import check_segments
from torchetcd._rendezvous.round_stores import RoundStores
from torchetcd._rendezvous.value_checks import check_nodes, check_seconds
from torchetcd._rendezvous.waits import closed_error, wait_for_etcd, wait_for_place, why_command
from torchetcd.etcd import Client, as_client

_logger = logging.getLogger("torchetcd.etcd_rendezvous")


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
        timeout: Seconds within which `rendezvous_barrier` must succeed. The wait before that, for
            an etcd that is not reachable yet, has the same limit.
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
        # At the port of a gateway its agent listens itself.
        self._port = MasterPort(None if options.worker_store == "gateway" else options.master_port)
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
        why = why_command(self._run_id, self.client, self._prefix)
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
            nodes = "1 more node wants" if waiting == 1 else f"{waiting} more nodes want"
            more = (_run_counts.NODES_WAITING, f"{nodes} to join")
            cause, reason = self._node.broken() or more
            world_changes(self._run_id, cause)
            self._news = f"The world will be formed again: {reason}."
            _logger.info("Run '%s': the world will be formed again: %s.", self._run_id, reason)
        return waiting

    def is_closed(self) -> bool:
        """Return whether the run is closed; asks etcd at most once, then a watch tells."""
        return self._node.closed() is not None

    def set_closed(self, reason: str = "set_closed() was called") -> None:
        """Close the run for good: every blocked or later barrier raises RendezvousClosedError.

        Args:
            reason: Why, for whoever asks later.
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

    def nodes_left(self) -> int:
        """Return how many nodes the run has now, by their leases; for one that has left itself."""
        begin = self.get_path("rdzv/round/").encode()
        everything = ("get", begin, _native.prefix_end(begin), 0, True, 0)
        _, _, replies = self.client._native.txn([], [everything], [], 2.0)
        leases = {lease for *_, lease in replies[0][0]}
        return len(leases - {0, self._node.run_lease})

    def leave(self) -> None:
        """Give up membership at once, without closing the run."""
        self._node.leave()
        self._port.release()
