"""Which process the description of a worker store is for. Nothing heavy: it runs in `import torch`.

The description is inherited by all that a worker starts, so it must say whose it is. The agent cannot: it
writes it before there is a worker, and may start a shell that starts the worker. So the first process on
the way from the agent that imports torch writes its own name into it. What it starts inherits another's name.
"""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

from torchetcd import _environment

WORKER_STORE = _environment.WORKER_STORE.name


def this_process() -> str:
    """Return a name that no other process has, and that is kept by `exec`."""
    # A number is given again, also in another container; with the time of its start it is not.
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:
            began = stat.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        began = ""
    return f"{os.getpid()}@{began}"


def claim() -> None:
    """Make the description that this process has inherited its own, unless somebody else has done so.

    It never fails: what is wrong with a description is told when it is used.
    """
    try:
        told = json.loads(os.environ.get(WORKER_STORE, ""))
        owner, agent = told["worker"], told["agent"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    here = this_process()
    # The agent's own is for the workers that it goes on to start.
    if owner is None and agent != here:
        told["worker"] = owner = here
    # A worker that is a function learns its place only after it has started.
    if owner == here and told.get("world_size") is None and in_round(told):
        told["world_size"] = os.environ.get("WORLD_SIZE")
    if owner == here:
        os.environ[WORKER_STORE] = json.dumps(told)


def forget(run_id: str) -> None:
    """Let the workers of this run use a TCPStore, whatever an agent around this one has said."""
    try:
        told = json.loads(os.environ.get(WORKER_STORE, ""))["run_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        # It is for the worker to complain of.
        return
    if told == run_id:
        del os.environ[WORKER_STORE]


def in_round(told: dict[str, Any]) -> bool:
    """Return whether the environment is what the agents of the described round give to workers."""
    return (
        os.environ.get("TORCHELASTIC_RUN_ID") == told.get("run_id")
        # Then an agent of another kind has started this process, and serves a TCPStore.
        and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        # Whoever sets another address means it.
        and os.environ.get("MASTER_ADDR") == told.get("master_addr")
        and os.environ.get("MASTER_PORT") == told.get("master_port")
        # A world is not smaller than the part of it that has the worker's role.
        and not _number("WORLD_SIZE") < _number("ROLE_WORLD_SIZE")
    )


def _number(name: str) -> float:
    text = os.environ.get(name, "")
    # What is not said is not compared.
    return int(text) if text.isdecimal() else math.nan


def from_forkserver() -> bool:
    """Return whether a fork server has started this process: it has the environment of an earlier time."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    parent = multiprocessing.parent_process() if multiprocessing else None
    return parent is not None and parent.pid != os.getppid()
