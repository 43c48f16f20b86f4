"""What torch calls of torchetcd: in each `import torch`, and where it looks for rendezvous handlers.

It is a module of its own, and not of the package, because a file `torchetcd.py` beside a program hides the
package from that program. torch does not import where a function of the group `torch.backends` fails, so
what is registered here needs nothing of the package before it is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

SCHEME = "etcd-v3"
# As in `torchetcd._environment`.
_WORKER_STORE = "TORCHETCD_WORKER_STORE"

_logger = logging.getLogger("torchetcd")

#: What the scheme was registered with.
_registered: list[Any] = []


def autoload() -> None:
    """Be the entry point `torch.backends`: torch calls it at the end of its own import, from 2.5 on.

    It never fails: every program that imports torch in this environment would fail with it.
    """
    try:
        register_schemes()
    except Exception as exc:  # noqa: BLE001 - see above
        # No `warnings`, which may be errors.
        _logger.warning(
            "torchetcd cannot serve this process, which uses torch's own env://: %s", exc
        )


def torchrun_handler() -> object:
    """Be the entry point `torchrun.handlers`: torch calls it when its rendezvous package is imported.

    Returns:
        What makes handlers, which torch registers under the entry point's name.

    Raises:
        ImportError: if the package is hidden. torch says so in its log and goes on.
    """
    return _module("torchetcd._registration").torchrun_handler()


def register_schemes() -> None:
    """Make `init_method="etcd-v3://..."` known, and `env://` use an agent's store where there is one.

    Raises:
        ImportError: if an agent has said which store to use, and the package is hidden.
        RuntimeError: the same, if this torch cannot be told.
    """
    # There by now, unless torch was built without it.
    rendezvous = sys.modules.get("torch.distributed.rendezvous")
    if rendezvous is None:
        return
    if rendezvous not in _registered:
        rendezvous.register_rendezvous_handler(SCHEME, _by_url)
        _registered.append(rendezvous)
    if os.environ.get(_WORKER_STORE):
        # Now, because what this process starts from here on must know that it is not meant.
        _module("torchetcd._worker_store.process").claim()
        _module("torchetcd._worker_store.env_scheme").use_worker_store()


def _by_url(
    url: str, timeout: timedelta | None = None, **_kwargs: Any
) -> Iterator[tuple[Any, int, int]]:
    yield from _module("torchetcd.process_group").rendezvous(url, timeout)


def _module(name: str) -> Any:
    """Import a module of the package, and nothing that has only the package's name.

    What hides it may be the very program that imports torch, which must not run a second time.
    """
    try:
        spec = importlib.util.find_spec("torchetcd")
    except ValueError:  # a stand-in in `sys.modules`
        spec = None
    folders = (spec and spec.submodule_search_locations) or ()
    if not any(os.path.isfile(os.path.join(folder, "_registration.py")) for folder in folders):
        found = (spec and spec.origin) or "a module that a program has made"
        message = f"{found} hides the installed package torchetcd: give it another name."
        raise ImportError(message, name=name)
    return importlib.import_module(name)
