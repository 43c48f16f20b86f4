"""Which members an endpoint `job://...` names, and the ids that etcd gives them."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest

from support.etcd.cluster import take_port
from support.waiting import eventually
from torchetcd._endpoints import is_job
from torchetcd._quorum.asking import Who, ask_member
from torchetcd._quorum.entries import Entries, parse_entries
from torchetcd._quorum.folder import open_folder
from torchetcd._quorum.member import Member


def _ports(endpoint: str, size: int = 1, peer_port: int | None = None) -> list[tuple[int, int]]:
    entries = parse_entries(endpoint, size, peer_port)
    return [(entry.port, entry.peer_port) for entry in entries.all]


class TestForms:
    @pytest.mark.parametrize("endpoint", ["job://a", " JOB://a,b ", "Job://"])
    def test_the_scheme_names_a_quorum(self, endpoint: str) -> None:
        assert is_job(endpoint)

    @pytest.mark.parametrize("endpoint", [None, "", "a,b", "http://job", "jobs://a", "a,job://b"])
    def test_others_do_not(self, endpoint: str | None) -> None:
        assert not is_job(endpoint)

    @pytest.mark.parametrize(
        "listed", ["a,b,c", "a b c", " a,\n b,\tc ", "a:2379,b:2379,c:2379", ",a,,b, c,"]
    )
    def test_commas_and_white_space_separate(self, listed: str) -> None:
        entries = parse_entries(f"job://{listed}", 3)
        assert [entry.name for entry in entries.all] == ["a:2379", "b:2379", "c:2379"]
        assert entries.endpoint == "job://a:2379,b:2379,c:2379"

    def test_the_first_are_as_many_as_there_are_members(self) -> None:
        entries = parse_entries("job://a,b,c,d,e,f", 5)
        assert [entry.host for entry in entries.first] == ["a", "b", "c", "d", "e"]
        assert entries.majority == 3
        assert parse_entries("job://a", 1).majority == 1

    def test_ipv6_stands_in_brackets(self) -> None:
        (entry,) = parse_entries("job://[fd00::1]:4001", 1).all
        assert (entry.host, entry.name) == ("fd00::1", "[fd00::1]:4001")
        assert entry.client_url("http") == "http://[fd00::1]:4001"
        assert entry.peer_url("https") == "https://[fd00::1]:4002"

    def test_a_secret_means_tls(self) -> None:
        plain, secure = parse_entries("job://a", 1), parse_entries("job://a", 1, secure=True)
        assert plain.initial_cluster() == "a:2379=http://a:2380"
        assert secure.initial_cluster() == "a:2379=https://a:2380"

    def test_whose_peer_url_it_is(self) -> None:
        entries = parse_entries("job://a,b", 1)
        assert entries.of_peer_url("http://b:2380") == entries.all[1]
        assert entries.of_peer_url("https://b:2380") is None


class TestPorts:
    def test_the_one_for_members_is_the_next_one(self) -> None:
        assert _ports("job://a,b:4000") == [(2379, 2380), (4000, 4001)]

    def test_neighbours_of_one_host_share_none(self) -> None:
        assert _ports("job://a:1,a:2,a:4") == [(1, 3), (2, 5), (4, 6)]
        assert _ports("job://a:1,b:2") == [(1, 2), (2, 3)]

    def test_one_that_is_given(self) -> None:
        assert _ports("job://a,b", peer_port=9000) == [(2379, 9000), (2379, 9000)]
        assert _ports("job://a:1,a:2", peer_port=9000) == [(1, 9000), (2, 9001)]
        assert _ports("job://a:9000", peer_port=9000) == [(9000, 9001)]

    def test_there_is_none_after_the_last_one(self) -> None:
        with pytest.raises(ValueError, match="'a:65535' leaves no port.*quorum_peer_port"):
            parse_entries("job://a:65535", 1)
        assert _ports("job://a:65535", peer_port=1) == [(65535, 1)]


class TestErrors:
    @pytest.mark.parametrize("endpoint", ["job://", "job:// , ,"])
    def test_no_host(self, endpoint: str) -> None:
        with pytest.raises(ValueError, match=f"'{endpoint}' names no host"):
            parse_entries(endpoint, 3)

    def test_a_scheme_in_an_entry(self) -> None:
        with pytest.raises(ValueError, match="'http://b' of the endpoint .* without a scheme"):
            parse_entries("job://a,http://b,c", 3)

    @pytest.mark.parametrize("endpoint", ["job://a,b,a", "job://a,b,a:2379"])
    def test_an_entry_twice(self, endpoint: str) -> None:
        with pytest.raises(ValueError, match="names 'a:2379' twice"):
            parse_entries(endpoint, 3)

    @pytest.mark.parametrize(
        ("endpoint", "size", "said"),
        [
            ("job://a", 3, "needs 3 hosts.*only one host.*'quorum' as 1"),
            ("job://a,b", 3, "only 2 hosts.*'quorum' as 1"),
            ("job://a,b,c,d", 5, "needs 5 hosts.*only 4 hosts.*'quorum' as 3"),
        ],
    )
    def test_too_few(self, endpoint: str, size: int, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            parse_entries(endpoint, size)

    @pytest.mark.parametrize("entry", ["b:0x", "b:99999", "[fd00::1", "b/path"])
    def test_an_entry_that_is_not_valid(self, entry: str) -> None:
        with pytest.raises(ValueError, match=re.escape(entry)):
            parse_entries(f"job://a,{entry}", 1)


class TestToken:
    def test_another_job_has_another_one(self) -> None:
        base = parse_entries("job://a,b,c", 3)
        others = [
            base.token("other run"),
            parse_entries("job://a,b,d", 3).token("run"),
            parse_entries("job://a,c,b", 3).token("run"),
            parse_entries("job://a,b,c", 1).token("run"),
            parse_entries("job://a,b,c", 3, 9000).token("run"),
        ]
        assert len({base.token("run"), *others}) == 6

    def test_the_job_may_name_further_entries(self) -> None:
        longer = parse_entries("job://a,b,c,d", 3)
        assert longer.token("run") == parse_entries("job://a,b,c", 3).token("run")


def _on_this_host(places: int, size: int) -> Entries:
    """Entries whose ports are free, and not next to one another."""
    socks = [take_port() for _ in range(places)]
    try:
        listed = ",".join(f"127.0.0.1:{sock.getsockname()[1]}" for sock in socks)
        return parse_entries(f"job://{listed}", size)
    finally:
        for sock in socks:
            sock.close()


@pytest.mark.needs_etcd
@pytest.mark.parametrize("size", [1, 3])
def test_ids_are_those_of_etcd(size: int, tmp_path: Path) -> None:
    entries = _on_this_host(size, size)
    token = entries.token("run")
    entry = entries.first[0]
    folder = open_folder(tmp_path, "member")
    assert folder is not None
    member = Member(entries, entry, token, None)
    try:
        member.start(folder, None)
        # It answers other members before it has a leader.
        eventually(lambda: ask_member(entry, None).who is Who.ETCD)
        assert ask_member(entry, None).cluster == entries.cluster_id(token)
        with urllib.request.urlopen(f"{entry.peer_url('http')}/members", timeout=30) as answer:
            listed = {each["peerURLs"][0]: each["id"] for each in json.load(answer)}
    finally:
        member.stop(kill=True)
        folder.close(remove=True)
    assert listed == {
        each.peer_url("http"): entries.first_member_id(each, token) for each in entries.first
    }


@pytest.mark.needs_etcd
@pytest.mark.parametrize("size", [1, 3])
def test_a_member_without_a_leader_knows_nobody_that_was_started(size: int, tmp_path: Path) -> None:
    entries = _on_this_host(size, size)
    entry = entries.first[0]
    folder = open_folder(tmp_path, "member")
    assert folder is not None
    member = Member(entries, entry, entries.token("run"), None)
    try:
        member.start(folder, None)
        if size == 1:  # it leads itself, and tells its URLs
            eventually(lambda: ask_member(entry, None).knows_started)
        else:
            eventually(lambda: ask_member(entry, None).who is Who.ETCD)
            assert not ask_member(entry, None).knows_started
    finally:
        member.stop(kill=True)
        folder.close(remove=True)
