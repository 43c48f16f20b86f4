"""Which entries are on this host, and where their members listen."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from torchetcd._quorum import places
from torchetcd._quorum.entries import Entry, parse_entries
from torchetcd._quorum.places import PortTakenError, is_loopback, listen, own_entries

#: Of documentation, and of no host (RFC 5737, RFC 3849).
ELSEWHERE = "192.0.2.7"


def _entries(*hosts: str) -> list[Entry]:
    return [Entry(host, 2379, 2380) for host in hosts]


def _own(*hosts: str) -> list[str]:
    return [entry.host for entry in own_entries(_entries(*hosts))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The names that are known besides; this host is node7.cluster.example."""
    known: dict[str, str] = {}

    def resolve(host: str, *_: object, **__: object) -> list[Any]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[host], 0))]

    monkeypatch.setattr(places, "host_name", lambda: "Node7.cluster.example")
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


class TestOwn:
    def test_by_address(self) -> None:
        assert _own(ELSEWHERE, "127.0.0.1", "2001:db8::7") == ["127.0.0.1"]
        assert _own("127.0.0.1", "127.0.0.2") == ["127.0.0.1", "127.0.0.2"]

    def test_several_of_one_host(self) -> None:
        entries = parse_entries("job://127.0.0.1:1,192.0.2.7,127.0.0.1:5", 3)
        assert [entry.port for entry in own_entries(entries.all)] == [1, 5]

    @pytest.mark.parametrize("mine", ["node7.cluster.example", "node7", "localhost"])
    @pytest.mark.usefixtures("names")
    def test_by_name(self, mine: str) -> None:
        assert _own("node6", mine, "node8") == [mine]

    @pytest.mark.usefixtures("names")
    def test_the_same_short_name_elsewhere_is_another_host(self, names: dict[str, str]) -> None:
        assert _own("node7.other.example") == []
        names["node7.other.example"] = ELSEWHERE
        assert _own("node7.other.example") == []
        names["node7.other.example"] = "127.0.0.1"
        assert _own("node7.other.example") == ["node7.other.example"]

    def test_by_another_name(self, names: dict[str, str]) -> None:
        names.update(head="127.0.0.1", other=ELSEWHERE)
        assert _own("unknown", "other", "head") == ["head"]

    def test_names_are_looked_up_only_if_nothing_else_is_found(self, names: dict[str, str]) -> None:
        names["head"] = "127.0.0.1"
        assert _own("head", "node7") == ["node7"]

    def test_not_thousands_of_them(
        self, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names["host500"] = "127.0.0.1"
        asked: list[str] = []
        look_up = places._look_up

        def counted(host: str) -> list[str]:
            asked.append(host)
            return look_up(host)

        monkeypatch.setattr(places, "_look_up", counted)
        assert _own(*(f"host{number}" for number in range(1000))) == []
        assert len(asked) == 16

    @pytest.mark.usefixtures("names")
    def test_none(self) -> None:
        assert _own(ELSEWHERE, "node8") == []


class TestListening:
    @pytest.mark.parametrize(
        ("host", "address"),
        [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("::1", "::1")],
    )
    def test_an_address_is_that_one(self, host: str, address: str) -> None:
        assert places.listening_address(host) == address

    def test_a_name_is_all_addresses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert places.listening_address("node7") in ("::", "0.0.0.0")
        monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
        assert places.listening_address("node7") == "0.0.0.0"

    def test_a_port_that_is_taken(self) -> None:
        with listen("127.0.0.1", 0) as sock:
            port = sock.getsockname()[1]
            with pytest.raises(PortTakenError, match=f"port {port} of 127.0.0.1 cannot be used"):
                listen("127.0.0.1", port)
            assert places.is_served("127.0.0.1", port)
        assert not places.is_served("127.0.0.1", port)

    def test_a_name_is_reached_by_ipv4(self) -> None:
        with listen("node7", 0) as sock:
            socket.create_connection(("127.0.0.1", sock.getsockname()[1]), 10).close()


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("node7", False),
    ],
)
def test_only_this_host_reaches_it(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone
