"""torchetcd: PyTorch's elastic rendezvous and c10d store on etcd v3.

The modules have the names they have in `torch.distributed.elastic.rendezvous`: `etcd_rendezvous`,
`etcd_rendezvous_backend`, `etcd_server`, `etcd_store`, and `etcd`, a client of python-etcd's shape.
Importing this package imports neither torch nor starts a thread.
"""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from torchetcd._registration import register

__all__ = ["__version__", "register"]

try:
    __version__ = _version("torchetcd")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0+unknown"
