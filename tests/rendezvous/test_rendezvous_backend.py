"""`EtcdRendezvousBackend` and `create_backend`, alone and under PyTorch's dynamic handler."""

from __future__ import annotations

import os
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, cast

import pytest
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousStateError,
)
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import Token, create_handler

from support.handlers import set_state
from support.network.proxy import Proxy
from support.waiting import eventually
from torchetcd.etcd import Client, EtcdAmbiguous
from torchetcd.etcd_rendezvous_backend import EtcdRendezvousBackend, create_backend
from torchetcd.etcd_server import EtcdServer
from torchetcd.etcd_store import EtcdStore

_CONNECTION_FAILED = r"^The connection to etcd has failed. See inner exception for details.$"


class TestState:
    def test_name(self, backend: EtcdRendezvousBackend) -> None:
        assert backend.name == "etcd-v2"

    def test_absent(self, backend: EtcdRendezvousBackend) -> None:
        assert backend.get_state() is None

    @pytest.mark.parametrize("state", [b"x", b"", bytes(range(256)), b"y" * 1_000_000])
    def test_it_comes_back(self, backend: EtcdRendezvousBackend, state: bytes) -> None:
        _, token, has_set = set_state(backend, state)
        assert has_set
        assert backend.get_state() == (state, token)

    def test_set_where_none_is(self, backend: EtcdRendezvousBackend) -> None:
        state, token, has_set = set_state(backend, b"x")
        assert (state, has_set) == (b"x", True)
        assert token is not None

    def test_set_with_the_current_token(self, backend: EtcdRendezvousBackend) -> None:
        _, first, _ = set_state(backend, b"x")
        state, second, has_set = set_state(backend, b"y", first)
        assert (state, has_set) == (b"y", True)
        assert second != first

    def test_set_with_an_old_token(self, backend: EtcdRendezvousBackend) -> None:
        _, first, _ = set_state(backend, b"x")
        _, second, _ = set_state(backend, b"y", first)
        assert set_state(backend, b"z", first) == (b"y", second, False)
        assert set_state(backend, b"z", cast("int", first) - 1) == (b"y", second, False)

    @pytest.mark.parametrize("token", [None, "invalid", object(), 0, ""])
    def test_set_without_a_token(self, backend: EtcdRendezvousBackend, token: object) -> None:
        _, first, _ = set_state(backend, b"x")
        assert set_state(backend, b"y", token) == (b"x", first, False)

    def test_a_token_may_be_text(self, backend: EtcdRendezvousBackend) -> None:
        _, first, _ = set_state(backend, b"x")
        assert set_state(backend, b"y", str(first))[2]

    @pytest.mark.parametrize("token", [5, "invalid"])
    def test_set_with_a_token_where_none_is(
        self, backend: EtcdRendezvousBackend, token: Token
    ) -> None:
        # PyTorch's handler takes this for a state that is gone, and starts anew.
        assert backend.set_state(b"x", token) is None
        assert set_state(backend, b"x")[2]

    @pytest.mark.parametrize("value", ["non_base64", "é€é€", b"\xff\xff\xff\xff", "abc"])
    def test_corrupt(
        self, backend: EtcdRendezvousBackend, client: Client, prefix: str, value: object
    ) -> None:
        client.write(f"{prefix}/run", value)
        with pytest.raises(RendezvousStateError, match="corrupt"):
            backend.get_state()
        with pytest.raises(RendezvousStateError, match="corrupt"):
            backend.set_state(b"x")

    def test_a_directory_in_its_place(
        self, backend: EtcdRendezvousBackend, client: Client, prefix: str
    ) -> None:
        client.write(f"{prefix}/run/other", "x")
        with pytest.raises(RendezvousStateError, match="directory"):
            backend.get_state()

    def test_many_nodes_and_one_winner(self, etcd_server: EtcdServer, prefix: str) -> None:
        start = threading.Barrier(8)

        def node(number: int) -> tuple[bytes, Token, bool]:
            with etcd_server.get_client() as client:
                mine = EtcdRendezvousBackend(client, "run", prefix)
                start.wait()
                return set_state(mine, str(number).encode())

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(node, range(8)))
        assert len({(state, token) for state, token, _ in results}) == 1
        assert sum(has_set for _, _, has_set in results) == 1

    def test_the_run_id_is_needed(self, client: Client) -> None:
        with pytest.raises(ValueError, match=r"^The run id must be a non-empty string\.$"):
            EtcdRendezvousBackend(client, "")

    def test_the_key_is_the_run_id_without_a_prefix(self, client: Client, prefix: str) -> None:
        EtcdRendezvousBackend(client, prefix[1:]).set_state(b"x")
        assert client.get(prefix).value == b64encode(b"x").decode()

    @pytest.mark.needs_etcd
    def test_no_etcd(self, prefix: str) -> None:
        with EtcdServer() as server:
            client = server.get_client(read_timeout=0.5)
        with client:
            backend = EtcdRendezvousBackend(client, "run", prefix)
            with pytest.raises(RendezvousConnectionError, match=_CONNECTION_FAILED) as caught:
                backend.get_state()
            assert caught.value.__cause__ is not None
            with pytest.raises(RendezvousConnectionError, match=_CONNECTION_FAILED):
                backend.set_state(b"x")


class TestTtl:
    @pytest.mark.parametrize(("given", "ttl"), [(None, 7200), (0, 7200), (-1, 7200), (100, 100)])
    def test_ttl(self, client: Client, prefix: str, given: int | None, ttl: int) -> None:
        EtcdRendezvousBackend(client, "run", prefix, given).set_state(b"x")
        left = client.get(f"{prefix}/run").ttl
        assert left is not None
        assert ttl - 5 < left <= ttl

    def test_one_lease_for_all_writes(self, client: Client, prefix: str) -> None:
        backend = EtcdRendezvousBackend(client, "run", prefix, ttl=100)
        token = None
        leases = set()
        for number in range(5):
            _, token, has_set = set_state(backend, str(number).encode(), token)
            assert has_set
            leases.add(client.get(f"{prefix}/run").lease)
        assert len(leases) == 1

    def test_setting_renews_it(
        self, client: Client, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend = EtcdRendezvousBackend(client, "run", prefix, ttl=3)
        _, token, _ = set_state(backend, b"x")
        pause = threading.Event()
        for _ in range(2):
            pause.wait(2)
            _, token, has_set = set_state(backend, b"x", token)
            assert has_set
        # And it is gone when nobody sets it: the change is seen, not slept for.
        index = cast("int", token) + 1
        assert client.watch(f"{prefix}/run", index=index, timeout=20).action == "delete"
        # The lease is gone, too. The next write must notice.
        monkeypatch.setattr(backend, "_lease_renewed", time.monotonic() + 1000)
        assert set_state(backend, b"y")[2]
        assert client.get(f"{prefix}/run").ttl is not None

    def test_another_nodes_write_takes_it_over(
        self, client: Client, etcd_server: EtcdServer, prefix: str
    ) -> None:
        _, token, _ = set_state(EtcdRendezvousBackend(client, "run", prefix, ttl=2), b"x")
        lease = client.get(f"{prefix}/run").lease
        with etcd_server.get_client() as other:
            set_state(EtcdRendezvousBackend(other, "run", prefix, ttl=100), b"y", token)
        eventually(lambda: client._native.lease_time_to_live(lease)[0] < 0)
        assert client.get(f"{prefix}/run").value == b64encode(b"y").decode()

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_a_forked_child_has_its_own_lease(
        self, backend: EtcdRendezvousBackend, client: Client, prefix: str
    ) -> None:
        _, token, _ = set_state(backend, b"parent")
        before = client.get(f"{prefix}/run").lease
        child = os.fork()
        if child == 0:
            try:
                set_state(backend, b"child", token)
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        after = client.get(f"{prefix}/run")
        assert after.value == b64encode(b"child").decode()
        assert after.lease != before


@pytest.fixture
def proxy(etcd_server: EtcdServer) -> Iterator[Proxy]:
    made = Proxy(etcd_server.get_port())
    yield made
    made.close()


class TestLostAnswers:
    @pytest.fixture
    def proxied(self, proxy: Proxy, prefix: str) -> Iterator[EtcdRendezvousBackend]:
        with Client("127.0.0.1", proxy.port, read_timeout=10) as client:
            yield EtcdRendezvousBackend(client, "run", prefix)

    @pytest.mark.parametrize("exists", [False, True])
    def test_the_write_took_effect(
        self,
        exists: bool,
        proxied: EtcdRendezvousBackend,
        backend: EtcdRendezvousBackend,
        proxy: Proxy,
    ) -> None:
        token = set_state(proxied, b"before")[1] if exists else None
        applied = _states(backend, b"after")
        proxy.break_at(b64encode(b"after"), forward=True, then=lambda: eventually(applied))
        state, after, has_set = set_state(proxied, b"after", token)
        assert proxy.broken == 1
        assert (state, has_set) == (b"after", True)
        assert backend.get_state() == (b"after", after)
        # Written once: nothing came between the two.
        if token is not None:
            assert after == cast("int", token) + 1

    @pytest.mark.parametrize("exists", [False, True])
    def test_the_write_never_arrived(
        self,
        exists: bool,
        proxied: EtcdRendezvousBackend,
        backend: EtcdRendezvousBackend,
        proxy: Proxy,
    ) -> None:
        token = set_state(proxied, b"before")[1] if exists else None
        proxy.break_at(b64encode(b"after"), forward=False)
        state, after, has_set = set_state(proxied, b"after", token)
        assert proxy.broken == 1
        assert (state, has_set) == (b"after", True)
        assert backend.get_state() == (b"after", after)

    @pytest.mark.parametrize("forward", [False, True])
    @pytest.mark.parametrize("exists", [False, True])
    def test_somebody_else_wrote_meanwhile(
        self,
        exists: bool,
        forward: bool,
        proxied: EtcdRendezvousBackend,
        backend: EtcdRendezvousBackend,
        proxy: Proxy,
    ) -> None:
        token = set_state(proxied, b"before")[1] if exists else None

        def meddle() -> None:
            if forward:
                eventually(_states(backend, b"mine"))
            found = backend.get_state()
            assert set_state(backend, b"theirs", found and found[1])[2]

        proxy.break_at(b64encode(b"mine"), forward=forward, then=meddle)
        state, after, has_set = set_state(proxied, b"mine", token)
        assert proxy.broken == 1
        assert (state, has_set) == (b"theirs", False)
        assert backend.get_state() == (b"theirs", after)

    def test_the_same_state_by_somebody_else_is_not_taken_for_ours(
        self, proxied: EtcdRendezvousBackend, backend: EtcdRendezvousBackend, proxy: Proxy
    ) -> None:
        proxy.break_at(b64encode(b"same"), forward=False, then=lambda: backend.set_state(b"same"))
        state, _, has_set = set_state(proxied, b"same")
        assert (state, has_set) == (b"same", False)

    def test_the_client_itself_says_that_it_does_not_know(self, proxy: Proxy, prefix: str) -> None:
        with Client("127.0.0.1", proxy.port, read_timeout=10) as client:
            client.read("/")
            proxy.break_at(b"a value", forward=False)
            with pytest.raises(EtcdAmbiguous):
                client.write(prefix, "a value")
            assert prefix not in client


def _states(backend: EtcdRendezvousBackend, state: bytes) -> Callable[[], bool]:
    """Say whether the backend has this state."""

    def look() -> bool:
        found = backend.get_state()
        return found is not None and found[0] == state

    return look


@pytest.fixture
def params(etcd_server: EtcdServer, prefix: str) -> RendezvousParameters:
    return RendezvousParameters(
        backend="etcd-v2",
        endpoint=etcd_server.get_endpoint(),
        run_id=prefix[1:],
        min_nodes=1,
        max_nodes=1,
        protocol="hTTp",
        read_timeout="10",
    )


class TestCreateBackend:
    def _check(self, params: RendezvousParameters, client: Client, read_timeout: int) -> None:
        backend, store = create_backend(params)
        assert backend.name == "etcd-v2"
        assert isinstance(store, EtcdStore)
        assert cast("Any", store).client.read_timeout == read_timeout
        backend.set_state(b"a state")
        found = client.get(f"/torch/elastic/rendezvous/{params.run_id}")
        assert found.value == b64encode(b"a state").decode()
        assert found.ttl is not None
        assert found.ttl <= 7200
        cast("Any", store).set(params.run_id, "a value")
        key = b64encode(params.run_id.encode()).decode()
        found = client.get(f"/torch/elastic/store/{key}")
        assert found.value == b64encode(b"a value").decode()

    def test_backend_and_store(self, params: RendezvousParameters, client: Client) -> None:
        self._check(params, client, 10)

    def test_without_protocol(self, params: RendezvousParameters, client: Client) -> None:
        del params.config["protocol"]
        self._check(params, client, 10)

    def test_without_read_timeout(self, params: RendezvousParameters, client: Client) -> None:
        del params.config["read_timeout"]
        self._check(params, client, 60)

    def test_several_endpoints(self, params: RendezvousParameters, client: Client) -> None:
        good = params.endpoint
        params.endpoint = f"http://127.0.0.1:1, {good} ,http://{good}/"
        self._check(params, client, 10)

    @pytest.mark.parametrize(
        ("endpoint", "uris"),
        [
            ("", ["http://localhost:2379"]),
            ("h", ["http://h:2379"]),
            ("[::1]:5", ["http://[::1]:5"]),
            ("h1:1,h2", ["http://h1:1", "http://h2:2379"]),
            ("https://h:1", ["https://h:1"]),
        ],
    )
    def test_endpoints(
        self,
        params: RendezvousParameters,
        monkeypatch: pytest.MonkeyPatch,
        endpoint: str,
        uris: list[str],
    ) -> None:
        monkeypatch.setattr(Client, "_members", lambda _self, _timeout: [])
        params.endpoint = endpoint
        backend, _ = create_backend(params)
        assert backend._client.endpoints == uris

    def test_unreachable(self, params: RendezvousParameters) -> None:
        params.endpoint = "dummy:1234"
        with pytest.raises(RendezvousConnectionError, match=_CONNECTION_FAILED) as caught:
            create_backend(params)
        assert "dummy:1234" in str(caught.value.__cause__)

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("protocol", "dummy", r"^The protocol must be HTTP or HTTPS.$"),
            ("read_timeout", "0", r"^The read timeout must be a positive integer.$"),
            ("read_timeout", "-10", r"^The read timeout must be a positive integer.$"),
            ("read_timeout", "soon", "integer"),
            ("ssl_cert_key", "/key", "ssl_cert"),
            ("user", "somebody", "password"),
            ("password", "secret", "user"),
            ("ca_cert", "/nowhere/ca.pem", "/nowhere/ca.pem"),
        ],
    )
    def test_bad_options(
        self, params: RendezvousParameters, option: str, value: str, message: str
    ) -> None:
        params.config[option] = value
        if option == "ca_cert":
            params.config["protocol"] = "https"
        with pytest.raises(ValueError, match=message):
            create_backend(params)

    @pytest.mark.parametrize("endpoint", ["h:port", "h:99999", "ftp://h:1", "h_/?:1", "h1,h2:x"])
    def test_bad_endpoints(self, params: RendezvousParameters, endpoint: str) -> None:
        params.endpoint = endpoint
        with pytest.raises(ValueError, match="rendezvous endpoint"):
            create_backend(params)

    def test_a_get_waits_for_a_key_that_is_set_later(self, params: RendezvousParameters) -> None:
        backend, store = create_backend(params)
        backend.set_state(b"a state")
        key = f"{params.run_id}/{RendezvousStoreInfo.MASTER_ADDR_KEY}"

        def get() -> tuple[bytes, float]:
            start = time.monotonic()
            return cast("Any", store).get(key), time.monotonic() - start

        with ThreadPoolExecutor(1) as pool:
            got = pool.submit(get)
            assert not threading.Event().wait(2)
            assert not got.done()
            cast("Any", store).set(key, b"foo")
            value, waited = got.result(10)
        assert value == b"foo"
        assert 1.9 < waited < 5


class TestDynamicHandler:
    """PyTorch's own handler on this backend."""

    @pytest.mark.parametrize("nodes", [1, 2, 8])
    def test_a_world_forms(self, params: RendezvousParameters, nodes: int) -> None:
        params.min_nodes = params.max_nodes = nodes
        params.config.update(join_timeout=60, last_call_timeout=1)
        formed = threading.Barrier(nodes)

        def node(_number: int) -> tuple[int, int, bytes]:
            backend, store = create_backend(params)
            handler = create_handler(store, backend, params)
            try:
                info = handler.next_rendezvous()
                info.store.set(f"rank{info.rank}", str(info.rank))
                last = f"rank{info.world_size - 1}"
                info.store.wait([last], timedelta(seconds=20))
                value = info.store.get(last)
                formed.wait(60)
                assert not handler.is_closed()
                assert handler.num_nodes_waiting() == 0
                formed.wait(60)
            finally:
                handler.shutdown()
            return info.rank, info.world_size, value

        with ThreadPoolExecutor(nodes) as pool:
            results = list(pool.map(node, range(nodes)))
        assert sorted(rank for rank, _, _ in results) == list(range(nodes))
        assert {world for _, world, _ in results} == {nodes}
        assert {value for _, _, value in results} == {str(nodes - 1).encode()}

    def test_a_late_node_is_seen(
        self, params: RendezvousParameters, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # PyTorch's handler keeps the address of the first round's store, so that a world that grows
        # from one node waits for ever unless this is set.
        monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        params.min_nodes, params.max_nodes = 1, 2
        params.config.update(join_timeout=60, last_call_timeout=1, keep_alive_interval=1)
        handlers = [
            create_handler(store, backend, params)
            for backend, store in (create_backend(params) for _ in range(2))
        ]
        first, second = handlers
        with ThreadPoolExecutor(2) as pool:
            try:
                assert first.next_rendezvous().world_size == 1
                late = pool.submit(second.next_rendezvous)
                eventually(lambda: first.num_nodes_waiting() == 1, timeout=20)
                early = pool.submit(first.next_rendezvous)
                infos = [late.result(60), early.result(60)]
                assert {info.world_size for info in infos} == {2}
                assert {info.rank for info in infos} == {0, 1}
            finally:
                for handler in handlers:
                    handler.shutdown()
