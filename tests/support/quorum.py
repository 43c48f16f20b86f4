"""Agents of a job that brings its quorum, as processes, and the etcds that they run."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support.etcd.cluster import take_port
from support.processes.zygote import Program, Zygote
from support.waiting import eventually
from torchetcd._quorum.clients import connect
from torchetcd._quorum.entries import Entries, Entry, parse_entries
from torchetcd._quorum.material import make_material
from torchetcd.etcd import Client, EtcdException

#: For what is waited for at most; other tests may keep the machine busy.
PATIENCE_S = 60.0

_AGENT = """
import logging, select
path, given = sys.argv[1:]
log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 2)
os.set_inheritable(2, True)
logging.basicConfig(
    level=logging.INFO, stream=sys.stderr, format="%(relativeCreated)d %(levelname)s %(name)s: %(message)s"
)
logging.getLogger("torchetcd").setLevel(logging.DEBUG)
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torchetcd.etcd_rendezvous import create_rdzv_handler
signal.signal(signal.SIGTERM, api._terminate_process_handler)

def answer(work):
    value = error = None
    try:
        value = work()
    except api.SignalException:
        raise
    except BaseException as exc:
        error = f"{type(exc).__name__}: {exc}"
    print(json.dumps([value, error]), flush=True)

handler = store = None

def make():
    global handler
    handler = create_rdzv_handler(RendezvousParameters(**json.loads(given)))

def join():
    global store
    info = handler.next_rendezvous()
    store = info.store
    return [info.rank, info.world_size]

def wait_for_others(number):
    # As an agent does; the workers go on meanwhile.
    while handler.num_nodes_waiting() < number:
        time.sleep(0.05)

commands = {
    "join": join,
    "waiting": lambda: handler.num_nodes_waiting(),
    "wait_for_others": wait_for_others,
    "set": lambda key, value: store.set(key, value),
    "get": lambda key: store.get(key).decode(),
    "shutdown": lambda: handler.shutdown(),
}
answer(make)
while True:
    # A signal that comes just before a read blocks would not end it.
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        pass
    line = sys.stdin.readline()
    if not line:
        break
    name, args = json.loads(line)
    if name == "end":
        break
    answer(lambda: commands[name](*args))
"""


class AgentError(Exception):
    """What a command raised in the agent's process; the text begins with the name of its class."""


class Agent:
    """A process with a handler of the job; it begins to make it at once."""

    def __init__(self, zygote: Zygote, log: Path, given: dict[str, Any]) -> None:
        self.log = log
        self._program = Program(zygote, _AGENT, log, json.dumps(given))
        self.pid = self._program.pid
        self.ended = False

    def start(self, name: str, *args: object) -> None:
        """Start a command."""
        os.write(self._program._in, json.dumps([name, args]).encode() + b"\n")

    def finish(self, limit: float = PATIENCE_S) -> Any:
        """Return what the command returned, or that of the making of the handler."""
        value, error = json.loads(self._program.line(limit))
        if error is not None:
            raise AgentError(error)
        return value

    def call(self, name: str, *args: object) -> Any:
        """Run a command."""
        self.start(name, *args)
        return self.finish()

    @property
    def is_busy(self) -> bool:
        """Whether the command that was started has not ended."""
        return not self._program._unread and not select.select([self._program._out], [], [], 0)[0]

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def await_text(self, wanted: str, times: int = 1) -> None:
        """Wait until it has logged this."""
        eventually(lambda: self.text().count(wanted) >= times, PATIENCE_S)

    def signal(self, signum: signal.Signals) -> None:
        self._program.signal(signum)

    def kill(self) -> None:
        """SIGKILL it alone; its etcd is left to what guards it."""
        self.ended = True
        self._program.kill()

    def end(self, limit: float = PATIENCE_S) -> int:
        """Let it end as a program does, unless it does already; returns its exit code."""
        if self.ended:
            return 0
        with contextlib.suppress(BrokenPipeError):
            self.start("end")
        return self.await_end(limit)

    def await_end(self, limit: float = PATIENCE_S) -> int:
        """Wait for an end that was caused by something else."""
        self.ended = True
        code, _ = self._program.end(limit)
        return code


class Job:
    """One run, its entries, the folder of its members and its agents; in a `with` block."""

    def __init__(
        self,
        zygote: Zygote,
        folder: Path,
        entries: int = 3,
        *,
        hosts: Sequence[str] = ("127.0.0.1",),
        secret: str = "",
        **config: Any,
    ) -> None:
        """Choose the ports.

        Args:
            zygote: Where agents are forked from.
            folder: Of this test.
            entries: How many.
            hosts: Their hosts, in turns.
            secret: What is in the file with the secret, for the clients of the test.
            config: Parameters of all agents.
        """
        self.zygote, self.folder = zygote, folder
        self.run_id = uuid.uuid4().hex
        self.data = folder / "quorum"
        self.size = int(config.get("quorum", 3))
        ports = free_ports(entries)
        named = [f"{hosts[n % len(hosts)]}:{port}" for n, port in enumerate(ports)]
        self.endpoint = "job://" + ",".join(named)
        self.config = config
        self.entries: Entries = parse_entries(self.endpoint, self.size, secure=bool(secret))
        self._material = make_material(secret.encode()) if secret else None
        self.agents: list[Agent] = []

    def parameters(self, least: int, most: int, **config: Any) -> dict[str, Any]:
        """Return what a handler of this job is given."""
        given: dict[str, Any] = {
            "backend": "etcd-v3",
            "endpoint": self.endpoint,
            "run_id": self.run_id,
        }
        given |= {"min_nodes": least, "max_nodes": most, "local_addr": "127.0.0.1"}
        given |= {"keep_alive_ttl": 3, "last_call_timeout": 1, "join_timeout": PATIENCE_S}
        given |= {"quorum_dir": str(self.data), "quorum_replace_after": 2, **self.config, **config}
        return given

    def start(self, least: int = 1, most: int = 9, **config: Any) -> Agent:
        """Start an agent, which has an entry if one is left; `finish` waits until its handler is made."""
        log = self.folder / f"agent{len(self.agents)}.log"
        self.agents.append(Agent(self.zygote, log, self.parameters(least, most, **config)))
        return self.agents[-1]

    def start_all(self, count: int, least: int = 1, most: int = 9, **config: Any) -> list[Agent]:
        """Start agents, and wait until there is a quorum."""
        agents = [self.start(least, most, **config) for _ in range(count)]
        for agent in agents:
            agent.finish()
        return agents

    # ------------------------------------------------------------------ members

    def etcds(self) -> dict[int, int]:
        """Return the processes of the members that run, by the ports of their entries."""
        found = {}
        for pid, words in _commands():
            data = next((word for word in words if word.startswith("--data-dir=")), "")
            if str(self.data) in data and not _is_dead(pid):
                name = next(word for word in words if word.startswith("--name="))
                found[int(name.rpartition(":")[2])] = pid
        return found

    def port_of(self, agent: Agent) -> int:
        """Return the port of the entry that an agent has; 0 for a client."""
        for port, pid in self.etcds().items():
            if _parent(pid) == agent.pid:
                return port
        return 0

    def agent_at(self, port: int) -> Agent:
        """Return the agent whose etcd runs at a port."""
        return next(
            agent for agent in self.agents if not agent.ended and self.port_of(agent) == port
        )

    def lose(self, agent: Agent) -> int:
        """Take away an agent and its etcd at once, as a host that fails; returns the port of its entry."""
        port = self.port_of(agent)
        agent.signal(signal.SIGSTOP)  # so that it starts no other
        if port:
            os.kill(self.etcds()[port], signal.SIGKILL)
        agent.kill()
        return port

    @contextlib.contextmanager
    def client(self, timeout_s: float = 5.0) -> Iterator[Client]:
        """Provide a client of all entries."""
        with connect(self.entries, self._material, timeout_s) as client:
            yield client

    def members(self) -> dict[int, bool]:
        """Return the ports of the members that etcd lists, and whether each is a learner."""
        with self.client() as client:
            listed = client._native.member_list()
        return {self._entry(urls[0]).port: learns for _, _, urls, _, learns in listed}

    def ids(self) -> dict[int, int]:
        """Return the ids of the members that etcd lists, by port."""
        with self.client() as client:
            return {self._entry(urls[0]).port: n for n, _, urls, *_ in client._native.member_list()}

    def await_members(self, *ports: int) -> None:
        """Wait until these are the voters, nothing else is listed, and all of them serve."""

        def there() -> bool:
            with contextlib.suppress(EtcdException):
                return self.members() == dict.fromkeys(ports, False) and self.serving() == set(
                    ports
                )
            return False

        try:
            eventually(there, PATIENCE_S)
        except AssertionError:
            with contextlib.suppress(EtcdException):
                print("listed:", self.members())
            print("wanted:", ports, "serving:", self.serving())
            raise

    def serving(self) -> set[int]:
        """Return the ports at which a member answers that knows a leader."""
        return {port for port, (_, leader) in self._told().items() if leader}

    def leader(self) -> int:
        """Return the port of the leader's entry, and wait for one if there is none."""
        eventually(lambda: any(own == leader for own, leader in self._told().values()), PATIENCE_S)
        return next((port for port, (own, leader) in self._told().items() if own == leader), 0)

    def _told(self) -> dict[int, tuple[int, int]]:
        """Return what each member that answers says is its id and that of the leader, by its port."""
        found = {}
        # A client waits for one that it cannot reach.
        there = [entry for entry in self.entries.all if entry.port in self.etcds()]
        with self.client() as client:
            for entry in there:
                with contextlib.suppress(EtcdException):
                    url = entry.client_url(self.entries.scheme)
                    (_, _, own, _, leader, _), *_ = client._native.status(url, 2.0)
                    found[entry.port] = (own, leader)
        return found

    def _entry(self, url: str) -> Entry:
        found = self.entries.of_peer_url(url)
        assert found is not None, url
        return found

    # ------------------------------------------------------------------ folders

    @property
    def folders(self) -> list[Path]:
        """The folders of members that are there."""
        return sorted(self.data.glob("torchetcd-quorum-*/torchetcd-*"))

    def folder_of(self, port: int) -> Path:
        """Return the folder of the member of an entry."""
        return next(folder for folder in self.folders if folder.name.endswith(f"-{port}"))

    # ------------------------------------------------------------------ the end

    def end(self) -> None:
        """End all agents at once, and see that nothing is left running."""
        for agent in self.agents:
            if not agent.ended:
                with contextlib.suppress(ProcessLookupError):
                    agent.signal(signal.SIGCONT)
                agent.kill()
        # What guards them would do it, too, but with patience.
        for pid in self.etcds().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self.etcds(), 30)
        shutil.rmtree(self.data, ignore_errors=True)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_exc: object) -> None:
        # Shown if the test fails.
        for agent in self.agents:
            print(f"--- {agent.log.name}\n{agent.text()[-6000:]}")
        for folder in self.folders:
            with contextlib.suppress(OSError):
                print(f"--- {folder.name}\n{(folder / 'etcd.log').read_text()[-2000:]}")
        self.end()


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return ports that are free, each with a free one after it, where its member reaches the others."""
    found: list[int] = []
    while len(found) < count:
        with take_port() as sock, contextlib.suppress(OSError):
            port: int = sock.getsockname()[1]
            if {port - 1, port + 1} & set(found):
                continue
            with socket.socket() as following:
                following.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                following.bind((host, port + 1))
                found.append(port)
    return found


def _commands() -> Iterator[tuple[int, list[str]]]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(path.name), (path / "cmdline").read_text(errors="replace").split("\0")


def _stat(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ["X", "0"]


def _is_dead(pid: int) -> bool:
    return _stat(pid)[0] in "ZX"


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])
