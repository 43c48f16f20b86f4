"""A transaction that only reads goes on when nobody waits for it: its cancellation makes etcd 3.5.1 panic."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from torchetcd.aio import RawClient
from torchetcd.etcd import Client, EtcdException
from torchetcd.etcd_server import EtcdServer

pytestmark = pytest.mark.needs_etcd

# Much to read, so that a cancellation comes in the middle.
KEYS, SIZE = 400, 20_000
TRIES = 30
READ = [("get", b"/x/", b"/x0", 0, False, 0)] * 4


class _StopError(Exception):
    """Raised by the signal's handler."""


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        client = server.get_client()
        for number in range(KEYS):
            client.set(f"/x/{number}", "y" * SIZE)
        yield server


def _moments() -> Iterator[float]:
    """Give times in seconds, all within what a read takes."""
    return itertools.islice(itertools.cycle((0.001, 0.004, 0.009, 0.016, 0.025)), TRIES)


def _by_asyncio(client: Client) -> None:
    async def cancel() -> None:
        raw = RawClient(client)
        for moment in _moments():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(raw.txn([], READ, []), moment)

    asyncio.run(cancel())


def _by_a_deadline(client: Client) -> None:
    for moment in _moments():
        with pytest.raises(EtcdException):
            client._txn([], READ, [], moment)


def _read_until_stopped(client: Client, stop: threading.Timer) -> None:
    stop.start()
    while True:
        client._txn([], READ, [])


def _by_a_signal(client: Client) -> None:
    def stop(*_args: object) -> None:
        raise _StopError

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        for moment in _moments():
            main = threading.main_thread().ident
            assert main
            timer = threading.Timer(moment, signal.pthread_kill, (main, signal.SIGUSR1))
            with pytest.raises(_StopError):
                _read_until_stopped(client, timer)
            timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.slow(20)
@pytest.mark.parametrize("cancel", [_by_asyncio, _by_a_deadline, _by_a_signal])
def test_etcd_lives(server: EtcdServer, cancel: Callable[[Client], None]) -> None:
    with server.get_client() as client:
        cancel(client)
    with server.get_client() as client:
        assert "/x/0" in client
