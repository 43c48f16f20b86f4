"""Processes whose threads call a store at random and write down every call, return and error.

A process writes its history to a file of its own, a line when a call begins and one when it returns, so
that a process that is killed leaves what it knew. Times are those of `time.monotonic`, which Linux gives
all processes alike.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import multiprocessing.process
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from support.faults.linearizability import Call
from support.faults.models import EMPTY, UNKNOWN, Model, Queue, Value

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed", "torchetcd.etcd_store"])
_PR_SET_PDEATHSIG = 1

#: Keys of each kind; few, so that clients meet.
VALUES = ("v0", "v1", "v2")
COUNTERS = ("n0", "n1")
QUEUES = ("q0", "q1")


def model_of(key: str) -> Model:
    return Queue() if key.startswith("q") else Value()


class Clients:
    """Some processes with some threads each, one store a process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, multiprocessing.process.BaseProcess] = {}
        self._stop = _context.Event()

    def start(
        self, name: str, endpoints: str, prefix: str, seed: int, threads: int = 4, op_s: float = 15
    ) -> multiprocessing.process.BaseProcess:
        """Start a process that calls until `stop`; each call has `op_s` seconds."""
        path = str(self._folder / f"{name}.jsonl")
        args = (name, endpoints, prefix, seed, threads, op_s, path, self._stop)
        process = _context.Process(target=_run, args=args, daemon=True)
        process.start()
        self._processes[name] = process
        return process

    def stop(self, timeout: float = 60) -> None:
        """Let all finish what they have begun."""
        self._stop.set()
        deadline = time.monotonic() + timeout
        for name, process in self._processes.items():
            process.join(max(0, deadline - time.monotonic()))
            assert not process.is_alive(), f"{name} has not ended"

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.join()
            process.close()

    def history(self) -> History:
        """What all have written down."""
        calls: list[Call] = []
        errors: list[str] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            _read(path, calls, errors)
        return History(calls, errors)


class History:
    """Calls of all clients, and the errors that are none of etcd's."""

    def __init__(self, calls: list[Call], errors: list[str]) -> None:
        self.calls = calls
        #: Calls that failed, with their errors.
        self.errors = errors

    def by_key(self) -> dict[str, list[Call]]:
        keys: dict[str, list[Call]] = {}
        for call in self.calls:
            keys.setdefault(call.key, []).append(call)
        return keys


def _read(path: Path, calls: list[Call], errors: list[str]) -> None:
    begun: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the process was killed while it wrote
            continue
        if "name" in entry:
            begun[entry["id"]] = entry
            continue
        call = begun.pop(entry["id"])
        if entry.get("error"):
            took = entry["at"] - call["at"]
            errors.append(f"{call['client']} {call['name']} after {took:.2f} s: {entry['error']}")
        if entry["kind"] == "not applied":
            continue
        unknown = entry["kind"] == "unknown"
        returned = float("inf") if unknown else entry["at"]
        calls.append(_call(call, returned, UNKNOWN if unknown else _decode(entry["result"])))
    calls += [_call(call, float("inf"), UNKNOWN) for call in begun.values()]


def _call(entry: dict[str, Any], returned: float, result: Any) -> Call:
    args = tuple(_decode(arg) for arg in entry["args"])
    return Call(entry["client"], entry["name"], entry["key"], args, entry["at"], returned, result)


def _encode(value: Any) -> Any:
    return {"b": value.decode("latin-1")} if isinstance(value, bytes) else value


def _decode(value: Any) -> Any:
    return value["b"].encode("latin-1") if isinstance(value, dict) else value


class _Script:
    """One thread's random calls."""

    def __init__(self, store: Any, client: str, seed: int, log: Callable[..., None]) -> None:
        self._store = store
        self._client = client
        self._rng = random.Random(f"{seed} {client}")
        self._log = log
        self._count = 0

    def step(self) -> None:
        rng = self._rng
        name, key, args = self._choose()
        self._count += 1
        number = f"{self._client} {self._count}"
        encoded = [_encode(arg) for arg in args]
        begun = {"client": self._client, "name": name, "key": key, "args": encoded}
        self._log(id=number, at=time.monotonic(), **begun)
        kind, result, error = _perform(self._store, name, key, args)
        at = time.monotonic()
        self._log(id=number, at=at, kind=kind, result=_encode(result), error=error)
        time.sleep(rng.random() * 0.04)

    def _choose(self) -> tuple[str, str, tuple[Any, ...]]:
        rng = self._rng
        kind = rng.random()
        # Values are short numbers, so that every operation makes sense on every key.
        number = str(rng.randrange(1, 9)).encode()
        if kind < 0.35:
            return "add", rng.choice(COUNTERS), (rng.choice([1, 1, 2, -1]),)
        if kind < 0.6:
            key = rng.choice(QUEUES)
            # Short queues: which of two pushes came first shows soon, else the check has to try all orders.
            name = rng.choice(["queue_push", *["queue_pop"] * 2, "queue_len"])
            unique = f"{self._client}.{self._count}".encode()
            return name, key, (unique,) if name == "queue_push" else ()
        key = rng.choice(VALUES)
        name = rng.choice(
            [
                "set",
                "get",
                "get",
                "check",
                "add",
                "append",
                "compare_set",
                "compare_set",
                "delete_key",
            ]
        )
        expected = rng.choice([b"", number, str(rng.randrange(1, 9)).encode()])
        args: dict[str, tuple[Any, ...]] = {
            "set": (number,),
            "add": (rng.randrange(3),),
            "append": (number[:1],),
            "compare_set": (expected, number),
        }
        return name, key, args.get(name, ())


def _perform(store: Any, name: str, key: str, args: tuple[Any, ...]) -> tuple[str, Any, str]:
    """Make the call; answer with what is known of it, its result and its error."""
    from torchetcd.etcd_store import (
        QueueEmptyError,
        StoreConnectionError,
        StoreOutcomeUnknownError,
        StoreTimeoutError,
    )

    try:
        match name:
            case "check":
                return "done", store.check([key]), ""
            case "queue_pop":
                return "done", store.queue_pop(key, False), ""
            case _:
                return "done", getattr(store, name)(key, *args), ""
    except QueueEmptyError:
        return "done", EMPTY, ""
    except StoreTimeoutError:
        return "not applied", None, ""  # the key of a `get` was not there all the time
    except StoreOutcomeUnknownError as exc:
        return "unknown", None, f"{type(exc).__name__}: {exc}"
    except StoreConnectionError as exc:
        # It says that it took no effect, and is taken at its word.
        return "not applied", None, f"{type(exc).__name__}: {exc}"
    except BaseException:
        return "unknown", None, traceback.format_exc()


def _run(
    name: str,
    endpoints: str,
    prefix: str,
    seed: int,
    threads: int,
    op_s: float,
    path: str,
    stop: Any,
) -> None:
    from torchetcd.etcd import Client
    from torchetcd.etcd_store import EtcdStore

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with (
        open(path, "ab", buffering=0) as file,
        Client(endpoints, read_timeout=op_s) as client,
        # A `get` of a key that nobody sets is given up sooner.
        EtcdStore(client, prefix, timedelta(seconds=op_s)) as store,
    ):

        def log(**entry: Any) -> None:
            file.write(json.dumps(entry).encode() + b"\n")

        def call(thread: int) -> None:
            script = _Script(store, f"{name}.{thread}", seed, log)
            while not stop.is_set():
                script.step()

        running = [threading.Thread(target=call, args=(n,)) for n in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
