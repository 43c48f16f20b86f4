"""What stores and the rendezvous raise. Each is an error of torch's own too, so that its callers catch it."""

from torchetcd._errors import (
    MemberLostError,
    QueueEmptyError,
    RendezvousDeniedError,
    RendezvousOverError,
    StoreConnectionError,
    StoreError,
    StoreOutcomeUnknownError,
    StoreTimeoutError,
)

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
