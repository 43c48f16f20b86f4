"""What etcd reports on its page of metrics and nowhere else. A missing page says nothing."""

from __future__ import annotations

import contextlib
import math
import re
import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING

from torchetcd.etcd import Client as EtcdClient

if TYPE_CHECKING:
    from torchetcd.cli.target import Target

#: How many leaders the member has seen since it runs; since when it runs; its quota.
LEADERS = "etcd_server_leader_changes_seen_total"
SINCE = "process_start_time_seconds"
QUOTA = "etcd_server_quota_backend_bytes"

_LINE = re.compile(rf"^({LEADERS}|{SINCE}|{QUOTA})(?:{{[^}}]*}})? (\S+)$", re.MULTILINE | re.ASCII)
# It is a page of 150 kB. Somebody waits for it, and does not depend on it.
_LARGEST = 8 * 1024 * 1024
_PATIENCE_S = 5.0


def read(address: EtcdClient, target: Target) -> dict[str, float]:
    """Read the page of the member at an endpoint, where it serves one there."""
    limit = min(target.timeout, _PATIENCE_S)
    try:
        connection = (
            HTTPSConnection(address.host, address.port, timeout=limit, context=_trust(target))
            if address.protocol == "https"
            else HTTPConnection(address.host, address.port, timeout=limit)
        )
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read(_LARGEST).decode("utf-8", "replace")
    except (OSError, ValueError, HTTPException):
        # Such as a member that serves it elsewhere, or a gateway that knows gRPC only.
        return {}
    found = {}
    for name, value in _LINE.findall(text):
        with contextlib.suppress(ValueError):
            number = float(value)
            # A quota that is switched off is no number of bytes.
            if math.isfinite(number) and 0 <= number < 2**63:
                found[name] = number
    return found


def _trust(target: Target) -> ssl.SSLContext:
    if target.quorum is not None and (of_quorum := target.quorum.tls()) is not None:
        return of_quorum
    context = ssl.create_default_context(cafile=target.ca_cert)
    if target.cert is not None:
        context.load_cert_chain(target.cert, target.key or target.cert)
    return context
