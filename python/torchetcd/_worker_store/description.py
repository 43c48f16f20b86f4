"""How an agent describes a round's store to the workers that it starts.

The description is an environment variable, which workers inherit whatever starts them (torch
`subprocess_handler.py` and `multiprocessing/api.py` both begin with the agent's environment). A restart
is a new round, and a new round's description replaces the last one before its workers start.
"""

from __future__ import annotations

import json
import os

from torchetcd._worker_store.process import WORKER_STORE

_VERSION = 3


class StoreDescription:
    """Where a round's store for workers is. Never with a password: workers find it as agents do."""

    run_id: str
    round: int
    endpoints: list[str]
    #: The id of etcd's cluster, where the agent knows which one it must be.
    cluster_id: str | None
    prefix: str
    lease: int
    user: str | None
    #: Where workers read the password, if it is not in the environment.
    password_file: str | None
    ca_cert: str | None
    ssl_cert: str | None
    ssl_cert_key: str | None
    read_timeout: float
    #: What torch's agents give to workers of this round.
    master_addr: str
    master_port: str
    #: The process that wrote it, and the one that it is for (`process.py`).
    agent: str
    worker: str | None
    #: As the worker was told. The agent did not know it yet.
    world_size: str | None

    def __init__(self, **fields: object) -> None:
        # No NamedTuple: every agent imports this, and the class of one takes a millisecond to make.
        if fields.keys() != StoreDescription.__annotations__.keys():
            message = f"a description has the fields {', '.join(StoreDescription.__annotations__)}"
            raise TypeError(message)
        vars(self).update(fields)


def write_description(description: StoreDescription) -> None:
    """Put a description into the environment."""
    os.environ[WORKER_STORE] = json.dumps({"v": _VERSION, **vars(description)})


def read_description() -> StoreDescription:
    """Read the description in the environment.

    Raises:
        ValueError: if it cannot be read.
    """
    text = os.environ.get(WORKER_STORE, "")
    try:
        told = json.loads(text)
        version = told.pop("v")
        described = StoreDescription(**told) if version == _VERSION else None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as exc:
        message = f"{WORKER_STORE} is no description of a store, but {text[:80]!r}: unset it."
        raise ValueError(message) from exc
    if described is None:
        message = (
            f"{WORKER_STORE} is of version {version!r}, which this torchetcd does not know: agents and "
            "workers need the same version of it."
        )
        raise ValueError(message)
    return described
