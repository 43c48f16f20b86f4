"""Check that the modules of src/ form layers: none knows one above it, and there is no circle.

tools/rust_layers.txt has the layers. What a module knows is read from its `use` lines and its paths.
Tests are left out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: A module as `etcd/watch/hub`; `etcd/watch/mod` is the file of the folder itself.
Module = str
Edges = dict[Module, set[Module]]

_COMMENT_OR_LITERAL = re.compile(
    r"""//[^\n]*|/\*.*?\*/|\bb?r(?P<hashes>\#*)".*?"(?P=hashes)|\bb?"(?:\\.|[^"\\])*"|"(?:\\.|[^"\\])*"
    |'(?:\\[^']+|[^'\\\n])'""",
    re.DOTALL | re.VERBOSE,
)
_CFG = re.compile(r"#\[cfg\((?P<condition>(?:[^()]|\([^()]*\))*)\)\]")
_ITEM = re.compile(
    r"(?:\s*#\[[^\]]*\])*\s*(?:pub(?:\([^)]*\))?\s+)?(?:unsafe\s+|async\s+|const\s+)*"
    r"(?:(?P<mod>mod\s+(?P<name>\w+))|use|fn|impl|struct|enum|static|const|type|trait|\w+!)\b"
)
_USE = re.compile(r"(?P<public>pub(?:\([^)]*\))?\s+)?\buse\s+(?P<tree>[^;]+);")
_MOD = re.compile(r"\bmod\s+(\w+)\s*;")
_INLINE = re.compile(r"\bmod\s+(\w+)\s*\{")
_PATH = re.compile(r"(?<!\(in )\b(?:crate|super|self)(?:\s*::\s*\w+)+")


@dataclass
class Source:
    """One file without comments, literals and tests."""

    code: str
    children: set[str] = field(default_factory=set)
    test_children: set[str] = field(default_factory=set)
    #: What it gives under another path: the name, and where that is.
    exports: dict[str, list[str]] = field(default_factory=dict)
    globs: list[list[str]] = field(default_factory=list)


def _end_of_item(code: str, at: int) -> int:
    """Give where the item ends that begins before `at`: behind its `;` or its block."""
    depth = 0
    for here in range(at, len(code)):
        letter = code[here]
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
            if depth == 0 and letter == "}":
                # A `use` has its `;` behind the braces.
                rest = re.compile(r"\s*;").match(code, here + 1)
                return rest.end() if rest else here + 1
        elif letter == ";" and depth == 0:
            return here + 1
    return len(code)


def read(text: str) -> Source:
    """Give what counts of a file."""
    code = _COMMENT_OR_LITERAL.sub(lambda found: '""' if '"' in found[0] else " ", text)
    kept, at, tests = [], 0, set()
    for found in _CFG.finditer(code):
        condition = found["condition"]
        if found.start() < at or not re.search(r"(?<!not\()\btest\b", condition):
            continue
        item = _ITEM.match(code, found.end())
        if item is None:
            continue
        kept.append(code[at : found.start()])
        at = _end_of_item(code, item.end())
        if item["mod"]:
            tests.add(item["name"])
    code = "".join(kept) + code[at:]
    return Source(code, children=set(_MOD.findall(code)), test_children=tests)


def _inside(code: str, at: int) -> list[str]:
    """Give the modules with a body of their own that enclose a place of the file."""
    return [
        found[1]
        for found in _INLINE.finditer(code, 0, at)
        if _end_of_item(code, found.end() - 1) > at
    ]


def trees(tree: str) -> Iterator[tuple[list[str], str]]:
    """Give each path of a `use`, with the name it has from then on: `a::{b, c as d}` has two."""
    tree = tree.strip()
    head, brace, rest = tree.partition("{")
    if not brace:
        path, _, alias = tree.partition(" as ")
        segments = [part.strip() for part in path.split("::") if part.strip()]
        if segments and segments[-1] == "self" and len(segments) > 1:
            segments.pop()
        if segments:
            yield segments, alias.strip() or segments[-1]
        return
    prefix = [part.strip() for part in head.split("::") if part.strip()]
    depth, part = 0, ""
    for letter in rest[: rest.rindex("}")] + ",":
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            for segments, name in trees(part):
                inner = [] if segments == ["self"] else segments
                yield (
                    prefix + inner,
                    prefix[-1] if segments == ["self"] and name == "self" else name,
                )
            part = ""
        else:
            part += letter


class Crate:
    """The modules of a source folder and what each knows."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[tuple[str, ...], Module] = {}
        self.sources: dict[tuple[str, ...], Source] = {}
        for path in sorted(folder.rglob("*.rs")):
            parts = path.relative_to(folder).with_suffix("").parts
            place = parts[:-1] if parts[-1] in {"mod", "lib"} else parts
            self.files[place] = "/".join(parts)
            self.sources[place] = read(path.read_text(encoding="utf-8"))
        for place, source in self.sources.items():
            for use in _USE.finditer(source.code):
                if use["public"]:
                    self._export(place, source, use["tree"])

    def _export(self, place: tuple[str, ...], source: Source, tree: str) -> None:
        for segments, name in trees(tree):
            path = self._absolute(place, segments)
            if path is None:
                continue
            if name == "*":
                source.globs.append(path[:-1])
            else:
                source.exports[name] = path

    def is_test(self, place: tuple[str, ...]) -> bool:
        """Whether it is built for tests only."""
        return any(
            place[n] in self.sources[place[:n]].test_children
            for n in range(len(place))
            if place[:n] in self.sources
        )

    def _absolute(
        self, place: tuple[str, ...], segments: list[str], inside: Iterable[str] = ()
    ) -> list[str] | None:
        """Give a path from the root of the crate; `None` for one of another crate.

        `inside` has the modules within the file that the path stands in.
        """
        segments = list(segments)
        if segments[0] == "crate":
            return segments[1:]
        base = [*place, *inside]
        if segments[0] in {"self", "super"}:
            if segments[0] == "self":
                segments.pop(0)
            while segments and segments[0] == "super":
                if not base:
                    return None
                base.pop()
                segments.pop(0)
            return base + segments
        if segments[0] in self.sources[place].children:
            return base + segments
        return None

    def _resolve(self, path: list[str], depth: int = 0) -> tuple[str, ...] | None:
        """Give the file that has what a path names, behind the names under which others give it."""
        for n in range(len(path), -1, -1):
            place = tuple(path[:n])
            source = self.sources.get(place)
            if source is None:
                continue
            rest = path[n:]
            if rest and depth < 8 and rest[0] not in source.children:
                if rest[0] in source.exports:
                    return self._resolve(source.exports[rest[0]] + rest[1:], depth + 1)
                for other in source.globs:
                    found = self._resolve(other + rest, depth + 1)
                    if found is not None and found != tuple(other):
                        return found
            return place
        return None

    def _paths(self, place: tuple[str, ...]) -> Iterator[list[str]]:
        code, children = self.sources[place].code, self.sources[place].children
        for use in _USE.finditer(code):
            inside = _inside(code, use.start())
            for segments, _ in trees(use["tree"]):
                path = self._absolute(place, segments, inside)
                # What a folder gives of its own files is no knowledge of them.
                own = (
                    path is not None
                    and len(path) > len(place)
                    and tuple(path[: len(place)]) == place
                )
                if path is not None and not (use["public"] and own):
                    yield path
        rest = _USE.sub("", code)
        for found in _PATH.finditer(rest):
            segments = [part.strip() for part in found[0].split("::")]
            path = self._absolute(place, segments, _inside(rest, found.start()))
            if path is not None:
                yield path
        for child in children:
            if re.search(rf"(?<![:\w]){child}::", rest):
                yield [*place, child]

    def edges(self) -> Edges:
        """Give for each module those that it knows, tests aside."""
        known: Edges = {}
        for place, module in self.files.items():
            if self.is_test(place):
                continue
            known[module] = set()
            for path in self._paths(place):
                target = self._resolve(path)
                if target is not None and target != place and not self.is_test(target):
                    known[module].add(self.files[target])
        return known


def circles(edges: Edges) -> list[list[Module]]:
    """Give each set of modules of which every one knows every other, by some way."""
    reached: dict[Module, set[Module]] = {}
    for start in edges:
        seen: set[Module] = set()
        waiting = list(edges[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting.extend(edges.get(module, ()))
        reached[start] = seen
    found = {
        tuple(
            sorted({start} | {other for other in reached[start] if start in reached.get(other, ())})
        )
        for start in edges
        if start in reached[start]
    }
    return sorted(list(circle) for circle in found if len(circle) > 1)


@dataclass
class Layers:
    """The layers, the lowest first, and the circles that are still allowed."""

    layers: list[list[str]]
    allowed: list[list[Module]]

    @classmethod
    def parse(cls, text: str) -> Layers:
        """Read the file beside this one, which says how it is written."""
        layers, allowed = [], []
        for line in text.splitlines():
            words = line.partition("#")[0].split()
            if words[:1] == ["circle:"]:
                allowed.append(sorted(words[1:]))
            elif words:
                layers.append(words)
        return cls(layers, allowed)

    def of(self, module: Module) -> tuple[int, str] | None:
        """Give the number of a module's layer and the entry that has it: the longest that fits."""
        found = [
            (len(entry), number, entry)
            for number, layer in enumerate(self.layers)
            for entry in layer
            if module == entry or module.startswith(f"{entry}/")
        ]
        return max(found)[1:] if found else None


def faults(edges: Edges, layers: Layers) -> Iterable[str]:
    """Say what is wrong, one line each."""
    places = {module: layers.of(module) for module in edges}
    for module in sorted(edges):
        own = places[module]
        if own is None:
            yield f"{module} has no layer"
            continue
        for other in sorted(edges[module]):
            theirs = places[other]
            if theirs is None or theirs[1] == own[1]:
                continue
            if theirs[0] > own[0]:
                yield f"{module} knows {other}, which is above it"
            elif theirs[0] == own[0]:
                yield f"{module} knows {other}, which stands beside it"
    used = {place[1] for place in places.values() if place is not None}
    for entry in sorted({entry for layer in layers.layers for entry in layer} - used):
        yield f"{entry} has a layer, but there is no such module"
    found = circles(edges)
    for circle in found:
        if circle not in layers.allowed:
            yield f"a circle: {' '.join(circle)}"
    for circle in layers.allowed:
        if circle not in found:
            yield f"no circle any more, so it need not be allowed: {' '.join(circle)}"


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "src")
    parser.add_argument("--layers", type=Path, default=Path(__file__).with_suffix(".txt"))
    arguments = parser.parse_args()
    edges = Crate(arguments.folder).edges()
    layers = Layers.parse(arguments.layers.read_text(encoding="utf-8"))
    found = list(faults(edges, layers))
    for fault in found:
        print(fault)
    if not found:
        number = sum(map(len, edges.values()))
        print(
            f"{len(edges)} modules in {len(layers.layers)} layers know one another {number} times"
        )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
