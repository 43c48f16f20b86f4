"""User and password: where they come from, and how they are kept out of sight."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, NoReturn

from torchetcd._environment import PASSWORD, PASSWORD_FILE, USER


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


def find_credentials(
    user: str | None, password: str | None, password_file: str | None = None
) -> Credentials:
    """Complete user and password from the environment; what is given comes first.

    Raises:
        ValueError: if one is there without the other, or the password cannot be used.
    """
    user = user or USER.get()
    password, password_file = password or None, password_file or None
    source = "the parameter 'password'" if password else "the parameter 'password_file'"
    if password and password_file:
        message = "Both 'password' and 'password_file' are given: only one of them can be."
        raise ValueError(message)
    if not password and not password_file:
        password, password_file = PASSWORD.get(), PASSWORD_FILE.get()
        source = PASSWORD.name if password else PASSWORD_FILE.name
        if password and password_file:
            message = (
                f"Both {PASSWORD.name} and {PASSWORD_FILE.name} are set: only one of them can be."
            )
            raise ValueError(message)
    if user is not None and not (password or password_file):
        message = (
            f"The etcd user {user!r} was given without a password: set {PASSWORD_FILE.name} or "
            f"{PASSWORD.name}."
        )
        raise ValueError(message)
    if user is None and (password or password_file):
        message = (
            f"A password for etcd was given without a user (parameter 'user' or {USER.name}): it comes from "
            f"{source}."
        )
        raise ValueError(message)
    if user is not None and not _is_text(user):
        message = f"The etcd user must be text, not {user!r}."
        raise ValueError(message)
    if password and not _is_text(password):
        # Python's own error would quote it.
        message = "The password for etcd must be text that UTF-8 can hold."
        raise ValueError(message)
    if password_file:
        _check_file(password_file, source)
    return Credentials(user, password, password_file)


def _check_file(file: str, source: str) -> None:
    """Say at once what the native client, which reads the file for each log-in, would say then."""
    try:
        password = Path(file).read_bytes().decode().rstrip("\r\n")
    except OSError as exc:
        reason = f"cannot be read: {exc.strerror}"
    except UnicodeDecodeError:
        reason = "holds no UTF-8 text"
    except ValueError:  # such as for a NUL in its name
        reason = "cannot be read: that is not a file name"
    else:
        if password and "\n" not in password and "\r" not in password:
            return
        reason = "holds more than one line" if password else "is empty"
    # Outside of the `except`: the error of a decoder holds all that it was to decode.
    message = f"The password file '{file}' named by {source} {reason}."
    raise ValueError(message)


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
