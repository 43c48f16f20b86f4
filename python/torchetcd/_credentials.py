"""User and password: where they come from, and how they are kept out of sight."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, NoReturn

_USER = "TORCHETCD_USER"
_PASSWORD = "TORCHETCD_PASSWORD"
_FILE = "TORCHETCD_PASSWORD_FILE"


class Secret:
    """A text that shows itself neither in `vars()` nor in a `repr`, and goes into no pickle."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        """Show that there is something."""
        return "Secret(...)"

    def __copy__(self) -> Secret:
        """Be the same: it never changes."""
        return self

    def __deepcopy__(self, _memo: object) -> Secret:
        """Be the same: it never changes."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled."""
        message = "A client with a password cannot be pickled: make a client where it is needed."
        raise TypeError(message)


class Credentials(NamedTuple):
    """A user with a password, or with a file that has it; or nobody."""

    user: str | None
    password: str | None
    password_file: str | None

    def __repr__(self) -> str:
        """Show who it is, but no password."""
        return f"Credentials(user={self.user!r})"


def find_credentials(user: str | None, password: str | None) -> Credentials:
    """Complete user and password from the environment; what is given comes first.

    Raises:
        ValueError: if one is there without the other, or the password cannot be used.
    """
    user = user or os.environ.get(_USER) or None
    file = None
    if not password:
        password, file = os.environ.get(_PASSWORD) or None, os.environ.get(_FILE) or None
        if password and file:
            message = f"Both {_PASSWORD} and {_FILE} are set: only one of them can be."
            raise ValueError(message)
    if user is not None and not (password or file):
        message = f"The etcd user {user!r} was given without a password."
        raise ValueError(message)
    if user is None and (password or file):
        message = f"A password for etcd was given without a user (parameter 'user' or {_USER})."
        raise ValueError(message)
    if user is not None and not _is_text(user):
        message = f"The etcd user must be text, not {user!r}."
        raise ValueError(message)
    if password and not _is_text(password):
        # Python's own error would quote it.
        message = "The password for etcd must be text that UTF-8 can hold."
        raise ValueError(message)
    if file:
        _check_file(file)
    return Credentials(user, password, file)


def _check_file(file: str) -> None:
    """Say at once what the native client, which reads the file for each log-in, would say then."""
    try:
        password = Path(file).read_bytes().decode().rstrip("\r\n")
    except OSError as exc:
        reason = f"cannot be read: {exc.strerror}"
    except UnicodeDecodeError:
        reason = "holds no UTF-8 text"
    else:
        if password and "\n" not in password and "\r" not in password:
            return
        reason = "holds more than one line" if password else "is empty"
    # Outside of the `except`: the error of a decoder holds all that it was to decode.
    message = f"The password file '{file}' named by {_FILE} {reason}."
    raise ValueError(message)


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
