"""What an agent with `worker_store=etcd` does for its workers: it checks and describes the store."""

from __future__ import annotations

import logging
import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from torchetcd._environment import PASSWORD, PASSWORD_FILE
from torchetcd._worker_store.description import StoreDescription, write_description
from torchetcd._worker_store.env_scheme import use_worker_store
from torchetcd._worker_store.process import claim, this_process

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousStoreInfo

    from torchetcd._rendezvous.options import Options
    from torchetcd.etcd_rendezvous import EtcdRendezvous

_logger = logging.getLogger(__name__)

#: The kernel limits the length of a variable. A quorum inside the job may have thousands of entries, its
#: members first.
_MOST_ENDPOINTS = 64

_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"

#: Whether what this process forks is asked whether it is a worker.
_asks_forked: list[bool] = []


def check(options: Options) -> None:
    """Refuse what workers could not use.

    Raises:
        ValueError: if the password is known to this process only.
    """
    if options.password and not PASSWORD.get():
        message = (
            "The rendezvous parameter 'worker_store=etcd' needs the password in a file ('password_file' or "
            f"{PASSWORD_FILE.name}) or in {PASSWORD.name}, not in the parameter 'password': workers do not "
            "get it otherwise."
        )
        raise ValueError(message)
    use_worker_store()
    if not _asks_forked:
        # A worker that is forked imports nothing, and must not wait with it until it needs the store.
        os.register_at_fork(after_in_child=claim)
        _asks_forked.append(True)
    found = any(
        entry.value.startswith("torchetcd") for entry in entry_points(group="torch.backends")
    )
    if not found or os.environ.get(_AUTOLOAD, "1") != "1":
        reason = f"{_AUTOLOAD} is not 1" if found else "torchetcd is not installed as a package"
        _logger.warning(
            "worker_store=etcd reaches only workers that import torchetcd.process_group, because %s. The "
            "others use a TCPStore.",
            reason,
        )


def hand_over(
    options: Options, rdzv: EtcdRendezvous, version: int, master: RendezvousStoreInfo
) -> None:
    """Tell the workers that this process starts from now on to use the store of this round."""
    description = StoreDescription(
        run_id=rdzv._run_id,
        round=version,
        endpoints=rdzv.client._native.endpoints[:_MOST_ENDPOINTS],
        cluster_id=rdzv.client.expected_cluster_id,
        prefix=f"{rdzv._round_path(version, 'workers')}/",
        lease=rdzv._node.run_lease,
        user=options.user,
        password_file=_absolute(options.password_file),
        ca_cert=_absolute(options.ca_cert),
        ssl_cert=_absolute(options.ssl_cert),
        ssl_cert_key=_absolute(options.ssl_cert_key),
        read_timeout=options.read_timeout,
        master_addr=master.master_addr,
        master_port=str(master.master_port),
        agent=this_process(),
        worker=None,
        world_size=None,
    )
    write_description(description)


def _absolute(path: str | None) -> str | None:
    # A worker may go to another folder.
    return None if path is None else os.path.abspath(path)
