"""Thousands of nodes against one etcd: how long a world takes to form, and what it costs per node.

    python benches/scale.py --program PATH        # PATH: what `cargo bench --bench scale --no-run` built

The nodes are the real protocol and driver, many in one process, without Python; 16 of them share a
connection unless told otherwise. Process and etcd share this machine. Phases:

- first: all nodes call at once; seconds until the last one has its rank.
- last join: one node calls when all others are there; seconds from its call until the last rank.
- member lost: a member's lease is revoked, every survivor learns of it from its watch and joins again,
  and a new node joins; seconds until the last one has its rank in the new world.
- mass death: the same of a tenth of the members at once, and as many new nodes.
- takeovers: a tenth of the members is started again, by their `node_id`, while the old ones still have
  their leases.
- spares: a tenth more nodes come than there are places; seconds until all of them wait.
- coordinator: the coordinator goes when all but one have joined; seconds until a replacement and the last
  node have their ranks.

Per node: calls that etcd was asked (`rpcs`; a stream counts once, when it is opened), bytes both ways, keys
written, events sent to watches. The renewal of leases goes by the time and not by the round, so it is
counted apart (`renewals`).
Of --repeat runs, each on a fresh etcd, the median one (by its seconds) is shown.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from report import Report, Row, arguments

from torchetcd.etcd_server import EtcdServer

COLUMNS = [
    "phase",
    "n",
    "connections",
    "seconds",
    "rounds",
    "rpcs",
    "renewals",
    "bytes",
    "keys",
    "events",
    "etcd_cpu_s",
]
LIMIT_S = 900


def run(program: Path, nodes: int, per_connection: int, ttl_s: int, phases: list[str]) -> list[Row]:
    with EtcdServer() as server:
        endpoint = f"{server.get_host()}:{server.get_port()}"
        command = [str(program), endpoint, str(nodes), str(per_connection), str(ttl_s), *phases]
        ran = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, timeout=LIMIT_S
        )
    return [json.loads(line) for line in ran.stdout.splitlines()]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--n", type=int, nargs="+", default=[1000, 2000, 4000, 8000, 16000])
    parser.add_argument("--per-connection", type=int, default=16)
    parser.add_argument("--ttl", type=int, default=10, help="of the nodes' leases, in seconds")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--phase", action="append", default=[], help="only this one; may be repeated"
    )
    args = parser.parse_args()
    report = Report("scale", COLUMNS, args.json)
    for nodes in args.n:
        given = (args.per_connection, args.ttl, args.phase)
        runs = [run(args.program, nodes, *given) for _ in range(args.repeat)]
        for phase in zip(*runs, strict=True):
            by_time = sorted(phase, key=lambda row: row["seconds"])
            middle = by_time[len(by_time) // 2]
            report.add(**middle, ttl_s=args.ttl, all_s=[row["seconds"] for row in phase])
    report.end()


if __name__ == "__main__":
    main()
