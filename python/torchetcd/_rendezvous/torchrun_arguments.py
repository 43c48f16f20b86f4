"""What torchrun was told, for code that runs in its process. torchrun hands none of it on."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from pathlib import Path
from typing import Any

#: The arguments that are asked for, as torchrun's parser stores them.
_ASKED = ("node_rank", "shutdown_timeout")


def argument(name: str) -> Any:
    """Return the value of one of torchrun's own arguments; `None` where it is not given.

    Only the command line counts: torchrun also takes `PET_{NAME}` from the environment.

    Args:
        name: One of those above.
    """
    program, *arguments = sys.argv or [""]
    if Path(program).name != "torchrun" and not program.endswith(
        os.path.join("distributed", "run.py")
    ):
        return None
    return _typed(tuple(arguments))[name]


@functools.lru_cache(maxsize=1)
def _typed(arguments: tuple[str, ...]) -> dict[str, Any]:
    """Parse them once: that takes a good part of a millisecond of an agent's start."""
    # torchrun has imported this already. Its own parser knows where the script's arguments begin.
    from torch.distributed.run import get_args_parser  # noqa: PLC0415 - heavy where it is not torchrun

    parser = get_args_parser()
    nothing = dict.fromkeys(_ASKED)
    parser.set_defaults(**nothing)
    with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stderr(io.StringIO()):
        typed = parser.parse_args(arguments)
        return {name: getattr(typed, name) for name in _ASKED}
    return nothing
