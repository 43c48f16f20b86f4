"""Runs that are written by the test."""

from __future__ import annotations

import pytest

from support.records import Written
from torchetcd.etcd import Client


@pytest.fixture
def written(client: Client, run_id: str) -> Written:
    """Provide a run of which nothing is written yet."""
    return Written(client, run_id)
