"""Who has not come to an open round: by record where the round before tells, by the names otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torchetcd._phrasing import duration, listed
from torchetcd.diagnosis._host_lists import Absent, absent, compact_names, ranges
from torchetcd.diagnosis._node_names import KnownAs, in_a_sentence, its_lease, ranked, ways_to_name

if TYPE_CHECKING:
    from torchetcd._run_model import Node, Run, Timeline


class Missing(NamedTuple):
    """Who is missing in a run, by all that is known of it."""

    #: How many more nodes an open round needs before its last call; `None` if nobody says.
    needed: int | None
    #: Members of the last complete round that are gone, or alive but not back in the barrier.
    members: tuple[Node, ...]
    #: Nodes that came to this round and have gone again.
    left: tuple[Node, ...]
    #: Those that were expected by name and are not there.
    not_come: tuple[str, ...]
    #: Ranks of the infrastructure that no node has.
    infra_ranks: tuple[int, ...]
    #: Names that are lacking among those of the other nodes: a guess.
    likely: tuple[str, ...]


class Departed(NamedTuple):
    """A node that was in the barrier, or waited, and is gone."""

    node: Node
    #: It went after this time; `None` where that is not known.
    after: float | None


def departed(timeline: Timeline) -> list[Departed]:
    """Find who came to the round that is open and has gone, without another one in its place."""
    found: dict[object, Departed] = {}
    for event in timeline.events:
        if event.kind in ("final", "gone"):
            found = {}
        node = event.node
        if node is None:
            continue
        # An agent that was restarted takes the place of the previous one.
        place = node.node_id or (node.host, node.pid)
        if event.kind in ("left", "lost"):
            found[place] = Departed(node, event.at if event.at is not None else event.earliest)
        elif event.kind in ("joined", "waiting"):
            found.pop(place, None)
            again = [
                key
                for key, gone in found.items()
                if not node.node_id and gone.node.host == node.host
            ]
            if again:
                found.pop(again[0])
    return list(found.values())


def still_needed(run: Run) -> int | None:
    """Say how many more nodes an open round needs before its last call; `None` if nobody says."""
    if run.state != "open" or run.min_nodes is None:
        return None
    return max(0, run.min_nodes - len(run.joined))


def not_come(run: Run, expected: Iterable[str]) -> list[str]:
    """Find those of the expected names (hosts, node_ids or infra ranks) that no node here has."""
    known = KnownAs([*run.joined, *run.members, *run.waiting, *run.spares])
    return [name for name in expected if name not in known]


def missing(run: Run, timeline: Timeline | None = None, expected: Sequence[str] = ()) -> Missing:
    """Find out who is missing in a run.

    Args:
        run: The run.
        timeline: What happened in the run: who came and went is in there.
        expected: The nodes that should join, by host, `node_id` or infra rank.
    """
    left = departed(timeline) if timeline is not None else []
    wanted, unknown = still_needed(run), _unknown(run)
    if unknown > 0 or wanted is None:
        unknown -= len(left)
    infra_ranks: list[int] = []
    likely: tuple[str, ...] = ()
    if unknown > 0 and run.joined and not expected:
        known = [*run.joined, *run.missing]
        infra_ranks = _open_infra_ranks(known, unknown, needed=bool(wanted))
        if not infra_ranks:
            likely = _guess(known, unknown).names
    return Missing(
        needed=wanted,
        members=run.missing,
        left=tuple(gone.node for gone in left),
        not_come=tuple(not_come(run, expected)),
        infra_ranks=tuple(infra_ranks),
        likely=likely,
    )


def _unknown(run: Run) -> int:
    """Count those that lack and are no member of the last complete round."""
    wanted = still_needed(run)
    lacking = (run.max_nodes or 0) - len(run.joined) if wanted == 0 else wanted or 0
    return lacking - len(run.missing)


def _expected(run: Run, expected: Sequence[str]) -> list[str]:
    lacking = not_come(run, expected)
    if not lacking:
        return [f"All {len(expected)} that were expected are here."]
    if len(lacking) == len(expected):
        return [f"None of the {len(expected)} that were expected is here under these names."]
    has = "has" if len(lacking) == 1 else "have"
    return [f"Of the {len(expected)} that were expected, {compact_names(lacking)} {has} not come."]


def who_is_missing(
    run: Run, left: Sequence[Departed] = (), expected: Sequence[str] = ()
) -> list[str]:
    """Say who is missing, a sentence for each way in which that is known."""
    sentences = _expected(run, expected) if expected else []
    gone = [node for node in run.missing if not node.alive]
    late = [node for node in run.missing if node.alive]
    before = f"round {run.rounds[-1].round if run.rounds else run.round - 1}"
    if gone:
        was = "was a member" if len(gone) == 1 else "were members"
        has = "has" if len(gone) == 1 else "have"
        where = "that host" if len(gone) == 1 else "those hosts"
        sentences.append(
            f"{ranked(gone, run)} {was} of {before} and {has} not come back: {its_lease(gone)} expired "
            f"or been released, so look at {where} first."
        )
    if late:
        is_, was = ("is", "was a member") if len(late) == 1 else ("are", "were members")
        sentences.append(
            f"{ranked(late, run)} {was} of {before} and {is_} alive, but not back in the barrier: the "
            f"{'agent has' if len(late) == 1 else 'agents have'} not stopped the workers of that round "
            "yet, or not noticed."
        )
    wanted, unknown = still_needed(run), _unknown(run)
    # Without a coordinator nobody says how many are needed, and the one that has gone may have been it.
    if left and (unknown > 0 or wanted is None):
        nodes = [gone.node for gone in left]
        times = [gone.after for gone in left if gone.after is not None]
        since = f" less than {duration(run.observed_at - min(times) + 1)} ago" if times else ""
        is_, its = ("is", "its log") if len(left) == 1 else ("are", "their logs")
        sentences.append(
            f"{in_a_sentence(nodes)} had joined and {is_} gone again{since}: see {its}."
        )
        unknown -= len(left)
    if unknown > 0 and run.joined and not expected:
        sentences += _by_names(run, unknown, needed=bool(wanted))
    return sentences


def _by_names(run: Run, unknown: int, *, needed: bool) -> list[str]:
    """Say who has not come of those whom no record names."""
    known = [*run.joined, *run.missing]
    said = _by_infra_rank(known, unknown, needed=needed)
    if said:
        return [said]
    guess = _guess(known, unknown)
    if guess.names or guess.candidates:
        return _guessed(guess, needed=needed)
    return [_not_known(run, unknown)] if needed else []


def _guess(known: list[Node], unknown: int) -> Absent:
    guesses = (absent(names, unknown) for names in ways_to_name(known))
    return next((guess for guess in guesses if guess.names or guess.candidates), Absent())


def _open_infra_ranks(known: list[Node], unknown: int, *, needed: bool) -> list[int]:
    """Return the ranks that nobody has; none where the ranks say nothing."""
    there = {node.infra_rank for node in known if node.infra_rank is not None}
    if len(there) < len(known):
        return []
    places = sorted(set(range(len(known) + unknown)) - there)
    # There may be more of them than nodes that are missing.
    return [] if needed and len(places) != unknown else places


def _by_infra_rank(known: list[Node], unknown: int, *, needed: bool) -> str | None:
    places = _open_infra_ranks(known, unknown, needed=needed)
    if not places:
        return None
    total, one = len(known) + unknown, len(places) == 1
    named = f"infra rank{'' if one else 's'} {ranges(places)}"
    if needed:
        return f"Missing {'is the node' if one else 'are the nodes'} with {named}."
    those, have = ("the one", "has") if one else ("those", "have")
    return f"Of {total} nodes {those} with {named} {have} not come."


def _guessed(guess: Absent, *, needed: bool) -> list[str]:
    if not needed:
        if not guess.names or guess.candidates:
            return []
        return [f"By the names, {compact_names(guess.names)} could still come."]
    parts = [compact_names(guess.names)] if guess.names else []
    if guess.candidates:
        number = "one" if guess.more == 1 else str(guess.more)
        among = listed(guess.candidates, "or" if guess.more == 1 else "and")
        several = len(guess.candidates) > 2 or guess.names
        parts.append(f"{number} of {among}" if several else among)
    return [f"Probably missing, judging by the other names: {' and '.join(parts)}."]


def _not_known(run: Run, unknown: int) -> str:
    named = all(node.node_id for node in run.joined)
    what = "infra_rank" if named else "node_id or infra_rank"
    number = "One" if unknown == 1 else str(unknown)
    also = " more" if run.missing else ""
    nodes, have = ("node is", "has") if unknown == 1 else ("nodes are", "have")
    return (
        f"{number}{also} {nodes} missing that {have} never been in this run, and nobody has told etcd which; "
        f"with the parameter {what} on each node it would be known."
    )
