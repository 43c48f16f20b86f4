"""A job that brings its quorum (`job://`): what a start, a loss and an idle member cost.

    python benches/quorum.py                                  # everything: about 40 minutes on 2 cores
    python benches/quorum.py --kills 3 --repeat 1 --waiting 100

- formed_s: five handlers, forked after torch was imported, from the first call until all have their ranks.
  With `job://` three of them run an etcd; the others are external: one cluster of three members, which runs
  already, and c10d, whose first handler is the host of the store.
- first_step_s: five `torchrun` with one worker each, from the first start until all have made an all_reduce.
- kills: five `torchrun` on five entries train on gloo. One after another is taken away by SIGKILL with its
  worker and its etcd: the leader's, that of rank 0, and any. Every second time its data is deleted as well,
  as on a new host. A new agent is started for the same entry at once; the next kill comes when five nodes
  train and three members serve. `goes_on_s` is the time from the kill until the first step of a survivor,
  `whole_s` until the first step of five nodes, `ready_s` until three members serve as well, which is looked
  at after that. The same of c10d when its host is killed.
- member: CPU (of one core) and memory of each of three etcds while 3 agents idle, and while so many nodes
  more wait in a barrier, each with its lease and watch.

All on one machine; figures that are medians have all their values in the JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from forked import Forked
from quorum_etcds import Entries, external, free_entries
from report import Report, arguments, median
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

import torchetcd
from torchetcd.etcd_server import find_free_port

WORKER = Path(__file__).with_name("recovery_worker.py")
NODES = 5
SETUP_S = 300.0
HOLDERS = 10
#: How long a loss may stop the training.
LIMIT_S = 180.0
RUN = "bench"


@contextmanager
def place(kind: str, folder: Path) -> Iterator[tuple[str, str, Entries | None]]:
    """Yield a backend, its endpoint and, for `job://`, its entries."""
    if kind == "job":
        entries = free_entries(NODES, folder / "quorum")
        try:
            yield "etcd-v3", entries.endpoint, entries
        finally:
            entries.kill_all()
    elif kind == "c10d":
        with find_free_port() as sock:
            port = sock.getsockname()[1]
        yield "c10d", f"127.0.0.1:{port}", None
    else:
        with external(folder / "external") as endpoint:
            yield "etcd-v3", endpoint, None


def config(kind: str, folder: Path, *, is_host: bool = False) -> dict[str, Any]:
    given: dict[str, Any] = {"last_call_timeout": 1, "join_timeout": int(SETUP_S)}
    if kind == "c10d":
        return given | {"is_host": is_host}
    if kind == "job":
        given |= {"quorum_dir": str(folder / "quorum"), "quorum_replace_after": 5}
    return given | {"keep_alive_ttl": 5}


# A start -----------------------------------------------------------------------------------------------


def member(connection: Connection, params: RendezvousParameters) -> None:
    connection.recv()
    handler = get_rendezvous_handler(params)
    handler.next_rendezvous()
    connection.send(time.monotonic())
    while True:
        signal.pause()


def formed(kind: str) -> float:
    """Seconds until five handlers have their ranks."""
    with tempfile.TemporaryDirectory() as name, place(kind, Path(name)) as (backend, endpoint, _):
        nodes = []
        try:
            for number in range(NODES):
                conf = config(kind, Path(name), is_host=number == 0)
                params = RendezvousParameters(
                    backend, endpoint, RUN, NODES, NODES, local_addr="127.0.0.1", **conf
                )
                nodes.append(Forked(member, params))
            at = time.monotonic()
            for node in nodes:
                node.connection.send("go")
            return max(node.receive(SETUP_S) for node in nodes) - at
        finally:
            for node in nodes:
                node.kill()


class Node:
    """A `torchrun` with one worker, in a process group of its own."""

    def __init__(self, number: int, kind: str, backend: str, endpoint: str, folder: Path) -> None:
        self.events_file = folder / f"{number}.jsonl"
        self._log = folder / f"{number}.log"
        conf = config(kind, folder, is_host=number == 0)
        command = [
            sys.executable, "-m", "torch.distributed.run",
            "--nnodes", f"3:{NODES}", "--nproc-per-node", "1", "--max-restarts", "1000",
            "--rdzv-id", RUN, "--rdzv-backend", backend, "--rdzv-endpoint", endpoint,
            "--rdzv-conf", ",".join(f"{key}={value}" for key, value in conf.items()),
            "--local-addr", "127.0.0.1", str(WORKER), str(self.events_file),
        ]  # fmt: skip
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def events(self, event: str) -> list[dict[str, Any]]:
        if not self.events_file.exists():
            return []
        lines = self.events_file.read_text(encoding="utf-8").split("\n")[:-1]
        return [found for found in map(json.loads, lines) if found["event"] == event]

    def step(self, after: float, world: int = 0) -> float | None:
        """When it made the first step of a world after this moment."""
        steps = (it["at"] for it in self.events("step") if world in (0, it["world"]))
        return min((at for at in steps if at > after), default=None)

    @property
    def rank(self) -> int:
        return max(self.events("step"), key=lambda it: it["at"])["rank"]

    def take_away(self) -> float:
        """SIGKILL all of it, and return when."""
        below = _below(self.process.pid)
        at = time.monotonic()
        if self.process.poll() is None:
            # The agent is stopped first, so that it starts nothing any more.
            self.process.send_signal(signal.SIGSTOP)
            for pid in {*below, *_below(self.process.pid)}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.kill()
        self.process.wait()
        return at

    def tail(self) -> str:
        return f"--- {self._log.name}\n{self._log.read_text(errors='replace')[-3000:]}"


def _below(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    children = [int(child) for child in listed.stdout.split()]
    return [*children, *(below for child in children for below in _below(child))]


class Training:
    """Five nodes that train."""

    def __init__(self, kind: str, place: tuple[str, str, Entries | None], folder: Path) -> None:
        self._kind, self._folder = kind, folder
        self._backend, self._endpoint, self.entries = place
        self.nodes: list[Node] = []
        self._started = 0

    def start(self) -> Node:
        node = Node(self._started, self._kind, self._backend, self._endpoint, self._folder)
        self._started += 1
        self.nodes.append(node)
        return node

    def await_steps(self, after: float, limit_s: float) -> float:
        """Wait until all nodes have made a step in a world of all; returns when the last one did."""
        deadline = time.monotonic() + limit_s
        while True:
            steps = [node.step(after, NODES) for node in self.nodes]
            done = [step for step in steps if step is not None]
            if len(done) == NODES:
                return max(done)
            if time.monotonic() > deadline or self.has_ended():
                raise RuntimeError("\n".join(["no world", *(node.tail() for node in self.nodes)]))
            time.sleep(0.1)

    def has_ended(self) -> bool:
        return any(node.process.poll() is not None for node in self.nodes)

    def lose(self, node: Node) -> float:
        self.nodes.remove(node)
        at = node.take_away()
        node.events_file.unlink(missing_ok=True)
        return at

    def end(self) -> None:
        for node in list(self.nodes):
            self.lose(node)


@contextmanager
def training(kind: str) -> Iterator[tuple[Training, float]]:
    """Let five nodes train; yield them, and the seconds until their first step."""
    with tempfile.TemporaryDirectory() as name, place(kind, Path(name)) as found:
        made = Training(kind, found, Path(name))
        try:
            at = time.monotonic()
            for _ in range(NODES):
                made.start()
            yield made, made.await_steps(0, SETUP_S) - at
        finally:
            made.end()


# Losses ------------------------------------------------------------------------------------------------


def victim(made: Training, number: int) -> tuple[Node, str]:
    """Choose the node of the leader, of rank 0, and any, in turns."""
    assert made.entries is not None
    if number % 3 == 0:
        pid = made.entries.owner(made.entries.leader())
        found = [node for node in made.nodes if node.process.pid == pid]
        if found:
            return found[0], "the leader's"
    if number % 3 == 1:
        return next(node for node in made.nodes if node.rank == 0), "rank 0"
    return random.choice(made.nodes), "any"


def one_kill(made: Training, number: int) -> dict[str, Any]:
    assert made.entries is not None
    node, who = victim(made, number)
    owned = made.entries.of(node.process.pid)
    at = made.lose(node)
    if owned and number % 2:
        # With the folders of a host that is gone.
        shutil.rmtree(made.entries.folder_of(owned), ignore_errors=True)
    survivors = list(made.nodes)
    made.start()
    went_on = _until(lambda: min(_all(node.step(at) for node in survivors), default=None), made)
    whole = made.await_steps(at, LIMIT_S) - at
    _until(lambda: time.monotonic() if len(made.entries.serving()) == 3 else None, made)
    ready_s = time.monotonic() - at
    return {"who": who, "member": bool(owned), "goes_on_s": went_on - at, "whole_s": whole,
            "ready_s": ready_s}  # fmt: skip


def _all(steps: Iterator[float | None]) -> list[float]:
    found = list(steps)
    return [step for step in found if step is not None] if None not in found else []


def _until(look: Callable[[], float | None], made: Training) -> float:
    deadline = time.monotonic() + LIMIT_S
    while (found := look()) is None:
        if time.monotonic() > deadline or made.has_ended():
            raise RuntimeError("\n".join(["it stands", *(node.tail() for node in made.nodes)]))
        time.sleep(0.1)
    return found


def kills(report: Report, times: int) -> None:
    with training("job") as (made, _):
        assert made.entries is not None
        _until(lambda: 1.0 if len(made.entries.serving()) == 3 else None, made)
        found = []
        for number in range(times):
            found.append(one_kill(made, number))
            told = found[-1]
            print(f"  kill {number + 1} of {times}: {told['who']}, {told['goes_on_s']:.1f} s, whole after "
                  f"{told['whole_s']:.1f} s, ready after {told['ready_s']:.1f} s", flush=True)  # fmt: skip
    report.add(
        value=len(found),
        unit="",
        target="",
        what="losses after which the training went on",
        all=found,
    )
    for part, what in (
        ("goes_on_s", "a loss until the first step of the others"),
        ("whole_s", "a loss until the first step of five nodes again"),
        ("ready_s", "a loss until five nodes train and three members serve"),
    ):
        values = [each[part] for each in found]
        report.add(value=median(values), unit="s", target="", what=f"from {what}: median")
        report.add(value=max(values), unit="s", target="", what=f"from {what}: most")


def host_of_c10d(report: Report) -> None:
    """The same loss, of the agent that has the store."""
    with training("c10d") as (made, _):
        at = made.lose(made.nodes[0])
        deadline = at + 120
        left = list(made.nodes)
        while any(node.process.poll() is None for node in left) and time.monotonic() < deadline:
            if any(node.step(at) for node in left):
                break
            time.sleep(0.1)
        ended = all(node.process.poll() is not None for node in left)
        after = time.monotonic() - at
        what = "c10d, its host is killed: " + ("all agents have ended" if ended else "no end")
        report.add(value=after, unit="s", target="", what=what)


# An idle member ----------------------------------------------------------------------------------------


def holder(connection: Connection, params: list[RendezvousParameters]) -> None:
    """Many nodes that wait, without a thread for each to wait in."""
    handlers = []
    for each in params:
        handler = get_rendezvous_handler(each)
        handler._rdzv_impl._node.join("127.0.0.1", 1)
        handlers.append(handler)
    connection.send("waiting")
    while handlers:
        signal.pause()


def idle(report: Report, waiting: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name, place("job", Path(name)) as (_, endpoint, entries):
        assert entries is not None
        nodes: list[Forked] = []
        try:
            conf = config("job", Path(name))
            params = RendezvousParameters(
                "etcd-v3", endpoint, RUN, 3, 3, local_addr="127.0.0.1", **conf
            )
            nodes += [Forked(member, params) for _ in range(3)]
            for node in nodes:
                node.connection.send("go")
            for node in nodes:
                node.receive(SETUP_S)
            _watch(report, entries, "3 nodes", seconds)
            if waiting:
                ports = ",".join(f"127.0.0.1:{port}" for port in entries.etcds())
                one = RendezvousParameters("etcd-v3", ports, "waiting", waiting + 1, waiting + 1,
                                           local_addr="127.0.0.1", join_timeout=3600)  # fmt: skip
                share = [one] * (waiting // HOLDERS)
                holders = [Forked(holder, share) for _ in range(HOLDERS)]
                nodes += holders
                for node in holders:
                    node.receive(SETUP_S)
                _watch(report, entries, f"{len(share) * HOLDERS:,} nodes more that wait", seconds)
        finally:
            for node in nodes:
                node.kill()


def _watch(report: Report, entries: Entries, what: str, seconds: float) -> None:
    time.sleep(15)  # the leases are renewed by then as they will be ever after
    pids = entries.etcds()
    leader = entries.leader()
    before = {port: _cpu_s(pid) for port, pid in pids.items()}
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    for port, pid in sorted(pids.items(), key=lambda item: item[0] != leader):
        role = "the leader" if port == leader else "another member"
        cpu = 100 * (_cpu_s(pid) - before[port]) / took
        report.add(value=cpu, unit="% of a core", target="<= 2", what=f"CPU of {role}, {what}")
        report.add(
            value=_rss_mib(pid), unit="MiB", target="<= 100", what=f"memory of {role}, {what}"
        )


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


# The report --------------------------------------------------------------------------------------------

NAMES = {
    "job": "job://, 3 of 5 agents with a member",
    "external": "an external etcd of 3 members",
    "c10d": "c10d",
}


def starts(report: Report, repeat: int) -> None:
    for part, what in (
        ("formed", "five handlers until all have their ranks"),
        ("first step", "five torchrun until the first step of all"),
    ):
        medians = {}
        for kind, name in NAMES.items():
            values = []
            for _ in range(repeat):
                if part == "formed":
                    values.append(formed(kind))
                else:
                    with training(kind) as (_, seconds):
                        values.append(seconds)
            medians[kind] = median(values)
            report.add(value=medians[kind], unit="s", target="", what=f"{what}, {name}", all=values)
        more = medians["job"] - medians["external"]
        report.add(
            value=more, unit="s", target="<= 2", what=f"{what}: more than with an external etcd"
        )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=3, help="of each start")
    parser.add_argument("--waiting", type=int, default=1000, help="nodes that wait; 0 for none")
    parser.add_argument("--seconds", type=float, default=60, help="of each time of watching")
    args = parser.parse_args()
    # So that everything is put away when the benchmark is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    torchetcd.register()
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    load = f"{os.getloadavg()[1]:.1f}"
    report = Report("quorum", ["value", "unit", "target", "what"], args.json, load_before=load)
    if args.seconds:
        idle(report, args.waiting, args.seconds)
    if args.repeat:
        starts(report, args.repeat)
    if args.kills:
        kills(report, args.kills)
        host_of_c10d(report)
    report.end()


if __name__ == "__main__":
    main()
