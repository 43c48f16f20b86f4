"""A run put together from its keys, change by change.

What an event costs does not depend on how much the run has in etcd: nothing is read again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from torchetcd._run_model import Closed, Denial, Node, NodeState, RoundRecord, Run
from torchetcd.aio import _records
from torchetcd.aio._raw_client import KeyValue, WatchEvent
from torchetcd.aio._records import Control
from torchetcd.aio._run_keys import RunKeys

#: A round and the attempt that completed it.
_Attempt = tuple[int, str]
_Nodes = dict[str, Node]
_K = TypeVar("_K")


@dataclass(frozen=True, slots=True)
class Placed:
    """Where every node of a run is."""

    joined: tuple[Node, ...] = ()
    members: tuple[Node, ...] = ()
    waiting: tuple[Node, ...] = ()
    spares: tuple[Node, ...] = ()
    missing: tuple[Node, ...] = ()

    def alive(self) -> _Nodes:
        """Return the nodes that are alive, by their ids."""
        groups = (self.missing, self.joined, self.members, self.waiting, self.spares)
        return {node.id: node for group in groups for node in group if node.alive}


class RunView:
    """What is known of a run.

    Keys come by `reset` and `apply`. Of each only what its own writer can have written is used.
    """

    def __init__(self, keys: RunKeys) -> None:
        self.keys = keys
        self._path = keys.rdzv.encode()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.revision = 0
        #: Every key with the revision that it is from.
        self.present: dict[bytes, int] = {}
        self.control: Control | None = None
        self._unreadable: str | None = None
        self._coordinator: tuple[Node, int | None, int | None] | None = None
        #: The round, its attempt where that is told, and the member.
        self._loss: tuple[int, str | None, str] | None = None
        self.denied: dict[str, Denial] = {}
        self._history: dict[int, RoundRecord] = {}
        # By round, and members by attempt as well; nodes in the order of their arrival.
        self._joins: defaultdict[int, _Nodes] = defaultdict(dict)
        self._waits: defaultdict[int, _Nodes] = defaultdict(dict)
        self._members: defaultdict[_Attempt, _Nodes] = defaultdict(dict)
        self._rosters: defaultdict[_Attempt, dict[str, list[Node]]] = defaultdict(dict)
        #: The lease that is the clock of a round's last call.
        self.last_calls: dict[int, int] = {}
        #: Unix time at which the last call ends, where somebody has asked for it.
        self.last_call_until: float | None = None
        self._strange: dict[bytes, str] = {}
        self.touched: set[str] = set()
        self._placed: Placed | None = None

    def reset(self, kvs: Iterable[KeyValue], revision: int) -> None:
        """Know these keys and no others."""
        self.clear()
        for kv in sorted(kvs, key=lambda kv: kv.create_revision):
            self._put(kv)
        self.revision = revision

    def apply(self, events: Iterable[WatchEvent], revision: int) -> None:
        """Follow what one revision has changed; `touched` are then the nodes whose keys changed."""
        self.touched = set()
        for kind, kv in events:
            if kind == "put":
                self._put(kv)
            else:
                self._delete(kv.key)
        self.revision = revision

    # -- keys --

    def _put(self, kv: KeyValue) -> None:
        self.present[kv.key] = kv.mod_revision
        self._strange.pop(kv.key, None)
        problem = self._take(kv)
        if problem:
            # What was there before does not count any more either.
            self._forget(kv.key)
            self._strange[kv.key] = problem

    def _delete(self, key: bytes) -> None:
        self.present.pop(key, None)
        self._strange.pop(key, None)
        self._forget(key)

    def _parts(self, key: bytes) -> list[str]:
        try:
            return key[len(self._path) :].decode().split("/")
        except UnicodeDecodeError:
            return []

    def _take(self, kv: KeyValue) -> str | None:  # noqa: PLR0911 - one for each kind
        """Know one key; return what is wrong with it, if anything is."""
        self._placed = None
        match self._parts(kv.key):
            case ["head", "control"]:
                return self._take_control(kv.value)
            case ["head", "coordinator"]:
                return self._take_coordinator(kv)
            case ["head", "loss"]:
                return self._take_loss(kv.value)
            case ["head", "waiting"]:
                # What the one that watches over the waiting nodes tells members. Their own records tell more.
                record = _records.read_record(kv.value)
                if isinstance(record, str):
                    return record
                known = _records.number_field(record, "count") is not None and kv.lease > 0
                return None if known else "is not a count of the waiting nodes"
            case ["head", "denied", segment]:
                name = _records.escaped_name(segment)
                denial = _records.denial_record(name, kv.value) if name else "names nobody"
                if isinstance(denial, str):
                    return denial
                self.denied[segment] = denial
                return None
            case ["history", segment]:
                past = _records.round_record(kv.value)
                if isinstance(past, str):
                    return past
                if segment != f"{past.round:016x}":
                    return "is not a record of a round"
                self._history[past.round] = past
                return None
            case ["round", number, *rest] if number.isdecimal() and len(number) < 20:
                return self._take_of_round(int(number), rest, kv)
            case ["node", _]:
                # Its holder's other records name it as well.
                return None
        return "is none that torchetcd writes"

    def _take_control(self, value: bytes) -> str | None:
        read = _records.control_record(value)
        self.control = read if isinstance(read, Control) else None
        self._unreadable = None if isinstance(read, Control) else read
        return self._unreadable

    def _take_loss(self, value: bytes) -> str | None:
        record = _records.read_record(value)
        if isinstance(record, str):
            return record
        round_, member = (
            _records.number_field(record, "round"),
            _records.text_field(record, "member"),
        )
        if round_ is None or member is None:
            return "is not a record of a loss"
        self._loss = (round_, _records.text_field(record, "attempt"), member)
        return None

    def _take_coordinator(self, kv: KeyValue) -> str | None:
        record = _records.read_record(kv.value)
        if isinstance(record, str):
            return record
        node = _records.node_record(record, f"{kv.lease:016x}", "joined") if kv.lease > 0 else None
        if node is None:
            return "is not a record of a coordinator"
        limits = _records.positive_field(record, "min"), _records.positive_field(record, "max")
        self._coordinator = (node, *limits)
        return None

    def _take_of_round(  # noqa: PLR0911 - likewise
        self, number: int, rest: list[str], kv: KeyValue
    ) -> str | None:
        match rest:
            case ["join", name]:
                return self._take_node(number, self._joins[number], name, kv, "joined")
            case ["waiting", name]:
                return self._take_node(number, self._waits[number], name, kv, "waiting")
            case ["member", attempt, name]:
                return self._take_node(number, self._members[number, attempt], name, kv, "member")
            case ["roster", attempt, part]:
                found = _records.roster_record(kv.value)
                if isinstance(found, str):
                    return found
                self._rosters[number, attempt][part] = found
                return None
            case ["last_call"]:
                record = _records.read_record(kv.value)
                if isinstance(record, str):
                    return record
                lease = _records.number_field(record, "lease")
                if not lease:
                    return "names no lease"
                self.last_calls[number] = lease
                return None
        return "is none that torchetcd writes"

    def _take_node(
        self, number: int, group: _Nodes, name: str, kv: KeyValue, state: NodeState
    ) -> str | None:
        if _records.node_name(name) is None:
            return "names no node"
        # Its own, or it could outlive the node.
        if kv.lease != int(name, 16):
            return "is not under the lease of the node that it names"
        record = _records.read_record(kv.value)
        if isinstance(record, str):
            return record
        node = _records.node_record(record, name, state)
        if node is None or (state == "member" and node.rank is None):
            return "is not a record of a node"
        if state == "member":
            # As below.
            joined = self._joins.get(number, {}).get(name)
            node = replace(node, since=joined.since if joined else None)
        group[name] = node
        self.touched.add(name)
        if state == "joined":
            self._tell_members(number, name, node.since)
        return None

    def _tell_members(self, number: int, name: str, since: float | None) -> None:
        """A member is there since it has joined: its own record does not say it."""
        for (round_, _), group in self._members.items():
            if round_ == number and name in group:
                group[name] = replace(group[name], since=since)

    def _forget(self, key: bytes) -> None:
        self._placed = None
        match self._parts(key):
            case ["head", "control"]:
                # If it is forgotten because it cannot be read, that is noted again.
                self.control = None
                if key not in self.present:
                    self._unreadable = None
            case ["head", "coordinator"]:
                self._coordinator = None
            case ["head", "loss"]:
                self._loss = None
            case ["head", "denied", segment]:
                self.denied.pop(segment, None)
            case ["history", segment]:
                past = [r for r in self._history if f"{r:016x}" == segment]
                for round_ in past:
                    del self._history[round_]
            case ["round", number, *rest] if number.isdecimal() and len(number) < 20:
                self._forget_of_round(int(number), rest)

    def _forget_of_round(self, number: int, rest: list[str]) -> None:
        match rest:
            case ["join", name]:
                self._forget_node(self._joins, number, name)
                self._tell_members(number, name, None)
            case ["waiting", name]:
                self._forget_node(self._waits, number, name)
            case ["member", attempt, name]:
                self._forget_node(self._members, (number, attempt), name)
            case ["roster", attempt, part]:
                parts = self._rosters[number, attempt]
                parts.pop(part, None)
                if not parts:
                    del self._rosters[number, attempt]
            case ["last_call"]:
                self.last_calls.pop(number, None)

    def _forget_node(self, groups: defaultdict[_K, _Nodes], which: _K, name: str) -> None:
        group = groups[which]
        if group.pop(name, None) is not None:
            self.touched.add(name)
        if not group:
            del groups[which]

    # -- nodes --

    def placed(self) -> Placed:
        """Return where every node is."""
        if self._placed is None:
            self._placed = self._place()
        return self._placed

    def _place(self) -> Placed:
        control = self.control
        if control is None:
            return self._place_without_control()
        number = control.round
        joined = self._joins.get(number, {})
        if control.state == "open":
            before = control.previous
            waits = self._waits.get(before[0], {}) if before else {}
            waiting = [node for name, node in waits.items() if name not in joined]
            return Placed(
                joined=tuple(joined.values()),
                waiting=tuple(waiting),
                missing=self._missing(before, joined) if before else (),
            )
        last = control.last
        members = self._members.get(last[:2], {}) if last else {}
        if control.state == "closed":
            if last and last[0] != number:
                # Members of the last world that had come into the barrier of the round after it.
                members = {name: node for name, node in members.items() if name not in joined}
            rest = tuple(node for name, node in joined.items() if name not in members)
            return Placed(
                joined=rest,
                members=_by_rank(members),
                waiting=tuple(self._waits.get(number, {}).values()),
            )
        # Those that were not chosen will say that they wait.
        waits = joined | self._waits.get(number, {})
        later = [node for name, node in waits.items() if name not in members]
        room = len(later)
        if control.max_nodes is not None:
            room = max(0, control.max_nodes - len(members))
        return Placed(
            members=_by_rank(members),
            waiting=tuple(_as(node, "waiting") for node in later[:room]),
            spares=tuple(_as(node, "spare") for node in later[room:]),
            missing=self._missing((number, control.attempt), {}),
        )

    def _place_without_control(self) -> Placed:
        rounds = [*self._joins, *self._waits, *(number for number, _ in self._members)]
        number = max(rounds, default=0)
        return Placed(
            joined=tuple(self._joins.get(number, {}).values()),
            waiting=tuple(self._waits.get(number, {}).values()),
        )

    def _missing(self, round_: _Attempt, joined: _Nodes) -> tuple[Node, ...]:
        """Return the members of a round that are gone, or not back among those who have joined."""
        there = self._members.get(round_, {})
        roster = [node for part in self._rosters.get(round_, {}).values() for node in part]
        was_member = {node.id for node in roster} | there.keys()
        # A node that was restarted is another one, which stands for the previous one.
        newcomers = [node for name, node in joined.items() if name not in was_member]
        named = {node.node_id for node in newcomers if node.node_id}
        hosts: defaultdict[str, int] = defaultdict(int)
        for node in newcomers:
            hosts[node.host] += not node.node_id
        complete = self.control is not None and self.control.state == "final"
        missing = []
        for node in sorted(roster or there.values(), key=lambda node: node.rank or 0):
            alive = node.id in there
            if node.id in joined or (complete and alive):
                continue
            if not alive and node.node_id in named:
                continue
            if not alive and not node.node_id and hosts[node.host] > 0:
                hosts[node.host] -= 1
                continue
            missing.append(replace(node, state="missing", alive=alive))
        return tuple(missing)

    # -- the run --

    def run(self, observed_at: float) -> Run:
        """Return the run as it is known."""
        control, placed = self.control, self.placed()
        state = control.state if control else "unreadable" if self._unreadable else "none"
        number = control.round if control else 0
        past = self._history.get(number)
        is_open, is_final = state == "open", state == "final"
        told = control if control and state != "closed" else None
        coordinator = self._coordinator if is_open else None
        left = None
        if is_open and number in self.last_calls and self.last_call_until is not None:
            left = max(0.0, self.last_call_until - observed_at)
        closed = self._closed(control)
        world = control.world if control and is_final else None
        if closed and closed.round == number:
            world = closed.world
        return Run(
            id=self.keys.run_id,
            prefix=self.keys.prefix,
            revision=self.revision,
            state=state,  # type: ignore[arg-type]
            problem=self._problem(),
            round=number,
            world=world,
            min_nodes=coordinator[1] if coordinator else control.min_nodes if control else None,
            max_nodes=coordinator[2] if coordinator else control.max_nodes if control else None,
            joined=placed.joined,
            members=placed.members,
            waiting=placed.waiting,
            spares=placed.spares,
            missing=placed.missing,
            coordinator=self._full(coordinator[0], placed) if coordinator else None,
            last_call_left_s=left,
            opened_at=told.opened_at if told else past.opened_at if past else None,
            opened_by=told.opened_by if told else past.opened_by if past else None,
            why=told.why if told else past.why if past else None,
            completed_at=control.at
            if control and is_final
            else past.completed_at
            if past
            else None,
            closed=closed,
            loss=self._lost_member(control),
            master_addr=control.master_addr if control and is_final else None,
            master_port=control.master_port if control and is_final else None,
            rounds=tuple(self._history[n] for n in sorted(self._history)),
            denied=tuple(self.denied[name] for name in sorted(self.denied)),
            observed_at=observed_at,
            rank_order=control.rank_order if control else None,
            segment=control.segment if control else None,
            run_ttl=control.run_ttl if control else None,
            reopened=control.reopened if control else 0,
        )

    def _closed(self, control: Control | None) -> Closed | None:
        if control is None or control.state != "closed":
            return None
        last, world = control.last, None
        if last is not None:
            past = self._history.get(last[0])
            world = last[2] or (past.world if past else None)
        return Closed(
            by=control.by or "?",
            reason=control.reason or "?",
            at=control.at,
            result=control.result,
            text=control.ending,
            round=last[0] if last else None,
            world=world,
        )

    def _lost_member(self, control: Control | None) -> str | None:
        if self._loss is None or control is None or control.state != "final":
            return None
        round_, attempt, member = self._loss
        return member if round_ == control.round and attempt in {None, control.attempt} else None

    @staticmethod
    def _full(coordinator: Node, placed: Placed) -> Node:
        for node in placed.joined:
            if node.id == coordinator.id:
                return node
        return coordinator

    def _problem(self) -> str | None:
        if not self._strange:
            return None
        # First of all the one that everything depends on.
        first = self.keys.control if self._unreadable else min(self._strange)
        shown = _records.one_line(first.decode(errors="replace"))
        others = len(self._strange) - 1
        more = f" ({others} more do not count either)" if others else ""
        return f"The key '{shown}' {self._strange[first]}{more}."


def _by_rank(members: _Nodes) -> tuple[Node, ...]:
    return tuple(sorted(members.values(), key=lambda node: node.rank or 0))


def _as(node: Node, state: NodeState) -> Node:
    return node if node.state == state else replace(node, state=state)
