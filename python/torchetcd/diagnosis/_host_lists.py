"""Names that are numbered: `worker-0`, `worker-1`, `worker-3`; and which numbers are absent.

Nobody tells etcd which nodes are to come, but those that have come usually have numbered names. So the
gap among them is a good guess at who is missing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

_NUMBER = re.compile(r"([0-9]+)")
# A name with one number at the end of its first label, which is a number even where nothing compares.
_NUMBERED = re.compile(r"[^0-9.]*[^0-9.][0-9]+(\..*)?")

# What stands between commas, of which those in brackets do not count.
_ITEM = re.compile(r"((?:[^,\[\]]|\[[^\[\]]*\]|[\[\]])+|^$)")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
# More than anybody runs; a slip of the finger should not fill the memory.
_MOST = 100_000


class Numbered(NamedTuple):
    """Names that differ in one number."""

    before: str
    after: str
    width: int  # digits with zeros in front; 0 without
    numbers: tuple[int, ...]

    def name(self, number: int) -> str:
        """Give the name with this number."""
        return f"{self.before}{number:0{self.width}d}{self.after}"


class Absent(NamedTuple):
    """Who is absent from a sequence of names."""

    names: tuple[str, ...] = ()
    #: One or more of these as well, as `more` says: the numbers may begin at 0 or at 1.
    candidates: tuple[str, ...] = ()
    more: int = 0


def sequences(names: Iterable[str]) -> tuple[list[Numbered], list[str]]:
    """Sort names into numbered sequences and others."""
    by_shape: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    others = []
    for name in dict.fromkeys(names):
        parts = _NUMBER.split(name)
        if len(parts) == 1:
            others.append(name)
        else:
            by_shape[tuple(parts[::2])].append(parts)
    found = [made for alike in by_shape.values() for made in _sequences_of(alike)]
    return sorted(found), sorted(others)


def _sequences_of(alike: list[list[str]]) -> list[Numbered]:
    """Split names of one shape at the number in which most of them differ."""
    groups: dict[int, dict[tuple[str, ...], list[str]]] = {}
    for position in range(1, len(alike[0]), 2):
        groups[position] = defaultdict(list)
        for parts in alike:
            rest = (*parts[:position], "", *parts[position + 1 :])
            groups[position][rest].append(parts[position])
    first_label = [
        position for position in groups if "." not in "".join(alike[0][: position + 1])
    ] or [0]
    position = min(groups, key=lambda p: (len(groups[p]), p not in first_label, -p))
    return [
        made
        for rest, texts in groups[position].items()
        for made in _of_one_width("".join(rest[:position]), "".join(rest[position:]), texts)
    ]


def _of_one_width(before: str, after: str, texts: list[str]) -> Iterator[Numbered]:
    """Keep `node01` and `node7` apart: from a number alone the name could not be written again."""
    width = max((len(text) for text in texts if text.startswith("0") and len(text) > 1), default=0)
    padded = [text for text in texts if text == f"{int(text):0{width}d}"]
    for alike, digits in ((padded, width), ([text for text in texts if text not in padded], 0)):
        if alike:
            yield Numbered(before, after, digits, tuple(sorted({int(text) for text in alike})))


def compact_names(names: Iterable[str]) -> str:
    """Write names shortly: `worker-[0-5,7]`."""
    numbered, others = sequences(names)
    written = [
        sequence.name(sequence.numbers[0])
        if len(sequence.numbers) == 1
        else f"{sequence.before}[{ranges(sequence.numbers, sequence.width)}]{sequence.after}"
        for sequence in numbered
    ]
    return ", ".join(written + others)


def expand_names(text: str) -> list[str]:
    """Read names as they are written shortly, by us or by Slurm: `node[01-04,07],login`.

    Raises:
        ValueError: if the text is not of that form.
    """
    names: list[str] = []
    for item in _ITEM.findall(text):
        parts = _BRACKETS.split(item.strip())
        if not item.strip() or any(sign in part for part in parts[::2] for sign in "[]"):
            raise ValueError(_not_names(text))
        found = [""]
        for position, part in enumerate(parts):
            ends = _numbers(text, part) if position % 2 else [part]
            _check_number(text, len(names) + len(found) * len(ends))
            found = [f"{name}{end}" for name in found for end in ends]
        names += found
    if not names:
        raise ValueError(_not_names(text))
    return list(dict.fromkeys(names))


def _check_number(text: str, number: int) -> None:
    if number > _MOST:
        message = f"there are more than {_MOST} names in {text!r}"
        raise ValueError(message)


def _numbers(text: str, inside: str) -> list[str]:
    found: list[str] = []
    for part in inside.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or int(first) > int(last):
            raise ValueError(_not_names(text))
        _check_number(text, int(last) - int(first) + 1)
        found += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return found


def _not_names(text: str) -> str:
    return f"expected names such as worker-0,worker-1 or node[01-16,20], not {text!r}"


def ranges(numbers: Sequence[int], width: int = 0) -> str:
    """Write sorted numbers shortly: `0-5,7`."""
    written: list[str] = []
    start = 0
    for end in range(1, len(numbers) + 1):
        if end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
            continue
        first, last = f"{numbers[start]:0{width}d}", f"{numbers[end - 1]:0{width}d}"
        between = "," if end - start == 2 else "-"
        written.append(first if end - start == 1 else f"{first}{between}{last}")
        start = end
    return ",".join(written)


def absent(names: Sequence[str], missing: int) -> Absent:
    """Guess which names are absent when so many nodes have not come.

    Args:
        names: Who is there, each name once.
        missing: How many more there should be.

    Returns:
        Nothing where the numbers say nothing, such as hosts that a scheduler picked.
    """
    numbered, others = sequences(names)
    # More gaps than nodes that are missing: these numbers do not follow each other.
    room = sum(sequence.numbers[-1] - sequence.numbers[0] + 1 for sequence in numbered)
    seen = sum(len(sequence.numbers) for sequence in numbered)
    if missing < 1 or room - seen > missing or seen + len(others) != len(names):
        return Absent()
    gaps = [
        sequence.name(number)
        for sequence in numbered
        for number in range(sequence.numbers[0], sequence.numbers[-1])
        if number not in set(sequence.numbers)
    ]
    rest = missing - len(gaps)
    # Where there are two sequences, it is open which of them goes on.
    longest = max(numbered, key=lambda sequence: len(sequence.numbers), default=None)
    alone = longest is not None and all(
        sequence is longest or (len(sequence.numbers) == 1 and _shape(sequence) != _shape(longest))
        for sequence in numbered
    )
    if rest == 0 or longest is None or not alone:
        return Absent(tuple(gaps))
    if len(longest.numbers) == 1 and not _NUMBERED.fullmatch(longest.name(longest.numbers[0])):
        return Absent(tuple(gaps))
    ends = _ends(longest, rest)
    if not ends:
        return Absent(tuple(gaps))
    sure = set.intersection(*ends)
    maybe = set.union(*ends) - sure
    return Absent(
        (*gaps, *(longest.name(number) for number in sorted(sure))),
        tuple(longest.name(number) for number in sorted(maybe)),
        rest - len(sure),
    )


def _shape(sequence: Numbered) -> str:
    return _NUMBER.sub("#", sequence.name(0))


def _ends(sequence: Numbered, rest: int) -> list[set[int]]:
    """Give the sets of numbers that could be missing at the ends, one for each possible first number."""
    low, high = sequence.numbers[0], sequence.numbers[-1]
    firsts = [first for first in (0, 1) if low - rest <= first <= low]
    if not firsts and rest == 1:
        firsts = [low - 1, low]
    return [
        {*range(first, low), *range(high + 1, high + 1 + rest - (low - first))} for first in firsts
    ]
