"""Runs that wait for each other's nodes: nodes of one job that were started with different run ids. Pure.

Nobody tells etcd that two runs were meant to be one. What can be seen: both wait for as many nodes, what they
have fits into one world, and their nodes came at about the same time. Jobs of a sweep can look like that,
too, so it is said as a condition.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torchetcd._phrasing import count, listed, plain, some
from torchetcd.diagnosis._absence import still_needed

if TYPE_CHECKING:
    from torchetcd._run_model import Run

# Nodes of one job start within minutes, and their clocks differ by less.
_TOGETHER_S = 300.0
_NAMED = 4
_REMEDY = "its nodes were started with different run ids; give all of them the same --rdzv-id."


def apart_from(run: Run, others: Iterable[Run]) -> list[Run]:
    """Find the runs whose nodes may belong to this one, the likeliest first."""
    if not _waits(run):
        return []
    found = [other for other in others if _may_be_one(run, other)]
    return sorted(
        found, key=lambda other: (-_likeness(run, other), abs(_began(run) - _began(other)))
    )


def groups_apart(runs: Iterable[Run]) -> list[list[Run]]:
    """Find runs that may be one, all of which fit into one world; in the order of their ids."""
    waiting = sorted((run for run in runs if _waits(run)), key=lambda run: (_began(run), run.id))
    groups: list[list[Run]] = []
    for run in waiting:
        alike = next((group for group in groups if _may_be_one(group[0], run)), None)
        if alike is None:
            groups.append([run])
        else:
            alike.append(run)
    return [
        sorted(group, key=lambda run: run.id)
        for group in groups
        if len(group) > 1 and sum(len(run.joined) for run in group) <= (group[0].max_nodes or 0)
    ]


def said_of(apart: Sequence[Run]) -> list[str]:
    """Say of a run which others may be parts of the same job."""
    if not apart:
        return []
    nodes = count(sum(len(run.joined) for run in apart), "node")
    if len(apart) == 1:
        return [
            f"Run '{plain(apart[0].id)}' waits for as many, and has {nodes} that came at about the same "
            f"time: if this is one job, {_REMEDY}"
        ]
    names = listed(some([f"'{plain(run.id)}'" for run in apart], _NAMED))
    return [
        f"Runs {names} each wait for as many, and have {nodes} that came at about the same time: if some of "
        f"them and this one are one job, {_REMEDY}"
    ]


def said_of_all(runs: Iterable[Run]) -> list[str]:
    """Say which of some runs may be one job, a sentence for each."""
    return [
        f"Runs {listed(some([_with_nodes(run) for run in group], _NAMED))} each wait for "
        f"{_span(group[0])}, and have nodes that came at about the same time: if they are one job, {_REMEDY}"
        for group in groups_apart(runs)
    ]


def _with_nodes(run: Run) -> str:
    return f"'{plain(run.id)}' ({count(len(run.joined), 'node')})"


def _span(run: Run) -> str:
    if run.max_nodes in (None, run.min_nodes):
        return count(run.min_nodes or 0, "node")
    return f"{run.min_nodes} to {run.max_nodes} nodes"


def _waits(run: Run) -> bool:
    return bool(run.joined) and bool(still_needed(run))


def _may_be_one(run: Run, other: Run) -> bool:
    return (
        other.id != run.id
        and _waits(other)
        and (other.min_nodes, other.max_nodes) == (run.min_nodes, run.max_nodes)
        # Two that had worlds of their own are two jobs that have lost a node each.
        and not (run.rounds and other.rounds)
        and len(run.joined) + len(other.joined) <= (run.max_nodes or run.min_nodes or 0)
        and abs(_began(run) - _began(other)) <= _TOGETHER_S
    )


def _began(run: Run) -> float:
    """Give the time at which its nodes came: the first one's."""
    times = [node.since for node in run.joined if node.since is not None]
    return min(times, default=run.opened_at or run.observed_at)


def _likeness(run: Run, other: Run) -> float:
    return difflib.SequenceMatcher(None, run.id, other.id).ratio()
