"""The place of torch's handler of `env://`, for workers of agents with `worker_store=etcd`.

Workers import it in their `import torch`, so everything else waits until a group is made.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torchetcd._worker_store.process import WORKER_STORE


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
            "worker_store=etcd needs a torch whose handler of env:// can be replaced, and this one has none: "
            "set worker_store=tcp (the default) in the rendezvous configuration of the agents."
        )
        raise RuntimeError(message)
    torchs = handlers["env"]
    if getattr(torchs, "__module__", None) == __name__:
        return

    def by_environment(
        url: str, timeout: timedelta | None = None, **kwargs: Any
    ) -> Iterator[tuple[Any, int, int]]:
        if os.environ.get(WORKER_STORE):
            # Every worker loads this module in `import torch`, and a store is much more than that.
            from torchetcd._worker_store import worker  # noqa: PLC0415 - heavy

            found = worker.of_this_worker(url)
            if found is not None:
                yield from worker.rendezvous(found, url, timeout)
                return
        given = {} if timeout is None else {"timeout": timeout}
        yield from torchs(url, **given, **kwargs)

    handlers["env"] = by_environment
