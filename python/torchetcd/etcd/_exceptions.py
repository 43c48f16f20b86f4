"""The exceptions of `torchetcd.etcd`, under the names that python-etcd gave them.

Import them from `torchetcd.etcd`. Every one carries `payload`: where an answer of etcd's v2 API had
a JSON body, this is a dictionary with the same entries (`errorCode`, `message`, `cause`, `index`).
"""
# ruff: noqa: N818 - the names are python-etcd's

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar

#: Why etcd refused a request.
Refusal: TypeAlias = Literal[
    "lease_not_found",
    "lease_exists",
    "permission_denied",
    "authentication_failed",
    "too_large",
    "no_space",
    "corrupt",
    "member_not_found",
    "member_exists",
    "peer_url_exists",
    "invalid_member_urls",
    "not_enough_started_members",
    "unhealthy_cluster",
    "not_learner",
    "learner_not_ready",
    "too_many_learners",
    "other",
]


class EtcdException(Exception):
    """Base class of everything that `torchetcd.etcd` raises about etcd.

    Attributes:
        refusal: Why etcd refused a request, one of `Refusal`; `None` where it did not.
    """

    refusal: Refusal | None = None

    def __init__(self, message: object = None, payload: Mapping[str, Any] | None = None) -> None:
        """Keep `payload` beside the message."""
        super().__init__(*(() if message is None else (message,)))
        self.payload = payload


class EtcdValueError(EtcdException, ValueError):
    """A value is not what it must be."""


class EtcdCompareFailed(EtcdValueError):
    """`prevValue` or `prevIndex` is not what the key has."""


class EtcdClusterIdChanged(EtcdException):
    """Another cluster answered. Kept for `except` clauses: never raised here."""


class EtcdKeyError(EtcdException):
    """Base class of errors about a key."""


class EtcdKeyNotFound(EtcdKeyError):
    """There is no such key, and no key below it."""


class EtcdNotFile(EtcdKeyError):
    """The key is a directory where a value is needed."""


class EtcdNotDir(EtcdKeyError):
    """The key has a value where a directory is needed."""


class EtcdAlreadyExist(EtcdKeyError):
    """The key is there and must not be."""


class EtcdEventIndexCleared(EtcdException):
    """The events from the index asked for are compacted away."""


class EtcdConnectionFailed(EtcdException):
    """No endpoint could be reached, or none answered in time."""

    def __init__(
        self,
        message: object = None,
        payload: Mapping[str, Any] | None = None,
        cause: BaseException | None = None,
    ) -> None:
        """Keep `cause` beside the message, as python-etcd does."""
        super().__init__(message, payload)
        self.cause = cause


class EtcdAmbiguous(EtcdConnectionFailed):
    """The answer to a write was lost: it may have taken effect, or not, or may do so yet.

    python-etcd did not distinguish this from a failure. To find out, read the key again.
    """


class EtcdWatchTimedOut(EtcdConnectionFailed):
    """A watch saw no event in time."""


class EtcdWatcherCleared(EtcdException):
    """Kept for `except` clauses: v3 watches survive a recovery of etcd, so it is never raised."""


class EtcdRootReadOnly(EtcdKeyError):
    """The root directory can be neither written nor deleted."""


class EtcdDirNotEmpty(EtcdValueError):
    """A directory with keys in it is only deleted with `recursive=True`."""


class EtcdInsufficientPermissions(EtcdException):
    """etcd refused the user, the password, or what the user's roles do not allow."""


class EtcdNoSpace(EtcdException):
    """etcd is full and takes nothing new, see its alarm NOSPACE. It answers reads and does deletions.

    python-etcd did not know it: etcd v2 had no quota.
    """


class EtcdLeaderElectionInProgress(EtcdException):
    """Kept for `except` clauses: elections are waited for, so it is never raised."""


class EtcdLockExpired(EtcdException):
    """Kept for `except` clauses: there are no locks here, so it is never raised."""


# Numbers and texts of the v2 API (its errorcode.md), for callers that look into the payload.
_CODES: dict[type[EtcdException], tuple[int, str]] = {
    EtcdKeyNotFound: (100, "Key not found"),
    EtcdCompareFailed: (101, "Compare failed"),
    EtcdNotFile: (102, "Not a file"),
    EtcdNotDir: (104, "Not a directory"),
    EtcdAlreadyExist: (105, "Key already exists"),
    EtcdRootReadOnly: (107, "Root is read only"),
    EtcdDirNotEmpty: (108, "Directory not empty"),
}

_E = TypeVar("_E", bound=EtcdException)


def v2_error(kind: type[_E], cause: str, index: int = 0) -> _E:
    """Make the exception that says about `cause` (mostly a key) what the v2 API said."""
    code, text = _CODES[kind]
    payload = {"errorCode": code, "message": text, "cause": cause, "index": index}
    return kind(f"{text} : {cause}", payload)
