"""A run as tables. Pure: made of `torchetcd.aio.Run` values alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torchetcd._closed_run import how_it_ended
from torchetcd._phrasing import ago, clock, count, duration, plain
from torchetcd.cli.output import cell, heading, table
from torchetcd.diagnosis import compact_names, denied_as, share_a_host, still_needed

if TYPE_CHECKING:
    from torchetcd.aio import Closed, Node, Run

_GOOD, _BUSY, _BAD = "green", "yellow", "red"


def state_of(run: Run) -> Text:
    """Say the state of a run in a word or two."""
    if run.state == "final":
        gone = lost_members(run)
        if gone:
            return Text(f"complete, {gone} lost", style=_BAD)
        return Text("complete", style=_GOOD)
    if run.state == "open":
        least = "?" if run.min_nodes is None else run.min_nodes
        call = ", last call" if run.last_call_left_s is not None else ""
        return Text(f"forming, {len(run.joined)} of {least}{call}", style=_BUSY)
    if run.closed is not None and run.closed.result is not None:
        return Text(_RESULTS[run.closed.result], style=_style(run.closed))
    return Text(run.state, style=_BAD)


# In one column with the states, where "closed" is one that somebody closed by hand.
_RESULTS = {"succeeded": "succeeded", "failed": "failed", "signal": "ended by a signal"}


def _style(closed: Closed) -> str:
    return _GOOD if closed.result == "succeeded" else _BAD


def lost_members(run: Run) -> int:
    """Count the members of a complete round that are gone."""
    known = sum(not node.alive for node in run.missing)
    return max(known, (run.world or 0) - len(run.members), int(run.loss is not None))


def table_of_runs(runs: Iterable[Run]) -> Table:
    """List runs: one line for each."""
    made = table(
        "RUN",
        "STATE",
        "ROUND",
        "WORLD",
        "WAITING",
        "SPARES",
        "AGE",
        right=("ROUND", "WORLD", "WAITING", "SPARES", "AGE"),
    )
    for run in runs:
        made.add_row(
            cell(run.id),
            state_of(run),
            cell(run.round or None),
            cell(run.world),
            cell(len(run.waiting)),
            cell(len(run.spares)),
            cell(None if age_of(run) is None else duration(age_of(run) or 0)),
        )
    return made


def age_of(run: Run) -> float | None:
    """Give the seconds since anything is known of a run."""
    times = [
        at
        for record in run.rounds
        for at in (record.opened_at, record.completed_at)
        if at is not None
    ]
    times += [at for at in (run.opened_at, run.completed_at) if at is not None]
    if not times and run.closed is not None and run.closed.at is not None:
        times = [run.closed.at]
    return max(0.0, run.observed_at - min(times)) if times else None


def details(run: Run) -> RenderableType:
    """Show all that is known of a run."""
    parts: list[RenderableType] = [_facts(run)]
    everybody = [*run.members, *run.joined, *run.waiting, *run.spares, *run.missing]
    ids = share_a_host(everybody)
    for title, nodes, columns in (
        ("Members", run.members, _MEMBER),
        ("Joined", run.joined, _JOINED),
        ("Waiting: there is room for them in the next round", run.waiting, _JOINED),
        ("Spares: there is no room for them until a member is lost", run.spares, _JOINED),
        ("Missing: members of the last complete round", run.missing, _MISSING),
    ):
        if nodes:
            shown = _nodes(run, nodes, columns, ids=ids)
            parts += [Text(), heading(f"{title} ({len(nodes)})"), shown]
    if run.denied:
        parts += [Text(), heading(f"Denied ({len(run.denied)})"), _denied(run)]
    if run.rounds:
        parts += [Text(), heading(f"Rounds ({len(run.rounds)})"), _rounds(run)]
    return Group(*parts)


def _facts(run: Run) -> Table:
    made = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")

    def at(when: float | None) -> str:
        if when is None:
            return ""
        return f" at {clock(when)} ({ago(when, run.observed_at)})"

    made.add_row("Run", cell(run.id))
    made.add_row("Prefix", cell(run.prefix))
    made.add_row("State", state_of(run))
    if run.problem:
        made.add_row("Problem", cell(run.problem, _BAD))
    if run.round:
        world = "" if run.world is None else f", {count(run.world, 'node')}"
        made.add_row("Round", cell(f"{run.round}{world}"))
    if run.min_nodes is not None:
        most = run.min_nodes if run.max_nodes is None else run.max_nodes
        made.add_row("Nodes", cell(f"{run.min_nodes} at least, {most} at most"))
    if run.opened_at is not None or run.why:
        by = f" by {run.opened_by}" if run.opened_by else ""
        made.add_row(
            "Opened", cell(f"{by}{at(run.opened_at)}: {run.why or 'no reason known'}".strip())
        )
    if run.state == "final":
        made.add_row("Completed", cell(at(run.completed_at).strip()))
        if run.rank_order:
            made.add_row("Ranks", cell(_ranks(run)))
        if run.master_addr:
            made.add_row("Master", cell(f"{run.master_addr}:{run.master_port}"))
    if run.loss:
        made.add_row("Lost", cell(run.loss, _BAD))
    if run.state == "open":
        made.add_row("Needs", cell(_needs(run, relative=True)))
        made.add_row(
            "Coordinator",
            cell(
                f"{run.coordinator.host} (pid {run.coordinator.pid})" if run.coordinator else None
            ),
        )
    if run.closed is not None:
        how = how_it_ended(run.closed.text, run.closed.reason)
        closed = f"by {run.closed.by}{at(run.closed.at)}: {how}"
        made.add_row("Closed", cell(closed, _style(run.closed)))
        if run.closed.round is not None and run.closed.round != run.round:
            last = "" if run.closed.world is None else f", {count(run.closed.world, 'node')}"
            made.add_row("Last complete", cell(f"{run.closed.round}{last}"))
    return made


def _ranks(run: Run) -> str:
    segments = f", in segments of {run.segment} nodes" if run.segment and run.segment > 1 else ""
    return f"{run.rank_order}{segments}"


def _needs(run: Run, *, relative: bool) -> str:
    wanted = still_needed(run)
    if wanted is None:
        return "a coordinator; the nodes choose one within seconds"
    if wanted:
        return f"{count(wanted, 'more node')}"
    if run.last_call_left_s is not None:
        left = f" in {duration(run.last_call_left_s)}" if relative else ""
        return f"the end of the last call{left}"
    if run.max_nodes is not None and len(run.joined) >= run.max_nodes and run.missing:
        return "the members of the last round that are still there"
    return "the end of the last call"


# --- nodes -------------------------------------------------------------------------------------------

_Column = tuple[str, Callable[["Run", "Node"], object]]

_RANK: _Column = ("RANK", lambda _, node: node.rank)
_HOST: _Column = ("HOST", lambda _, node: node.host)
# By which one of several nodes of a host can be named.
_ID: _Column = ("ID", lambda _, node: node.id)
_PID: _Column = ("PID", lambda _, node: node.pid)
_NODE_ID: _Column = ("NODE ID", lambda _, node: node.node_id)
_INFRA: _Column = ("INFRA", lambda _, node: node.infra_rank)
_DOMAIN: _Column = ("DOMAIN", lambda _, node: node.domain)
_ADDRESS: _Column = ("ADDRESS", lambda _, node: node.address)
_SINCE: _Column = ("SINCE", lambda run, node: ago(node.since, run.observed_at))
_SINCE_CLOCK: _Column = (
    "SINCE",
    lambda _, node: None if node.since is None else clock(node.since).split()[1],
)
_GIVES_UP: _Column = (
    "GIVES UP IN",
    lambda run, node: None if node.until is None else duration(node.until - run.observed_at),
)
_LEASE: _Column = (
    "LEASE LEFT",
    lambda _, node: (
        None
        if node.lease_left_s is None
        else f"{node.lease_left_s:.0f} of {node.lease_ttl_s or 0:.0f} s"
    ),
)
_ALIVE: _Column = ("WHERE", lambda _, node: "alive, not back" if node.alive else "gone")

_MEMBER = (_RANK, _HOST, _PID, _NODE_ID, _DOMAIN, _ADDRESS, _SINCE, _LEASE)
_JOINED = (_HOST, _PID, _NODE_ID, _INFRA, _DOMAIN, _ADDRESS, _SINCE, _GIVES_UP, _LEASE)
_MISSING = (_RANK, _HOST, _PID, _NODE_ID, _DOMAIN, _ALIVE)
_OPTIONAL = (_NODE_ID, _INFRA, _DOMAIN, _ADDRESS, _SINCE, _GIVES_UP, _LEASE)


def _nodes(
    run: Run, nodes: Sequence[Node], columns: Sequence[_Column], *, ids: bool = False
) -> Table:
    # A column in which nothing is known only takes place: 80 have to do.
    shown = [
        column
        for column in columns
        if column not in _OPTIONAL or any(column[1](run, node) not in (None, "") for node in nodes)
    ]
    if ids:
        shown.insert(shown.index(_PID) + 1, _ID)
    made = table(*(name for name, _ in shown), right=("RANK", "PID", "ID", "INFRA", "GIVES UP IN"))
    for node in nodes:
        made.add_row(*(cell(value(run, node)) for _, value in shown))
    return made


def _denied(run: Run) -> Table:
    made = table("NAME", "BY", "WHEN", "REASON")
    for denial in run.denied:
        when = ago(denial.at, run.observed_at)
        made.add_row(cell(denied_as(denial)), cell(denial.by), cell(when), cell(denial.reason))
    return made


def _rounds(run: Run) -> Table:
    made = table("ROUND", "WORLD", "OPENED", "COMPLETED", "TRIGGER", right=("ROUND", "WORLD"))
    for record in run.rounds:
        made.add_row(
            cell(record.round),
            cell(record.world),
            cell(ago(record.opened_at, run.observed_at)),
            cell(ago(record.completed_at, run.observed_at)),
            cell(record.why),
        )
    return made


# --- a screen that is drawn again and again ----------------------------------------------------------

_WATCH_MEMBER = (_RANK, _HOST, _PID, _NODE_ID, _ADDRESS, _SINCE_CLOCK)
_WATCH_JOINED = (_HOST, _PID, _NODE_ID, _ADDRESS, _SINCE_CLOCK)
# A title, a header, and how many more there are.
_AROUND = 3


def screen(
    run: Run, height: int, last: Sequence[str] = (), trouble: Sequence[str] = ()
) -> RenderableType:
    """Show a run within so many lines, however many nodes it has.

    Times are clock times: the screen is drawn when something happens, and must not be wrong later.

    Args:
        run: The run.
        height: Lines of the terminal.
        last: What happened last, the newest at the end.
        trouble: What is wrong besides, in sentences.
    """
    parts = _headlines(run, trouble)
    events = [_line(event) for event in list(last)[-max(1, height // 6) :]]
    free = height - len(parts) - len(events) - 1
    groups = [
        (title, nodes, columns)
        for title, nodes, columns in (
            ("Missing", run.missing, _MISSING),
            ("Joined", run.joined, _WATCH_JOINED),
            ("Members", run.members, _WATCH_MEMBER),
            ("Waiting", run.waiting, _WATCH_JOINED),
            ("Spares", run.spares, _WATCH_JOINED),
        )
        if nodes
    ]
    for position, (title, nodes, columns) in enumerate(groups):
        # Each group gets its share of the lines, and what those before it left over.
        rows = free // (len(groups) - position) - _AROUND
        if rows < min(2, len(nodes)):
            parts.append(_line(f"{title} ({len(nodes)}): {_short(nodes)}", "bold"))
            free -= 1
            continue
        shown = nodes[:rows]
        parts += [heading(f"{title} ({len(nodes)})"), _nodes(run, shown, columns)]
        if len(shown) < len(nodes):
            rest = nodes[rows:]
            parts.append(_line(f"and {len(rest)} more: {_short(rest)}", "dim"))
        free -= len(shown) + _AROUND
    return Group(*parts, *([Text(), *events] if events else []))


def _headlines(run: Run, trouble: Sequence[str]) -> list[RenderableType]:
    most = "" if run.max_nodes in (None, run.min_nodes) else f" to {run.max_nodes}"
    wanted = "" if run.min_nodes is None else f", {run.min_nodes}{most} nodes wanted"
    state = state_of(run)
    title = Text.assemble(
        (plain(run.id), "bold"), "  ", state, f"  round {run.round}{wanted}" if run.round else ""
    )
    lines = [title]
    if run.opened_at is not None or run.why:
        at = "" if run.opened_at is None else f" at {clock(run.opened_at)}"
        lines.append(_line(f"opened{at}: {run.why or 'no reason known'}"))
    if run.state == "final" and run.completed_at is not None:
        lines.append(_line(f"completed at {clock(run.completed_at)}"))
    if run.state == "open":
        lines.append(_line(f"needs {_needs(run, relative=False)}"))
    if run.loss:
        lines.append(_line(f"lost: {run.loss}", _BAD))
    if run.closed is not None:
        how = how_it_ended(run.closed.text, run.closed.reason)
        lines.append(_line(f"closed by {run.closed.by}: {how}", _style(run.closed)))
    if run.problem:
        lines.append(_line(run.problem, _BAD))
    lines += [_line(text, _BAD) for text in trouble]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return [*lines, Text()]


def _line(text: str, style: str = "") -> Text:
    """Make a line that is cut where the terminal ends."""
    return Text(plain(text), style=style, no_wrap=True, overflow="ellipsis")


def _short(nodes: Sequence[Node]) -> str:
    return compact_names(node.node_id or node.host for node in nodes)
