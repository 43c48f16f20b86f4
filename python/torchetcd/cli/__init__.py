"""The command `torchetcd`: see, understand and steer runs. `docs/reference/cli.md` is its reference.

It is built on `torchetcd.aio` and imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

_NEEDED = ("click", "rich")
_INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: The arguments after the program's name; those of the process without it.

    Returns:
        The exit code.
    """
    try:
        from torchetcd.cli.app import run  # noqa: PLC0415 - optional, comes with an extra

        return run(args)
    except KeyboardInterrupt:  # while modules are imported
        return _INTERRUPTED
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _NEEDED:
            raise
        print(
            f"torchetcd: the command line needs the Python package {exc.name}: "
            "pip install 'torchetcd[cli]'",
            file=sys.stderr,
        )
        return 1
