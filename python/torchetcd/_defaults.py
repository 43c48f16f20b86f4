"""What holds where nobody says otherwise, and is needed in more than one module."""

from __future__ import annotations

#: etcd's own port for clients.
PORT = 2379
ENDPOINT = f"localhost:{PORT}"
#: What the keys of torch's own etcd rendezvous begin with.
PREFIX = "/torchelastic/p2p"
#: Apart from torchrun's runs, so that a job may have the name of the run that its workers are of.
GROUP_PREFIX = "/torchetcd/groups"
#: For how long the keys of a run, and the state of torch's dynamic handler, outlive the last node.
RUN_TTL_S = 7200
#: How long a call to etcd may take.
READ_TIMEOUT_S = 60
#: How long a barrier may take. torchrun itself asks for 900.
JOIN_TIMEOUT_S = 600
