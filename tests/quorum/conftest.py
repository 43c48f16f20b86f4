"""Jobs that bring their quorum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.processes.zygote import Zygote
from support.quorum import Job


@pytest.fixture
def make_job(zygote: Zygote, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Make jobs; in the end nothing of them runs any more."""
    with ExitStack() as stack:

        def make(entries: int = 3, name: str = "job", **config: Any) -> Job:
            folder = tmp_path / name
            folder.mkdir()
            return stack.enter_context(Job(zygote, folder, entries, **config))

        yield make
