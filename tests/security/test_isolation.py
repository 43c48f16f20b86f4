"""Runs and stores whose names are alike, or odd, never see each other."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousParameters,
)

from support.stores import opened
from torchetcd._key_names import LONGEST_RUN_ID
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_rendezvous_backend import EtcdRendezvousBackend, create_backend
from torchetcd.etcd_server import EtcdServer

COMPOSED = unicodedata.normalize("NFC", "h\u00e9")
DECOMPOSED = unicodedata.normalize("NFD", "h\u00e9")
LONG = "x" * 4096

PAIRS = [
    ("a", "ab"),
    ("a", "a/b"),
    ("a", "a/"),
    ("a", "/a"),
    ("a", "a "),
    ("a", " a"),
    ("a", "A"),
    ("a", "a\x00"),
    ("a", "a\n"),
    ("a", "a/rdzv/head"),
    ("a", "a/../a"),
    ("a/b", "a%2Fb"),
    ("a%2Fb", "a%252Fb"),
    ("a/b", "a//b"),
    ("a b", "a%20b"),
    ("a b", "a+b"),
    (".", ".."),
    (".", "./"),
    ("..", "../.."),
    ("", "none"),
    ("", "/"),
    ("", "run_"),
    ("none", "None"),
    (COMPOSED, DECOMPOSED),
    ("\u00e9", "%C3%A9"),
    ("\u2028", "\u2029"),
    ("\U0001f525", "\U0001f525\U0001f525"),
    (LONG, LONG[:-1]),
    (LONG, f"{LONG}/"),
    ("\u00e9" * 2048, "\u00e9" * 2047),
    ("/" * 4096, "/" * 4095),
    ("0", "00"),
    ("v_1", "v_1/kv"),
]


def _handler(endpoint: str, prefix: str, run_id: str, **config: Any) -> EtcdRendezvousHandler:
    defaults = {"etcd_prefix": prefix, "join_timeout": 30, "last_call_timeout": 0}
    return create_rdzv_handler(
        RendezvousParameters(
            "etcd-v3", endpoint, run_id, 1, 1, local_addr="127.0.0.1", **(defaults | config)
        )
    )


def _keys(client: Client, prefix: str) -> set[str]:
    """All keys that begin with this, whatever comes then."""
    end = prefix.encode()[:-1] + bytes([prefix.encode()[-1] + 1])
    get = ("get", prefix.encode(), end, 0, True, 0)
    (found,) = client._native.txn([], [get], [])[2]
    return {kv[0].decode() for kv in found[0]}


@pytest.mark.parametrize(("first_id", "second_id"), PAIRS, ids=range(len(PAIRS)))
def test_two_runs(
    etcd_server: EtcdServer, client: Client, prefix: str, first_id: str, second_id: str
) -> None:
    endpoint = etcd_server.get_endpoint()
    _side_by_side(
        client,
        _handler(endpoint, prefix, first_id),
        _handler(endpoint, prefix, second_id),
        f"{prefix}/",
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("/a", "/ab"),
        ("/a", "/a/b"),
        ("/a", "/A"),
        ("/a", "/a /"),
        ("/a", "/."),
        ("/a", "/a/.."),
        ("/a", "/a%2F"),
        ("/a/b", "/a//b"),
        (f"/{COMPOSED}", f"/{DECOMPOSED}"),
        (f"/{LONG}", f"/{LONG[1:]}"),
    ],
)
def test_two_prefixes(
    etcd_server: EtcdServer, client: Client, prefix: str, first: str, second: str
) -> None:
    endpoint = etcd_server.get_endpoint()
    _side_by_side(
        client,
        _handler(endpoint, f"{prefix}{first}", "run"),
        _handler(endpoint, f"{prefix}{second}", "run"),
        f"{prefix}/",
    )


def _side_by_side(
    client: Client, one: EtcdRendezvousHandler, two: EtcdRendezvousHandler, root: str
) -> None:
    paths = [handler._rdzv_impl.get_path("") for handler in (one, two)]
    # No key of one can be a key of the other.
    assert not paths[0].startswith(paths[1])
    assert not paths[1].startswith(paths[0])
    before = _keys(client, root)
    first = one.next_rendezvous()
    of_first = _keys(client, root) - before
    second = two.next_rendezvous()
    of_second = _keys(client, root) - before - of_first
    for mine, path in ((of_first, paths[0]), (of_second, paths[1])):
        assert mine
        assert all(key.startswith(path) for key in mine)
    # In one world they would be two.
    assert (first.rank, first.world_size) == (second.rank, second.world_size) == (0, 1)
    first.store.set("key", "first")
    assert not second.store.check(["key"])
    second.store.set("key", "second")
    assert first.store.get("key") == b"first"
    assert first.store.num_keys() == second.store.num_keys()
    # Nobody waits for a place in the other's world.
    assert (one.num_nodes_waiting(), two.num_nodes_waiting()) == (0, 0)
    assert one.shutdown()
    assert one.is_closed()
    assert not two.is_closed()
    assert two.next_rendezvous().rank == 0
    with pytest.raises(RendezvousClosedError):
        one.next_rendezvous()
    assert two.shutdown()


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}//", "/{}"])
def test_slashes_around_a_prefix_do_not_matter(
    etcd_server: EtcdServer, prefix: str, spelling: str
) -> None:
    endpoint = etcd_server.get_endpoint()
    one = _handler(endpoint, prefix, "run")
    one.set_closed()
    assert _handler(endpoint, spelling.format(prefix), "run").is_closed()


class TestRefused:
    """Before anything is sent: nobody listens there."""

    @pytest.mark.parametrize(
        ("run_id", "said"),
        [
            ("a\udcff", "must be text that UTF-8 can hold"),
            ("x" * (LONGEST_RUN_ID + 1), f"at most {LONGEST_RUN_ID} bytes"),
            ("/" * (LONGEST_RUN_ID // 3 + 1), f"at most {LONGEST_RUN_ID} bytes"),
        ],
    )
    @pytest.mark.parametrize("kind", ["handler", "backend"])
    def test_a_run_id(self, run_id: str, said: str, kind: str) -> None:
        make: Callable[[], object] = lambda: _handler("127.0.0.1:1", "/p", run_id)  # noqa: E731
        if kind == "backend":
            make = lambda: EtcdRendezvousBackend(Client("127.0.0.1:1"), run_id)  # noqa: E731
        with pytest.raises(ValueError, match=rf"^The run id[^\n]*{said}") as caught:
            make()
        assert len(str(caught.value)) < 300

    def test_a_prefix(self) -> None:
        with pytest.raises(ValueError, match=r"^The etcd prefix must be text"):
            _handler("127.0.0.1:1", "/p\udcff", "run")

    def test_the_longest_run_id(self, etcd_server: EtcdServer, prefix: str) -> None:
        handler = _handler(etcd_server.get_endpoint(), prefix, "x" * LONGEST_RUN_ID)
        with handler.next_rendezvous().store as store:
            store.set("key", "value")
            assert store.add("n", 1) == 1
        assert handler.shutdown()


@pytest.mark.parametrize(
    ("first", "second"), [pair for pair in PAIRS if "" not in pair], ids=lambda run: run[:9]
)
def test_two_states_of_the_backend(client: Client, prefix: str, first: str, second: str) -> None:
    one = EtcdRendezvousBackend(client, first, prefix)
    two = EtcdRendezvousBackend(client, second, prefix)
    assert two.set_state(b"second") is not None
    assert one.get_state() is None
    done = one.set_state(b"first")
    assert done is not None
    assert done[2]
    found = two.get_state()
    assert found is not None
    assert found[0] == b"second"


def test_the_backend_of_an_odd_run_id(etcd_server: EtcdServer, prefix: str) -> None:
    for run_id in (f"{prefix}/..", f"{prefix}/a b", f"{prefix}/\u00e9", f"{prefix}/"):
        params = RendezvousParameters("etcd-v3", etcd_server.get_endpoint(), run_id, 1, 1)
        backend, _ = create_backend(params)
        assert backend.set_state(b"x") is not None


class TestStores:
    @pytest.mark.parametrize(
        ("first", "second"),
        [("p", "p2"), ("p", "P"), ("p", "p "), ("p", "p."), (COMPOSED, DECOMPOSED), ("p", LONG)],
    )
    def test_two_prefixes(self, client: Client, prefix: str, first: str, second: str) -> None:
        with (
            opened(client, f"{prefix}/{first}") as one,
            opened(client, f"{prefix}/{second}") as two,
        ):
            _two_stores(one, two)

    @pytest.mark.parametrize(
        ("first", "second"), [("p", "p2"), ("p", "p/q"), ("p", "p//"), ("", "p")]
    )
    def test_two_prefix_stores(self, client: Client, prefix: str, first: str, second: str) -> None:
        with opened(client, prefix) as store:
            _two_stores(
                dist.PrefixStore(first, store), dist.PrefixStore(second, store), counts=False
            )

    @pytest.mark.parametrize(
        "pair",
        [
            ("a", "a/b"),
            ("a", "ab"),
            ("", "a"),
            ("a/b", "a%2Fb"),
            (COMPOSED, DECOMPOSED),
            (".", ".."),
            (LONG, LONG[1:]),
            ("a", "a/"),
            ("abc", "abc\xff"),
            (".op/", ".add/"),
        ],
        ids=range(10),
    )
    def test_two_keys(self, client: Client, prefix: str, pair: tuple[str, str]) -> None:
        one, two = pair
        with opened(client, prefix) as store:
            store.set(one, "one")
            assert not store.check([two])
            assert store.add(two, 5) == 5
            assert store.get(one) == b"one"
            store.queue_push(one, "queued")
            assert store.queue_len(two) == 0
            assert set(store.list_keys()) == {one, two}
            assert store.delete_key(one)
            assert store.get(two) == b"5"


def _two_stores(one: Any, two: Any, *, counts: bool = True) -> None:
    one.set("key", "one")
    assert not two.check(["key"])
    assert two.add("key", 1) == 1
    assert one.get("key") == b"one"
    if counts:
        assert (one.num_keys(), two.num_keys()) == (1, 1)
        assert one.list_keys() == two.list_keys() == ["key"]
        # torch's PrefixStore has no queues.
        one.queue_push("queue", "value")
        assert two.queue_len("queue") == 0
    assert one.delete_key("key")
    assert two.get("key") == b"1"
