"""The asyncio API: stores, and runs seen and steered from outside.

Importing it does not import torch.
"""

from torchetcd.aio._client import Client
from torchetcd.aio._errors import RunInUseError, RunNotFoundError, RunRecordError
from torchetcd.aio._model import (
    Allowed,
    Closed,
    Denial,
    Denied,
    Event,
    Final,
    Gone,
    Joined,
    LastCall,
    Left,
    Lost,
    Node,
    Opened,
    Reopened,
    RoundRecord,
    Run,
    RunClosed,
    Snapshot,
    Timeline,
    TimelineEvent,
    Waiting,
)
from torchetcd.aio._raw import RawClient
from torchetcd.aio._store import Store

__all__ = [
    "Allowed",
    "Client",
    "Closed",
    "Denial",
    "Denied",
    "Event",
    "Final",
    "Gone",
    "Joined",
    "LastCall",
    "Left",
    "Lost",
    "Node",
    "Opened",
    "RawClient",
    "Reopened",
    "RoundRecord",
    "Run",
    "RunClosed",
    "RunInUseError",
    "RunNotFoundError",
    "RunRecordError",
    "Snapshot",
    "Store",
    "Timeline",
    "TimelineEvent",
    "Waiting",
]
