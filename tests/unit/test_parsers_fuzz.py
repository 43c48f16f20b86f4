"""The parsers in Python, given whatever comes out of a generator: a value, or an error of theirs.

The seed of each run is in the name of a failed test, and `TORCHETCD_FUZZ_SEED` repeats it;
`TORCHETCD_FUZZ_CASES` runs more than the few thousand cases of a usual run.
"""

from __future__ import annotations

import os
import random
import socket
import string
from collections.abc import Callable
from typing import Any

import pytest

from torchetcd._endpoints import parse_addresses
from torchetcd._rendezvous import local_address, state_backend
from torchetcd._rendezvous.options import PARAMETERS, parse_options
from torchetcd._torchetcd import Client as NativeClient
from torchetcd._torchetcd import prefix_end
from torchetcd.etcd._exceptions import EtcdValueError
from torchetcd.etcd._results import decode, encode, is_marker
from torchetcd.etcd._transactions import Conditions, split_path

# The processes of a parallel run have to collect the same names: they share an id, which is new each time.
_RUN = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID"))
SEED = int(os.environ.get("TORCHETCD_FUZZ_SEED") or _RUN.randrange(1_000_000_000))
CASES = int(os.environ.get("TORCHETCD_FUZZ_CASES") or 3000)

_PARTS = [
    *("http://", "https://", "HTTPS://", "ftp://", "://", "//", ":", "::", "[", "]", "[::1]", ","),
    *("etcd", "10.0.0.1", "::1", "fe80::1", "%eth0", ":2379", ":0", ":65536", ":-1", ":+1", "/"),
    *("@", "?", "#", "a:b@", " ", "\t", "\n", "\0", "\x7f", "\u0661", "\u00fc", "\u2100", "\ud800"),
]


def text(rng: random.Random) -> str:
    """Pieces of endpoints, and of anything else."""
    kind = rng.randrange(4)
    if kind == 0:
        return "".join(rng.choices(string.printable, k=rng.randrange(12)))
    if kind == 1:
        return "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(8)))
    return "".join(rng.choices(_PARTS, k=rng.randrange(7)))


def anything(rng: random.Random) -> Any:
    numbers = [0, 1, -1, 2, 10, 1 << 63, 1 << 200, -(1 << 63), 0.5, -0.0]
    others = [float("nan"), float("inf"), None, True, False, b"", b"\xff", "", [], {}, object()]
    strings = ["1", "-1", "1.5", " 7 ", "1e3", "\u0661", "0x10", "9" * 5000, "http", "restart"]
    return rng.choice([*numbers, *others, *strings, text(rng)])


@pytest.fixture(params=[SEED])
def cases(request: pytest.FixtureRequest) -> list[random.Random]:
    return [random.Random(f"{request.param}-{number}") for number in range(CASES)]


def check(allowed: type[Exception], call: Callable[..., object], *args: object) -> Any:
    """Return the value, or `None` where there is an error that says something in few words."""
    try:
        return call(*args)
    except allowed as exc:
        said = str(exc)
    except BaseException as exc:
        pytest.fail(f"{type(exc).__name__}: {exc!s:.300} (seed {SEED}) of {args!r:.2000}")
    assert 0 < len(said) < 7000
    return None


class TestEndpoints:
    def test_of_the_client(self, cases: list[random.Random]) -> None:
        accepted = 0
        for rng in cases:
            host = text(rng)
            found = check(ValueError, parse_addresses, host, 2379, "http")
            for address in found or ():
                accepted += 1
                assert address.protocol in ("http", "https")
                assert address.host
                assert 0 <= address.port <= 65535
                assert parse_addresses(address.uri, 1, "https") == [address]
                # The native parser is stricter, and says so in one sentence too.
                check(ValueError, NativeClient, address.uri)
        assert accepted > 0

    def test_of_pairs(self, cases: list[random.Random]) -> None:
        for rng in cases:
            pairs = [(text(rng), anything(rng))]
            check(ValueError, parse_addresses, pairs, 2379, "http")

    def test_of_the_native_client(self, cases: list[random.Random]) -> None:
        for rng in cases:
            endpoints = text(rng)
            client = check(ValueError, NativeClient, endpoints)
            if client is not None:
                assert all(shown.startswith("http") for shown in client.endpoints)
                client.close()

    def test_of_the_backend(self, cases: list[random.Random]) -> None:
        for rng in cases:
            endpoint = text(rng)
            found = check(ValueError, state_backend._parse_endpoint, endpoint)
            assert found is None or (found[0] in ("", "http", "https") and 0 <= found[2] <= 65535)

    def test_of_the_local_address(
        self, cases: list[random.Random], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Never an error: it is a guess."""
        # Nothing is resolved: a name server would be asked for each of them.
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: [])
        for rng in cases:
            endpoint = text(rng)
            for address in parse_addresses_or_none(endpoint):
                assert local_address.local_address([address])


def parse_addresses_or_none(endpoint: str) -> list[str]:
    try:
        return [address.uri for address in parse_addresses(endpoint, 2379, "http")]
    except ValueError:
        return []


class TestParameters:
    def test_options(self, cases: list[random.Random]) -> None:
        names = [name for parameter in PARAMETERS for name in parameter.names]
        for rng in cases:
            chosen = rng.sample(names, rng.randrange(4))
            config = {name: anything(rng) for name in chosen}
            options = check(ValueError, parse_options, config)
            if options is not None:
                assert options.join_timeout >= 1
                assert options.keep_alive_ttl >= 2
                assert options.protocol in ("http", "https")


class TestKeys:
    def test_paths_and_values(self, cases: list[random.Random]) -> None:
        for rng in cases:
            data = rng.randbytes(rng.randrange(20))
            assert encode(decode(data)) == data
            key = decode(data).replace("\0", "/")
            path, base = split_path(key)
            assert base == path + b"/"
            assert base < prefix_end(base)
            assert base.startswith(b"/")
            marker = (data, data[:1], 1, 1, 1, 0)
            assert is_marker(marker) == (data.endswith(b"/") and not data[:1])

    def test_conditions(self, cases: list[random.Random]) -> None:
        for rng in cases:
            value, index = anything(rng), anything(rng)
            if isinstance(value, str) and "\ud800" in value:
                continue
            conditions = check(EtcdValueError, Conditions.of, value, index)
            if conditions is not None:
                assert conditions.index is None or isinstance(conditions.index, int)
                assert conditions.compares(b"/k") or not conditions.swaps
