"""A state backend on etcd v3 for PyTorch's own `DynamicRendezvousHandler`.

The state is one value that every node of a run rewrites, guarded by its revision. PyTorch's handler
is made that way; `torchetcd.etcd_rendezvous` is the rendezvous that is not, and scales.
"""

from torchetcd._rendezvous.state_backend import EtcdRendezvousBackend, create_backend

__all__ = ["EtcdRendezvousBackend", "create_backend"]
