"""The store in etcd that an agent with `worker_store=etcd` hands to its workers, in place of a TCPStore."""
