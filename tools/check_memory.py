"""Run what has unsafe code, and the extension in Python, under valgrind's memcheck.

Looks for reads and writes where there is no memory, and for memory freed twice or wrongly. Uninitialised
values are not looked for: CPython itself uses some.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

from torchetcd.etcd_server import EtcdServer

MEMCHECK = [
    *("valgrind", "--quiet", "--error-exitcode=9"),
    *("--leak-check=no", "--undef-value-errors=no", "--trace-children=no"),
]

# Without torch, which takes minutes to import there.
PROGRAM = """
import contextlib, os, sys, threading
from torchetcd.etcd import Client, EtcdConnectionFailed
from torchetcd._torchetcd import Rendezvous, Store

client = Client(port=int(sys.argv[1]), read_timeout=120)
client.write("/m/a", "1", ttl=60)
with contextlib.suppress(EtcdConnectionFailed):
    client.watch("/m/a", timeout=0.5)

store = Store(client._native, b"/ms", request_timeout_s=120)
threads = [threading.Thread(target=store.add, args=(b"n", 1)) for _ in range(8)]
threads.append(threading.Thread(target=store.get, args=(b"late", 120.0)))
for thread in threads:
    thread.start()
store.set(b"k", b"v")
assert store.compare_set(b"k", b"v", b"w") == b"w"
store.append(b"k", b"x")
store.queue_push(b"q", b"e")
assert store.queue_pop(b"q", 120.0) == b"e"
assert store.multi_get([b"k"], 120.0) == [b"wx"]
store.set(b"late", b"v")
for thread in threads:
    thread.join()
assert sorted(store.list_keys()) == [b"k", b"late", b"n"]
assert store.delete_key(b"k")

child = os.fork()
if child == 0:
    os._exit(store.add(b"n", 1) != 9)
assert os.waitpid(child, 0)[1] == 0

node = Rendezvous(
    client._native, "/mr/run_x", min_nodes=1, max_nodes=1, join_timeout_s=120, last_call_timeout_s=0,
    close_timeout_s=120, keep_alive_ttl_s=60, run_ttl_s=60, restart_on_member_loss=True, host="h",
)
node.join("127.0.0.1", 1)
assert node.wait_joined(120)[:3] == (1, 0, 1)
of_round = node.store(1)
of_round.set(b"k", b"v")
node.close("valgrind", "done")
node.leave()
del store, of_round, node
client.delete("/m", recursive=True)
client.close()
"""


def _test_program() -> str:
    command = ["cargo", "test", "--no-default-features", "--profile", "ci", "--no-run"]
    built = subprocess.run(
        [*command, "--message-format", "json"], check=True, stdout=subprocess.PIPE, text=True
    )
    programs = [json.loads(line).get("executable") for line in built.stdout.splitlines()]
    return next(program for program in programs if program)


def main() -> int:
    """Return the exit code: 9 when memory was misused."""
    if not shutil.which("valgrind"):
        print("There is no valgrind on this machine: install the package of that name.")
        return 2
    code = subprocess.run([*MEMCHECK, _test_program(), "process::"], check=False).returncode
    with EtcdServer() as server:
        program = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(server.get_port())]
        environment = {**os.environ, "PYTHONMALLOC": "malloc"}
        ran = subprocess.run([*MEMCHECK, *program], check=False, env=environment)
    return code or ran.returncode


if __name__ == "__main__":
    sys.exit(main())
