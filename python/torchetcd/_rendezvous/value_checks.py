"""Checks of values that people give: each returns the value, or says in one sentence what is wrong.

The checks of parameters are told where a value was given, as the subject of that sentence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

# etcd grants no shorter lease with its default election timeout, and no longer one at all. Nobody waits
# longer for anything else.
SHORTEST_TTL_S, LONGEST_S = 2, 9_000_000_000
# In ranks and in counts of nodes; the records in etcd hold no larger number.
MOST_NODES = 2**31 - 1
#: What a bound has to do with etcd.
LEASES = " as etcd's leases have"
# How much of a value is shown in a message.
_SHOWN = 200


def seconds(least: int, why: str = "") -> Callable[[str, Any], int]:
    """Make the check of a whole number of seconds."""
    return whole("seconds", least, LONGEST_S, why)


def whole(unit: str, least: int, most: int, why: str = "") -> Callable[[str, Any], int]:
    """Make the check of a whole number. One with a fraction is refused, not cut."""

    def parse(what: str, value: Any) -> int:
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        # What is no text and has a fraction would be cut.
        if not isinstance(value, str) and (isinstance(value, bool) or number != value):
            number = None
        if number is None or not least <= number <= most:
            message = (
                f"{what} must be a whole number of {unit}, at least {least} and at most {most}{why}, not "
                f"{_short(value)}."
            )
            raise ValueError(message)
        return number

    return parse


def fraction(least: float) -> Callable[[str, Any], float]:
    """Make the check of a number of seconds."""

    def parse(what: str, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not least <= number <= LONGEST_S:
            message = (
                f"{what} must be a number of seconds, at least {least} and at most {LONGEST_S}, not "
                f"{_short(value)}."
            )
            raise ValueError(message)
        return int(number) if number.is_integer() else number

    return parse


def check_seconds(name: str, value: float) -> None:
    """Check a time that is given to `EtcdRendezvous`, which takes fractions.

    Raises:
        ValueError: if it is none.
    """
    fraction(0)(f"The argument '{name}'", value)


def check_nodes(least: int, most: int) -> None:
    """Check how many nodes a world may have.

    Raises:
        ValueError: if there is no such world.
    """
    if not 1 <= least <= most <= MOST_NODES:
        message = (
            f"The numbers of nodes must satisfy 1 <= min_nodes <= max_nodes <= {MOST_NODES}, not min_nodes "
            f"{least} and max_nodes {most}."
        )
        raise ValueError(message)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def ports(what: str, value: Any) -> range:
    """Check a port, or the first and the last of several."""
    first, dash, last = str(value).partition("-")
    ends = [end.strip() for end in ((first, last) if dash else (first, first))]
    if all(end.isascii() and end.isdecimal() and len(end) <= 5 for end in ends):
        found = range(int(ends[0]), int(ends[1]) + 1)
        if found and found[0] >= 1 and found[-1] <= 65535:
            return found
    message = (
        f"{what} must be a port, 1 to 65535, or the first and the last of several, such as 29500-29599, not "
        f"{_short(value)}."
    )
    raise ValueError(message)


def text(what: str, value: Any) -> str:
    """Check a text."""
    if not isinstance(value, str) or not value:
        message = f"{what} must be a non-empty string, not {value!r}."
        raise ValueError(message)
    return value


def secret(what: str, value: Any) -> str:
    """Check a text that is not shown."""
    if not isinstance(value, str) or not value:
        # Without the value: messages end up in logs.
        message = f"{what} must be a non-empty string."
        raise ValueError(message)
    return value


def file(what: str, value: Any) -> str:
    """Check the name of a file."""
    path = text(what, value)
    try:
        found = Path(path).is_file()
    except (OSError, ValueError):  # such as for a name that is too long
        found = False
    if not found:
        message = f"{what} names the file '{path}', which does not exist."
        raise ValueError(message)
    return path


def one_of(*allowed: str) -> Callable[[str, Any], str]:
    """Make the check of a choice."""

    def parse(what: str, value: Any) -> str:
        text = str(value).strip().lower()
        if text not in allowed:
            message = f"{what} must be {' or '.join(allowed)}, not {value!r}."
            raise ValueError(message)
        return text

    return parse
