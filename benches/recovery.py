"""How long a training stands still when a node is lost and replaced.

    python benches/recovery.py                                   # everything: about 40 minutes
    python benches/recovery.py --repeat 1 --ttl 5 --peer-ttl 15 --fault SIGKILL

A node is an agent and its worker; there are three (`--nnodes 2:3`). SIGKILL takes all of one node away,
SIGSTOP makes all of it stand still with its connections open, SIGTERM lets its agent leave in order. All
columns are seconds from that moment:

- reported_s: until `num_nodes_waiting()` is above 0 on *both* survivors. This is measured on handlers
  alone, without torchrun and workers, asked every 10 ms, and nobody else joins; `with_spare_s` is the
  same when a replacement calls `next_rendezvous()` at the moment of the fault.
- gloo_s: until a survivor's worker fails, because a connection of gloo broke: to the lost worker at once
  (torchrun then starts the round again, whatever the handler knows), after SIGSTOP only to the other
  survivor's, which its agent has stopped.
- world_s: until the last worker of the first world that has the replacement starts. The replacement is a
  `torchrun` that is started at the moment of the fault, so its own start (the import of torch) is in it.
- first_step_s: until the first all_reduce of that world has ended on all of its nodes.

A text instead of a number: "> 60" (the limit), "run ended" (both surviving agents exited). Such a
measurement is not repeated. Numbers are medians; the JSON has all of them. `world_ratio` and `step_ratio` are
against c10d under the same fault, with the same `ttl_s` where that was measured, else with the first one.

For c10d `ttl_s` is keep_alive_interval x keep_alive_max_attempt (5 x 3 by default). The host of its store is
a node that survives, its best case; in "c10d, host" it is the node that is lost. c10d runs with
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, as a larger world can deadlock in torch 2.15 without it.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from forked import Forked
from report import Report, arguments, median
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

import torchetcd
from torchetcd.etcd_server import EtcdServer, find_free_port

WORKER = Path(__file__).with_name("recovery_worker.py")
FAULTS = ("SIGKILL", "SIGSTOP", "SIGTERM")
RUN_ENDED = "run ended"
NODES = 3
#: For three interpreters with torch on a busy machine.
SETUP_S = 120
POLL_S = 0.01

Measured = float | str


@dataclass(frozen=True)
class Case:
    """A backend as it is configured for a measurement."""

    backend: str
    ttl_s: int
    host_is_lost: bool = False

    @property
    def name(self) -> str:
        return "c10d, host" if self.host_is_lost else self.backend

    @property
    def keep_alive_s(self) -> float:
        """How often a node says that it is there."""
        return float(self.config().get("keep_alive_interval", self.ttl_s / 3))

    def config(self) -> dict[str, Any]:
        if self.backend != "c10d":
            return {"keep_alive_ttl": self.ttl_s}
        attempts = 3 if self.ttl_s % 3 == 0 else self.ttl_s
        return {"keep_alive_interval": self.ttl_s // attempts, "keep_alive_max_attempt": attempts}

    @contextmanager
    def endpoint(self) -> Iterator[str]:
        if self.backend == "c10d":
            with find_free_port() as sock:
                port = sock.getsockname()[1]
            yield f"127.0.0.1:{port}"
        else:
            with EtcdServer() as server:
                yield server.get_endpoint()


def pause(case: Case) -> None:
    """Let a world run until any moment between two keep-alives: how old the last one is matters."""
    time.sleep(1 + random.uniform(0, case.keep_alive_s))


# Handlers alone ----------------------------------------------------------------------------------------


def member(connection: Connection, params: RendezvousParameters, asks: bool) -> None:
    # torch's agent turns the signal into an exception, so the interpreter ends as it should.
    signal.signal(signal.SIGTERM, _end_in_order)
    if not asks:
        connection.recv()
    handler = get_rendezvous_handler(params)
    connection.send("joins")
    handler.next_rendezvous()
    connection.send("joined")
    while asks and not handler.num_nodes_waiting():
        time.sleep(POLL_S)
    connection.send(time.monotonic())
    while True:
        signal.pause()


def _end_in_order(_signum: int, _frame: object) -> None:
    atexit._run_exitfuncs()
    os._exit(0)


def reported(case: Case, fault: signal.Signals, with_spare: bool, limit_s: float) -> Measured:
    members: list[Forked] = []
    with case.endpoint() as endpoint:

        def fork(number: int, asks: bool = True) -> Forked:
            config = case.config() | {"join_timeout": SETUP_S, "last_call_timeout": 30}
            if case.backend == "c10d":
                config["is_host"] = number == 0
            params = RendezvousParameters(
                case.backend, endpoint, "recovery", 2, NODES, local_addr="127.0.0.1", **config
            )
            members.append(Forked(member, params, asks))
            return members[-1]

        try:
            for number in range(NODES):
                # In turn: c10d's host must be there before its peers.
                assert fork(number).receive(SETUP_S) == "joins"
            for process in members:
                assert process.receive(SETUP_S) == "joined"
            *survivors, victim = list(members)
            spare = fork(NODES, asks=False) if with_spare else None
            pause(case)
            early = wait([process.connection for process in survivors], 0)
            if early:
                raise RuntimeError(f"{case}: a loss was reported before there was one")
            at = victim.signal(fault)
            if spare is not None:
                spare.connection.send("join")
            return _last_report(survivors, at, limit_s)
        finally:
            for process in members:
                process.kill()


def _last_report(survivors: list[Forked], at: float, limit_s: float) -> Measured:
    last = at
    for process in survivors:
        try:
            last = max(last, process.receive(max(at + limit_s - time.monotonic(), 0)))
        except TimeoutError:
            return f"> {limit_s:g}"
        except EOFError:
            return "raised"
    return last - at


# torchrun ----------------------------------------------------------------------------------------------


class Node:
    """A `torchrun` with one worker, which writes its events to a file."""

    def __init__(self, name: str, case: Case, endpoint: str, is_host: bool, folder: Path) -> None:
        self.name = name
        self._events = folder / f"{name}.jsonl"
        self._log = folder / f"{name}.log"
        config = case.config()
        if case.backend == "c10d":
            config["is_host"] = is_host
        command = [
            sys.executable, "-m", "torch.distributed.run",
            "--nnodes", f"2:{NODES}", "--nproc-per-node", "1", "--max-restarts", "5",
            "--rdzv-id", "recovery", "--rdzv-backend", case.backend, "--rdzv-endpoint", endpoint,
            "--rdzv-conf", ",".join(f"{key}={value}" for key, value in config.items()),
            "--local-addr", "127.0.0.1", str(WORKER), str(self._events),
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

    def fault(self, signum: signal.Signals) -> float:
        """Do this to the whole node, and return when; an agent that is told to end does the rest itself."""
        pids = [self.process.pid]
        if signum != signal.SIGTERM:
            pids += _below(self.process.pid)
        at = time.monotonic()
        for pid in pids:
            os.kill(pid, signum)
        return at

    def events(self, event: str) -> list[dict[str, Any]]:
        if not self._events.exists():
            return []
        # The last line may be half written.
        lines = self._events.read_text(encoding="utf-8").split("\n")[:-1]
        return [found for found in map(json.loads, lines) if found["event"] == event]

    def first_step(self, after: float) -> float | None:
        """When it first made a step in a world of all nodes."""
        steps = (found["at"] for found in self.events("step") if found["world"] == NODES)
        return min((at for at in steps if at > after), default=None)

    def start_of(self, step: float) -> float:
        """When the worker that made the step was started."""
        return max(found["at"] for found in self.events("start") if found["at"] < step)

    def tail(self) -> str:
        return f"--- {self.name}\n{self._log.read_text(errors='replace')[-3000:]}"

    def end(self) -> None:
        # Workers have sessions of their own. The agent is stopped first, so that it starts no more.
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
            for pid in _below(self.process.pid):
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
        self.process.wait()
        # Workers of an agent that ended by itself, should there be any.
        for pid in {found["pid"] for found in self.events("start")}:
            if _is_worker(pid, self._events):
                os.kill(pid, signal.SIGKILL)


def _below(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    children = [int(child) for child in listed.stdout.split()]
    return [*children, *(below for child in children for below in _below(child))]


def _is_worker(pid: int, events: Path) -> bool:
    try:
        return str(events) in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    except OSError:
        return False


@dataclass
class Recovery:
    gloo_s: Measured | None
    world_s: Measured
    first_step_s: Measured


def recovery(case: Case, fault: signal.Signals, limit_s: float) -> Recovery:
    nodes: list[Node] = []
    with tempfile.TemporaryDirectory() as name, case.endpoint() as endpoint:
        folder = Path(name)

        def start(node: str, is_host: bool = False) -> Node:
            nodes.append(Node(node, case, endpoint, is_host, folder))
            return nodes[-1]

        try:
            first, second, third = start("a", is_host=True), start("b"), start("c")
            _await_steps(nodes)
            victim = first if case.host_is_lost else third
            survivors = [node for node in (first, second, third) if node is not victim]
            pause(case)
            at = victim.fault(fault)
            spare = start("d", is_host=case.host_is_lost)
            return _outcome(survivors, spare, at, limit_s)
        finally:
            for node in nodes:
                node.end()


def _await_steps(nodes: list[Node]) -> None:
    deadline = time.monotonic() + SETUP_S
    while any(node.first_step(0) is None for node in nodes):
        if time.monotonic() > deadline or any(node.process.poll() is not None for node in nodes):
            raise RuntimeError("\n".join(["no world", *(node.tail() for node in nodes)]))
        time.sleep(0.1)


def _outcome(survivors: list[Node], spare: Node, at: float, limit_s: float) -> Recovery:
    members = [*survivors, spare]

    def failed() -> float | None:
        found = [event["at"] for node in survivors for event in node.events("failed")]
        return min(found) - at if found else None

    while time.monotonic() < at + limit_s:
        steps = [node.first_step(at) for node in members]
        if None not in steps:
            pairs = [(node, step) for node, step in zip(members, steps, strict=True) if step]
            began = max(node.start_of(step) for node, step in pairs)
            return Recovery(failed(), began - at, max(step for _, step in pairs) - at)
        if all(node.process.poll() is not None for node in survivors):
            return Recovery(failed(), RUN_ENDED, RUN_ENDED)
        time.sleep(0.1)
    limit = f"> {limit_s:g}"
    # The world may have formed and be stuck before its first step.
    starts = [_start_in_full_world(node, at) for node in members]
    world = limit if None in starts else max(start for start in starts if start) - at
    return Recovery(failed(), world, limit)


def _start_in_full_world(node: Node, after: float) -> float | None:
    starts = (found for found in node.events("start") if found["at"] > after)
    return next((found["at"] for found in starts if found["world"] == NODES), None)


# The report --------------------------------------------------------------------------------------------


def repeated(times: int, measure: Callable[[], Measured]) -> list[Measured]:
    found: list[Measured] = []
    for _ in range(times):
        found.append(measure())
        if isinstance(found[-1], str):
            break
    return found


def middle(values: list[Any]) -> Measured | None:
    """The median; the text where there is one, because that measurement has no number."""
    texts = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if isinstance(value, float)]
    if texts:
        return texts[0] if not numbers else f"{texts[0]} ({len(texts)} of {len(values)})"
    return round(median(numbers), 3) if numbers else None


def ratio(value: Any, peer: Any) -> float | None:
    if not isinstance(value, float) or not isinstance(peer, float):
        return None
    return round(value / peer, 3)


def measure_case(case: Case, fault: str, repeat: int, limit_s: float) -> dict[str, Any]:
    signum = signal.Signals[fault]
    every: dict[str, list[Any]] = {}
    if not case.host_is_lost:
        # Without its host c10d's survivors have nobody to ask.
        for name, spare in (("reported_s", False), ("with_spare_s", True)):
            every[name] = repeated(repeat, lambda s=spare: reported(case, signum, s, limit_s))
    outcomes = []
    for _ in range(repeat):
        outcomes.append(recovery(case, signum, limit_s))
        if isinstance(outcomes[-1].first_step_s, str):
            break
    for name in ("gloo_s", "world_s", "first_step_s"):
        every[name] = [getattr(outcome, name) for outcome in outcomes]
    row: dict[str, Any] = {"backend": case.name, "fault": fault, "ttl_s": case.ttl_s}
    row |= {name: middle(values) for name, values in every.items()}
    row["all"] = {name: [_rounded(v) for v in values] for name, values in every.items()}
    return row


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60, help="seconds after a fault")
    parser.add_argument("--ttl", type=int, nargs="*", default=[10, 5], help="of etcd-v3")
    parser.add_argument("--peer-ttl", type=int, nargs="*", default=[15, 5], help="of c10d")
    parser.add_argument("--fault", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--no-host", action="store_true", help="without the loss of c10d's host")
    args = parser.parse_args()
    # So that everything is put away when the benchmark is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    torchetcd.register()
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    columns = "backend fault ttl_s reported_s with_spare_s gloo_s world_s first_step_s"
    report = Report("recovery", [*columns.split(), "world_ratio", "step_ratio"], args.json)
    peers = [Case("c10d", ttl) for ttl in args.peer_ttl]
    hosts = [Case("c10d", peers[0].ttl_s, host_is_lost=True)] if peers and not args.no_host else []
    for fault in args.fault:
        peer_rows = []
        for case in peers:
            peer_rows.append(measure_case(case, fault, args.repeat, args.limit))
            report.add(**peer_rows[-1])
        for case in hosts:
            report.add(**measure_case(case, fault, args.repeat, args.limit))
        for ttl in args.ttl:
            row = measure_case(Case("etcd-v3", ttl), fault, args.repeat, args.limit)
            same = [peer for peer in peer_rows if peer["ttl_s"] == ttl]
            for peer in (same or peer_rows)[:1]:
                row["ratios_to_c10d_with_ttl_s"] = peer["ttl_s"]
                row["world_ratio"] = ratio(row["world_s"], peer["world_s"])
                row["step_ratio"] = ratio(row["first_step_s"], peer["first_step_s"])
            report.add(**row)
    report.end()


if __name__ == "__main__":
    main()
