"""What the operations on runs raise besides the errors of `torchetcd.etcd`. None of them needs torch."""

from __future__ import annotations

from torchetcd._run_model import Node


class RunNotFoundError(LookupError):
    """Nothing of the run is in etcd."""


class RunRecordError(RuntimeError):
    """The run's control record cannot be understood, so nothing is done that depends on it."""


class RunInUseError(RuntimeError):
    """Nodes of the run are alive."""

    def __init__(self, message: str, nodes: tuple[Node, ...] = ()) -> None:
        """Keep `nodes` beside the message."""
        super().__init__(message)
        self.nodes = nodes
