"""How nodes are named: in sentences, as briefly as tells them apart, and by people who mean one. Pure."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from torchetcd._phrasing import listed, plain, some

if TYPE_CHECKING:
    from torchetcd._run_model import Denial, Node, Run

# More names than anybody reads in a sentence.
_NAMED = 12
_CLOSE = 3


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
    return "its lease has" if len(nodes) == 1 else "their leases have"


# --- whom a name means -------------------------------------------------------------------------------


def present_nodes(run: Run) -> list[Node]:
    """Give all nodes of a run that are alive."""
    late = [node for node in run.missing if node.alive]
    return [*run.joined, *run.members, *run.waiting, *run.spares, *late]


def nodes_called(nodes: Iterable[Node], name: str) -> dict[str, list[Node]]:
    """Find the nodes that a name means, sorted by what the deny list calls them.

    The first of these that anybody has: the id of a node, its `node_id`, its host, HOST:PID, and the host
    (or `node_id`) without its domain, which is what schedulers and people call it. A name with a domain
    means a host that calls itself without one, too. A short name of several hosts means none of them.
    """
    nodes = list(nodes)
    host, _, pid = name.rpartition(":")
    exact: tuple[Callable[[Node], str | None], ...] = (
        lambda node: node.id if node.id == name else None,
        lambda node: name if node.node_id == name else None,
        lambda node: name if node.host == name else None,
        lambda node: node.id if str(node.pid) == pid and alike(node.host, host) else None,
    )
    for way in exact:
        if found := _sorted_by(way, nodes):
            return found
    for short in (
        lambda node: node.host if alike(node.host, name) else None,
        lambda node: node.node_id if alike(node.node_id, name) else None,
    ):
        found = _sorted_by(short, nodes)
        if len(found) == 1:
            return found
    return {}


def _sorted_by(way: Callable[[Node], str | None], nodes: Iterable[Node]) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for node in nodes:
        known_as = way(node)
        if known_as is not None:
            found.setdefault(known_as, []).append(node)
    return found


def close_names(nodes: Iterable[Node], name: str) -> list[str]:
    """Give names of nodes that look like one that nobody has."""
    forms: dict[str, dict[str, None]] = {}
    for node in nodes:
        for own in filter(None, (node.host, node.node_id)):
            for form in (own, _label(own) or own):
                forms.setdefault(form, {})[own] = None
    close = difflib.get_close_matches(name, forms, n=6, cutoff=0.6)
    return list(dict.fromkeys(plain(own) for form in close for own in forms[form]))[:_CLOSE]


def denials_called(denials: Iterable[Denial], name: str) -> list[Denial]:
    """Find the denials that a name means: those of the nodes that `called` finds by it."""
    host, _, pid = name.rpartition(":")
    return [
        denial
        for denial in denials
        if denial.name == name
        or (denial.host is None and alike(denial.name, name))
        or (denial.host is not None and str(denial.pid) == pid and alike(denial.host, host))
    ]


def denied_as(denial: Denial) -> str:
    """Name who is denied as the command line takes it."""
    return plain(denial.name if denial.host is None else f"{denial.host}:{denial.pid}")


def share_a_host(nodes: Iterable[Node]) -> bool:
    """Whether two of the nodes have one host, and no `node_id` that tells them apart."""
    hosts = Counter(node.host for node in nodes if not node.node_id)
    return any(number > 1 for number in hosts.values())


class KnownAs:
    """All names of some nodes: whether anybody is called so is asked for thousands of names."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._names: set[str] = set()
        self._short: set[str] = set()
        self._labels: set[str] = set()
        self._hosts: dict[str, list[str]] = {}
        for node in nodes:
            self._names |= {node.id, str(node.infra_rank)} - {"None"}
            self._hosts.setdefault(str(node.pid), []).append(node.host)
            for name in filter(None, (node.host, node.node_id)):
                label = _label(name)
                (self._labels if label else self._short).add(label or name.lower())
                self._names |= {name, name.lower()}

    def __contains__(self, name: str) -> bool:
        """Whether one of the nodes is called so."""
        label, low = _label(name), name.lower()
        host, _, pid = name.rpartition(":")
        return (
            name in self._names
            or low in self._names
            or (label in self._short if label else low in self._labels)
            or any(alike(own, host) for own in self._hosts.get(pid, ()))
        )


def alike(own: str | None, name: str) -> bool:
    """Whether two names are of one host: DNS has no capitals, and one of them may lack the domain."""
    if not own or not name:
        return False
    labels = _label(own), _label(name)
    if all(labels) or not any(labels):
        return own.lower() == name.lower()
    return (labels[0] or own.lower()) == (labels[1] or name.lower())


def _label(name: str) -> str:
    """Give the first part of a name that has a domain; an address has none."""
    first, dot, _ = name.lower().partition(".")
    return first if dot and not name.replace(".", "").isdigit() else ""
