"""What stores and the rendezvous raise. Each is an error of torch's own too, so that its callers catch it.

The native half looks them up here by name.
"""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError

__all__ = [
    "MemberLostError",
    "QueueEmptyError",
    "RendezvousDeniedError",
    "RendezvousOverError",
    "StoreConnectionError",
    "StoreError",
    "StoreOutcomeUnknownError",
    "StoreTimeoutError",
]


class RendezvousDeniedError(RendezvousError):
    """This node may not take part in the run: its name is on the run's deny list."""


class RendezvousOverError(RendezvousClosedError, SystemExit):
    """The job for which this node stood by as a spare has succeeded.

    Unless it is caught the process ends with exit code 0: nothing has failed. torch has a
    `RendezvousGracefulExitError` for this, but its launcher then fails (`launcher/api.py` asks the result,
    which is `None`, whether it is a failure).
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 0


class StoreError(DistStoreError):
    """A store's operation failed."""


class StoreTimeoutError(DistStoreError, LookupError):
    """Keys were not there in time. torch's EtcdStore raises a `LookupError` then."""


class MemberLostError(DistStoreError):
    """A member of the round was lost while this node waited for a key of the round's store."""


class StoreConnectionError(DistNetworkError):
    """etcd could not be reached, or did not answer in time."""


class StoreOutcomeUnknownError(StoreConnectionError):
    """The answer to a write was lost and could not be found out: it may have taken effect."""


if hasattr(dist, "QueueEmptyError"):
    QueueEmptyError: type[DistStoreError] = dist.QueueEmptyError
else:  # torch before 2.7

    class _QueueEmptyError(DistStoreError):
        """There is nothing in the queue."""

    QueueEmptyError = _QueueEmptyError
