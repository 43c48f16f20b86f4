"""A quorum with a secret: nobody else comes in at any of its ports."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority, Pair
from support.quorum import AgentError, Job
from torchetcd._quorum.material import make_material
from torchetcd.etcd import Client, EtcdException

pytestmark = [pytest.mark.needs_etcd, pytest.mark.timeout(240)]
SECRET = "a secret of thirty-two bytes ...."


def _secret_file(folder: Path, name: str = "secret", secret: str = SECRET) -> str:
    path = folder / name
    path.write_text(secret + "\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def secured(make_job: Callable[..., Job], tmp_path: Path) -> Job:
    """Provide a job of three agents that have the secret."""
    job = make_job(3, secret=SECRET, quorum_secret_file=_secret_file(tmp_path))
    job.start_all(3, 3, 3)
    job.await_members(*(entry.port for entry in job.entries.all))
    return job


def _ask(port: int, **given: Any) -> str:
    """Try to read as a client; what it is told, empty if it can."""
    try:
        with Client(f"127.0.0.1:{port}", read_timeout=3, **given) as client:
            client._native.txn([], [("get", b"/", b"", 0, False, 0)], [])
    except EtcdException as exc:
        return str(exc)
    return ""


def _get_members(port: int, context: ssl.SSLContext | None) -> bytes:
    """Ask as another member does."""
    connection: HTTPConnection = HTTPConnection("127.0.0.1", port, timeout=10)
    if context is not None:
        connection = HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    with contextlib.closing(connection):
        connection.request("GET", "/members")
        answer = connection.getresponse()
        body = answer.read()
    assert answer.status == 200, body
    return body


def _context(ca: str, pair: Pair | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = False
    if pair is not None:
        context.load_cert_chain(pair.cert, pair.key)
    return context


def test_only_who_knows_it_comes_in(secured: Job, tmp_path: Path) -> None:
    own = make_material(SECRET.encode())
    ours = Pair(own.cert, own.key)
    authority = Authority(tmp_path, "other")
    theirs = authority.issue("somebody")
    for entry in secured.entries.all:
        secure = {"protocol": "https", "ca_cert": own.ca}
        assert _ask(entry.port, **secure, cert=ours) == ""
        assert _ask(entry.port) != ""
        assert _ask(entry.port, **secure) != ""
        assert _ask(entry.port, **secure, cert=theirs) != ""
        assert _ask(entry.port, protocol="https", ca_cert=authority.ca_cert, cert=theirs) != ""
        assert b"peerURLs" in _get_members(entry.peer_port, _context(own.ca, ours))
        for refused in (None, _context(own.ca, None), _context(own.ca, theirs)):
            with pytest.raises((OSError, AssertionError)):
                _get_members(entry.peer_port, refused)


def test_a_world(secured: Job) -> None:
    for agent in secured.agents:
        agent.start("join")
    assert sorted(agent.finish() for agent in secured.agents) == [[0, 3], [1, 3], [2, 3]]
    secured.agents[0].call("set", "key", "value")
    assert secured.agents[1].call("get", "key") == "value"
    for agent in secured.agents:
        agent.start("shutdown")
    for agent in secured.agents:
        assert agent.finish() is True
        assert agent.end() == 0
    assert not secured.folders


def test_a_loss(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(4, secret=SECRET, quorum_secret_file=_secret_file(tmp_path))
    job.start_all(4)
    first, second, third, fourth = (entry.port for entry in job.entries.all)
    job.await_members(first, second, third)
    job.lose(job.agent_at(second))
    job.await_members(first, third, fourth)


@pytest.mark.parametrize("has", ["another", "none"])
def test_an_agent_without_the_secret(
    make_job: Callable[..., Job], tmp_path: Path, has: str
) -> None:
    """It is told why in one sentence, and the others are not disturbed."""
    job = make_job(4, secret=SECRET, join_timeout=20)
    given = {"quorum_secret_file": _secret_file(tmp_path)}
    two = [job.start(2, 3, **given) for _ in range(2)]
    for agent in two:
        agent.finish()
    wrong = {"quorum_secret_file": _secret_file(tmp_path, "other", "another secret of some bytes")}
    stranger = job.start(2, 3, **({} if has == "none" else wrong))
    with pytest.raises(AgentError) as failed:
        stranger.finish()
    wanted = "holds another secret" if has == "another" else "quorum_secret_file is given there"
    assert wanted in str(failed.value)
    for agent in two:
        agent.start("join")
    assert sorted(agent.finish() for agent in two) == [[0, 2], [1, 2]]
