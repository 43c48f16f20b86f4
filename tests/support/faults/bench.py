"""The fault bench: three etcd members, the agents that use them, and verbs for what befalls them.

    with Bench() as bench:
        endpoints = bench.connect("agent-1")    # through links of its own, one to each member
        bench.cut("agent-1", "etcd-2")
        bench.pause(bench.leader())
        bench.mend()

Parties are members (`etcd-1` to `etcd-3`) and agents (any other name). A link is named by its ends in
any order. Every verb is written down with its time, and shown when a test fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from support.etcd.cluster import Cluster, Member, forgets, take_port
from support.network.proxy import Link, Loop
from support.waiting import eventually

_BIG = b"x" * 1_000_000


class Bench:
    """A cluster under faults; in a `with` block it runs."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        self.cluster = Cluster(options=options)
        self._loop = Loop()
        self._links: dict[tuple[str, str], Link] = {}
        self._pids: dict[str, int] = {}
        self._down: set[str] = set()
        self._begun = time.monotonic()
        #: Starts an agent that was killed, for `restart`.
        self.starts: Callable[[str], object] = lambda agent: None
        self.told: list[str] = []

    # What the tests ask.

    def connect(self, agent: str) -> str:
        """Make an agent's links to all members, and return its endpoints."""
        ports = []
        for member in self.cluster.members:
            link = self._links[agent, member.name] = Link(f"{agent} {member.name}", self._loop)
            sock = take_port()
            ports.append(sock.getsockname()[1])
            self._loop.listen(sock, functools.partial(link.carry, port=member.port))
        return ",".join(f"127.0.0.1:{port}" for port in ports)

    def runs(self, agent: str, pid: int | None) -> None:
        """Say which process an agent is now, for the verbs, or `None` when it has ended."""
        if pid is None:
            self._pids.pop(agent, None)
        else:
            self._pids[agent] = pid

    @property
    def names(self) -> list[str]:
        """The members' names."""
        return [member.name for member in self.cluster.members]

    def leader(self) -> str:
        """Return the leader's name, and wait for one if there is none."""
        eventually(lambda: self.cluster.leader() is not None, 30)
        leader = self.cluster.leader()
        return leader.name if leader is not None else self.leader()

    def follower(self) -> str:
        """Return the name of a member that runs and does not lead."""
        leader = self.leader()
        return next(name for name in self.names if name != leader and name not in self._down)

    def find(self, role: str) -> str:
        """Return who is `leader` or `follower` now; any member that runs if nobody can tell."""
        leader = self.cluster.leader()
        running = [member.name for member in self.cluster.running()]
        if leader is not None and role == "leader":
            return leader.name
        others = [name for name in running if leader is None or name != leader.name]
        return others[0] if others else self.names[0]

    def elapsed(self) -> float:
        """Seconds since the bench was made."""
        return time.monotonic() - self._begun

    # Verbs for links.

    def cut(self, one: str, other: str) -> None:
        """Reset the connections between two parties, and all new ones, until `join`."""
        self._tell("cut", one, other)
        self._change(one, other, cut=True)

    def silence(self, one: str, other: str) -> None:
        """Let nothing through between two parties without a word, as a cable does that is pulled."""
        self._tell("silence", one, other)
        self._change(one, other, silent=True)

    def delay(self, one: str, other: str, seconds: float) -> None:
        """Let everything between two parties take this much longer, each way."""
        self._tell("delay", one, other, seconds)
        self._change(one, other, delay_s=float(seconds))

    def throttle(self, one: str, other: str, bytes_per_s: float) -> None:
        """Let only so many bytes a second through between two parties, each way."""
        self._tell("throttle", one, other, bytes_per_s)
        self._change(one, other, bytes_per_s=float(bytes_per_s))

    def break_message(self, one: str, other: str, after: int) -> None:
        """Reset the connections between two parties after so many more bytes of the answers."""
        self._tell("break_message", one, other, after)
        self._change(one, other, break_after=int(after))

    def join(self, one: str, other: str) -> None:
        """Undo what was done to the link between two parties."""
        self._tell("join", one, other)
        for link in self._between(one, other):
            link.heal()

    def isolate(self, party: str, how: str = "cut") -> None:
        """`cut` or `silence` a party from everybody, agents included."""
        self._tell("isolate", party, how)
        for link in self._of(party):
            link.change(**({"cut": True} if how == "cut" else {"silent": True}))

    def rejoin(self, party: str) -> None:
        """Undo what was done to all links of a party."""
        self._tell("rejoin", party)
        for link in self._of(party):
            link.heal()

    def partition(self, member: str, how: str = "cut") -> None:
        """`cut` or `silence` a member from the other members; agents still reach it."""
        self._tell("partition", member, how)
        for (one, other), link in self._links.items():
            if member in {one, other} and {one, other} <= set(self.names):
                link.change(**({"cut": True} if how == "cut" else {"silent": True}))

    # Verbs for processes.

    def kill(self, party: str) -> None:
        """SIGKILL a party."""
        self._tell("kill", party)
        if party in self.names:
            self._down.add(party)
            if forgets():
                # Others lose it at once, it has nothing to apply when it dies (its batch takes 0.1 s).
                for link in self._of(party):
                    link.change(cut=True)
                time.sleep(0.8)
            self.cluster[party].kill()
        else:
            self._signal(party, signal.SIGKILL)

    def restart(self, party: str) -> None:
        """Start a member again that was killed, with the data it had; or an agent, as a new process."""
        self._tell("restart", party)
        if party not in self.names:
            self.starts(party)
            return
        self._down.discard(party)
        if not self.cluster[party].pid:
            for link in self._of(party) if forgets() else ():
                link.heal()
            self.cluster.restart(self.cluster[party])

    def pause(self, party: str) -> None:
        """SIGSTOP a party."""
        self._tell("pause", party)
        self._signal(party, signal.SIGSTOP)

    def resume(self, party: str) -> None:
        """SIGCONT a party."""
        self._tell("resume", party)
        self._signal(party, signal.SIGCONT)

    # Verbs for what etcd keeps.

    def compact(self) -> None:
        """Let etcd forget its history up to now, if it can."""
        self._tell("compact")
        try:
            self._ask_any("/v3/kv/compaction", {"revision": self.revision(), "physical": True}, 3)
        except OSError as exc:
            self.told[-1] += f"  # not done: {exc}"

    def defragment(self, member: str) -> None:
        """Let a member write its database anew, during which it serves nobody."""
        self._tell("defragment", member)
        with contextlib.suppress(OSError):
            self.cluster[member].post("/v3/maintenance/defragment", {})

    def fill(self, limit: int = 200) -> None:
        """Write until the quota is passed and etcd raises its alarm NOSPACE."""
        self._tell("fill")

        def write(number: int) -> bool:
            try:
                self.cluster.members[0].put(f"/filling/{number}".encode(), _BIG)
            except OSError:
                return False
            return True

        # Several at once: a single one that would pass the quota is refused before it is written.
        with ThreadPoolExecutor(8) as pool:
            for number in range(0, limit, 8):
                if not all(pool.map(write, range(number, number + 8))):
                    return
        raise AssertionError(f"{limit} MB do not reach the quota of etcd")

    def relieve(self) -> None:
        """Make room as an operator does: delete, compact, defragment, disarm."""
        self._tell("relieve")
        # "/filling/" to "/filling0", in base64.
        self._ask_any("/v3/kv/deleterange", {"key": "L2ZpbGxpbmcv", "range_end": "L2ZpbGxpbmcw"})
        self._ask_any("/v3/kv/compaction", {"revision": self.revision(), "physical": True})
        for member in self.cluster.members:
            member.post("/v3/maintenance/defragment", {})
        alarms = self._ask_any("/v3/maintenance/alarm", {"action": "GET"}).get("alarms", [])
        for alarm in alarms:
            self._ask_any("/v3/maintenance/alarm", {"action": "DEACTIVATE", **alarm})

    def revision(self) -> int:
        """The revision that etcd is at."""
        header = self._ask_any("/v3/kv/range", {"key": "Lw=="}, 3)["header"]
        return int(header["revision"])

    # All at once.

    def mend(self) -> None:
        """Undo everything: links, processes that are stopped, members that are down."""
        self._tell("mend")
        for link in self._links.values():
            link.heal()
        for member in self.cluster.members:
            if member.paused:
                member.signal(signal.SIGCONT)
            if not member.pid:
                self.cluster.restart(member)
        for agent in self._pids:
            self._signal(agent, signal.SIGCONT)
        self._down.clear()
        self.cluster.await_leader()
        # If not, nothing that a client sees means anything: see `forgets`.
        eventually(self.cluster.agree, 30)

    def __enter__(self) -> Bench:
        for member in self.cluster.members:
            for other in self.cluster.members:
                if other is not member:
                    name = f"{other.name} {member.name}"
                    self._links[other.name, member.name] = Link(name, self._loop)
            sock = take_port()
            port = sock.getsockname()[1]
            self.cluster.advertised[member.name] = f"http://127.0.0.1:{port}"
            self._loop.listen(sock, functools.partial(self._between_members, member, port))
        try:
            self.cluster.__enter__()
        except BaseException:
            self._loop.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            print("What was done:", *self.told, sep="\n  ")
        self.cluster.close()
        self._loop.close()

    def _tell(self, verb: str, *args: object) -> None:
        self.told.append(" ".join([f"{self.elapsed():.2f}", verb, *map(str, args)]))

    def _between(self, one: str, other: str) -> list[Link]:
        found = [self._links.get((one, other)), self._links.get((other, one))]
        links = [link for link in found if link is not None]
        assert links, f"there is no link between {one!r} and {other!r}"
        return links

    def _of(self, party: str) -> Iterable[Link]:
        return [link for ends, link in self._links.items() if party in ends]

    def _change(self, one: str, other: str, **what: object) -> None:
        for link in self._between(one, other):
            link.change(**what)

    def _signal(self, party: str, signum: signal.Signals) -> None:
        if party in self.names:
            self.cluster[party].signal(signum)
            changes = self._down.add if signum == signal.SIGSTOP else self._down.discard
            changes(party)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pids[party], signum)

    def _ask_any(self, path: str, body: dict[str, Any], timeout: float = 30) -> dict[str, Any]:
        failure: Exception = OSError("no member runs")
        for _ in range(2):
            for member in self.cluster.members:
                if member.pid and not member.paused:
                    try:
                        return member.post(path, body, timeout)
                    except OSError as exc:
                        failure = exc
        raise failure

    async def _between_members(
        self,
        member: Member,
        proxy_port: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        # Members dial one advertised address: who it was shows by its process only.
        inode = _inode(writer.get_extra_info("peername")[1], proxy_port)
        link = self._stray
        for other in self.cluster.members:
            if other is not member and other.pid and _holds(other.pid, inode):
                link = self._links[other.name, member.name]
        await link.carry(reader, writer, member.peer_port)

    @property
    def _stray(self) -> Link:
        return self._links.setdefault(("nobody", "nobody"), Link("nobody", self._loop))


def _inode(port: int, remote: int) -> str:
    """The inode of the socket at this local port."""
    ends = f":{port:04X}", f":{remote:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(ends[0]) and fields[2].endswith(ends[1]):
            return fields[9]
    return ""


def _holds(pid: int, inode: str) -> bool:
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(fd) == f"socket:[{inode}]":
                    return True
    return False
