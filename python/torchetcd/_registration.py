"""Making torchrun find this package: entry point and the takeover of torch's own names."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from torchetcd._environment import OVERRIDE

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous.api import RendezvousHandler, RendezvousParameters

_logger = logging.getLogger(__name__)

BACKEND = "etcd-v3"
# torch's names, which stand for the etcd v2 API there.
LEGACY_BACKENDS = ("etcd", "etcd-v2")


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Create the handler; the import of the rest waits until one is wanted."""
    from torchetcd.etcd_rendezvous import create_rdzv_handler  # noqa: PLC0415 - heavy

    return create_rdzv_handler(params)


def torchrun_handler() -> object:
    """Be the entry point `torchrun.handlers`: torch calls it when its rendezvous package is imported.

    torch registers its own handlers first (torch `rendezvous/__init__.py`), so its names can be taken
    over here when it is right to.

    Returns:
        The creator, which torch registers under the entry point's name.
    """
    _take_over(explicit=False)
    return create_handler


def register(*, override: bool = False) -> None:
    """Register the handlers in this process, as the installed entry point does for every process.

    Args:
        override: Take over torch's names `etcd` and `etcd-v2` in any case. Otherwise only when
            python-etcd is not installed (torch's own cannot work then) or with TORCHETCD_OVERRIDE=1.
    """
    _torchs_registry().register(BACKEND, create_handler)
    _take_over(explicit=override)


def _torchs_registry() -> Any:
    # Not from the package: torch may be in the middle of importing that, when it calls the entry point.
    from torch.distributed.elastic.rendezvous.api import rendezvous_handler_registry  # noqa: PLC0415 - heavy

    return rendezvous_handler_registry


def _take_over(*, explicit: bool) -> None:
    names = " and ".join(f"'{name}'" for name in LEGACY_BACKENDS)
    if explicit:
        reason = "register(override=True) was called"
    elif OVERRIDE.is_on():
        reason = f"{OVERRIDE.name}={OVERRIDE.get()} is set"
    elif not _python_etcd_is_installed():
        reason = "python-etcd is not installed, so torch's own cannot work"
    else:
        _logger.info(
            "torch's own rendezvous backends %s stay, because python-etcd is installed; '%s' is "
            "torchetcd's. Set TORCHETCD_OVERRIDE=1 to change that.",
            names,
            BACKEND,
        )
        return
    # `register` refuses to replace a creator (torch `api.py`); there is no public way to do it.
    registry = getattr(_torchs_registry(), "_registry", None)
    if not isinstance(registry, dict):
        _logger.warning(
            "This torch lets nobody take over its rendezvous backends %s, so they stay its own: use '%s'.",
            names,
            BACKEND,
        )
        return
    for name in LEGACY_BACKENDS:
        registry[name] = create_handler
    _logger.info("torchetcd serves the rendezvous backends %s: %s.", names, reason)


def _python_etcd_is_installed() -> bool:
    try:
        spec = importlib.util.find_spec("etcd")
    except ValueError:
        # A stand-in that a program has put into `sys.modules` has no spec: torch's own cannot work with it.
        return False
    # A folder named "etcd" in the working directory (a server's data, say) has a spec, but no file.
    return spec is not None and spec.origin is not None
