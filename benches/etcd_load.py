"""What a benchmark asks of etcd, as etcd itself counts it."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass, field


@dataclass
class Load:
    """Read off etcd's metrics; the difference of two is what happened in between."""

    calls: dict[str, int] = field(default_factory=dict)
    """By gRPC method, or "http" and the method for the v2 API; a stream counts once, when it is opened."""
    messages: int = 0
    """Messages on streams, both ways: lease keep-alives and watch events."""
    received_bytes: int = 0
    sent_bytes: int = 0
    cpu_s: float = 0.0
    puts: int = 0
    v2_writes: int = 0
    """etcd keeps its own members here too: a few at its start."""
    revision: int = 0

    def __sub__(self, before: Load) -> Load:
        calls = {name: count - before.calls.get(name, 0) for name, count in self.calls.items()}
        return Load(
            {name: count for name, count in calls.items() if count},
            self.messages - before.messages,
            self.received_bytes - before.received_bytes,
            self.sent_bytes - before.sent_bytes,
            self.cpu_s - before.cpu_s,
            self.puts - before.puts,
            self.v2_writes - before.v2_writes,
            self.revision - before.revision,
        )

    @property
    def rpcs(self) -> int:
        return sum(self.calls.values())


def load(endpoint: str) -> Load:
    """What etcd has done so far."""
    found = Load()
    with urllib.request.urlopen(f"http://{endpoint}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name.startswith("grpc_server_started_total"):
            method = name.split('grpc_method="')[1].split('"')[0]
            found.calls[method] = found.calls.get(method, 0) + int(float(value))
        elif name.startswith("etcd_http_received_total"):
            found.calls["http " + name.split('method="')[1].split('"')[0]] = int(float(value))
        elif name == "etcd_debugging_store_watch_requests_total":
            # The v2 API's long polls, which are not among those above.
            found.calls["http watch"] = int(float(value))
        elif name.startswith("etcd_debugging_store_writes_total"):
            found.v2_writes += int(float(value))
        elif name.startswith("grpc_server_msg_") and 'grpc_type="bidi_stream"' in name:
            found.messages += int(float(value))
        elif name == "etcd_network_client_grpc_received_bytes_total":
            found.received_bytes = int(float(value))
        elif name == "etcd_network_client_grpc_sent_bytes_total":
            found.sent_bytes = int(float(value))
        elif name == "process_cpu_seconds_total":
            found.cpu_s = float(value)
        elif name in {"etcd_mvcc_put_total", "etcd_debugging_mvcc_put_total"}:
            found.puts = int(float(value))
        elif name == "etcd_debugging_mvcc_current_revision":
            found.revision = int(float(value))
    return found
