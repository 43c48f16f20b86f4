"""The interpreter may end at any moment: no hang, no crash, and what can be given back is."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest

from support.network.proxy import Proxy
from support.processes.programs import LONG_TTL, PRELUDE, check_errors, of_nodes
from support.processes.zygote import Program, Zygote
from support.waiting import eventually
from torchetcd.etcd import Client

SHORT_TTL = 2

SITUATIONS = {
    "in the barrier": "handler = new_handler(2); in_thread(handler.next_rendezvous)",
    "in get": "store = new_store(); in_thread(store.get, 'never')",
    "in get by C++": "store = dist.PrefixStore('p', new_store()); in_thread(store.get, 'never')",
    "in wait": "store = new_store(); in_thread(store.wait, ['never'])",
    "in queue_pop": "store = new_store(); in_thread(store.queue_pop, 'never')",
    "in watch": "client = Client(port=int(port)); in_thread(client.watch, prefix, None, 0)",
    "a member": "handler = new_handler(1); info = handler.next_rendezvous()",
    "a member whose store is used": """
        handler = new_handler(1); info = handler.next_rendezvous()
        in_thread(info.store.get, 'never')
    """,
    "with a forked child": """
        handler = new_handler(1); info = handler.next_rendezvous()
        child = os.fork()
        if child == 0:
            info.store.set("from", "child")
            time.sleep(2)
            os._exit(0)
        info.store.get("from")
    """,
    "with a store in atexit": """
        store = new_store()
        store.set("k", "v")
        # Before and after what the package itself does at the end.
        atexit.register(store.set, "k", "w")
    """,
    "with the GIL held": """
        store = new_store()
        store.set("k", "v")
        hold = ctypes.PyDLL(None).usleep
        def hold_it():
            while True:
                hold(20_000)
        threading.Thread(target=hold_it, daemon=True).start()
        in_thread(store.get, "never")
    """,
    "with everything": """
        store = new_store()
        for work in (
            (store.get, "never"), (store.queue_pop, "never"),
            (new_handler(2).next_rendezvous,), (Client(port=int(port)).watch, prefix, None, 0),
        ):
            in_thread(*work)
    """,
}

# How it ends, its exit code, and whether Python takes leave.
ENDS: dict[str, tuple[int, bool]] = {
    "pass": (0, True),
    "sys.exit(3)": (3, True),
    "1 / 0": (1, True),
    "os._exit(4)": (4, False),
    "SIGINT": (-signal.SIGINT, True),
    "SIGTERM": (-signal.SIGTERM, False),
    "SIGKILL": (-signal.SIGKILL, False),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_an_end(situation: str, end: str, zygote: Zygote, client: Client, run_id: str) -> None:
    code, in_order = ENDS[end]
    source = f"""{PRELUDE}
{textwrap.dedent(SITUATIONS[situation])}
say("ready")
wait_for_a_line()
{"pass" if end.startswith("SIG") else end}
"""
    program = Program(zygote, source, client.port, run_id, LONG_TTL if in_order else SHORT_TTL)
    assert program.line() == "ready"
    if end.startswith("SIG"):
        program.signal(signal.Signals[end])
    else:
        program.go_on()
    ended, errors = program.end(LONG_TTL / 2)
    assert ended == code, errors
    check_errors(errors, {"1 / 0": "ZeroDivisionError", "SIGINT": "KeyboardInterrupt"}.get(end, ""))
    # Of the node nothing is left: at once, or when its lease has run out.
    eventually(lambda: not of_nodes(client, run_id), LONG_TTL / 4)


@pytest.mark.parametrize("call", ["store.get('never')", "store.queue_pop('q')", "join()"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_call_of_the_main_thread(
    call: str, signum: signal.Signals, zygote: Zygote, client: Client, run_id: str
) -> None:
    source = f"""{PRELUDE}
store = new_store()
join = lambda: new_handler(2).next_rendezvous()
def tell():
    while "torchetcd" not in sys._current_frames()[threading.main_thread().ident].f_code.co_filename:
        time.sleep(0.001)
    say("ready")
threading.Thread(target=tell).start()
{call}
"""
    program = Program(zygote, source, client.port, run_id, LONG_TTL)
    assert program.line() == "ready"
    if call == "join()":
        eventually(lambda: of_nodes(client, run_id))
    program.signal(signum)
    code, errors = program.end()
    assert code == -signum
    check_errors(errors, "KeyboardInterrupt" if signum == signal.SIGINT else "")
    # Also SIGTERM, which torch does not handle yet then.
    eventually(lambda: not of_nodes(client, run_id), LONG_TTL / 4)


@pytest.mark.parametrize(
    "signum", [signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]
)
def test_a_signal_ends_a_node_in_the_barrier(
    signum: signal.Signals, zygote: Zygote, client: Client, run_id: str
) -> None:
    """A closed terminal, what Slurm sends before the end of the time: the lease is given back."""
    source = f"""{PRELUDE}
import resource, signal
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for number in {[int(signum), int(signal.SIGINT)]}:
    signal.signal(number, signal.SIG_DFL)
handler = new_handler(2)
say("ready")
handler.next_rendezvous()
"""
    program = Program(zygote, source, client.port, run_id, LONG_TTL)
    assert program.line() == "ready"
    eventually(lambda: of_nodes(client, run_id))
    program.signal(signum)
    code, errors = program.end()
    assert code == -signum
    check_errors(errors)
    eventually(lambda: not of_nodes(client, run_id), LONG_TTL / 4)


def test_a_signal_that_is_ignored(zygote: Zygote, client: Client, run_id: str) -> None:
    """As `nohup` has it."""
    source = f"""{PRELUDE}
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
handler = new_handler(2)
say("ready")
handler.next_rendezvous()
"""
    program = Program(zygote, source, client.port, run_id, LONG_TTL)
    assert program.line() == "ready"
    eventually(lambda: of_nodes(client, run_id))
    program.signal(signal.SIGHUP)
    program.signal(signal.SIGTERM)
    code, errors = program.end()
    assert code == -signal.SIGTERM
    check_errors(errors)


def test_an_end_while_etcd_is_silent(zygote: Zygote, client: Client, run_id: str) -> None:
    """Taking leave has a limit: whoever ends does not wait for an etcd that is not there."""
    source = f"""{PRELUDE}
handler = new_handler(1)
info = handler.next_rendezvous()
in_thread(info.store.get, "never")
say("ready")
wait_for_a_line()
began = time.monotonic()
atexit.register(lambda: say(time.monotonic() - began))
"""
    with Proxy(client.port) as proxy:
        program = Program(zygote, source, proxy.port, run_id, LONG_TTL)
        assert program.line() == "ready"
        proxy.freeze()
        program.go_on()
        program.line()
        code, errors = program.end(20)
    assert code == 0
    check_errors(errors)


BUSY = """
store = new_store()
store.add("n", 0)

def use(number):
    name = f"{number}.{os.getpid()}"
    while True:
        store.set(name, "v")
        store.get(name)
        store.add("n", 1)
        with contextlib.suppress(LookupError):
            store.wait(["never"], timedelta(milliseconds=random.randrange(20)))
        store.queue_push(name, "x")
        store.queue_pop(name)
        with contextlib.suppress(Exception):
            Client(port=int(port)).watch(prefix, timeout=0.01)

def agent():
    while True:
        handler = new_handler(1)
        handler.next_rendezvous().store.set("k", "v")
        handler.num_nodes_waiting()
        del handler

random.seed(int(sys.argv[4]))
for number in range(3):
    in_thread(use, number)
in_thread(agent)
say("ready")
time.sleep(random.uniform(0, 0.3))
if random.random() < 0.3:
    1 / 0
sys.exit(random.choice([None, 3]))
"""


@pytest.mark.slow(40)
@pytest.mark.timeout(400)
def test_ends_at_random_moments(zygote: Zygote, client: Client) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # shown where it fails
    for number in range(25):
        run_id = uuid.uuid4().hex
        program = Program(zygote, PRELUDE + BUSY, client.port, run_id, LONG_TTL, seed + number)
        assert program.line() == "ready"
        code, errors = program.end()
        assert code in {0, 1, 3}, f"seed {seed + number}: {errors}"
        check_errors(errors, "ZeroDivisionError" if code == 1 else "")
        eventually(lambda: not of_nodes(client, run_id), LONG_TTL / 4)  # noqa: B023


WORKERS = """
import multiprocessing, os, sys
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous import create_rdzv_handler
from torchetcd.etcd_store import EtcdStore

def work(port, prefix, rank):
    store = EtcdStore(Client(port=port), prefix)
    store.set(f"from {rank}", "v")
    assert store.get("go") == b"v"
    # A handler of its own, with which the process ends.
    global handler
    handler = new_handler(port, f"{prefix[1:]}.{rank}", ttl=2)
    handler.next_rendezvous()

def new_handler(port, run_id, ttl=60):
    return create_rdzv_handler(RendezvousParameters(
        "etcd-v3", f"127.0.0.1:{port}", run_id, 1, 1, local_addr="127.0.0.1",
        keep_alive_ttl=ttl, last_call_timeout=0,
    ))

if __name__ == "__main__":
    port, prefix, method = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    handler = new_handler(port, prefix[1:])
    info = handler.next_rendezvous()
    store = EtcdStore(Client(port=port), prefix)
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=work, args=(port, prefix, rank)) for rank in range(2)]
    for worker in workers:
        worker.start()
    store.wait(["from 0", "from 1"])
    store.set("go", "v")
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    # None of that was any business of this node.
    assert handler.num_nodes_waiting() == 0
    info.store.set("k", "v")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers(method: str, client: Client, run_id: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(WORKERS)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(script)]
    ran = subprocess.run(
        [*command, str(client.port), f"/{run_id}", method],
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert not of_nodes(client, run_id)
    # A worker of multiprocessing ends without the exit handlers of Python: its lease runs out.
    for rank in range(2):
        eventually(lambda: not of_nodes(client, f"{run_id}.{rank}"), LONG_TTL / 4)  # noqa: B023
