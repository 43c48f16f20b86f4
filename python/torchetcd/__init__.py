"""torchetcd: PyTorch's elastic rendezvous and c10d store on etcd v3.

The modules have the names they have in `torch.distributed.elastic.rendezvous`: `etcd_rendezvous`,
`etcd_rendezvous_backend`, `etcd_server`, `etcd_store`, and `etcd`, a client of python-etcd's shape.
Importing this package imports neither torch nor starts a thread.
"""

from torchetcd._registration import register
from torchetcd._version import version

__all__ = ["__version__", "register"]

__version__: str


def __getattr__(name: str) -> str:
    if name != "__version__":
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return version()
