"""One paragraph that says why the barrier of a run is not complete: `torchetcd why`. Pure."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchetcd._closed_run import how_it_ended
from torchetcd._phrasing import ago, clock, count, duration, listed, plain, some
from torchetcd.diagnosis._absence import Departed, departed, who_is_missing
from torchetcd.diagnosis._host_lists import compact_names
from torchetcd.diagnosis._node_names import (
    denied_as,
    in_a_sentence,
    its_lease,
    name_of,
    ranked,
    ways_to_name,
)
from torchetcd.diagnosis._split_jobs import apart_from, said_of

if TYPE_CHECKING:
    from torchetcd._run_model import Closed, Node, Run, Timeline


def explain(
    run: Run,
    others: Sequence[Run] = (),
    timeline: Timeline | None = None,
    expected: Sequence[str] = (),
) -> str:
    """Say in one paragraph what a run waits for, or what else its state is.

    Nothing is asked: `torchetcd.aio.Client.why` asks for all of these.

    Args:
        run: The run.
        others: Other runs below the same prefix: some may have nodes of this one.
        timeline: What happened in the run: who came and went is in there.
        expected: The nodes that should join, by host, `node_id` or infra rank.
    """
    left = departed(timeline) if timeline is not None else []
    return paragraph(run, others, left, expected)


def paragraph(
    run: Run,
    others: Sequence[Run] = (),
    left: Sequence[Departed] = (),
    expected: Sequence[str] = (),
) -> str:
    """Say it with those who came and went found already.

    Args:
        run: The run, as `torchetcd.aio.Client.describe` gives it.
        others: Other runs below the same prefix, some of which may have nodes of this one.
        left: The nodes that joined the round and have gone, as `_absence.departed` finds them.
        expected: The nodes that should join, by host, `node_id` or infra rank, where the caller knows.
    """
    if run.state == "unreadable":
        sentences = _unreadable(run)
    elif run.state == "none":
        sentences = _nothing(run, others)
    elif run.state == "closed":
        sentences = _closed(run)
    elif run.state == "final":
        sentences = _complete(run)
    else:
        sentences = _forming(run, others, left, expected)
    return " ".join(sentences)


# --- a round that is not complete --------------------------------------------------------------------


def _forming(
    run: Run, others: Sequence[Run], left: Sequence[Departed], expected: Sequence[str]
) -> list[str]:
    joined, least, most = len(run.joined), run.min_nodes, run.max_nodes
    last = max((node.since for node in run.joined if node.since is not None), default=None)
    since = f" for {duration(run.observed_at - last)}" if last is not None else ""
    span = f"{least}" if most in (None, least) else f"{least} to {most}"
    nodes = "node" if most == 1 else "nodes"
    enough = least is not None and joined >= least
    who = f"run '{plain(run.id)}'"
    if not joined:
        opened = ago(run.opened_at, run.observed_at)
        begun = f", which began {opened}" if opened else ""
        sentences = [
            f"No node is in the barrier of {who}: nobody has joined round {run.round}{begun}."
        ]
    elif least is None:
        verb = "has" if joined == 1 else "have"
        sentences = [
            f"R{who[1:]} is not complete: {count(joined, 'node')} {verb} joined round {run.round}"
            f"{since}; how many it needs is not known, because no node coordinates it at the moment."
        ]
    elif enough:
        sentences = [
            f"R{who[1:]} is not complete yet, but has enough nodes: {joined} "
            f"{'has' if joined == 1 else 'have'} joined of the {span} that round {run.round} needs."
        ]
    else:
        sentences = [
            f"R{who[1:]} is not complete: {joined} of the {span} {nodes} that round "
            f"{run.round} needs {'has' if joined == 1 else 'have'} joined{since}."
        ]
    sentences += who_is_missing(run, left, expected)
    sentences += said_of(apart_from(run, others))
    sentences += _denied(run)
    sentences += _here(run)
    sentences += _last_call(run, enough=enough)
    sentences += _trigger(run)
    return sentences + _gives_up(run)


def _here(run: Run) -> list[str]:
    if not run.joined:
        return []
    ways = ways_to_name(run.joined)
    if ways and len(run.joined) > 1:
        # Whatever tells them apart, shortly: thousands of names fit into a line.
        return [f"Those that have joined: {_shorten(compact_names(ways[0]))}."]
    named = in_a_sentence(run.joined)
    if len(run.joined) == 1:
        return [f"The only one that has joined is {named}."]
    return [f"Those that have joined: {named}."]


def _last_call(run: Run, *, enough: bool) -> list[str]:
    if run.last_call_left_s is not None:
        left = duration(run.last_call_left_s)
        return [
            f"The last call for more nodes ends in {left}, and the round is complete then{_sooner(run)}."
        ]
    if enough:
        if run.coordinator is None:
            return ["No node coordinates it at the moment; another one takes over within seconds."]
        return [f"It is complete when the last call for more nodes is over{_sooner(run)}."]
    return []


def _sooner(run: Run) -> str:
    if run.max_nodes is None or len(run.joined) >= run.max_nodes:
        return ", or as soon as those are back" if run.missing else ""
    return f", or as soon as {run.max_nodes} have joined"


def _trigger(run: Run) -> list[str]:
    if not run.why or run.round <= 1:
        return []
    when = f" {ago(run.opened_at, run.observed_at)}" if run.opened_at is not None else ""
    return [f"Round {run.round} was opened{when} because: {plain(run.why)}."]


def _gives_up(run: Run) -> list[str]:
    ends = [(node.until, node) for node in run.joined if node.until is not None]
    if not ends:
        return []
    until, node = min(ends, key=lambda end: end[0])
    left = until - run.observed_at
    name = name_of(node, run.joined)
    if left <= 0:
        return [f"The time of {name} is up: its call of next_rendezvous() ends now."]
    if len(ends) == 1:
        return [f"Its call of next_rendezvous() gives up in {duration(left)}."]
    return [f"The first to give up is {name}, in {duration(left)}."]


# --- a round that is complete ------------------------------------------------------------------------


def _complete(run: Run) -> list[str]:
    world = run.world if run.world is not None else len(run.members)
    when = _at(run.completed_at, run)
    gone = [node for node in run.missing if not node.alive]
    lost = bool(gone) or bool(run.loss) or len(run.members) < world
    who = f"The barrier of run '{plain(run.id)}'"
    sentences = [
        f"{who} is complete, and nothing is waited for: {count(world, 'node')} formed round "
        f"{run.round}{when}."
        if not lost
        else f"{who} was completed by {count(world, 'node')} as round {run.round}{when}; but "
        f"{_lost(run, gone, world)}."
    ]
    if lost:
        sentences.append(_after_a_loss(run))
    sentences += _waiting(run)
    return sentences + _denied(run)


def _lost(run: Run, gone: list[Node], world: int) -> str:
    if gone:
        verb = "is" if len(gone) == 1 else "are"
        return f"{ranked(gone, run)} {verb} gone: {its_lease(gone)} expired or been released"
    if run.loss:
        return f"{plain(run.loss)} is gone"
    number = world - len(run.members)
    return f"{count(number, 'member')} {'is' if number == 1 else 'are'} gone"


def _after_a_loss(run: Run) -> str:
    if not run.members and not run.waiting and not run.spares:
        return "No node is left; the next one that joins opens the next round."
    if not run.members:
        return "No member is left; those that wait open the next round within seconds."
    left = "The other member has" if len(run.members) == 1 else f"The other {len(run.members)} have"
    return (
        f"{left} not opened the next round yet: the agents still stop their workers, or do not look "
        "(on_member_loss=ignore), or hang."
    )


def _waiting(run: Run) -> list[str]:
    sentences = []
    if run.waiting:
        is_ = "waits" if len(run.waiting) == 1 else "wait"
        sentences.append(
            f"{in_a_sentence(run.waiting)} {is_} for the next round, in which there is room; the members are "
            "told and form it when their agents have stopped the workers."
        )
    if run.spares:
        most = f" (max_nodes is {run.max_nodes})" if run.max_nodes is not None else ""
        one = len(run.spares) == 1
        sentences.append(
            f"{in_a_sentence(run.spares)} {'waits as a spare' if one else 'wait as spares'}: there is no room"
            f"{most} until a member is lost."
        )
    return sentences


# --- closed, nothing, unreadable ---------------------------------------------------------------------


def _closed(run: Run) -> list[str]:
    closed = run.closed
    who = f"Run '{plain(run.id)}'"
    if closed is None:
        sentences = [f"{who} is closed."]
    else:
        how = how_it_ended(closed.text, closed.reason)
        sentences = [f"{who} was closed by {plain(closed.by)}{_at(closed.at, run)}: {how}."]
        sentences += _last_round(closed)
    sentences.append("Every node that joins now gets RendezvousClosedError.")
    there = [*run.members, *run.joined, *run.waiting, *run.spares]
    if there:
        one = len(there) == 1
        sentences.append(
            f"{in_a_sentence(there)} {'is' if one else 'are'} still there; "
            f"{'it leaves' if one else 'they leave'} when the agent asks next."
        )
    sentences.append(
        "To go on, start the job with another run id (--rdzv-id), or with if_closed=reopen in --rdzv-conf, "
        f"or undo the close with `torchetcd reopen {_argument(run.id)} --reason ...`; by itself it is "
        f"forgotten when the last node has been gone for {_run_ttl(run)}."
    )
    return sentences + _denied(run)


def _last_round(closed: Closed) -> list[str]:
    if closed.round is None:
        return ["No round of it was ever complete."]
    world = f", with {count(closed.world, 'node')}" if closed.world is not None else ""
    return [f"Its last complete round was round {closed.round}{world}."]


def _run_ttl(run: Run) -> str:
    return duration(run.run_ttl) if run.run_ttl else "run_ttl (2 hours unless given)"


def _nothing(run: Run, others: Sequence[Run]) -> list[str]:
    who = f"run '{plain(run.id)}'"
    there = [*run.members, *run.joined, *run.waiting, *run.spares]
    sentences = [
        f"There is nothing of {who} below {plain(run.prefix)}: no node has come yet, or all have been "
        "gone for longer than run_ttl (2 hours unless given), or it was purged."
        if not there
        else f"The record of {who} is gone, though {in_a_sentence(there)} "
        f"{'is' if len(there) == 1 else 'are'} there; the next node that joins writes it again."
    ]
    ids = [other.id for other in others]
    alike = difflib.get_close_matches(run.id, ids, n=3, cutoff=0.6)
    if alike:
        what = "A run with a similar name is" if len(alike) == 1 else "Runs with similar names are"
        names = listed(f"'{plain(name)}'" for name in alike)
        sentences.append(f"{what} there: {names}.")
    elif others:
        named = some([f"'{plain(name)}'" for name in ids], 6)
        is_ = "Another run is" if len(others) == 1 else "Other runs are"
        sentences.append(f"{is_} there: {listed(named)}.")
    sentences.append(
        "If nodes hang nevertheless, they use another run id (--rdzv-id), etcd_prefix or etcd, or "
        "cannot reach it: their logs say so at the first line with TORCH_LOGS=torchetcd."
    )
    return sentences + _denied(run)


def _unreadable(run: Run) -> list[str]:
    what = f": {plain(run.problem).rstrip('.')}" if run.problem else ""
    return [
        f"The state of run '{plain(run.id)}' cannot be read{what}.",
        "Every call of next_rendezvous() ends with RendezvousStateError until it can.",
        "If a newer version of torchetcd wrote it, update the one here; if nobody needs the run, "
        f"`torchetcd purge {_argument(run.id)}` deletes it.",
    ]


# --- parts of sentences ------------------------------------------------------------------------------


def _denied(run: Run) -> list[str]:
    sentences = []
    for denial in run.denied[:3]:
        why = f": {plain(denial.reason)}" if denial.reason else ""
        sentences.append(
            f"{denied_as(denial)} may not join, by decision of {plain(denial.by)}{why} "
            f"(`torchetcd allow {_argument(run.id)} {_argument(denied_as(denial))}` undoes that)."
        )
    if len(run.denied) > 3:
        sentences.append(f"{len(run.denied) - 3} more names are denied.")
    return sentences


def _at(at: float | None, run: Run) -> str:
    return "" if at is None else f" at {clock(at)}, {ago(at, run.observed_at)}"


def _shorten(text: str) -> str:
    return text if len(text) <= 400 else f"{text[:400].rsplit(',', 1)[0]}, ..."


def _argument(text: str) -> str:
    """Write an argument as a shell takes it."""
    return shlex.quote(plain(text))
