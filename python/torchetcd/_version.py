"""The version of the installed package, looked up when somebody asks for it."""

from __future__ import annotations

import functools


@functools.cache
def version() -> str:
    """Return the version; `0+unknown` where the package runs from a source tree."""
    # Takes ten times as long as the rest of `import torchetcd`, and no agent needs it.
    from importlib import metadata  # noqa: PLC0415 - heavy

    try:
        return metadata.version("torchetcd")
    except metadata.PackageNotFoundError:
        return "0+unknown"
