"""What befalls a bench and when, made from a seed or read from lines such as `2.5 cut agent-1 etcd-2`.

The seed fixes what is done, to whom and when; what the processes do meanwhile is up to the machine. Where a
step names `leader` or `follower`, who that is shows when its time comes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

_LINK_VERBS = {"cut", "silence", "delay", "throttle", "break_message", "join"}
_PARTY_VERBS = {"isolate", "partition", "rejoin", "kill", "restart", "pause", "resume"}
_ROLES = {"leader", "follower", "candidate"}
VERBS = frozenset(_LINK_VERBS | _PARTY_VERBS | {"compact", "defragment", "mend"})


@dataclasses.dataclass(frozen=True)
class Step:
    """One verb, so many seconds after the beginning."""

    at_s: float
    verb: str
    args: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([f"{self.at_s:.2f}", self.verb, *self.args])


def read_schedule(text: str) -> list[Step]:
    """Read the form in which schedules are shown; what follows a `#` is left out."""
    steps = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if words:
            at, verb, *args = words
            if verb not in VERBS:
                message = f"There is no verb {verb!r}; there are {', '.join(sorted(VERBS))}."
                raise ValueError(message)
            steps.append(Step(float(at), verb, tuple(args)))
    return sorted(steps, key=lambda step: step.at_s)


class _Maker:
    def __init__(self, seed: int, seconds: float, agents: list[str]) -> None:
        self._rng = random.Random(seed)
        self._seconds = seconds
        self._agents = agents
        self._steps: list[Step] = []

    def one_at_a_time(self) -> list[Step]:
        """Make faults of which each concerns one member and is over before the next one begins."""
        at = self._rng.uniform(0.2, 1)
        while at < self._seconds - 3:
            lasts = self._rng.choice([0.3, 1, 2, 4, 6]) * self._rng.uniform(0.5, 1.5)
            self._member_fault(at, lasts, self._member())
            # After a leader was lost another one has to be there before the next fault.
            at += lasts + self._rng.uniform(2.5, 4)
        return self._sorted()

    def anything(self) -> list[Step]:
        """Make faults that overlap, two of three members included."""
        for _ in range(int(self._seconds / 1.5)):
            at = self._rng.uniform(0.2, self._seconds - 1)
            lasts = self._rng.choice([0.2, 1, 3, 6]) * self._rng.uniform(0.5, 1.5)
            self._member_fault(at, lasts, self._member())
        return self._sorted()

    def agents_too(self) -> list[Step]:
        """Make faults of agents and, rarer, of members; an agent has one at a time."""
        free = dict.fromkeys(self._agents, 0.0)
        at = self._rng.uniform(0.2, 2)
        while at < self._seconds - 1:
            lasts = self._rng.choice([0.2, 1, 3, 6]) * self._rng.uniform(0.5, 1.5)
            agents = [agent for agent, since in free.items() if since <= at]
            if agents and self._rng.random() < 0.7:
                agent = self._rng.choice(agents)
                free[agent] = at + lasts + 0.1
                self._agent_fault(at, lasts, agent)
            else:
                self._member_fault(at, lasts, self._member())
            at += self._rng.uniform(0.1, 2.5)
        return self._sorted()

    def _agent_fault(self, at: float, lasts: float, agent: str) -> None:
        rng = self._rng
        how = rng.choice(["cut", "silence"])
        begin, end = rng.choice(
            [
                (("kill", agent), ("restart", agent)),
                (("pause", agent), ("resume", agent)),
                (("isolate", agent, how), ("rejoin", agent)),
            ]
        )
        self._steps += [Step(at, begin[0], begin[1:]), Step(at + lasts, end[0], end[1:])]

    def _member(self) -> str:
        return self._rng.choice(["leader", "leader", "follower", "etcd-1", "etcd-2", "etcd-3"])

    def _member_fault(self, at: float, lasts: float, member: str) -> None:
        rng = self._rng
        # The same party at the beginning and at the end, also if the leader has changed meanwhile.
        name = f"{member}@{at:.2f}"
        agent = rng.choice(self._agents)
        how = rng.choice(["cut", "silence"])
        faults: list[tuple[tuple[str, ...], tuple[str, ...] | None]] = [
            (("kill", name), ("restart", name)),
            (("kill", name), ("restart", name)),
            (("pause", name), ("resume", name)),
            (("pause", name), ("resume", name)),
            (("isolate", name, how), ("rejoin", name)),
            (("partition", name, how), ("rejoin", name)),
            ((how, agent, name), ("join", agent, name)),
            (("delay", agent, name, f"{rng.uniform(0.02, 0.6):.2f}"), ("join", agent, name)),
            (("throttle", agent, name, f"{rng.choice([500, 5000])}"), ("join", agent, name)),
            (("break_message", agent, name, f"{rng.randrange(400)}"), ("join", agent, name)),
            (("compact",), None),
            (("defragment", name), None),
        ]
        begin, end = rng.choice(faults)
        self._steps.append(Step(at, begin[0], begin[1:]))
        if end is not None:
            self._steps.append(Step(at + lasts, end[0], end[1:]))

    def _sorted(self) -> list[Step]:
        return sorted(self._steps, key=lambda step: step.at_s)


def one_at_a_time(seed: int, seconds: float, agents: Iterable[str]) -> list[Step]:
    """Make a schedule in which at most one member is in trouble at any time."""
    return _Maker(seed, seconds, list(agents)).one_at_a_time()


def anything(seed: int, seconds: float, agents: Iterable[str]) -> list[Step]:
    """Make a schedule in which everything can happen at once."""
    return _Maker(seed, seconds, list(agents)).anything()


def agents_too(seed: int, seconds: float, agents: Iterable[str]) -> list[Step]:
    """Make a schedule in which agents are lost, stopped and cut off, and members as well."""
    return _Maker(seed, seconds, list(agents)).agents_too()


class Played(Protocol):
    """A bench: it has a method for each verb of its schedules."""

    def find(self, role: str) -> str:
        """Return who is `leader` or `follower` now."""


class Player:
    """Plays a schedule on a bench."""

    def __init__(self, bench: Played) -> None:
        self._bench = bench
        self._names: dict[str, str] = {}

    def play(self, steps: list[Step], seconds: float) -> None:
        """Do each step at its time, and return when the time is over."""
        begun = time.monotonic()
        pause = threading.Event()
        for step in steps:
            pause.wait(max(0, begun + step.at_s - time.monotonic()))
            args = [self._who(arg) for arg in step.args]
            getattr(self._bench, step.verb)(*args)
        pause.wait(max(0, begun + seconds - time.monotonic()))

    def _who(self, arg: str) -> str:
        role, _, _ = arg.partition("@")
        if "@" not in arg and arg not in _ROLES:
            return arg
        if arg not in self._names or "@" not in arg:
            found = role
            if role in _ROLES:
                found = self._bench.find(role)
            self._names[arg] = found
        return self._names[arg]


def seeds(default: int) -> list[int]:
    """The seeds to run: those that the environment asks for, or the first few."""
    if one := os.environ.get("TORCHETCD_FAULT_SEED"):
        return [int(one)]
    first = int(os.environ.get("TORCHETCD_FAULT_FIRST", "0"))
    return list(range(first, first + int(os.environ.get("TORCHETCD_FAULT_SEEDS", default))))


def explain(test: str, seed: int, steps: list[Step]) -> None:
    """Say how to repeat it; pytest shows that when the test fails."""
    print(f"REPRODUCE WITH: make faults SEED={seed} K={test}", *steps, sep="\n  ")


def report(kind: str, seed: int, steps: list[Step], **counts: int) -> None:
    """Add what was run to the file that the environment names: for `docs/reliability.md`."""
    line = json.dumps({"kind": kind, "seed": seed, "steps": len(steps), **counts})
    print(line)
    if path := os.environ.get("TORCHETCD_FAULT_REPORT"):
        with open(path, "a") as file:
            file.write(line + "\n")


def given() -> list[Step] | None:
    """The schedule in the file that the environment names."""
    path = os.environ.get("TORCHETCD_FAULT_SCHEDULE")
    return read_schedule(Path(path).read_text()) if path else None
