"""What an agent counts of the quorum of its job: with a real member, in this process."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.quorum import PATIENCE_S, free_ports
from support.waiting import eventually
from torchetcd import metrics
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler


def _handler(entries: int, folder: Path, **config: Any) -> EtcdRendezvousHandler:
    endpoint = "job://" + ",".join(f"127.0.0.1:{port}" for port in free_ports(entries))
    given = {"join_timeout": PATIENCE_S, "last_call_timeout": 0, "local_addr": "127.0.0.1"}
    given |= {"quorum": 1, "quorum_dir": str(folder), **config}
    return create_rdzv_handler(
        RendezvousParameters("etcd-v3", endpoint, uuid.uuid4().hex, 1, 1, **given)
    )


def _of(run_id: str) -> dict[str, float]:
    """Return the metrics of a quorum, by their names without what they have in common."""
    return {
        name.removeprefix("torchetcd_quorum_"): values[run_id,]
        for name, values in metrics.snapshot().items()
        if name.startswith("torchetcd_quorum_") and (run_id,) in values
    }


@pytest.mark.needs_etcd
def test_a_member_that_ends_and_is_started_again(tmp_path: Path) -> None:
    handler = _handler(1, tmp_path)
    run_id = handler.get_run_id()
    try:
        assert handler.next_rendezvous().world_size == 1
        eventually(lambda: _of(run_id).get("members") == 1)
        assert _of(run_id) == {
            "member": 1,
            "members": 1,
            "size": 1,
            "replacements_total": 0,
            "member_restarts_total": 0,
        }
        os.kill(_etcd_of(tmp_path), signal.SIGKILL)
        eventually(lambda: _of(run_id)["member_restarts_total"] == 1)
        eventually(lambda: _of(run_id)["member"] == 1)
    finally:
        handler.shutdown()
    assert _of(run_id)["member"] == 0
    assert _of(run_id)["size"] == 1


def test_another_endpoint_has_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        create_rdzv_handler(RendezvousParameters("etcd-v3", "h:x", "no-quorum", 1, 1))
    assert _of("no-quorum") == {}


def _etcd_of(folder: Path) -> int:
    """Return the process of the etcd whose data is below a folder."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                command = (path / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if f"--data-dir={folder}" in command:
                return int(path.name)
    raise AssertionError(folder)
