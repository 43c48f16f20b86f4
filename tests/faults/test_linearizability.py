"""The checker itself: against all orders of small random histories, and on histories known to be wrong."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from support.faults.linearizability import Call, linearizable, shortest_violation
from support.faults.models import ABSENT, EMPTY, UNKNOWN, Model, Queue, Value


def call(text: str, called: float, returned: float, result: object, *args: object) -> Call:
    return Call("c", text, "k", args, called, returned, result)


def brute_force(model: Model, calls: list[Call]) -> bool:
    """Try all orders of all subsets that leave out only what has no end."""
    ended = [c for c in calls if c.returned != math.inf]
    open_ = [c for c in calls if c.returned == math.inf]
    for count in range(len(open_) + 1):
        for some in itertools.combinations(open_, count):
            for order in itertools.permutations([*ended, *some]):
                if any(
                    later.returned < earlier.called
                    for earlier, later in itertools.combinations(order, 2)
                ):
                    continue
                state = model.initial
                for c in order:
                    state = model.step(state, c.name, c.args, c.result)
                    if state is None:
                        break
                else:
                    return True
    return False


def random_history(rng: random.Random, queue: bool) -> list[Call]:
    """Calls with random results, half of them plausible."""
    calls = []
    args: tuple[object, ...]
    results: dict[str, list[object]]
    for _ in range(rng.randint(1, 5)):
        called = rng.randint(0, 8)
        returned = called + rng.randint(1, 5) if rng.random() < 0.8 else math.inf
        if queue:
            name = rng.choice(["queue_push", "queue_pop", "queue_len"])
            args = (rng.choice([b"a", b"b"]),) if name == "queue_push" else ()
            results = {
                "queue_push": [None],
                "queue_pop": [b"a", b"b", EMPTY],
                "queue_len": [0, 1, 2],
            }
        else:
            name = rng.choice(["set", "get", "add", "append", "compare_set", "delete_key", "check"])
            value = rng.choice([b"1", b"2"])
            with_arguments: dict[str, tuple[object, ...]] = {
                "set": (value,),
                "add": (rng.choice([0, 1]),),
                "append": (value,),
                "compare_set": (rng.choice([b"", b"1"]), value),
            }
            args = with_arguments.get(name, ())
            results = {
                "set": [None],
                "append": [None],
                "get": [b"1", b"2", b"11"],
                "add": [0, 1, 2, 3],
                "compare_set": [b"", b"1", b"2"],
                "delete_key": [True, False],
                "check": [True, False],
            }
        result = UNKNOWN if returned == math.inf else rng.choice(results[name])
        calls.append(call(name, called, returned, result, *args))
    return calls


@pytest.mark.parametrize("queue", [False, True], ids=["value", "queue"])
def test_all_orders_of_small_histories(queue: bool) -> None:
    model = Queue() if queue else Value()
    rng = random.Random(7)
    verdicts = []
    for _ in range(3000):
        calls = random_history(rng, queue)
        verdict = linearizable(model, calls)
        assert verdict == brute_force(model, calls), "\n".join(map(str, calls))
        verdicts.append(verdict)
    # Both come often enough to mean something.
    assert 300 < sum(verdicts) < 2700


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([call("add", 0, 1, 1, 1), call("add", 2, 3, 1, 1)], id="an addition is lost"),
        pytest.param(
            [call("add", 0, 1, 1, 1), call("add", 0, 9, UNKNOWN, 1), call("add", 2, 3, 4, 1)],
            id="an addition counts twice",
        ),
        pytest.param(
            [call("set", 0, 1, None, b"a"), call("set", 2, 3, None, b"b"), call("get", 4, 5, b"a")],
            id="a stale value is read",
        ),
        pytest.param(
            [
                call("set", 0, math.inf, UNKNOWN, b"a"),
                call("get", 1, 2, b"a"),
                call("check", 3, 4, False),
            ],
            id="what was seen is gone",
        ),
        pytest.param(
            [
                call("compare_set", 0, 5, b"a", b"", b"a"),
                call("compare_set", 0, 5, b"b", b"", b"b"),
            ],
            id="two win",
        ),
        pytest.param(
            [call("append", 0, 1, None, b"a"), call("get", 2, 3, b"aa")], id="appended twice"
        ),
    ],
)
def test_wrong_histories_of_a_value(calls: list[Call]) -> None:
    assert not linearizable(Value(), calls)
    assert shortest_violation(Value(), calls)


def test_wrong_histories_of_a_queue() -> None:
    push = call("queue_push", 0, 1, None, b"a")
    twice = [push, call("queue_pop", 2, 3, b"a"), call("queue_pop", 4, 5, b"a")]
    assert not linearizable(Queue(), twice)
    swapped = [push, call("queue_push", 2, 3, None, b"b"), call("queue_pop", 4, 5, b"b")]
    assert not linearizable(Queue(), swapped)


def test_what_did_not_come_back_may_have_happened_any_time_later() -> None:
    lost = call("set", 0, math.inf, UNKNOWN, b"a")
    assert linearizable(Value(), [lost, call("check", 1, 2, False)])
    assert linearizable(Value(), [lost, call("check", 1, 2, False), call("get", 5, 6, b"a")])
    assert Value().initial is ABSENT


def test_the_shortest_violation_ends_with_what_is_wrong() -> None:
    good = [call("add", n, n + 0.5, n + 1, 1) for n in range(50)]
    wrong = call("add", 20, 60, 3, 1)
    later = [call("check", n, n + 0.5, True) for n in range(70, 90)]
    assert linearizable(Value(), good)
    found = shortest_violation(Value(), [*good, wrong, *later])
    assert wrong in found
    assert not set(later) & set(found)


def test_many_calls_at_once() -> None:
    """Sixteen clients whose calls overlap all the time, and some that never end."""
    rng = random.Random(3)
    calls = []
    for step in range(400):
        called = step - rng.random() * 12
        calls.append(call("add", called, step + rng.random() * 4, step + 1, 1))
        if step % 40 == 0:
            calls.append(call("get", called, math.inf, UNKNOWN))
    assert linearizable(Value(), calls)
