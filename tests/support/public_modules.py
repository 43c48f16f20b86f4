"""Which modules of the package are public."""

from __future__ import annotations

import pkgutil

import torchetcd

#: What the command prints is its interface, and not its modules.
INTERNAL = "torchetcd.cli."


def modules() -> list[str]:
    """Return the names of all public modules."""
    found = ["torchetcd"]
    for module in pkgutil.walk_packages(torchetcd.__path__, "torchetcd."):
        private = any(part.startswith("_") for part in module.name.split("."))
        if not private and not module.name.startswith(INTERNAL):
            found.append(module.name)
    return found
