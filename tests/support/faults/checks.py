"""What must hold of a history of store calls, whatever happened to etcd meanwhile."""

from __future__ import annotations

from support.faults.linearizability import linearizable, shortest_violation
from support.faults.models import UNKNOWN
from support.faults.store_clients import History, model_of


def check(history: History) -> None:
    """Every key's history has an order that explains it."""
    for key, calls in history.by_key().items():
        model = model_of(key)
        if not linearizable(model, calls):
            text = "\n".join(map(str, shortest_violation(model, calls)))
            raise AssertionError(f"the history of {key!r} is not linearizable:\n{text}")


def check_sums(history: History, finals: dict[str, int]) -> None:
    """What came back is counted once, what did not at most once."""
    for key, final in finals.items():
        calls = [call for call in history.by_key().get(key, []) if call.name == "add"]
        done = sum(call.args[0] for call in calls if call.result is not UNKNOWN)
        maybe = [call.args[0] for call in calls if call.result is UNKNOWN]
        least = done + sum(number for number in maybe if number < 0)
        most = done + sum(number for number in maybe if number > 0)
        assert least <= final <= most, f"{key}: {final} is not between {least} and {most}"
