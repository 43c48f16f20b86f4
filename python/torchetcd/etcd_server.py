"""A local etcd server for tests, examples and jobs on one machine."""

from torchetcd._etcd_process import EtcdServer, find_binary, find_free_port, stop_etcd

__all__ = ["EtcdServer", "find_binary", "find_free_port", "stop_etcd"]
