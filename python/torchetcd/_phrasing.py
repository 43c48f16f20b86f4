"""Numbers, times and names as people read them. Pure: the caller says what time it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """Say how long: two units at most, such as `3 min 20 s`."""
    whole = max(0, int(seconds))
    for unit, name, part, part_name in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "min"),
        (_MINUTE, "min", 1, "s"),
    ):
        if whole >= unit:
            rest = whole % unit // part
            return f"{whole // unit} {name}" + (f" {rest} {part_name}" if rest else "")
    return f"{whole} s"


def clock(at: float) -> str:
    """Say when, in UTC: whoever reads it may sit elsewhere than the machine."""
    try:
        return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # what somebody wrote there is no time
        return f"{at:g} s after 1970"


def ago(at: float | None, now: float) -> str:
    """Say how long ago, or nothing where that is not known."""
    return "" if at is None else f"{duration(now - at)} ago"


def count(number: int, noun: str) -> str:
    """Say how many: `1 node`, `2 nodes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(parts: Iterable[str], last: str = "and") -> str:
    """Join parts as a sentence does: `a, b and c`."""
    parts = list(parts)
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def some(parts: Sequence[str], most: int) -> list[str]:
    """Keep the first few parts, and say how many more there are."""
    if len(parts) <= most:
        return list(parts)
    return [*parts[: most - 1], f"{len(parts) - most + 1} more"]


def plain(text: object) -> str:
    """Make one line of a text that somebody wrote into etcd, without codes for the terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in str(text))
