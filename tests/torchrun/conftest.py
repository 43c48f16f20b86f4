"""The agents of one job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes.agents import Job
from support.processes.nodes import Run
from support.processes.zygote import Zygote
from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer


@pytest.fixture
def job(
    etcd_server: EtcdServer, client: Client, agent_zygote: Zygote, tmp_path: Path
) -> Iterator[Job]:
    with Run(etcd_server.get_endpoint(), client) as run:
        made = Job(run, tmp_path, agent_zygote)
        yield made
        made.end()
