"""The native half of the package, loaded when one of its names is first used.

Loading takes longer than the rest of `import torchetcd`, and most imports are never followed by a call to
etcd. Importing this module registers the end of the native threads, which comes with the interpreter's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torchetcd._at_exit  # noqa: F401 - ends the native threads

if TYPE_CHECKING:
    from torchetcd._torchetcd import (
        AsyncClient,
        AsyncStore,
        Client,
        Gateway,
        Rendezvous,
        Store,
        metrics,
        prefix_end,
        quorum_certificates,
        reopening,
        run_lease,
    )

__all__ = [
    "AsyncClient",
    "AsyncStore",
    "Client",
    "Gateway",
    "Rendezvous",
    "Store",
    "metrics",
    "prefix_end",
    "quorum_certificates",
    "reopening",
    "run_lease",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    import torchetcd._torchetcd as native  # noqa: PLC0415 - heavy

    return getattr(native, name)
