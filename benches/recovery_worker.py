"""The training of `recovery.py`: an all_reduce in each step, and a line for each event of a world.

    torchrun ... recovery_worker.py LOG

The times are of CLOCK_MONOTONIC, which all processes of a machine share.
"""

import time

STARTED = time.monotonic()  # before torch, whose import takes seconds

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

STEP_S = 0.05


def tell(event: str, at: float) -> None:
    line = {
        "event": event,
        "at": at,
        "world": int(os.environ["WORLD_SIZE"]),
        "rank": int(os.environ["RANK"]),
        "restarts": int(os.environ["TORCHELASTIC_RESTART_COUNT"]),
        "pid": os.getpid(),
    }
    with open(sys.argv[1], "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def main() -> None:
    tell("start", STARTED)
    import torch
    import torch.distributed as dist

    # With gloo's own timeout (30 minutes): how long a hang lasts is a part of what is measured.
    dist.init_process_group("gloo")
    value = torch.zeros(1)
    first = True
    while True:
        value.fill_(1)
        try:
            dist.all_reduce(value)
        except RuntimeError:
            tell("failed", time.monotonic())
            raise
        assert value.item() == dist.get_world_size()
        if first:
            tell("step", time.monotonic())
            first = False
        time.sleep(STEP_S)


if __name__ == "__main__":
    main()
