"""What a fresh interpreter spends on a backend: seconds to import it, threads and memory. For `idle.py`.

    python benches/idle_probe.py BACKEND ENDPOINT

Prints JSON. Memory in MiB: resident (VmRSS, with the pages of the extension's code) and private dirty.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path


def memory() -> dict[str, float]:
    found = {}
    for file, wanted in (("status", "VmRSS"), ("smaps_rollup", "Private_Dirty")):
        for line in Path("/proc/self", file).read_text(encoding="utf-8").splitlines():
            if line.startswith(wanted):
                found[wanted] = int(line.split()[1]) / 1024
    return found


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def main() -> None:
    backend, endpoint = sys.argv[1:]
    importlib.import_module("torch")

    seconds = {}
    began = memory(), threads()
    if backend == "etcd-v3":
        # First, because torch's rendezvous package imports it by its entry point.
        at = time.perf_counter()
        import torchetcd

        seconds["torchetcd"] = time.perf_counter() - at
    package = memory(), threads()

    # All that torchrun imports before it wants a rendezvous.
    importlib.import_module("torch.distributed.run")
    importlib.import_module("torch.distributed.launcher.api")
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    base = memory(), threads()
    if backend == "etcd-v3":
        at = time.perf_counter()
        torchetcd.register()
        seconds["register"] = time.perf_counter() - at
        at = time.perf_counter()
        import torchetcd.etcd_rendezvous

        seconds["etcd_rendezvous"] = time.perf_counter() - at
        at = time.perf_counter()
        import torchetcd._torchetcd  # the extension is loaded when a handler is created

        seconds["extension"] = time.perf_counter() - at
    imported = memory(), threads()
    extra = {"is_host": True} if backend == "c10d" else {}
    params = RendezvousParameters(backend, endpoint, f"probe-{os.getpid()}", 1, 1, **extra)
    handler = get_rendezvous_handler(params)
    handler.next_rendezvous()
    after = memory(), threads()
    result = {"seconds": seconds, "threads": package[1] - began[1] + after[1] - base[1]}
    for name in after[0]:
        grown = package[0][name] - began[0][name] + after[0][name] - base[0][name]
        result[name] = grown
        result[f"{name} of imports"] = grown - (after[0][name] - imported[0][name])
    print(json.dumps(result), flush=True)
    handler.shutdown()


if __name__ == "__main__":
    main()
