"""A run as it changes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from torchetcd._run_model import Event, LastCall, Snapshot
from torchetcd.aio._changes import Follower, by_revision
from torchetcd.aio._raw_client import RawClient
from torchetcd.aio._reading import ask_last_call, read_view
from torchetcd.aio._run_keys import RunKeys
from torchetcd.aio._run_view import RunView
from torchetcd.etcd import EtcdEventIndexCleared


async def watch_run(raw: RawClient, keys: RunKeys) -> AsyncGenerator[Event, None]:
    """Tell what a run is, and then what happens in it."""
    while True:
        # From now on, and what is there is read then: nothing is missed in between.
        watch = raw.watch(keys.start, keys.end)
        try:
            await anext(watch)
            view = await read_view(raw, keys)
            await ask_last_call(raw, view)
            now = time.time()
            yield Snapshot(revision=view.revision, at=now, run=view.run(now))
            follower, read_at = Follower(view), view.revision
            async for batch in watch:
                for revision, changes in by_revision(batch.events):
                    if revision <= read_at:
                        continue
                    for event in follower.follow(revision, changes):
                        yield await _with_clock(raw, view, event)
        except EtcdEventIndexCleared:
            # Compaction removed events that this had not seen, or etcd has another history: start again.
            continue
        finally:
            watch.close()


async def _with_clock(raw: RawClient, view: RunView, event: Event) -> Event:
    """Have the run of a last call tell how long it takes, as all later ones do then."""
    if not isinstance(event, LastCall):
        return event
    await ask_last_call(raw, view)
    return LastCall(revision=event.revision, at=event.at, run=view.run(event.at), begun=event.begun)
