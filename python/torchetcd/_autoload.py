"""What torch calls at the end of its own import (entry point group `torch.backends`, torch 2.5 and later).

Every `import torch` pays for this where torchetcd is installed, so it only leaves two functions with torch;
everything else is imported when one of them is called. It must not fail either: torch would not import.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torchetcd._worker_process import WORKER_STORE, claim

SCHEME = "etcd-v3"


def register_schemes() -> None:
    """Make `init_method="etcd-v3://..."` known, and `env://` use an agent's store where there is one.

    Raises:
        RuntimeError: if an agent has said which store to use, and this torch cannot be told.
    """
    # There by now, unless torch was built without it.
    rendezvous = sys.modules.get("torch.distributed.rendezvous")
    if rendezvous is None:
        return
    handlers = getattr(rendezvous, "_rendezvous_handlers", None)
    if handlers is None or SCHEME not in handlers:
        rendezvous.register_rendezvous_handler(SCHEME, _by_url)
    if os.environ.get(WORKER_STORE):
        # Now, because what this process starts from here on must know that it is not meant.
        claim()
        use_worker_store()


def use_worker_store() -> None:
    """Have `env://` ask whether an agent has given this process a store.

    Raises:
        RuntimeError: if this torch keeps its handlers elsewhere.
    """
    # By its name: torch.distributed has a function that is called so, too.
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    # `register_rendezvous_handler` refuses to replace one; there is no public way to do it.
    handlers = getattr(rendezvous, "_rendezvous_handlers", None)
    if not isinstance(handlers, dict) or "env" not in handlers:
        message = (
            f"{WORKER_STORE} is set, but this torch has no handler of env:// that could be replaced: "
            "set worker_store=tcp (the default) in the rendezvous configuration of the agents."
        )
        raise RuntimeError(message)
    torchs = handlers["env"]
    if getattr(torchs, "__module__", None) == __name__:
        return

    def by_environment(
        url: str, timeout: timedelta | None = None, **kwargs: Any
    ) -> Iterator[tuple[Any, int, int]]:
        from torchetcd import _worker_store  # noqa: PLC0415 - heavy

        found = _worker_store.of_this_worker(url) if os.environ.get(WORKER_STORE) else None
        if found is not None:
            yield from _worker_store.rendezvous(found, url, timeout)
        else:
            given = {} if timeout is None else {"timeout": timeout}
            yield from torchs(url, **given, **kwargs)

    handlers["env"] = by_environment


def _by_url(
    url: str, timeout: timedelta | None = None, **_kwargs: Any
) -> Iterator[tuple[Any, int, int]]:
    from torchetcd.process_group import rendezvous  # noqa: PLC0415 - heavy

    yield from rendezvous(url, timeout)
