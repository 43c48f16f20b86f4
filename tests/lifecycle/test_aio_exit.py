"""The interpreter may end, and a process be forked, while calls by asyncio are under way."""

from __future__ import annotations

import signal
import textwrap

import pytest

from support.processes.programs import check_errors
from support.processes.zygote import Program, Zygote
from torchetcd.etcd import Client

PRELUDE = """
import asyncio, contextlib
from torchetcd import aio

port, run_id = sys.argv[1:3]
client = aio.Client(f"127.0.0.1:{port}")
store = aio.Store(client, f"/{run_id}")

def say(*words):
    print(*words, flush=True)

async def watch(name):
    async for event in client.watch_run(name):
        pass

async def never():
    await store.get("never")

async def busy():
    number = 0
    while True:
        number += 1
        await store.set("k", str(number))
        await client.list_runs()

async def begin():
    tasks = [asyncio.create_task(work) for work in (watch(run_id), never(), busy(), busy())]
    await store.set("there", "v")
    say("ready")
    return tasks

def in_thread():
    async def run():
        # Calls that begin after the end are refused.
        with contextlib.suppress(RuntimeError):
            tasks = await begin()
            begun.set()
            await asyncio.gather(*tasks)
    begun = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    # What it imports is there: a fork meanwhile would leave the import locked in the child.
    begun.wait()
"""

SITUATIONS = {
    # The loop is gone with its tasks when the interpreter ends.
    "after the loop": """
        async def main():
            await begin()
        asyncio.run(main())
    """,
    # Nobody has closed it: its calls are under way until the very end.
    "with a loop that stands still": """
        loop = asyncio.new_event_loop()
        tasks = loop.run_until_complete(begin())
    """,
    "with a loop in another thread": "in_thread(); sys.stdin.readline()",
    "with a call in atexit": """
        import atexit
        async def refused():
            try:
                await client.raw.version()
            except RuntimeError as exc:
                say(exc)
        import torchetcd._at_exit
        # The package's own comes first.
        atexit.unregister(torchetcd._at_exit._end)
        atexit.register(lambda: asyncio.run(refused()))
        atexit.register(torchetcd._at_exit._end)
        asyncio.run(client.raw.version())
        say("ready")
    """,
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_end_of_the_interpreter(
    situation: str, zygote: Zygote, client: Client, run_id: str
) -> None:
    program = Program(zygote, PRELUDE + textwrap.dedent(SITUATIONS[situation]), client.port, run_id)
    assert program.line() == "ready"
    program.go_on()
    if "atexit" in situation:
        assert "interpreter is shutting down" in program.line()
    code, errors = program.end()
    assert code == 0, errors
    # Only of tasks that nobody has waited for.
    lines = [
        line
        for line in errors.splitlines()
        if "Task was destroyed" not in line and "task:" not in line
    ]
    check_errors("\n".join(lines))


def test_a_signal_ends_it(zygote: Zygote, client: Client, run_id: str) -> None:
    source = (
        PRELUDE
        + """
async def main():
    await asyncio.gather(*await begin())
asyncio.run(main())
"""
    )
    program = Program(zygote, source, client.port, run_id)
    assert program.line() == "ready"
    program.signal(signal.SIGINT)
    code, errors = program.end()
    assert code == -signal.SIGINT
    check_errors(errors, "KeyboardInterrupt")


def test_forks_while_calls_are_under_way(zygote: Zygote, client: Client, run_id: str) -> None:
    """A child has a bridge of its own, and the parent's goes on."""
    source = (
        PRELUDE
        + """
in_thread()
def child(number):
    async def use():
        await store.set(f"child {number}", "v")
        # Another watch, by the connection that this process has made for itself.
        async for event in client.watch_run(run_id):
            break
    asyncio.run(asyncio.wait_for(use(), 60))
    os._exit(0)
for number in range(10):
    pid = os.fork()
    if pid == 0:
        try:
            child(number)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, number
async def look():
    await store.wait([f"child {number}" for number in range(10)], 30)
asyncio.run(look())
say("done")
"""
    )
    program = Program(zygote, source, client.port, run_id)
    assert program.line() == "ready"
    assert program.line(90) == "done"
    code, errors = program.end()
    assert code == 0, errors
    check_errors(errors)
