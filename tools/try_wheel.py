"""Install a wheel into a clean environment and use it there: a rendezvous of two nodes, and torchrun.

python tools/try_wheel.py --venv target/wheel-venv target/wheels/torchetcd-*.whl
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# Runs in the clean environment, in an empty folder.
IMPORTS = """
import importlib.metadata, sys
import torchetcd, torchetcd.etcd_rendezvous, torchetcd.etcd_store, torchetcd.etcd_server
assert torchetcd.__file__.startswith(sys.prefix), torchetcd.__file__
assert torchetcd.__version__ == importlib.metadata.version("torchetcd")
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry as registry
assert registry._registry["etcd-v3"].__module__ == "torchetcd._registration"
print("torchetcd", torchetcd.__version__, "with torch", importlib.metadata.version("torch"))
"""
RENDEZVOUS = """
import subprocess, sys, threading
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torchetcd.etcd_rendezvous import create_rdzv_handler
from torchetcd.etcd_server import EtcdServer

with EtcdServer() as server:
    ranks = []
    def node():
        handler = create_rdzv_handler(RendezvousParameters("etcd-v3", server.get_endpoint(), "try", 2, 2))
        info = handler.next_rendezvous()
        info.store.add("nodes", 1)
        ranks.append((info.rank, info.world_size))
    threads = [threading.Thread(target=node) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert sorted(ranks) == [(0, 2), (1, 2)], ranks
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--rdzv-backend", "etcd-v3",
               "--rdzv-endpoint", server.get_endpoint(), "--rdzv-id", "torchrun",
               "--no-python", "echo", "it works"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "it works" in shown, shown
print("a rendezvous of two nodes, and torchrun: done")
"""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--venv", type=Path, required=True, help="made, or replaced")
    parser.add_argument("--torch", default="torch", help="which torch, as pip takes it")
    parser.add_argument(
        "--no-etcd", action="store_true", help="only import it: there is no etcd here"
    )
    parser.add_argument("--keep", action="store_true", help="leave the environment there")
    args = parser.parse_args()

    shutil.rmtree(args.venv, ignore_errors=True)
    venv.create(args.venv, with_pip=True)
    python = args.venv.resolve() / "bin" / "python"
    wanted = f"{args.wheel.resolve()}{'' if args.no_etcd else '[server]'}"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", wanted, args.torch, "numpy"], check=True
    )
    # Nothing of this repository or of the user that runs this.
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "TORCH"))
    }
    with tempfile.TemporaryDirectory() as folder:
        for source in [IMPORTS] if args.no_etcd else [IMPORTS, RENDEZVOUS]:
            subprocess.run([python, "-c", source], check=True, cwd=folder, env=clean, timeout=300)
    if not args.keep:
        # torch with what it needs has gigabytes.
        shutil.rmtree(args.venv)


if __name__ == "__main__":
    sys.exit(main())
