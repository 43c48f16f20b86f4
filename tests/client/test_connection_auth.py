"""Users and passwords: what a user may do, tokens that end, and what is said to who may not."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters

from support.etcd.metrics import metric, watchers, watchers_left
from support.etcd.users import CHEAP, Users, jwt_option
from support.network.proxy import Proxy
from support.processes.nodes import Run, join_all, keys_below
from support.stores import in_background, opened
from support.waiting import eventually
from torchetcd import metrics
from torchetcd.etcd import Client, EtcdConnectionFailed, EtcdInsufficientPermissions
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_server import EtcdServer
from torchetcd.etcd_store import StoreError

pytestmark = pytest.mark.needs_etcd

USER, PASSWORD = "trainer", "open-sesame"
# The user's role ends here.
MINE = "/mine/"
TOKEN_TTL_S = 1


class Secured:
    """A server with authentication and a user of it."""

    def __init__(self, server: EtcdServer) -> None:
        self.server = server
        self.endpoint = server.get_endpoint()
        self.users = Users(server)
        self.users.add(USER, PASSWORD, prefix=MINE)

    def client(self, user: str | None = USER, password: str | None = PASSWORD) -> Client:
        return self.server.get_client(username=user, password=password)

    def handler(self, prefix: str, **config: Any) -> EtcdRendezvousHandler:
        defaults = {
            "etcd_prefix": prefix,
            "user": USER,
            "password": PASSWORD,
            "join_timeout": 30,
            "read_timeout": 10,
        }
        return create_rdzv_handler(
            RendezvousParameters(
                "etcd-v3", self.endpoint, "run", 1, 1, local_addr="127.0.0.1", **(defaults | config)
            )
        )

    def spoil_tokens(self) -> None:
        """Make the user's tokens invalid: simple ones by this, JWTs by any change of the users."""
        self.users.change_password(USER, PASSWORD)


@pytest.fixture(scope="module", params=["simple", "jwt"])
def secured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    """Run a server with tokens of this kind, which live shortly."""
    option = f"--auth-token-ttl={TOKEN_TTL_S}"
    if request.param == "jwt":
        option = jwt_option(tmp_path_factory.mktemp("jwt"), TOKEN_TTL_S)
    with EtcdServer(extra_args=[CHEAP, option]) as server:
        yield Secured(server)


@pytest.fixture
def client(secured: Secured) -> Iterator[Client]:
    """Provide a client of the user."""
    with secured.client() as made:
        yield made


@pytest.fixture
def prefix() -> str:
    """Provide a directory of the user's that no other test uses."""
    return f"{MINE}{uuid.uuid4().hex}"


def _lasts(lifetimes: float) -> None:
    # Nothing announces the end of a token, and to try one prolongs it. etcd looks once a second.
    threading.Event().wait(lifetimes * TOKEN_TTL_S + 1)


def _await_joined(secured: Secured, prefix: str) -> None:
    """Wait until a node is in the barrier, which watches before it joins."""
    with secured.client() as reader:
        eventually(lambda: any("/join/" in key for key in keys_below(reader, prefix)))


class TestUser:
    def test_keys(self, client: Client, secured: Secured, prefix: str) -> None:
        index = client.write(prefix, "one", ttl=60).modifiedIndex
        assert client.read(prefix).ttl > 0
        assert client.watch(prefix, index=index, timeout=10).value == "one"
        client.delete(prefix)

    def test_the_cluster(self, client: Client, secured: Secured) -> None:
        assert client.version.count(".") == 2
        assert client.machines == [f"http://{secured.endpoint}"]

    def test_store(self, client: Client, prefix: str) -> None:
        with opened(client, prefix) as store:
            setter = in_background(lambda: store.set("late", "value"), after=0.1)
            assert store.get("late") == b"value"
            setter.join()
            assert [store.add("counter", 2) for _ in range(3)] == [2, 4, 6]
            assert store.num_keys() == 2

    def test_rendezvous(self, secured: Secured, prefix: str) -> None:
        _one_round(secured.handler(prefix))

    def test_rendezvous_by_environment(
        self, secured: Secured, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHETCD_USER", USER)
        monkeypatch.setenv("TORCHETCD_PASSWORD", PASSWORD)
        _one_round(secured.handler(prefix, user=None, password=None))

    def test_two_nodes(self, client: Client, secured: Secured, prefix: str) -> None:
        with Run(secured.endpoint, client) as run:
            first, second = run.nodes(2, user=USER, password=PASSWORD, etcd_prefix=prefix)
            first.start("join")
            second.start("join")
            assert {first.finish().rank, second.finish().rank} == {0, 1}
            first.start("store_get", "key")
            second.call("store_set", "key", "value")
            assert first.finish() == b"value"


class TestRefused:
    """Each refusal is one sentence, names the endpoint and the user, and no password."""

    def _said(self, secured: Secured, error: type[Exception], call: Callable[[], object]) -> str:
        with pytest.raises(error, match=f"^[^\n]*http://{secured.endpoint}[^\n]*$") as caught:
            call()
        shown = f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
        assert "sesame" not in shown
        return str(caught.value)

    @pytest.mark.parametrize(("user", "password"), [(USER, "wrong sesame"), ("nobody", PASSWORD)])
    def test_who_cannot_log_in(
        self, secured: Secured, prefix: str, user: str, password: str
    ) -> None:
        with secured.client(user, password) as client, opened(client, prefix) as store:
            for error, call in (
                (EtcdInsufficientPermissions, lambda: client.write(prefix, "x")),
                (EtcdInsufficientPermissions, lambda: client.watch(prefix, timeout=10)),
                (EtcdInsufficientPermissions, lambda: client.version),
                (StoreError, lambda: store.set("x", "y")),
                (StoreError, lambda: store.get("x")),
                (
                    RendezvousConnectionError,
                    lambda: secured.handler(prefix, user=user, password=password),
                ),
            ):
                text = self._said(secured, error, call)
                assert "invalid user ID or password" in text
                assert f"(user '{user}')" in text

    def test_no_user(self, secured: Secured, prefix: str) -> None:
        with secured.client(None, None) as client:
            call = lambda: client.read(prefix)  # noqa: E731
            text = self._said(secured, EtcdInsufficientPermissions, call)
            assert "it wants a user and a password" in text
            # etcd before 3.5.3 says no more than this of a watch.
            call = lambda: client.watch(prefix, timeout=10)  # noqa: E731
            text = self._said(secured, EtcdInsufficientPermissions, call)
            assert re.search("wants a user|permission denied", text)

    def test_outside_of_the_role(self, secured: Secured, client: Client) -> None:
        with opened(client, "/theirs") as store:
            for error, call in (
                (EtcdInsufficientPermissions, lambda: client.write("/theirs", "x")),
                (EtcdInsufficientPermissions, lambda: client.write("/theirs", "x", ttl=60)),
                (EtcdInsufficientPermissions, lambda: client.read("/theirs")),
                (EtcdInsufficientPermissions, lambda: client.watch("/theirs", timeout=10)),
                (StoreError, lambda: store.set("x", "y")),
                (StoreError, lambda: store.get("x")),
                (RendezvousConnectionError, lambda: secured.handler("/theirs")),
            ):
                text = self._said(secured, error, call)
                assert f"permission denied (user '{USER}')" in text

    def test_a_watch_that_is_refused_disturbs_no_other(
        self, secured: Secured, client: Client, prefix: str
    ) -> None:
        index = client.write(prefix, "0").modifiedIndex
        assert index is not None
        seen: list[str] = []

        def follow() -> None:
            for number in (1, 2):
                seen.append(client.watch(prefix, index=index + number, timeout=60).value)

        following = in_background(follow)
        client.write(prefix, "1")
        eventually(lambda: seen == ["1"])

        def counted() -> tuple[float, object]:
            now = metrics.snapshot()
            return now["torchetcd_watches_total"]["resumed",], now["torchetcd_logins_total"]

        before = counted()
        for _ in range(3):
            with pytest.raises(EtcdInsufficientPermissions, match=f"user '{USER}'"):
                client.watch("/theirs", index=1, timeout=30)
        assert counted() == before
        client.write(prefix, "2")
        following.join()
        assert seen == ["1", "2"]

    def test_a_password_that_is_changed(self, secured: Secured, prefix: str) -> None:
        secured.users.add("leaver", "sesame", prefix=prefix)
        with secured.client("leaver", "sesame") as client, opened(client, prefix) as store:
            store.set("x", "y")
            raised: list[BaseException] = []

            def wait() -> None:
                with pytest.raises(StoreError, match="invalid user ID or password") as caught:
                    store.get("late")
                raised.append(caught.value)

            before = watchers_left(secured.server)
            waiting = in_background(wait)
            eventually(lambda: watchers(secured.server) > before)
            secured.users.change_password("leaver", "another")
            call = lambda: client.write(prefix, "x")  # noqa: E731
            text = self._said(secured, EtcdInsufficientPermissions, call)
            assert "(user 'leaver')" in text
            # The watch that is open goes on; the next one needs a token.
            with pytest.raises(EtcdInsufficientPermissions, match="invalid user ID or password"):
                client.watch(prefix, index=1, timeout=10)
            waiting.join()
            assert raised


class TestTokens:
    def test_an_idle_client(self, client: Client, secured: Secured, prefix: str) -> None:
        client.write(prefix, "one")
        for _ in range(5):  # on a busy machine etcd is late
            token = secured.users.token(USER, PASSWORD)
            _lasts(1.5)
            if not secured.users.accepts(token):
                break
        else:
            pytest.fail("tokens do not end")
        assert client.read(prefix).value == "one"

    def test_every_call(self, client: Client, secured: Secured, prefix: str) -> None:
        lease = client._native.lease_grant(60)
        for call in (
            lambda: client.write(prefix, "one"),
            lambda: client.read(prefix),
            lambda: client.watch(prefix, index=1, timeout=10),
            lambda: client._native.lease_grant(60),
            lambda: client._native.lease_keep_alive_once(lease),
            lambda: client._native.lease_time_to_live(lease),
            lambda: client.write(prefix, "two", ttl=60),
            lambda: client.version,
            lambda: client.machines,
            lambda: client._native.lease_revoke(lease),
            lambda: client.delete(prefix),
        ):
            secured.spoil_tokens()
            call()

    def test_a_watch_beside_another(self, client: Client, secured: Secured, prefix: str) -> None:
        """They share a stream, on which the token is that of its opening."""
        with opened(client, prefix) as store:
            before = watchers_left(secured.server)
            waited: list[bytes] = []
            threads = []
            for number in range(3):
                key = f"late {number}"
                threads.append(in_background(lambda key=key: waited.append(store.get(key))))
                eventually(lambda number=number: watchers(secured.server) > before + number)
                secured.spoil_tokens()
            for number in range(3):
                store.set(f"late {number}", "value")
            for thread in threads:
                thread.join()
            assert waited == [b"value"] * 3

    def test_a_round_outlives_its_tokens(self, secured: Secured, prefix: str) -> None:
        handler = secured.handler(prefix, keep_alive_ttl=2)
        with secured.client() as other, handler.next_rendezvous().store as store:

            def keys() -> list[tuple[str, int]]:
                leaves = other.read(f"{prefix}/", recursive=True).leaves
                return [(leaf.key, leaf.createdIndex) for leaf in leaves if "/rdzv/" in leaf.key]

            before = keys()
            waited: list[bytes] = []
            waiting = in_background(lambda: waited.append(store.get("late")))
            for _ in range(2):
                _lasts(1.5)
                secured.spoil_tokens()
            assert keys() == before
            assert handler.num_nodes_waiting() == 0
            assert not handler.is_closed()
            store.set("late", "value")
            waiting.join()
            assert waited == [b"value"]
        assert handler.shutdown()

    def test_users_that_change_all_the_time(
        self, client: Client, secured: Secured, prefix: str
    ) -> None:
        ended = threading.Event()

        def change() -> None:
            while not ended.wait(0.03):
                secured.spoil_tokens()

        with opened(client, prefix) as store:
            changing = in_background(change)
            try:
                assert [store.add("counter", 1) for _ in range(50)] == list(range(1, 51))
            finally:
                ended.set()
                changing.join()


class TestChanges:
    """Passwords and roles that change while somebody is at work."""

    @pytest.fixture
    def user(self, secured: Secured, prefix: str) -> str:
        """Provide a user of this test's own."""
        name = f"user of {prefix}"
        secured.users.add(name, PASSWORD, prefix=f"{prefix}/")
        return name

    def test_two_members_outlive_many_tokens(
        self, secured: Secured, client: Client, prefix: str
    ) -> None:
        """Nothing is asked meanwhile: only the streams of the lease and of the watches are open."""
        with Run(secured.endpoint, client) as run:
            config = {"user": USER, "password": PASSWORD, "etcd_prefix": prefix}
            left, lost = run.nodes(2, min_nodes=1, max_nodes=2, keep_alive_ttl=2, **config)
            join_all([left, lost])
            _lasts(5)
            assert left.call("waiting") == lost.call("waiting") == 0
            lost.kill()
            assert left.call("await_waiting", 30.0) == 1

    @pytest.mark.parametrize("change", ["password", "role", "other users"])
    def test_in_the_barrier(self, secured: Secured, prefix: str, user: str, change: str) -> None:
        config: dict[str, Any] = {"user": user, "keep_alive_ttl": 2, "last_call_timeout": 1}
        first, second = (_of_two(secured, prefix, **config) for _ in range(2))
        worlds: list[int] = []
        waiting = in_background(lambda: worlds.append(first.next_rendezvous().world_size))
        _await_joined(secured, prefix)
        for _ in range(3):
            if change == "password":
                secured.users.change_password(user, "another")
                secured.users.change_password(user, PASSWORD)
            elif change == "role":
                secured.users.forbid(user, f"{prefix}/")
                secured.users.allow(user, f"{prefix}/")
            else:
                secured.users.add(uuid.uuid4().hex, PASSWORD, prefix="/elsewhere")
            _lasts(0.5)
        worlds.append(second.next_rendezvous().world_size)
        waiting.join()
        assert worlds == [2, 2]
        assert first.shutdown()
        eventually(second.is_closed)

    @pytest.mark.slow(10)
    def test_rights_are_taken_in_the_barrier(
        self, secured: Secured, prefix: str, user: str
    ) -> None:
        first = _of_two(secured, prefix, user=user)
        second = _of_two(secured, prefix)
        raised: list[str] = []

        def wait() -> None:
            with pytest.raises(RendezvousConnectionError) as caught:
                first.next_rendezvous()
            raised.append(str(caught.value))

        waiting = in_background(wait)
        _await_joined(secured, prefix)
        secured.users.forbid(user, f"{prefix}/")
        # Now the first has to write.
        other = in_background(second.next_rendezvous)
        waiting.join()
        assert f"http://{secured.endpoint}" in raised[0]
        assert f"permission denied (user '{user}')" in raised[0]
        # Its lease is not taken from it (etcd asks for rights to its keys), so it runs out.
        third = _of_two(secured, prefix)
        assert third.next_rendezvous().world_size == 2
        other.join()
        assert third.shutdown()

    def test_a_member_sees_a_loss_after_a_password_was_wrong_for_a_while(
        self, secured: Secured, prefix: str, user: str
    ) -> None:
        with Proxy(secured.server.get_port()) as proxy:
            params = {"user": user, "last_call_timeout": 1, "keep_alive_ttl": 20}
            left = _of_two(secured, prefix, f"localhost:{proxy.port}", min_nodes=1, **params)
            lost = _of_two(secured, prefix, min_nodes=1, last_call_timeout=1, keep_alive_ttl=20)
            joining = in_background(lost.next_rendezvous)
            left.next_rendezvous()
            joining.join()
            refused = _refused_log_ins(secured)
            secured.users.change_password(user, "another")
            proxy.cut()
            proxy.mend()
            # The watches are refused together, by the first attempt to connect.
            eventually(lambda: _refused_log_ins(secured) > refused, 20)
            secured.users.change_password(user, PASSWORD)
            assert left.num_nodes_waiting() == 0
            lost._rdzv_impl.leave()
            eventually(lambda: left.num_nodes_waiting() > 0, 20)
            assert left.shutdown()


class TestPasswordFile:
    """A password is changed by changing the file and etcd, in any order."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "password"
        file.write_text(f"{PASSWORD}\n")
        return file

    @pytest.fixture
    def user(self, secured: Secured, prefix: str) -> str:
        name = f"user of {prefix}"
        secured.users.add(name, PASSWORD, prefix=f"{prefix}/")
        return name

    @pytest.mark.parametrize("first", ["file", "etcd"])
    def test_calls_and_a_wait(
        self, secured: Secured, prefix: str, file: Path, user: str, first: str
    ) -> None:
        with (
            secured.server.get_client(
                username=user, password_file=str(file), read_timeout=30
            ) as client,
            secured.client() as other,
            opened(client, prefix) as store,
            opened(other, prefix) as other_store,
        ):
            store.set("x", "y")
            waited: list[bytes] = []
            before = watchers_left(secured.server)
            waiting = in_background(lambda: waited.append(store.get("late")))
            eventually(lambda: watchers(secured.server) > before)
            refused = _refused_log_ins(secured)
            if first == "file":
                file.write_text("another")
                secured.users.change_password(user, "another")
                store.set("x", "z")
            else:
                secured.users.change_password(user, "another")
                writing = in_background(lambda: store.set("x", "z"))
                eventually(lambda: _refused_log_ins(secured) > refused, 20)
                file.write_text("another")
                writing.join()
            assert other_store.get("x") == b"z"
            other_store.set("late", "value")
            waiting.join()
            assert waited == [b"value"]

    def test_a_file_that_never_was_right(self, secured: Secured, file: Path, user: str) -> None:
        file.write_text("wrong")
        started = time.monotonic()
        with (
            secured.server.get_client(
                username=user, password_file=str(file), read_timeout=60
            ) as client,
            pytest.raises(EtcdInsufficientPermissions, match=re.escape(f"(user '{user}')")),
        ):
            client.read("/x")
        assert time.monotonic() - started < 30

    def test_it_stays_wrong(self, secured: Secured, prefix: str, file: Path, user: str) -> None:
        with secured.server.get_client(username=user, password_file=str(file)) as client:
            client.write(f"{prefix}/x", "y")
            secured.users.change_password(user, "another")
            client.read_timeout = 2
            with pytest.raises(EtcdConnectionFailed, match=r"2\.0 s: .*invalid user ID or pass"):
                client.read(f"{prefix}/x")


def _of_two(
    secured: Secured, prefix: str, endpoint: str = "", *, min_nodes: int = 2, **config: Any
) -> EtcdRendezvousHandler:
    """Make a handler of a run of two."""
    defaults = {"etcd_prefix": prefix, "user": USER, "password": PASSWORD, "join_timeout": 60}
    return create_rdzv_handler(
        RendezvousParameters(
            "etcd-v3",
            endpoint or secured.endpoint,
            "run",
            min_nodes,
            2,
            local_addr="127.0.0.1",
            **(defaults | config),
        )
    )


def _refused_log_ins(secured: Secured) -> float:
    pattern = r'grpc_server_handled_total{grpc_code="[A-NP-Z]\w+",grpc_method="Authenticate",.*}'
    return metric(secured.server, pattern)


def test_authentication_is_enabled_and_disabled_meanwhile(prefix: str) -> None:
    """As with Go's client, who has a password may use an etcd that asks for none."""
    with (
        EtcdServer(extra_args=[CHEAP]) as server,
        server.get_client(username=USER, password=PASSWORD) as client,
    ):
        client.write(prefix, "one")
        secured = Secured(server)
        assert client.watch(prefix, index=1, timeout=10).value == "one"
        client.write(prefix, "two")
        secured.users.disable()
        client.write(prefix, "three", ttl=60)


def _one_round(handler: EtcdRendezvousHandler) -> None:
    info = handler.next_rendezvous()
    assert (info.rank, info.world_size) == (0, 1)
    with info.store as store:
        store.set("key", "value")
        assert store.get("key") == b"value"
    assert handler.shutdown()
