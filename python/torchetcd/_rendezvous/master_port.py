"""The port that workers use when this node becomes rank 0 (`MASTER_PORT`), and who may have it when."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator

from torch.distributed.elastic.rendezvous.api import RendezvousError


class MasterPort:
    """A port of this node that nobody takes by chance, from before a barrier until workers have it.

    torch picks the port after the barrier and lets it go at once (torch `get_free_port`). Until the worker of
    rank 0 listens on it, any connection of any program on the host may get it.

    Here a socket keeps it that never listens. Linux gives such a port to nobody who asks for any port. Who
    names it may listen on it if both sockets have SO_REUSEADDR, as torch's TCPStore has and nearly every
    server.

    Args:
        ports: What may be chosen; any free port without it.
    """

    def __init__(self, ports: range | None = None) -> None:
        self._ports = ports
        self._socket: socket.socket | None = None
        self._kept = False

    @contextlib.contextmanager
    def reserved(self) -> Iterator[int]:
        """Keep a port for as long as the block runs, and that of the last one no longer.

        Raises:
            RendezvousError: if none of those that may be chosen is free.
        """
        self.release()
        self._socket = _bound(self._ports)
        try:
            yield self._socket.getsockname()[1]
        finally:
            if not self._kept:
                self.release()

    def keep(self) -> None:
        """Keep it after the block, for workers to listen on."""
        # Where another system will not let them, it is better to let it go.
        self._kept = self._socket is not None and _can_be_listened_on(self._socket)

    def release(self) -> None:
        """Let it go."""
        self._kept = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __del__(self) -> None:
        """Let it go with its owner."""
        self.release()


def _bound(ports: range | None) -> socket.socket:
    if ports is None:
        return _bind(0)
    # Not the first one each time: it may be that of the last round, whose workers may live still.
    order = random.sample(ports, len(ports))
    # At first as those do who share with nobody, so as not to get what another agent keeps. Then what only
    # connections hold that have ended less than a minute ago.
    for shared in (False, True):
        for port in order:
            with contextlib.suppress(OSError):
                return _bind(port, shared=shared)
    several = f"{ports[0]}-{ports[-1]}" if len(ports) > 1 else f"{ports[0]}"
    message = (
        f"No port of {several}, the rendezvous parameter 'master_port', is free on this host: give a wider "
        "range."
    )
    raise RendezvousError(message)


def _bind(port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if _has_ipv6() else socket.AF_INET
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(family))
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", port))
        # From now on, so that it was nobody else's.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stack.pop_all()
    return sock


def _can_be_listened_on(held: socket.socket) -> bool:
    with contextlib.suppress(OSError), socket.socket(held.family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", held.getsockname()[1]))
        sock.listen(1)
        return True
    return False


def _has_ipv6() -> bool:
    # A dual-stack socket keeps the port for both families.
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::", 0))
        return sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
    return False
