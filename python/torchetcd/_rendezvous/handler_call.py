"""What a handler and the rendezvous that it calls tell each other.

The handler calls `rendezvous_barrier()` and `set_closed()`, as torch's does, so a subclass may override
them, and a program may put an object of its own between the two. Those methods have torch's signatures, with
no room for what our handler has to say and wants to know besides.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

from torchetcd.etcd import EtcdKeyNotFound

if TYPE_CHECKING:
    from torch.distributed import Store

    from torchetcd._rendezvous.job_ending import Ending
    from torchetcd.etcd_rendezvous import EtcdRendezvous


class Call:
    """A call of a handler, for as long as it lasts."""

    def __init__(self, local_addr: str | None = None, ending: Ending | None = None) -> None:
        #: The address that the node offers; it chooses one without it.
        self.local_addr = local_addr
        #: How the job ended, where the agent shuts down.
        self.ending = ending
        #: Who has taken part in it, if it was one of ours.
        self.rdzv: EtcdRendezvous | None = None
        #: Where the workers of rank 0 listen.
        self.master: RendezvousStoreInfo | None = None
        #: Why the run was left open.
        self.kept_open: str | None = None

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """Let what is called meanwhile find it."""
        token = _present.set(self)
        try:
            yield
        finally:
            _present.reset(token)


_present: ContextVar[Call | None] = ContextVar("torchetcd_call", default=None)


def present_call(rdzv: EtcdRendezvous) -> Call:
    """Return the call that a handler makes just now, in which `rdzv` takes part; an empty one without it."""
    call = _present.get() or Call()
    call.rdzv = rdzv
    return call


def master_of(rank: int, store: Store, local_addr: str | None) -> RendezvousStoreInfo:
    """Return where the workers of rank 0 listen, as the store says, or as rank 0 says now."""
    keys = [RendezvousStoreInfo.MASTER_ADDR_KEY, RendezvousStoreInfo.MASTER_PORT_KEY]
    if rank == 0 and store.check(keys):
        addr, port = (store.get(key).decode() for key in keys)
        return RendezvousStoreInfo(addr, int(port))
    return RendezvousStoreInfo.build(rank, store, local_addr)


def state_of(rdzv: Any) -> dict[str, Any]:
    """Return the state of a rendezvous of another backend as torch reports it; `{}` if it has none."""
    get_state = getattr(rdzv, "get_rdzv_state", None)
    missing = (
        EtcdKeyNotFound,
        getattr(sys.modules.get("etcd"), "EtcdKeyNotFound", EtcdKeyNotFound),
    )
    if get_state is not None:
        with contextlib.suppress(*missing):
            _, state = get_state()
            return dict(state)
    return {}
