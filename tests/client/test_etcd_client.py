"""`torchetcd.etcd.Client`: reading and writing keys as python-etcd does."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from torchetcd import etcd
from torchetcd.etcd import Client, EtcdResult


def _values(result: EtcdResult) -> dict[str | None, Any]:
    return {leaf.key: leaf.value for leaf in result.leaves}


class TestReadAndWrite:
    def test_set_and_get(self, client: Client, prefix: str) -> None:
        written = client.set(f"{prefix}/key", "value")
        assert (written.action, written.key, written.value) == ("set", f"{prefix}/key", "value")
        assert written.newKey
        assert not written.dir
        assert written.prev_node is None
        assert written.createdIndex == written.modifiedIndex == written.etcd_index
        read = client.get(f"{prefix}/key")
        assert read.action == "get"
        assert read.value == "value"
        assert read.modifiedIndex == written.modifiedIndex
        assert read.createdIndex == written.createdIndex
        assert read.etcd_index is not None
        assert read.etcd_index >= (written.modifiedIndex or 0)
        assert read.ttl is None
        assert read.expiration is None

    def test_overwriting_shows_what_was_there(self, client: Client, prefix: str) -> None:
        first = client.write(prefix, "one")
        second = client.write(prefix, "two")
        assert not second.newKey
        assert second.createdIndex == first.createdIndex
        assert second.modifiedIndex is not None
        assert first.modifiedIndex is not None
        assert second.modifiedIndex > first.modifiedIndex
        assert second.prev_node is not None
        assert second.prev_node.value == "one"
        assert second.prev_node.modifiedIndex == first.modifiedIndex

    def test_a_written_result_is_what_is_read(self, client: Client, prefix: str) -> None:
        client.write(prefix, "one", ttl=60)
        written = client.write(prefix, "two")
        assert client.read(prefix) == written
        assert client.read(prefix) != client.write(prefix, "two")
        assert written != "two"

    @pytest.mark.parametrize(
        ("value", "read"),
        [("", ""), ("é€", "é€"), (b"bytes", "bytes"), (5, "5"), (True, "True"), (None, "")],
    )
    def test_values(self, client: Client, prefix: str, value: object, read: str) -> None:
        client.write(prefix, value)
        assert client.read(prefix).value == read

    def test_any_bytes_come_back(self, client: Client, prefix: str) -> None:
        data = bytes(range(256))
        client.write(prefix, data)
        value = client.read(prefix).value
        assert value.encode("utf-8", "surrogateescape") == data
        assert client.test_and_set(prefix, value, value).value == value

    def test_a_leading_slash_is_added(self, client: Client, prefix: str) -> None:
        assert client.write(prefix[1:], "x").key == prefix
        assert client.read(prefix).value == "x"
        assert client.read(prefix[1:]).key == prefix
        assert client.delete(prefix[1:]).key == prefix

    def test_contains(self, client: Client, prefix: str) -> None:
        assert prefix not in client
        client.write(f"{prefix}/a", "x")
        assert f"{prefix}/a" in client
        assert prefix in client
        assert f"{prefix}/" in client

    def test_key_not_found(self, client: Client, prefix: str) -> None:
        with pytest.raises(etcd.EtcdKeyNotFound, match=f"Key not found : {prefix}") as caught:
            client.read(prefix)
        assert caught.value.payload is not None
        assert caught.value.payload["errorCode"] == 100
        assert caught.value.payload["cause"] == prefix
        assert caught.value.payload["index"] > 0
        with pytest.raises(etcd.EtcdKeyNotFound):
            client.get(f"{prefix}/")

    def test_keys_are_strings(self, client: Client) -> None:
        with pytest.raises(TypeError, match="must be a string"):
            client.read(b"/bytes")  # type: ignore[arg-type]

    def test_two_slashes_at_the_end_are_no_key(self, client: Client, prefix: str) -> None:
        with pytest.raises(etcd.EtcdValueError, match="more than one"):
            client.write(f"{prefix}//", "x")


class TestConditions:
    def test_create(self, client: Client, prefix: str) -> None:
        assert client.write(prefix, "one", prevExist=False).action == "create"
        with pytest.raises(etcd.EtcdAlreadyExist) as caught:
            client.write(prefix, "two", prevExist=False)
        assert caught.value.payload is not None
        assert caught.value.payload["errorCode"] == 105
        assert client.read(prefix).value == "one"

    def test_update_only_what_exists(self, client: Client, prefix: str) -> None:
        with pytest.raises(etcd.EtcdKeyNotFound):
            client.write(prefix, "x", prevExist=True)
        client.write(prefix, "x")
        assert client.write(prefix, "y", prevExist=True).action == "update"

    def test_by_index(self, client: Client, prefix: str) -> None:
        with pytest.raises(etcd.EtcdKeyNotFound):
            client.write(prefix, "x", prevIndex=1)
        index = client.write(prefix, "one").modifiedIndex
        swapped = client.write(prefix, "two", prevIndex=index)
        assert swapped.action == "compareAndSwap"
        with pytest.raises(etcd.EtcdCompareFailed, match=f"{index} != {swapped.modifiedIndex}"):
            client.write(prefix, "three", prevIndex=index)
        assert client.read(prefix).value == "two"

    def test_an_index_is_a_number(self, client: Client, prefix: str) -> None:
        with pytest.raises(etcd.EtcdValueError, match="prevIndex"):
            client.write(prefix, "x", prevIndex="new")  # type: ignore[arg-type]

    def test_by_value(self, client: Client, prefix: str) -> None:
        with pytest.raises(etcd.EtcdKeyNotFound):
            client.test_and_set(prefix, "new", "old")
        client.write(prefix, "old")
        assert client.test_and_set(prefix, "new", "old").value == "new"
        with pytest.raises(etcd.EtcdCompareFailed, match="old != new") as caught:
            client.test_and_set(prefix, "other", "old")
        assert isinstance(caught.value, ValueError)
        with pytest.raises(etcd.EtcdValueError, match="compare with"):
            client.test_and_set(prefix, "other", None)

    def test_an_empty_value_can_be_demanded(self, client: Client, prefix: str) -> None:
        client.write(prefix, "")
        assert client.write(prefix, "x", prevValue="").value == "x"

    def test_update_a_result(self, client: Client, prefix: str) -> None:
        client.write(prefix, "1", ttl=60)
        result = client.read(prefix)
        result.value += "2"
        updated = client.update(result)
        assert updated.value == "12"
        assert updated.ttl is not None
        assert updated.ttl <= 60
        with pytest.raises(etcd.EtcdCompareFailed):
            client.update(result)
        client.delete(prefix)
        with pytest.raises(etcd.EtcdKeyNotFound):
            client.update(updated)
        with pytest.raises(etcd.EtcdValueError, match="without a key"):
            client.update(EtcdResult())

    def test_update_can_end_a_ttl(self, client: Client, prefix: str) -> None:
        result = client.write(prefix, "x", ttl=60)
        result.ttl = None
        assert client.update(result).ttl is None

    def test_only_one_of_many_writers_wins(self, client: Client, prefix: str) -> None:
        start = threading.Barrier(8)
        won: list[int] = []

        def write(number: int) -> None:
            start.wait()
            try:
                client.write(prefix, str(number), prevExist=False)
            except etcd.EtcdAlreadyExist:
                return
            won.append(number)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [str(number) for number in won] == [client.read(prefix).value]


class TestDirectories:
    def test_keys_below_make_a_directory(self, client: Client, prefix: str) -> None:
        first = client.write(f"{prefix}/a", "1")
        client.write(f"{prefix}/b/c", "2")
        client.write(f"{prefix}/b-d", "3")
        client.write(f"{prefix}-sibling", "no")
        listed = client.read(prefix)
        assert listed.dir
        assert listed.value is None
        assert listed.key == prefix
        assert listed.createdIndex == first.createdIndex
        keys = [f"{prefix}/a", f"{prefix}/b-d", f"{prefix}/b"]
        assert [child.key for child in listed.children] == keys
        assert [child.dir for child in listed.children] == [False, False, True]
        assert client.read(f"{prefix}/").dir

    def test_recursive(self, client: Client, prefix: str) -> None:
        for key in ("a", "b/c", "b/d/e", "b/d/f"):
            client.write(f"{prefix}/{key}", key)
        tree = client.read(prefix, recursive=True, sorted=True, quorum=True)
        assert _values(tree) == {f"{prefix}/{key}": key for key in ("a", "b/c", "b/d/e", "b/d/f")}
        subtree = [node.key for node in tree.get_subtree()]
        names = ("", "/a", "/b", "/b/c", "/b/d", "/b/d/e", "/b/d/f")
        assert subtree == [prefix + name for name in names]
        assert [node.key for node in tree.get_subtree(leaves_only=True)] == list(_values(tree))

    def test_root(self, client: Client, prefix: str) -> None:
        client.write(f"{prefix}/x", "x")
        root = client.read("/")
        assert root.dir
        assert root.key == "/"
        assert prefix in [child.key for child in root.children]

    def test_the_root_cannot_be_changed(self, client: Client) -> None:
        with pytest.raises(etcd.EtcdRootReadOnly):
            client.write("/", "x")
        with pytest.raises(etcd.EtcdRootReadOnly):
            client.write("/", None, dir=True)
        with pytest.raises(etcd.EtcdRootReadOnly):
            client.delete("/", recursive=True)

    def test_make_a_directory(self, client: Client, prefix: str) -> None:
        made = client.write(prefix, None, dir=True)
        assert made.dir
        assert made.newKey
        assert (made.key, made.value) == (prefix, None)
        empty = client.read(prefix)
        assert empty.dir
        assert empty.createdIndex == made.createdIndex
        assert [leaf.key for leaf in empty.leaves] == [prefix]
        client.write(f"{prefix}/x", "1")
        assert _values(client.read(prefix)) == {f"{prefix}/x": "1"}
        client.delete(f"{prefix}/x")
        assert client.read(prefix).dir

    def test_an_empty_directory_is_listed(self, client: Client, prefix: str) -> None:
        client.write(f"{prefix}/empty", None, dir=True)
        (child,) = client.read(prefix).children
        assert child.dir
        assert child.key == f"{prefix}/empty"

    def test_make_it_where_something_is(self, client: Client, prefix: str) -> None:
        client.write(f"{prefix}/dir", None, dir=True, prevExist=False)
        with pytest.raises(etcd.EtcdAlreadyExist):
            client.write(f"{prefix}/dir", None, dir=True, prevExist=False)
        with pytest.raises(etcd.EtcdNotFile):
            client.write(f"{prefix}/dir", None, dir=True)
        client.write(f"{prefix}/key", "x")
        with pytest.raises(etcd.EtcdAlreadyExist):
            client.write(f"{prefix}/key", None, dir=True, prevExist=False)
        with pytest.raises(etcd.EtcdNotDir):
            client.write(f"{prefix}/key", None, dir=True, prevExist=True)
        with pytest.raises(etcd.EtcdNotFile):
            client.write(f"{prefix}/dir", None, dir=True, prevIndex=1)
        with pytest.raises(etcd.EtcdKeyNotFound):
            client.write(f"{prefix}/none", None, dir=True, prevExist=True)
        with pytest.raises(etcd.EtcdException, match="with a value"):
            client.write(f"{prefix}/other", "x", dir=True)

    def test_it_takes_the_place_of_a_value(self, client: Client, prefix: str) -> None:
        client.write(prefix, "x")
        made = client.write(prefix, None, dir=True)
        assert made.dir
        assert made.newKey
        assert made.prev_node is not None
        assert made.prev_node.value == "x"
        assert client.read(prefix).dir

    def test_no_value_for_a_directory(self, client: Client, prefix: str) -> None:
        client.write(f"{prefix}/x", "1")
        every: list[dict[str, Any]] = [
            {},
            {"prevExist": True},
            {"prevIndex": 1},
            {"prevValue": "x"},
        ]
        for conditions in every:
            with pytest.raises(etcd.EtcdNotFile):
                client.write(prefix, "x", **conditions)
        with pytest.raises(etcd.EtcdAlreadyExist):
            client.write(prefix, "x", prevExist=False)

    def test_append_makes_names_in_order(self, client: Client, prefix: str) -> None:
        written = [client.write(prefix, str(number), append=True) for number in range(5)]
        keys = [result.key for result in written]
        assert keys == sorted(keys, key=str)
        assert all(result.newKey and result.action == "create" for result in written)
        assert list(_values(client.read(prefix)).values()) == list("01234")

    def test_append_by_many(self, client: Client, prefix: str) -> None:
        def append() -> None:
            for _ in range(5):
                client.write(prefix, "x", append=True)

        threads = [threading.Thread(target=append) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        leaves = list(client.read(prefix).leaves)
        assert len(leaves) == 20
        indexes = [leaf.createdIndex or 0 for leaf in leaves]
        assert indexes == sorted(indexes)

    def test_append_directories_and_ttl(self, client: Client, prefix: str) -> None:
        assert client.write(prefix, None, append=True, dir=True).dir
        assert client.write(prefix, "x", append=True, ttl=60).ttl is not None

    def test_append_to_a_value(self, client: Client, prefix: str) -> None:
        client.write(prefix, "x")
        with pytest.raises(etcd.EtcdNotDir):
            client.write(prefix, "y", append=True)

    def test_a_key_of_another_program_that_ends_in_a_slash(
        self, client: Client, prefix: str
    ) -> None:
        # The names of a store are base64, which ends in "/" at times.
        key = f"{prefix}/YWI/"
        client._native.txn([], [("put", key.encode(), b"foreign", 0)], [])
        assert client.read(key).value == "foreign"
        assert client.read(key).key == key
        assert _values(client.read(prefix)) == {key: "foreign"}


class TestDelete:
    def test_delete(self, client: Client, prefix: str) -> None:
        written = client.write(prefix, "x", ttl=60)
        deleted = client.delete(prefix)
        assert (deleted.action, deleted.key, deleted.value) == ("delete", prefix, None)
        assert deleted.modifiedIndex is not None
        assert written.modifiedIndex is not None
        assert deleted.modifiedIndex > written.modifiedIndex
        assert deleted.createdIndex == written.createdIndex
        assert deleted.prev_node is not None
        assert deleted.prev_node.value == "x"
        with pytest.raises(etcd.EtcdKeyNotFound):
            client.delete(prefix)

    def test_pop(self, client: Client, prefix: str) -> None:
        client.write(prefix, "x")
        popped = client.pop(prefix, prevValue="x")
        assert popped is not None
        assert popped.value == "x"
        with pytest.raises(etcd.EtcdKeyNotFound):
            client.pop(prefix)

    def test_conditions(self, client: Client, prefix: str) -> None:
        index = client.write(prefix, "x").modifiedIndex
        with pytest.raises(etcd.EtcdCompareFailed):
            client.delete(prefix, prevValue="y")
        with pytest.raises(etcd.EtcdCompareFailed):
            client.delete(prefix, prevIndex=1)
        assert client.delete(prefix, prevIndex=index, prevValue="x").action == "compareAndDelete"
        with pytest.raises(etcd.EtcdKeyNotFound):
            client.delete(prefix, prevIndex=index)

    def test_a_directory_needs_a_word(self, client: Client, prefix: str) -> None:
        client.write(f"{prefix}/a", "x")
        with pytest.raises(etcd.EtcdNotFile):
            client.delete(prefix)
        with pytest.raises(etcd.EtcdDirNotEmpty) as caught:
            client.delete(prefix, dir=True)
        assert isinstance(caught.value, ValueError)
        with pytest.raises(etcd.EtcdNotFile):
            client.delete(prefix, dir=True, prevIndex=1)
        assert client.read(f"{prefix}/a").value == "x"

    def test_an_empty_directory(self, client: Client, prefix: str) -> None:
        client.write(prefix, None, dir=True)
        with pytest.raises(etcd.EtcdNotFile):
            client.delete(prefix)
        client.write(f"{prefix}/a", "x")
        with pytest.raises(etcd.EtcdDirNotEmpty):
            client.delete(prefix, dir=True)
        client.delete(f"{prefix}/a")
        deleted = client.delete(prefix, dir=True)
        assert deleted.dir
        assert deleted.prev_node is not None
        assert deleted.prev_node.dir
        assert prefix not in client

    def test_recursive(self, client: Client, prefix: str) -> None:
        client.write(f"{prefix}/d", None, dir=True)
        client.write(f"{prefix}/d/a", "x")
        client.write(f"{prefix}/d/b/c", "x")
        client.write(f"{prefix}/d-not", "x")
        deleted = client.delete(f"{prefix}/d", recursive=True, dir=True)
        assert deleted.dir
        assert deleted.key == f"{prefix}/d"
        assert list(_values(client.read(prefix))) == [f"{prefix}/d-not"]
        with pytest.raises(etcd.EtcdKeyNotFound):
            client.delete(f"{prefix}/d", recursive=True, dir=True)

    def test_recursive_on_a_value(self, client: Client, prefix: str) -> None:
        client.write(prefix, "x")
        deleted = client.delete(prefix, recursive=True)
        assert not deleted.dir
        assert deleted.prev_node is not None
        assert deleted.prev_node.value == "x"

    def test_a_value_with_keys_below(self, client: Client, prefix: str) -> None:
        # etcd v3 allows it, and other programs do it.
        for key in (prefix, f"{prefix}/a"):
            client._native.txn([], [("put", key.encode(), b"x", 0)], [])
        assert client.read(prefix).value == "x"
        assert _values(client.read(f"{prefix}/")) == {f"{prefix}/a": "x"}
        client.delete(prefix)
        assert client.read(prefix).dir
        client._native.txn([], [("put", prefix.encode(), b"x", 0)], [])
        client.delete(prefix, recursive=True)
        assert prefix not in client
