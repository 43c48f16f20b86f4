"""What an etcd says of itself in its metrics."""

from __future__ import annotations

import gc
import re
import threading
import urllib.request
from typing import Protocol


class Served(Protocol):
    """A server, or a member of a cluster."""

    def get_endpoint(self) -> str: ...


def read_metrics(url: str) -> str:
    """Return all metrics of the server at this URL."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def metric_text(text: str, pattern: str) -> float:
    """Return the sum of the metrics whose name and labels match."""
    return sum(float(found) for found in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))


def metric(server: Served, pattern: str) -> float:
    """Return the sum of a server's metrics whose name and labels match."""
    return metric_text(read_metrics(f"http://{server.get_endpoint()}"), pattern)


def watchers(server: Served) -> int:
    """Return how many watches a server serves."""
    return int(metric(server, "etcd_debugging_mvcc_watcher_total"))


def watchers_left(server: Served) -> int:
    """Return how many watches a server serves when those that earlier tests have ended are gone.

    Nothing announces that, and a handler that lives on keeps its own: the number must not change for
    a second.
    """
    gc.collect()
    found = [watchers(server)]
    while found[-10:] != [found[-1]] * 10 and len(found) < 300:
        threading.Event().wait(0.1)
        found.append(watchers(server))
    return found[-1]
