"""A client in the shape of python-etcd's, on etcd's v3 API.

Code written for python-etcd works with ``from torchetcd import etcd``. What differs, because v3 has
no directories and a TTL only on leases:

- The default port is 2379. Several endpoints can be given, and the next is used when one fails.
- Values are strings; bytes that are not UTF-8 come back with surrogate escapes.
- A directory is a prefix with keys below it, or one made with ``write(..., dir=True)``. A directory
  that nobody made ends with its last key. A key may have a value and keys below it.
- The TTL of a directory is that of the directory alone: keys below it live on, and it with them.
- The smallest TTL of etcd v3 is about 2 seconds. Keys that expire are reported as deleted.
- Listing a directory reads everything below it. Names that begin with "_" are listed too.
- One revision can hold several changes, which all have its index; `watch` gives the first of them,
  `eternal_watch` gives all. The `action` of a change is "set" or "delete".
- A write whose answer was lost raises `EtcdAmbiguous`, an `EtcdConnectionFailed`.
- Keyword arguments that do not exist are a `TypeError`, where python-etcd ignored them.
"""

from torchetcd._endpoints import Host
from torchetcd.etcd._client import Client, Lock, as_client
from torchetcd.etcd._exceptions import (
    EtcdAlreadyExist,
    EtcdAmbiguous,
    EtcdClusterIdChanged,
    EtcdCompareFailed,
    EtcdConnectionFailed,
    EtcdDirNotEmpty,
    EtcdEventIndexCleared,
    EtcdException,
    EtcdInsufficientPermissions,
    EtcdKeyError,
    EtcdKeyNotFound,
    EtcdLeaderElectionInProgress,
    EtcdLockExpired,
    EtcdNoSpace,
    EtcdNotDir,
    EtcdNotFile,
    EtcdRootReadOnly,
    EtcdValueError,
    EtcdWatcherCleared,
    EtcdWatchTimedOut,
    Refusal,
)
from torchetcd.etcd._results import EtcdResult

__all__ = [
    "Client",
    "EtcdAlreadyExist",
    "EtcdAmbiguous",
    "EtcdClusterIdChanged",
    "EtcdCompareFailed",
    "EtcdConnectionFailed",
    "EtcdDirNotEmpty",
    "EtcdEventIndexCleared",
    "EtcdException",
    "EtcdInsufficientPermissions",
    "EtcdKeyError",
    "EtcdKeyNotFound",
    "EtcdLeaderElectionInProgress",
    "EtcdLockExpired",
    "EtcdNoSpace",
    "EtcdNotDir",
    "EtcdNotFile",
    "EtcdResult",
    "EtcdRootReadOnly",
    "EtcdValueError",
    "EtcdWatchTimedOut",
    "EtcdWatcherCleared",
    "Host",
    "Lock",
    "Refusal",
    "as_client",
]

for _name in set(__all__) - {"Host", "Refusal"}:
    # Pickles and tracebacks name a class by its module: this is the one that programs know.
    globals()[_name].__module__ = __name__
