"""A rendezvous on etcd v3 for torch's elastic agent.

The names are those of `torch.distributed.elastic.rendezvous.etcd_rendezvous`; the protocol is our own
(`docs/protocol.md`): one record says which round is current, one coordinator completes it, and no node
competes with the others for a shared value.
"""

from torchetcd._rendezvous.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd._rendezvous.node import EtcdRendezvous
from torchetcd._rendezvous.options import Options, parse_options
from torchetcd.errors import RendezvousDeniedError, RendezvousOverError

__all__ = [
    "EtcdRendezvous",
    "EtcdRendezvousHandler",
    "EtcdRendezvousRetryImmediately",
    "EtcdRendezvousRetryableFailure",
    "Options",
    "RendezvousDeniedError",
    "RendezvousOverError",
    "create_rdzv_handler",
    "parse_options",
]


class EtcdRendezvousRetryableFailure(Exception):  # noqa: N818 - torch's name
    """Kept for scripts that import it; this implementation never raises it."""


class EtcdRendezvousRetryImmediately(Exception):  # noqa: N818 - torch's name
    """Kept for scripts that import it; this implementation never raises it."""
