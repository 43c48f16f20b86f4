"""What an agent says at its entry, and what others make of it and of whoever else is there."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from support.certificates import Authority
from torchetcd._quorum import asking
from torchetcd._quorum.answering import Answerer
from torchetcd._quorum.asking import Answer, Who, ask, ask_all, ask_member
from torchetcd._quorum.entries import PAGE, Entry
from torchetcd._quorum.places import listen

HOST = "127.0.0.1"
SAYS = {"token": "torchetcd-1", "entry": "a:1", "role": "fresh"}


class Contexts(NamedTuple):
    """What agents with one secret use."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def _contexts(folder: Path, name: str) -> Contexts:
    authority = Authority(folder, name)
    pair = authority.issue(f"{name}-agent")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    for context in (server, client):
        context.load_verify_locations(authority.ca_cert)
        context.load_cert_chain(pair.cert, pair.key)
    return Contexts(server, client)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    return _contexts(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def other_tls(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    return _contexts(tmp_path_factory.mktemp("tls"), "theirs")


@contextlib.contextmanager
def _closed_port() -> Iterator[int]:
    """A port that nobody else takes, and that refuses: it is bound and does not listen."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        yield sock.getsockname()[1]


@contextlib.contextmanager
def _agent(context: ssl.SSLContext | None = None) -> Iterator[tuple[Entry, Answerer]]:
    sock = listen(HOST, 0)
    port = sock.getsockname()[1]
    with _closed_port() as peer_port:
        answerer = Answerer(sock, context, dict(SAYS))
        try:
            yield Entry(HOST, port, peer_port), answerer
        finally:
            answerer.close()


@contextlib.contextmanager
def _at_both_ports(serve: Callable[[socket.socket], object]) -> Iterator[Entry]:
    """An entry at which a thread does this with each connection, one after another."""
    sock = listen(HOST, 0)
    port = sock.getsockname()[1]
    ending = threading.Event()

    def accept() -> None:
        while True:
            connection, _ = sock.accept()
            with connection:
                if ending.is_set():
                    return
                connection.settimeout(30)
                with contextlib.suppress(OSError):
                    serve(connection)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield Entry(HOST, port, port)
    finally:
        ending.set()
        socket.create_connection((HOST, port), 30).close()
        thread.join()
        sock.close()


def _page(status: int, body: bytes, headers: str = "") -> Callable[[socket.socket], object]:
    head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n{headers}\r\n"

    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(head.encode() + body)

    return serve


# ------------------------------------------------------------------ agents


class TestAgents:
    def test_what_it_says(self) -> None:
        with _agent() as (entry, answerer):
            answer = ask(entry, None)
            assert answer.who is Who.AGENT
            assert {name: answer.says[name] for name in SAYS} == SAYS
            assert isinstance(answer.says["now"], float)
            # It is said as of now.
            answerer.says = {**SAYS, "role": "candidate"}
            assert ask(entry, None).says["role"] == "candidate"

    def test_another_token_is_told(self) -> None:
        with _agent() as (entry, answerer):
            answerer.says = {**SAYS, "token": "torchetcd-2"}
            assert ask(entry, None).says["token"] == "torchetcd-2"

    def test_many_are_asked_and_answer_in_order(self) -> None:
        with contextlib.ExitStack() as stack:
            agents = [stack.enter_context(_agent()) for _ in range(20)]
            for number, (_, answerer) in enumerate(agents):
                answerer.says = {**SAYS, "number": number}
            answers = ask_all([entry for entry, _ in agents], None)
            assert [answer.says["number"] for answer in answers] == list(range(20))
        assert ask_all([], None) == []

    def test_it_gives_the_port_up(self) -> None:
        with _agent() as (entry, answerer):
            assert ask(entry, None).who is Who.AGENT
            answerer.close()
            listen(HOST, entry.port).close()

    def test_other_pages_are_not_found(self) -> None:
        with _agent() as (entry, _), socket.create_connection((HOST, entry.port), 30) as sock:
            sock.sendall(b"GET /version HTTP/1.0\r\n\r\n")
            assert b" 404 " in sock.recv(1 << 16).splitlines()[0]

    def test_it_answers_others_while_one_says_nothing(self) -> None:
        with _agent() as (entry, _), socket.create_connection((HOST, entry.port), 30):
            assert ask(entry, None).who is Who.AGENT

    def test_a_client_of_etcd_is_sent_away_without_a_word(self) -> None:
        with _agent() as (entry, _), socket.create_connection((HOST, entry.port), 30) as sock:
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):  # where it has not read all of it
                assert sock.recv(1) == b""


# ------------------------------------------------------------------ secrets


class TestTls:
    def test_the_same_secret(self, tls: Contexts) -> None:
        with _agent(tls.server) as (entry, _):
            assert ask(entry, tls.client).who is Who.AGENT

    def test_another_secret(self, tls: Contexts, other_tls: Contexts) -> None:
        with _agent(tls.server) as (entry, _):
            answer = ask(entry, other_tls.client)
        assert answer == Answer(entry, Who.UNTRUSTED, "its quorum_secret_file holds another secret")

    def test_no_secret_here(self, tls: Contexts) -> None:
        with _agent(tls.server) as (entry, _):
            answer = ask(entry, None)
        text = "it speaks TLS: quorum_secret_file is given there and not here"
        assert answer == Answer(entry, Who.UNTRUSTED, text)

    def test_no_secret_there(self, tls: Contexts) -> None:
        with _agent() as (entry, _):
            answer = ask(entry, tls.client)
        text = "it speaks no TLS, as if it had no quorum_secret_file"
        assert answer == Answer(entry, Who.UNTRUSTED, text)

    def test_a_client_without_a_certificate_learns_nothing(self, tls: Contexts) -> None:
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        with _agent(tls.server) as (entry, _):
            assert ask(entry, nobody).who is Who.UNTRUSTED

    def test_it_answers_others_while_one_shakes_no_hands(self, tls: Contexts) -> None:
        with _agent(tls.server) as (entry, _), socket.create_connection((HOST, entry.port), 30):
            assert ask(entry, tls.client).who is Who.AGENT


# ------------------------------------------------------------------ others


class TestOthers:
    def test_nobody(self) -> None:
        with _closed_port() as port:
            answer = ask(Entry(HOST, port, port), None)
        assert answer.who is Who.NOBODY
        assert answer.text == "no agent runs there (connection refused)"

    def test_a_name_that_is_not_known(self) -> None:
        answer = ask(Entry("no-such-host.invalid", 2379, 2380), None)
        assert answer.who is Who.SILENT
        assert answer.text == "its name is not known"

    def test_one_that_says_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(asking, "PATIENCE_S", 0.2)
        with _at_both_ports(lambda sock: sock.recv(1 << 16) and sock.recv(1)) as entry:
            answer = ask(entry, None)
        assert answer.who is Who.SILENT
        assert "does not answer within" in answer.text

    def test_one_that_closes_the_connection(self) -> None:
        with _at_both_ports(lambda sock: sock.recv(1 << 16)) as entry:
            assert ask(entry, None) == Answer(entry, Who.NOBODY, "it closes the connection")

    def test_another_web_server(self) -> None:
        server = HTTPServer((HOST, 0), BaseHTTPRequestHandler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            port = server.server_address[1]
            answer = ask(Entry(HOST, port, port), None)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
        assert answer == Answer(answer.entry, Who.OTHER, "another program answers there")

    @pytest.mark.parametrize(
        "body", [b"", b"<html>", b"[]", b"null", b"{}", b"7", b'{"token"', b"\xff\xfe{", b"[[[["]
    )
    def test_a_page_that_is_no_answer(self, body: bytes) -> None:
        with _at_both_ports(_page(200, body)) as entry:
            assert ask(entry, None).who is Who.OTHER

    def test_what_speaks_no_http(self) -> None:
        def serve(connection: socket.socket) -> None:
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            connection.recv(1 << 16)

        with _at_both_ports(serve) as entry:
            assert ask(entry, None).who is Who.OTHER


STARTED = {"id": 1, "peerURLs": ["http://a:2380"], "name": "a", "clientURLs": ["http://a:2379"]}
AWAITED = {"id": 2, "peerURLs": ["http://b:2380"], "name": "b"}


class TestMembers:
    @pytest.mark.parametrize(
        ("listed", "started"),
        [([AWAITED], False), ([AWAITED, STARTED], True), ([], False), (None, None)],
    )
    def test_which_members_it_knows(self, listed: object, started: bool | None) -> None:
        body = json.dumps(listed).encode()
        with _at_both_ports(_page(200, body, "X-Etcd-Cluster-ID: 1f\r\n")) as entry:
            answer = ask(entry, None)
        assert answer == Answer(entry, Who.ETCD, cluster=0x1F, knows_started=started)

    @pytest.mark.parametrize(
        ("body", "header"),
        [
            (b"[]", ""),
            (b"[]", "X-Etcd-Cluster-ID: what\r\n"),
            (b"[7]", "X-Etcd-Cluster-ID: 1f\r\n"),
            (b"{}", "X-Etcd-Cluster-ID: 1f\r\n"),
        ],
    )
    def test_what_is_no_member(self, body: bytes, header: str) -> None:
        with _at_both_ports(_page(200, body, header)) as entry:
            assert ask_member(entry, None).who is Who.OTHER

    def test_one_that_goes_on_between_two_questions_says_its_cluster(self) -> None:
        """It hung at the first one: without its cluster it would be taken for one of another job."""
        asked = []
        pages = {"/members": b"[]", "/version": b'{"etcdserver": "3.5.1"}'}

        def serve(sock: socket.socket) -> None:
            request = sock.recv(1 << 16)
            if not request.startswith(b"GET "):
                return  # whether it speaks TLS
            page = request.split()[1].decode()
            asked.append(page)
            if len(asked) > 1:
                status = f"HTTP/1.1 {200 if page in pages else 404} x"
                body = pages.get(page, b"")
                length = f"Content-Length: {len(body)}"
                head = "\r\n".join([status, length, "X-Etcd-Cluster-Id: 1f", "", ""])
                sock.sendall(head.encode() + body)

        with _at_both_ports(serve) as entry:
            assert ask(entry, None) == Answer(entry, Who.ETCD, cluster=0x1F, knows_started=False)
        assert asked == ["/members", PAGE, "/version", "/members"]

    def test_an_agent_is_no_member(self) -> None:
        with _agent() as (entry, _):
            assert ask_member(entry, None).who is Who.NOBODY


def test_the_page_is_not_one_of_etcd() -> None:
    assert PAGE.startswith("/torchetcd")
