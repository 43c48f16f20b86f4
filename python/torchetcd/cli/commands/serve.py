"""The command `serve`: an etcd for trying things out."""

from __future__ import annotations

import ipaddress
import signal
import sys
import threading
from types import FrameType

import click

from torchetcd.cli.exit_codes import OK, Failure
from torchetcd.cli.output import write_json_line
from torchetcd.etcd_server import EtcdServer


@click.command(short_help="Run a local etcd for trying things out.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False),
    help="Directory of the data, which is kept; by default a temporary one.",
)
@click.option(
    "--host",
    default="localhost",
    show_default=True,
    metavar="ADDRESS",
    help="Where etcd listens: a name or address of this machine, or 0.0.0.0 for all of them.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port at which etcd listens, for example its own, 2379; by default a free one.",
)
@click.option("--json", is_flag=True, help="Print JSON.")
def serve(data_dir: str | None, host: str, port: int, *, json: bool) -> int:
    """Run an etcd until Ctrl-C, for trying things out.

    It has no users and no TLS: everybody who reaches it can use it. That is everybody on this machine
    unless --host says otherwise.
    """
    ended = threading.Event()
    server = EtcdServer(data_dir, host=host, port=port)

    def end(_signum: int, _frame: FrameType | None) -> None:
        ended.set()

    before = {signum: signal.signal(signum, end) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.start()
        endpoint = server.get_endpoint()
        if json:
            write_json_line({"endpoint": endpoint})
        else:
            print(_WELCOME.format(endpoint=endpoint), flush=True)
        if not _is_loopback(host):
            print(_OPEN, file=sys.stderr, flush=True)
        # In pieces, so that a signal's handler runs at once on every platform.
        while not ended.wait(0.5):
            server._check_running()
    except (FileNotFoundError, TimeoutError, RuntimeError) as exc:
        raise Failure(" ".join(str(exc).split())) from None
    finally:
        server.stop()
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return OK


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_OPEN = (
    "torchetcd: whoever reaches this port can read and change all that is in this etcd: it has no "
    "users and no TLS."
)

_WELCOME = """\
etcd listens on {endpoint}, until Ctrl-C. In another terminal:

  export TORCHETCD_ENDPOINT={endpoint}
  torchrun --nnodes 1:2 --nproc-per-node 1 --rdzv-id try --rdzv-backend etcd-v3 \\
      --rdzv-endpoint {endpoint} train.py
  torchetcd runs
  torchetcd why try"""
