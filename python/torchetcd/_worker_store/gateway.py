"""What an agent with `worker_store=gateway` serves to its own workers: torch's TCPStore, with etcd behind it.

torch has a public way for an agent to say so: `use_agent_store` and `bootstrap_store_info`. So workers need
nothing of this package, and no credentials.
"""

from __future__ import annotations

import logging
import os
import random
from typing import TYPE_CHECKING

from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousStoreInfo

from torchetcd import _native

if TYPE_CHECKING:
    from torchetcd._rendezvous.options import Options
    from torchetcd.etcd_rendezvous import EtcdRendezvous

_logger = logging.getLogger(__name__)


class WorkerGateway:
    """The server of one agent, for all its rounds.

    Raises:
        RendezvousError: if none of the ports that may be used is free.
    """

    def __init__(self, options: Options) -> None:
        self._run_id = ""
        ports = options.master_port
        # Not the first one each time: other agents of this host choose from the same.
        order = [0] if ports is None else random.sample(ports, len(ports))
        user = os.geteuid() if options.gateway_admit == "user" else None
        try:
            self._native = _native.Gateway(order, user)
        except OSError as exc:
            allowed = (
                "any port"
                if ports is None
                else f"the rendezvous parameter 'master_port' ({ports[0]}-{ports[-1]})"
            )
            message = (
                f"The gateway for workers cannot listen on 127.0.0.1 at {allowed}: {exc.strerror}."
            )
            raise RendezvousError(message) from exc

    def hand_over(self, rdzv: EtcdRendezvous, version: int) -> RendezvousStoreInfo:
        """Serve the store of this round from now on, and return where."""
        self.log_remarks()
        self._run_id = rdzv._run_id
        self._native.serve(rdzv._node.store(version, "workers"))
        host, port = self._native.address
        _logger.info(
            "Workers of round %d of run '%s' find their store at %s:%d, which this agent serves.",
            version,
            self._run_id,
            host,
            port,
        )
        return RendezvousStoreInfo(host, port)

    def log_remarks(self) -> None:
        """Log what the gateway has had to say since the last time: its own threads know no Python."""
        for remark in self._native.remarks():
            _logger.warning("Run '%s': %s.", self._run_id, remark.rstrip("."))

    def close(self) -> None:
        """End it, and the connections to it."""
        self._native.close()
