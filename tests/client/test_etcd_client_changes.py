"""`torchetcd.etcd.Client`: keys that expire, and watches."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import pytest

from support.waiting import eventually
from torchetcd import etcd
from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer


def _compact(client: Client, revision: int | None) -> None:
    """Let etcd forget what was before, by its HTTP gateway."""
    with contextlib.closing(HTTPConnection(client.host, client.port, timeout=10)) as gateway:
        gateway.request("POST", "/v3/kv/compaction", json.dumps({"revision": str(revision)}))
        assert gateway.getresponse().status == 200


class TestTtl:
    def test_ttl_and_expiration(self, client: Client, prefix: str) -> None:
        written = client.write(prefix, "x", ttl=60)
        read = client.read(prefix)
        for result in (written, read):
            assert result.ttl is not None
            assert 50 < result.ttl <= 60
            assert result.expiration is not None
            assert result.expiration.startswith("20")
        assert read.lease == written.lease != 0

    def test_the_key_expires(self, client: Client, prefix: str) -> None:
        written = client.write(f"{prefix}/x", "x", ttl=1)
        assert written.modifiedIndex is not None
        gone = client.watch(f"{prefix}/x", index=written.modifiedIndex + 1, timeout=10)
        assert gone.action == "delete"
        assert gone.value is None
        assert prefix not in client
        # Asked for only now.
        assert written.ttl is None
        assert written.expiration is None

    def test_a_write_without_ttl_ends_it(self, client: Client, prefix: str) -> None:
        before = client.write(prefix, "x", ttl=60)
        assert client.write(prefix, "x").ttl is None
        assert client.read(prefix).ttl is None
        assert client._native.lease_time_to_live(before.lease)[0] == -1

    @pytest.mark.parametrize("ttl", [0, -1, "soon", float("nan"), float("inf")])
    def test_bad_ttl(self, client: Client, prefix: str, ttl: Any) -> None:
        with pytest.raises(etcd.EtcdValueError, match="positive number of seconds"):
            client.write(prefix, "x", ttl=ttl)
        assert prefix not in client

    def test_no_lease_is_left_when_the_write_is_refused(
        self, client: Client, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        granted: list[int] = []
        native = client._native

        class Recording:
            def lease_grant(self, ttl_s: int) -> int:
                granted.append(native.lease_grant(ttl_s))
                return granted[-1]

            def __getattr__(self, name: str) -> object:
                return getattr(native, name)

        client.write(prefix, "x")
        monkeypatch.setitem(client.__dict__, "_native_client", Recording())
        with pytest.raises(etcd.EtcdAlreadyExist):
            client.write(prefix, "y", ttl=60, prevExist=False)
        client.write(prefix, "y", ttl=60)
        client.write(prefix, "z", ttl=60)
        client.delete(prefix)
        assert len(granted) == 3
        assert [native.lease_time_to_live(lease)[0] for lease in granted] == [-1, -1, -1]

    def test_a_given_lease_is_used_and_never_revoked(self, client: Client, prefix: str) -> None:
        lease = client._native.lease_grant(60)
        assert client.write(f"{prefix}/a", "x", lease=lease).lease == lease
        client.write(f"{prefix}/b", "x", lease=client.write(f"{prefix}/c", "x", ttl=60).lease)
        client.delete(f"{prefix}/c")
        client.delete(f"{prefix}/a")
        assert client.read(f"{prefix}/b").ttl is not None
        assert client._native.lease_time_to_live(lease)[0] > 0

    def test_ttl_of_a_directory(self, client: Client, prefix: str) -> None:
        made = client.write(prefix, None, dir=True, ttl=60)
        assert made.ttl is not None
        assert client.read(prefix).ttl is not None
        updated = client.write(prefix, None, dir=True, ttl=600, prevExist=True)
        assert updated.action == "update"
        assert updated.ttl is not None
        assert updated.ttl > 500
        assert client.update(client.read(prefix)).ttl is not None


class TestRefresh:
    def test_with_the_same_ttl_nothing_is_written(self, client: Client, prefix: str) -> None:
        written = client.write(prefix, "x", ttl=60)
        refreshed = client.refresh(prefix, 60)
        assert refreshed.value == "x"
        assert refreshed.modifiedIndex == written.modifiedIndex
        assert client.read(prefix).modifiedIndex == written.modifiedIndex

    def test_by_another_client(self, client: Client, prefix: str, etcd_server: EtcdServer) -> None:
        written = client.write(prefix, "x", ttl=60)
        with etcd_server.get_client() as other:
            assert other.refresh(prefix, 60).modifiedIndex == written.modifiedIndex

    def test_it_keeps_the_key(self, client: Client, prefix: str) -> None:
        client.write(prefix, "x", ttl=2)
        pause = threading.Event()
        for _ in range(4):
            pause.wait(1)
            client.refresh(prefix, 2)
        assert client.read(prefix).value == "x"

    def test_with_another_ttl(self, client: Client, prefix: str) -> None:
        first = client.write(prefix, "x", ttl=60)
        refreshed = client.write(prefix, None, ttl=600, refresh=True)
        assert refreshed.ttl is not None
        assert refreshed.ttl > 500
        assert refreshed.value == "x"
        assert client.read(prefix).value == "x"
        assert client._native.lease_time_to_live(first.lease)[0] == -1

    def test_a_key_without_ttl_gets_one(self, client: Client, prefix: str) -> None:
        client.write(prefix, "x")
        assert client.refresh(prefix, 60).ttl is not None

    def test_a_directory(self, client: Client, prefix: str) -> None:
        client.write(prefix, None, dir=True, ttl=60)
        assert client.refresh(prefix, 600).dir
        ttl = client.read(prefix).ttl
        assert ttl is not None
        assert ttl > 500

    def test_a_write_in_between_is_kept(
        self, client: Client, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client.write(prefix, "old")
        grant = client._native.lease_grant

        def meddle(ttl_s: int) -> int:
            if client.read(prefix).value == "old":
                client.write(prefix, "new")
            return grant(ttl_s)

        native = client._native

        class Meddling:
            lease_grant = staticmethod(meddle)

            def __getattr__(self, name: str) -> object:
                return getattr(native, name)

        monkeypatch.setitem(client.__dict__, "_native_client", Meddling())
        assert client.refresh(prefix, 60).value == "new"

    def test_errors(self, client: Client, prefix: str) -> None:
        with pytest.raises(etcd.EtcdKeyNotFound):
            client.refresh(prefix, 60)
        client.write(prefix, "x")
        with pytest.raises(etcd.EtcdValueError, match="ttl"):
            client.refresh(prefix, None)
        with pytest.raises(etcd.EtcdException, match="cannot change the value"):
            client.write(prefix, "y", ttl=60, refresh=True)
        with pytest.raises(etcd.EtcdCompareFailed):
            client.refresh(prefix, 60, prevIndex=1)
        with pytest.raises(etcd.EtcdCompareFailed):
            client.refresh(prefix, 60, prevValue="y")
        assert client.refresh(prefix, 60, prevValue="x").value == "x"


class _Watcher:
    """Runs a watch in a thread, so that the test can go on and change something."""

    def __init__(self, watch: Callable[[], object]) -> None:
        self._result: object = None
        self._thread = threading.Thread(target=self._run, args=(watch,))
        self._thread.start()

    def _run(self, watch: Callable[[], object]) -> None:
        try:
            self._result = watch()
        except Exception as exc:
            self._result = exc

    def result(self) -> Any:
        self._thread.join(20)
        assert not self._thread.is_alive()
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()


class TestWatch:
    def test_from_an_index(self, client: Client, prefix: str) -> None:
        first = client.write(prefix, "1")
        second = client.write(prefix, "2")
        assert first.modifiedIndex is not None
        assert second.modifiedIndex is not None
        seen = client.watch(prefix, index=first.modifiedIndex)
        assert (seen.action, seen.value, seen.newKey) == ("set", "1", True)
        seen = client.watch(prefix, index=first.modifiedIndex + 1)
        assert (seen.value, seen.modifiedIndex) == ("2", second.modifiedIndex)
        assert client.read(prefix, wait=True, waitIndex=first.modifiedIndex).value == "1"

    def test_from_now(self, client: Client, prefix: str, etcd_server: EtcdServer) -> None:
        client.write(prefix, "old")
        watcher = _Watcher(lambda: client.watch(prefix, timeout=15))
        with etcd_server.get_client() as other:
            # Written until it is seen: when the watch has begun is not announced.
            eventually(lambda: other.write(prefix, "new") and watcher.done)
        assert watcher.result().value == "new"

    def test_an_index_to_come(self, client: Client, prefix: str) -> None:
        index = client.write(prefix, "1").modifiedIndex
        assert index is not None
        watcher = _Watcher(lambda: client.watch(prefix, index=index + 2, timeout=15))
        client.write(prefix, "2")
        client.write(prefix, "3")
        assert watcher.result().value == "3"

    def test_deletion(self, client: Client, prefix: str) -> None:
        client.write(prefix, "x")
        deleted = client.delete(prefix)
        seen = client.watch(prefix, index=deleted.modifiedIndex)
        assert (seen.action, seen.key, seen.value) == ("delete", prefix, None)
        assert seen.modifiedIndex == deleted.modifiedIndex

    def test_only_the_key_itself(self, client: Client, prefix: str) -> None:
        index = client.write(f"{prefix}/below", "x").modifiedIndex
        client.write(f"{prefix}-beside", "x")
        with pytest.raises(etcd.EtcdWatchTimedOut):
            client.watch(prefix, index=index, timeout=0.2)

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_recursive(self, client: Client, prefix: str, slash: str) -> None:
        index = client.write(f"{prefix}-beside", "x").modifiedIndex
        client.write(f"{prefix}/a/b", "y")
        seen = client.watch(f"{prefix}{slash}", index=index, recursive=True)
        assert (seen.key, seen.value) == (f"{prefix}/a/b", "y")

    def test_recursive_sees_the_key_and_its_directory(self, client: Client, prefix: str) -> None:
        index = client.write(prefix, "x").modifiedIndex
        assert client.watch(prefix, index=index, recursive=True).value == "x"
        made = client.write(prefix, None, dir=True)
        changes = client.eternal_watch(prefix, index=made.modifiedIndex, recursive=True)
        # The directory comes, the value goes.
        seen = [next(changes), next(changes)]
        assert {(change.action, change.dir) for change in seen} == {
            ("set", True),
            ("delete", False),
        }
        assert [change.key for change in seen] == [prefix, prefix]

    def test_timeout(self, client: Client, prefix: str) -> None:
        with pytest.raises(etcd.EtcdWatchTimedOut, match=prefix) as caught:
            client.watch(prefix, timeout=0.1)
        assert isinstance(caught.value, etcd.EtcdConnectionFailed)
        client.read_timeout = 0.1
        with pytest.raises(etcd.EtcdWatchTimedOut):
            client.watch(prefix)
        with pytest.raises(etcd.EtcdWatchTimedOut):
            client.watch(prefix, index=10**12)

    def test_no_timeout(self, client: Client, prefix: str) -> None:
        client.read_timeout = 0.1
        index = client.write(prefix, "1").modifiedIndex
        assert index is not None
        watcher = _Watcher(lambda: client.watch(prefix, index=index + 1, timeout=0))
        assert not threading.Event().wait(0.5)
        assert not watcher.done
        client.write(prefix, "2")
        assert watcher.result().value == "2"

    def test_compacted(self, client: Client, prefix: str) -> None:
        index = client.write(prefix, "1").modifiedIndex
        _compact(client, client.write(prefix, "2").modifiedIndex)
        with pytest.raises(etcd.EtcdEventIndexCleared, match=f"{index}"):
            client.watch(prefix, index=index, timeout=10)

    def test_eternal_watch(self, client: Client, prefix: str) -> None:
        index = client.write(f"{prefix}/a", "1").modifiedIndex
        changes = client.eternal_watch(prefix, index=index, recursive=True)
        assert next(changes).value == "1"
        client.write(f"{prefix}/b", "2")
        assert next(changes).value == "2"
        # One revision with two changes: both are seen.
        client.delete(prefix, recursive=True)
        assert [next(changes).key, next(changes).key] == [f"{prefix}/a", f"{prefix}/b"]
        client.write(f"{prefix}/c", "3")
        assert next(changes).value == "3"
