"""What must happen before the interpreter ends: nodes leave their runs, threads end."""

from __future__ import annotations

import atexit
import contextlib
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchetcd.etcd_rendezvous import EtcdRendezvous

_nodes: weakref.WeakSet[EtcdRendezvous] = weakref.WeakSet()


def leave_at_exit(node: EtcdRendezvous) -> None:
    """Let `node` leave its run when the interpreter ends.

    An agent that ends without `shutdown()` (SIGTERM, an exception, the end of the script) must not
    close the run, but its peers should learn of it at once and not when its lease has run out.
    """
    _nodes.add(node)


@atexit.register
def _end() -> None:
    # At the end nobody is there to be told; a lease that is not given back runs out.
    for node in list(_nodes):
        with contextlib.suppress(Exception):
            node.leave()
    # A native thread that outlives the interpreter can crash it.
    from torchetcd._torchetcd import shutdown  # noqa: PLC0415 - only where it was used

    shutdown()
