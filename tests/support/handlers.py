"""Handlers and backends of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import Token

from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_rendezvous_backend import EtcdRendezvousBackend


@contextmanager
def handlers_of(endpoint: str, run_id: str) -> Iterator[Callable[..., EtcdRendezvousHandler]]:
    """Make handlers of one run, those of one node unless told otherwise; they leave in the end."""
    made = []

    def create(least: int = 1, most: int = 1, **config: Any) -> EtcdRendezvousHandler:
        given: dict[str, Any] = {"backend": "etcd-v3", "run_id": run_id, "endpoint": endpoint}
        given |= {"local_addr": "127.0.0.1", "last_call_timeout": 0} | config
        handler = create_rdzv_handler(
            RendezvousParameters(min_nodes=least, max_nodes=most, **given)
        )
        made.append(handler)
        return handler

    yield create
    for handler in made:
        handler._rdzv_impl.leave()


def set_state(
    backend: EtcdRendezvousBackend, state: bytes, token: Token | None = None
) -> tuple[bytes, Token, bool]:
    """Write the state, and return what is there then."""
    result = backend.set_state(state, token)
    assert result is not None
    return result
