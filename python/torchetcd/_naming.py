"""How nodes are named in sentences: as briefly as tells them apart. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torchetcd._words import listed, plain, some

if TYPE_CHECKING:
    from torchetcd.aio._model import Node, Run

# More names than anybody reads in a sentence.
_NAMED = 12


def name_of(node: Node, among: Iterable[Node] = ()) -> str:
    """Name a node as briefly as tells it from the others."""
    if node.node_id:
        return plain(node.node_id)
    host = plain(node.host) or f"node {node.id}"
    shared = sum(other.host == node.host and not other.node_id for other in among) > 1
    return f"{host} (pid {node.pid})" if shared else host


def ranked(nodes: Sequence[Node], run: Run) -> str:
    """Name some nodes, with their ranks."""
    among = [*run.missing, *run.joined, *run.members]
    named = []
    for node in nodes:
        rank = "" if node.rank is None else f"rank {node.rank}"
        name = name_of(node, among)
        if node.node_id and node.host and node.host != node.node_id:
            rank = f"{rank}, host {plain(node.host)}" if rank else f"host {plain(node.host)}"
        named.append(
            f"{name[:-1]}, {rank})"
            if rank and name.endswith(")")
            else f"{name} ({rank})"
            if rank
            else name
        )
    return listed(some(named, _NAMED))


def in_a_sentence(nodes: Sequence[Node]) -> str:
    """Name some nodes, with their hosts."""
    return listed(some([_with_host(node, nodes) for node in nodes], _NAMED))


def _with_host(node: Node, among: Iterable[Node]) -> str:
    name = name_of(node, among)
    if node.node_id and node.host and node.host != node.node_id:
        return f"{name} (host {plain(node.host)})"
    return name


def ways_to_name(nodes: Sequence[Node]) -> list[list[str]]:
    """Give the ways in which the nodes are told apart, the most telling first."""
    ways = []
    for name in ("node_id", "host", "address"):
        names = [getattr(node, name) for node in nodes]
        if all(names) and len(set(names)) == len(names):
            ways.append([plain(text) for text in names])
    return ways


def its_lease(nodes: Sequence[Node]) -> str:
    """Begin a clause about the leases of these nodes."""
    return "its lease is" if len(nodes) == 1 else "their leases are"
