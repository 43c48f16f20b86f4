"""Questions about runs that several commands have."""

from __future__ import annotations

from torchetcd._quorum.seen import Quorum, lack, look_at
from torchetcd.aio import Run, RunNotFoundError
from torchetcd.cli.exit_codes import NOT_FOUND, Failure
from torchetcd.cli.target import Target


async def list_runs(target: Target) -> list[Run]:
    """Ask for all runs below the prefix."""
    async with target.client() as client:
        return await client.list_runs(prefix=target.prefix)


async def describe(target: Target, run: str, *, leases: bool = False) -> Run:
    """Ask for a run.

    Raises:
        Failure: if there is none.
    """
    async with target.client() as client:
        try:
            return await client.describe(run, prefix=target.prefix, leases=leases)
        except RunNotFoundError:
            raise not_found(target, run) from None


def see_quorum(target: Target) -> Quorum | None:
    """Look at the quorum inside a job; `None` where etcd is elsewhere."""
    quorum = target.quorum
    if quorum is None:
        return None
    with quorum.client(target.timeout) as client:
        return look_at(client._native, quorum.entries, quorum.tls())


def check_majority(target: Target) -> None:
    """See at once whether the quorum inside a job can answer at all, before it is asked with more patience.

    Raises:
        Failure: if it has no majority: says which members are gone.
    """
    quorum = target.quorum
    if quorum is not None and (why := lack(quorum)):
        raise Failure(why)


def not_found(target: Target, run: str) -> Failure:
    """Say that there is no such run."""
    message = f"There is no run '{run}' below {target.prefix}: see `torchetcd runs`."
    return Failure(message, NOT_FOUND)
