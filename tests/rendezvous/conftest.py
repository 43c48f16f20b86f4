"""What several modules of rendezvous use."""

from __future__ import annotations

import pytest

from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous_backend import EtcdRendezvousBackend


@pytest.fixture
def backend(client: Client, prefix: str) -> EtcdRendezvousBackend:
    """Provide the backend of a run that nobody else uses."""
    return EtcdRendezvousBackend(client, "run", prefix)
