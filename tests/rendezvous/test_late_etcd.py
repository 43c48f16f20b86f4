"""An etcd that comes later than the agents is waited for; what no time heals ends the wait at once."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters

from support.certificates import Authority
from support.etcd.cluster import Cluster
from support.etcd.users import CHEAP, Users
from support.waiting import eventually
from torchetcd._rendezvous import waits
from torchetcd.etcd import EtcdConnectionFailed, EtcdInsufficientPermissions
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_server import EtcdServer, find_free_port

pytestmark = pytest.mark.needs_etcd

#: Whether the node's own look, or a read, is what waits.
EITHER = pytest.mark.parametrize("close_timeout", [1, 300])
#: Far more than what has to be noticed at once takes on a busy machine, and far less than the patience.
AT_ONCE_S = 100
PATIENCE_S = 600


@pytest.fixture
def restartable() -> Iterator[Cluster]:
    with Cluster(1) as made:
        yield made


def _handler(endpoint: str, **config: Any) -> EtcdRendezvousHandler:
    given = {"local_addr": "127.0.0.1", "last_call_timeout": 0, "join_timeout": PATIENCE_S}
    return create_rdzv_handler(
        RendezvousParameters("etcd-v3", endpoint, "late", 1, 1, **(given | config))
    )


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record for record in caplog.records if record.levelno == logging.WARNING]
    return [record.getMessage() for record in found if record.name == "torchetcd.etcd_rendezvous"]


@pytest.mark.slow(10)
@EITHER
def test_it_comes_later(
    restartable: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    close_timeout: int,
) -> None:
    monkeypatch.setattr(waits, "_NO_ETCD_S", 1.5)
    with ThreadPoolExecutor(1) as pool:
        with restartable.away():
            made = pool.submit(_handler, restartable.endpoints, close_timeout=close_timeout)
            eventually(lambda: len(_warnings(caplog)) >= 2, 60)
            assert not made.done()
        handler = made.result(60)
    assert handler.next_rendezvous().world_size == 1
    for line in _warnings(caplog):
        assert line.startswith("Run 'late': etcd has not answered for ")
        assert " s. The wait ends after 600 s in all. etcd did not answer within " in line
        assert restartable.endpoints in line
    handler.shutdown()


@pytest.mark.slow(10)
@EITHER
def test_most_of_it_comes_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, close_timeout: int
) -> None:
    """A member that waits for the others answers, but reads nothing."""
    monkeypatch.setattr(waits, "_NO_ETCD_S", 1.5)
    with Cluster() as cluster, ThreadPoolExecutor(1) as pool:
        endpoint = cluster.members[0].get_endpoint()
        for member in cluster.members[1:]:
            member.signal(signal.SIGSTOP)
        try:
            made = pool.submit(_handler, endpoint, close_timeout=close_timeout)
            eventually(lambda: len(_warnings(caplog)) >= 2, 60)
            assert not made.done()
        finally:
            cluster.resume()
        handler = made.result(60)
        assert handler.next_rendezvous().world_size == 1
        handler.shutdown()


@EITHER
@pytest.mark.parametrize("host", ["127.0.0.1", "does-not-exist.invalid"])
def test_it_never_comes(caplog: pytest.LogCaptureFixture, host: str, close_timeout: int) -> None:
    with find_free_port() as sock:
        endpoint = f"{host}:{sock.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(RendezvousConnectionError) as raised:
            _handler(endpoint, join_timeout=2, close_timeout=close_timeout)
        waited = time.monotonic() - began
    assert 2 <= waited < AT_ONCE_S
    assert endpoint in str(raised.value)
    assert " (etcd was waited for " in str(raised.value)
    assert isinstance(raised.value.__cause__, EtcdConnectionFailed)
    # Nobody had to be told of so short a wait.
    assert not _warnings(caplog)


class TestAtOnce:
    @pytest.fixture(autouse=True)
    def _in_time(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        assert time.monotonic() - began < AT_ONCE_S

    @EITHER
    def test_a_certificate_that_nobody_trusts(self, tmp_path: Path, close_timeout: int) -> None:
        ca, other = Authority(tmp_path), Authority(tmp_path, "other")
        cert, key = ca.issue("server")
        files = [f"--cert-file={cert}", f"--key-file={key}"]
        with EtcdServer(extra_args=files) as server:
            endpoint = f"https://{server.get_endpoint()}"
            with pytest.raises(RendezvousConnectionError, match="no TLS connection to etcd"):
                _handler(endpoint, close_timeout=close_timeout, ca_cert=other.ca_cert)
            handler = _handler(endpoint, close_timeout=close_timeout, ca_cert=ca.ca_cert)
            assert not handler.is_closed()

    @EITHER
    def test_a_password_that_is_wrong(self, close_timeout: int) -> None:
        with EtcdServer(extra_args=[CHEAP]) as server:
            Users(server).add("me", "right", prefix="/")
            login = {"user": "me", "close_timeout": close_timeout}
            with pytest.raises(RendezvousConnectionError, match="authentication failed") as raised:
                _handler(server.get_endpoint(), password="wrong", **login)
            assert isinstance(raised.value.__cause__, EtcdInsufficientPermissions)
            assert not _handler(server.get_endpoint(), password="right", **login).is_closed()

    @EITHER
    def test_a_file_that_holds_no_certificate(self, tmp_path: Path, close_timeout: int) -> None:
        file = tmp_path / "ca.pem"
        file.write_text("no certificate")
        with pytest.raises(RendezvousConnectionError, match=r"ca\.pem.* holds no PEM block"):
            _handler("https://127.0.0.1:1", ca_cert=str(file), close_timeout=close_timeout)

    def test_an_endpoint_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="'h1;h2' is not valid"):
            _handler("h1;h2")
