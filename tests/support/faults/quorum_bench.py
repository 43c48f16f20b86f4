"""The fault bench of a quorum inside a job: its agents, their etcds, and verbs for their faults.

A party is an entry, `entry-1` to `entry-5`, and so whoever holds it when a verb is done: agents that are
started again take any entry that is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator

from support.etcd.cluster import forgets
from support.faults.schedules import Step
from support.faults.store_clients import Clients
from support.quorum import PATIENCE_S, Agent, Job
from support.waiting import eventually
from torchetcd._quorum.asking import Who, ask_all
from torchetcd.etcd import EtcdException

#: C's `struct flock`: type, whence, start, length, process.
_FLOCK = "hhqqi"
#: How often the members are asked who they are.
_LOOK_S = 0.3


class QuorumBench:
    """A job under faults; in a `with` block it is watched."""

    def __init__(self, job: Job, pids: list[int]) -> None:
        """Take what there is.

        Args:
            job: Its agents run already.
            pids: Processes that write, which is of interest to an etcd that forgets.
        """
        self.job = job
        self._writers = pids
        self._agents = len(job.agents)
        self._ports = {f"entry-{n}": entry.port for n, entry in enumerate(job.entries.all, 1)}
        #: The ids of members whose data was deleted.
        self._deleted: set[int] = set()
        self._stopped: set[int] = set()
        self._made_later: set[Agent] = set()
        self._begun = time.monotonic()
        self.told: list[str] = []
        self.watcher = Watcher(job)

    # Who is where.

    def find(self, role: str) -> str:
        """Return the entry of the `leader`, a `follower` or a `candidate` as last seen; any if none is."""
        members = self.job.etcds()
        leader = self.watcher.leader
        names: dict[str, Callable[[int], bool]] = {
            "leader": lambda port: port == leader,
            "follower": lambda port: port != leader and port in members,
            "candidate": lambda port: port not in members and self._holder(port) is not None,
        }
        found = [name for name, port in self._ports.items() if names[role](port)]
        return found[0] if found else "entry-1"

    def _holder(self, port: int) -> Agent | None:
        """Return the agent that has locked the folder of an entry."""
        pid = 0
        with contextlib.suppress(OSError, StopIteration):
            with (self.job.folder_of(port) / "lock").open("rb+") as file:
                asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                kind, *_, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
            if kind == fcntl.F_UNLCK:
                pid = 0
        return next((agent for agent in self._running() if agent.pid == pid), None)

    def _running(self) -> list[Agent]:
        return [agent for agent in self.job.agents if not agent.ended]

    def _settled(self) -> bool:
        """Whether each agent that runs holds an entry."""
        held = [port for port in self._ports.values() if self._holder(port) is not None]
        return len(held) == len(self._running())

    # Verbs.

    def lose(self, *entries: str) -> None:
        """SIGKILL agents with their etcds, as hosts that fail."""
        self._tell("lose", *entries)
        with self._nothing_to_apply():
            for entry in entries:
                agent = self._holder(self._ports[entry])
                if agent is not None:
                    self.job.lose(agent)

    def back(self, entry: str) -> None:
        """Start an agent in the place of one that was lost, with the data that there is."""
        self._tell("back", entry)
        self._start()

    def back_empty(self, entry: str) -> None:
        """Delete the folder of an entry, then start an agent, unless a majority would be lost for ever."""
        self._tell("back_empty", entry)
        port = self._ports[entry]
        if self._may_lose_data(port):
            shutil.rmtree(self.job.folder_of(port), ignore_errors=True)
        else:
            self.told[-1] += "  # with its data"
        self._start()

    def kill_etcd(self, *entries: str) -> None:
        """SIGKILL etcds alone; their agents start them again."""
        self._tell("kill_etcd", *entries)
        with self._nothing_to_apply():
            for entry in entries:
                self._signal(self.job.etcds().get(self._ports[entry]), signal.SIGKILL)

    def pause_etcd(self, entry: str) -> None:
        """SIGSTOP an etcd."""
        self._tell("pause_etcd", entry)
        self._stop(entry, self.job.etcds().get(self._ports[entry]))

    def pause_agent(self, entry: str) -> None:
        """SIGSTOP an agent; its etcd goes on."""
        self._tell("pause_agent", entry)
        holder = self._holder(self._ports[entry])
        self._stop(entry, holder.pid if holder is not None else None)

    def resume(self, entry: str) -> None:
        """SIGCONT whatever of an entry is stopped."""
        self._tell("resume", entry)
        holder = self._holder(self._ports[entry])
        for pid in (self.job.etcds().get(self._ports[entry]), holder and holder.pid):
            if pid in self._stopped:
                self._signal(pid, signal.SIGCONT)

    def mend(self) -> None:
        """End all faults, and wait until there are three members, and an agent at each entry."""
        self._tell("mend")
        # An etcd has a new process by now if it was killed, and a number may be used again.
        theirs = {*self.job.etcds().values(), *(agent.pid for agent in self._running())}
        for pid in self._stopped & theirs:
            self._signal(pid, signal.SIGCONT)
        while len(self._running()) < self._agents:
            self._start()
        begun = time.monotonic()
        for agent in self._made_later & set(self._running()):
            agent.finish()
        eventually(self._settled, PATIENCE_S)
        eventually(lambda: len(self._listed_and_serving()) == self.job.size, PATIENCE_S)
        self._tell(f"# there are {self.job.size} members after {time.monotonic() - begun:.1f} s")

    def agree(self) -> bool:
        """Whether all members are at the same revision: else one of them has another history (`forgets`)."""
        entries, revisions = self.job.entries, []
        with self.job.client() as client, contextlib.suppress(EtcdException):
            for port in self.job.etcds():
                entry = next(entry for entry in entries.all if entry.port == port)
                (_, _, _, revision, *_), *_ = client._native.status(
                    entry.client_url(entries.scheme)
                )
                revisions.append(revision)
        return len(revisions) == self.job.size and len(set(revisions)) == 1

    # Their parts.

    def _start(self) -> None:
        if len(self._running()) < self._agents:
            self._made_later.add(self.job.start(self._agents, self._agents))

    def _may_lose_data(self, port: int) -> bool:
        """Whether the data of an entry may go: there are three voters, and no other one has lost its own."""
        # An agent that has just been started may be about to take the folder.
        if self._holder(port) is not None or port in self.job.etcds() or not self._settled():
            return False
        with contextlib.suppress(EtcdException):
            members, ids = self.job.members(), self.job.ids()
            voters = {ids[at] for at, learns in members.items() if not learns}
            if len(voters) == self.job.size and not voters & self._deleted:
                self._deleted |= {ids[port]} if port in ids else set()
                return True
        return False

    def _listed_and_serving(self) -> set[int]:
        """Return the ports of the voters, if nothing else is listed and all of them serve."""
        with contextlib.suppress(EtcdException):
            members = self.job.members()
            if not any(members.values()) and self.job.serving() == set(members):
                return set(members)
        return set()

    @contextlib.contextmanager
    def _nothing_to_apply(self) -> Iterator[None]:
        """Let an etcd that forgets write down what it has applied before it is killed (`forgets`)."""
        if not forgets():
            yield
            return
        for pid in self._writers:
            self._signal(pid, signal.SIGSTOP)
        threading.Event().wait(0.8)
        try:
            yield
        finally:
            for pid in self._writers:
                self._signal(pid, signal.SIGCONT)

    def _stop(self, entry: str, pid: int | None) -> None:
        self._signal(pid, signal.SIGSTOP)
        if pid is None:
            self.told[-1] += f"  # nothing at {entry}"
        else:
            self._stopped.add(pid)

    @staticmethod
    def _signal(pid: int | None, signum: signal.Signals) -> None:
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def _tell(self, verb: str, *args: object) -> None:
        self.told.append(" ".join([f"{time.monotonic() - self._begun:.2f}", verb, *map(str, args)]))

    def __enter__(self) -> QuorumBench:
        self.watcher.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.watcher.stop()
        # Shown if the test fails.
        print("What was done:", *self.told, sep="\n  ")


class Watcher:
    """Asks all entries again and again which cluster they belong to, and who leads it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        #: The port of the leader as last seen.
        self.leader = 0
        #: All clusters whose members answered.
        self.clusters: set[int] = set()
        #: The leaders of each term of each cluster, by their own words.
        self.leaders: dict[tuple[int, int], set[int]] = {}
        self.answers = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ends.set()
        self._thread.join(30)

    def check(self) -> None:
        """There was one cluster, and no term had two leaders."""
        entries = self._job.entries
        assert self.clusters == {entries.cluster_id(entries.token(self._job.run_id))}
        assert {len(leaders) for leaders in self.leaders.values()} == {1}, self.leaders
        assert self.answers >= self._job.size

    def _run(self) -> None:
        while not self._ends.wait(_LOOK_S):
            # A member is asked at its peer port: there it answers without a leader, too.
            for answer in ask_all(self._job.entries.all, None):
                # None is said by one that goes on between the two questions to it.
                if answer.who is Who.ETCD and answer.cluster:
                    self.answers += 1
                    self.clusters.add(answer.cluster)
            self._ask_for_leaders()

    def _ask_for_leaders(self) -> None:
        entries = self._job.entries
        members = self._job.etcds()
        with self._job.client() as client:
            for entry in entries.all:
                if entry.port not in members:
                    continue
                with contextlib.suppress(EtcdException):
                    url = entry.client_url(entries.scheme)
                    (_, cluster, own, _, leader, _), (term, *_), *_ = client._native.status(
                        url, 1.0
                    )
                    self.clusters.add(cluster)
                    if own == leader:
                        self.leader = entry.port
                        self.leaders.setdefault((cluster, term), set()).add(own)


def start_clients(job: Job, clients: Clients, prefix: str, seed: int) -> list[int]:
    """Start two processes that call a store in the quorum as soon as there is one; returns them."""
    endpoints = ",".join(entry.name for entry in job.entries.all)
    started = [clients.start(f"client-{n}", endpoints, prefix, seed, threads=2) for n in range(2)]
    return [process.pid for process in started if process.pid is not None]


# ------------------------------------------------------------------ schedules


def some_at_a_time(seed: int, seconds: float) -> list[Step]:
    """Make faults that overlap, of members and candidates."""
    rng = random.Random(seed)
    steps: list[Step] = []
    at = rng.uniform(0.3, 1)
    while at < seconds - 1:
        steps += _fault(
            rng, at, rng.choice(["leader", "leader", "follower", "follower", "candidate"])
        )
        at += rng.uniform(0.5, 2.5)
    return sorted(steps, key=lambda step: step.at_s)


def two_at_once(seed: int, seconds: float) -> list[Step]:
    """Make faults that take two members of three away at once, until they are back with their data."""
    rng = random.Random(seed)
    steps: list[Step] = []
    at = rng.uniform(0.3, 1)
    while at < seconds - 1:
        one, other = f"leader@{at:.2f}", f"follower@{at:.2f}"
        lasts = [rng.uniform(0.5, 4) for _ in range(2)]
        if rng.random() < 0.7:
            steps += [Step(at, "lose", (one, other))]
            steps += [Step(at + lasts[0], "back", (one,)), Step(at + lasts[1], "back", (other,))]
        else:
            steps += [Step(at, "kill_etcd", (one, other))]
        # Another fault before they are back, or when they have just come.
        steps += _fault(rng, at + rng.uniform(0.1, 4), "candidate")
        at += max(lasts) + rng.uniform(1, 4)
    return sorted(steps, key=lambda step: step.at_s)


def _fault(rng: random.Random, at: float, role: str) -> list[Step]:
    # The same party at the beginning and at the end, also if the leader has changed meanwhile.
    name = f"{role}@{at:.2f}"
    verbs = [("lose", "back"), ("lose", "back_empty")]
    if role == "candidate":
        verbs += [("pause_agent", "resume")]
    else:
        verbs += [("kill_etcd", ""), ("pause_etcd", "resume"), ("pause_agent", "resume")]
    begin, end = rng.choice(verbs)
    # Some are back before they are replaced, some after it.
    lasts = rng.uniform(0.5, 6) if begin == "lose" else rng.uniform(1, 3)
    begun = Step(at, begin, (name,))
    return [begun, Step(at + lasts, end, (name,))] if end else [begun]
