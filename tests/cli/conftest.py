"""The command line, and runs that it is asked of."""

from __future__ import annotations

import pytest

from support.cli import Cli
from support.records import Written
from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer


@pytest.fixture
def cli(etcd_server: EtcdServer, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Provide the command line for the shared etcd."""
    return Cli(etcd_server.get_endpoint(), capsys)


@pytest.fixture
def written(client: Client, run_id: str) -> Written:
    """Provide a run whose first round is open, and whose nodes the test writes."""
    made = Written(client, run_id)
    made.put("head/control", made.control(1, "open"))
    return made
