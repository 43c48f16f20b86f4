"""Agents as processes that join, train and rejoin as torchrun's do, and write down what they see."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import multiprocessing
import multiprocessing.process
import random
import re
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed", "torchetcd.etcd_rendezvous"])
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.02


@dataclasses.dataclass(frozen=True)
class Seen:
    """One line of an agent's diary.

    `what` is `joins` (it calls `next_rendezvous`), `place` (that returned), `told` (`num_nodes_waiting`
    is not 0), `rejoins` (by itself), `closes`, `has closed`, `closed` (it was told so), `error`.
    """

    at: float
    agent: str
    pid: int
    what: str
    round: int = 0
    rank: int = -1
    world: int = 0
    master: str = ""
    text: str = ""


class Agents:
    """The agents of one run."""

    def __init__(self, folder: Path, run_id: str, count: int, **config: Any) -> None:
        self._folder = folder
        self.run_id = run_id
        self._count = count
        self._config = config
        self._processes: dict[str, multiprocessing.process.BaseProcess] = {}
        self._all: list[multiprocessing.process.BaseProcess] = []
        self._closing: dict[str, Any] = {}

    def start(
        self,
        name: str,
        endpoints: str,
        *,
        least: int | None = None,
        restless: int | None = None,
    ) -> multiprocessing.process.BaseProcess:
        """Start an agent, or another one with this name; with a seed as `restless` it rejoins at random."""
        closing = self._closing[name] = _context.Event()
        parameters = {
            "endpoint": endpoints,
            "run_id": self.run_id,
            "min_nodes": self._count if least is None else least,
            "max_nodes": self._count,
            "config": {"join_timeout": 120, "last_call_timeout": 1} | self._config,
        }
        process = _context.Process(
            target=_run,
            args=(name, parameters, str(self._folder / f"{name}.diary"), closing, restless),
            daemon=True,
        )
        process.start()
        self._processes[name] = process
        self._all.append(process)
        return process

    def close_by(self, name: str) -> None:
        """Let an agent close the run."""
        self._closing[name].set()

    def live(self) -> list[str]:
        """The agents whose processes run."""
        return [name for name, process in self._processes.items() if process.is_alive()]

    def await_end(self, timeout: float = 30) -> None:
        """Wait until all agents that run have ended by themselves."""
        deadline = time.monotonic() + timeout
        for name, process in self._processes.items():
            process.join(max(0, deadline - time.monotonic()))
            assert not process.is_alive(), f"{name} has not ended\n{self.text()}"

    def close(self) -> None:
        for process in self._all:
            process.kill()
            process.join()

    def diary(self) -> list[Seen]:
        """What all have seen, in the order of time."""
        seen = [entry for path in self._folder.glob("*.diary") for entry in _read(path)]
        return sorted(seen, key=lambda entry: entry.at)

    def last(self, name: str) -> Seen | None:
        """What an agent has written last."""
        pid = self._processes[name].pid
        mine = [entry for entry in self.diary() if entry.agent == name and entry.pid == pid]
        return mine[-1] if mine else None

    def settled(self) -> bool:
        """Whether all agents that run are in one world."""
        places = [self.last(name) for name in self.live()]
        return (
            bool(places)
            and all(place is not None and place.what == "place" for place in places)
            and len({place.round for place in places if place is not None}) == 1
            and {place.world for place in places if place is not None} == {len(places)}
        )

    def text(self) -> str:
        """The diary for people."""
        diary = self.diary()
        begun = diary[0].at if diary else 0
        return "\n".join(
            f"{e.at - begun:8.3f} {e.agent} ({e.pid}) {e.what} round {e.round} rank {e.rank}/{e.world} "
            f"{e.master} {e.text}"
            for e in diary
        )


def _read(path: Path) -> Iterator[Seen]:
    for line in path.read_text().splitlines():
        try:
            yield Seen(**json.loads(line))
        except ValueError:  # it was killed while it wrote
            continue


def _run(
    name: str, parameters: dict[str, Any], path: str, closing: Any, restless: int | None
) -> None:
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.api import RendezvousClosedError

    from torchetcd.etcd_rendezvous import create_rdzv_handler

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    pid = multiprocessing.current_process().pid
    rng = random.Random(f"{restless} {name}")
    with open(path, "ab", buffering=0) as file:

        def write(what: str, **more: Any) -> None:
            entry = {"at": time.monotonic(), "agent": name, "pid": pid, "what": what, **more}
            file.write(json.dumps(entry).encode() + b"\n")

        config = parameters.pop("config")
        try:
            handler = create_rdzv_handler(
                RendezvousParameters("etcd-v3", **parameters, local_addr="127.0.0.1", **config)
            )
            while True:
                write("joins")
                info = handler.next_rendezvous()
                found = re.search(r"/v_(\d+)/", info.store.prefix)
                assert found is not None
                round_, master = int(found[1]), info.bootstrap_store_info
                write(
                    "place",
                    round=round_,
                    rank=info.rank,
                    world=info.world_size,
                    master=f"{master.master_addr}:{master.master_port}",
                )
                _train(handler, write, round_, closing, rng if restless is not None else None)
        except RendezvousClosedError as exc:
            write("closed", text=str(exc))
            handler.shutdown()
        except BaseException:
            write("error", text=traceback.format_exc())
            raise


def _train(handler: Any, write: Any, round_: int, closing: Any, rng: random.Random | None) -> None:
    """Return when the world is to be formed anew."""
    ends = time.monotonic() + (rng.uniform(0.2, 3) if rng is not None else 1e9)
    while time.monotonic() < ends:
        if closing.is_set():
            closing.clear()
            write("closes", round=round_)
            handler.set_closed()
            write("has closed", round=round_)
            return
        if handler.is_closed():
            return  # and hear it from the next call, too
        if waiting := handler.num_nodes_waiting():
            _, why = handler._rdzv_impl._node.broken() or ("", f"{waiting} wait")
            write("told", round=round_, text=why)
            return
        time.sleep(_POLL_S)
    write("rejoins", round=round_)
