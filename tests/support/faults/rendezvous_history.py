"""What agents saw, checked for what `docs/protocol.md` promises (I1 to I6)."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from typing import Any

from support.etcd.cluster import Member
from support.faults.rendezvous_agents import Seen

#: Between the end of a call in the core and the line in the diary, on a busy machine.
_SLACK_S = 3.0


def check(diary: list[Seen], least: int, most: int) -> None:
    """I1 (agreement), I2 as far as diaries show it, and I4 (closed is final)."""
    rounds: dict[int, list[Seen]] = defaultdict(list)
    for seen in diary:
        if seen.what == "place":
            rounds[seen.round].append(seen)
    for number, places in rounds.items():
        told = "\n".join(map(str, places))
        assert len({(p.world, p.master) for p in places}) == 1, f"I1: round {number}:\n{told}"
        assert least <= places[0].world <= most, f"I1: round {number}:\n{told}"
        ranks = [place.rank for place in places]
        assert len(set(ranks)) == len(ranks), f"I1: round {number}:\n{told}"
        assert set(ranks) <= set(range(places[0].world)), f"I1: round {number}:\n{told}"
    _rounds_go_up(diary)
    _closed_is_final(diary)


def _rounds_go_up(diary: list[Seen]) -> None:
    """I2: a process never goes back to an older world, nor takes part in one twice."""
    latest: dict[int, int] = {}
    for seen in diary:
        if seen.what == "place":
            assert seen.round > latest.get(seen.pid, 0), f"I2: {seen}"
            latest[seen.pid] = seen.round


def _closed_is_final(diary: list[Seen]) -> None:
    closed = [seen.at for seen in diary if seen.what == "has closed"]
    if not closed:
        return
    began: dict[int, float] = {}
    for seen in diary:
        if seen.what == "joins":
            began[seen.pid] = seen.at
        if seen.what == "place":
            assert began[seen.pid] < closed[0], f"I4: joined after the close: {seen}"
            assert seen.at < closed[0] + _SLACK_S, f"I4: blocked at the close: {seen}"


def check_keys(diary: list[Seen], member: Member, path: str) -> None:
    """I3 and I6 from etcd's own history, read without any code of ours: what was not compacted."""
    finals: dict[int, dict[str, Any]] = {}
    ranks: set[tuple[int, str, int, int]] = set()
    for key, value in _history(member, f"{path}/rdzv/"):
        if key.endswith("/head/control"):
            record = json.loads(value)
            if record["state"] == "final":
                finals[record["round"]] = record
        elif "/member/" in key:
            number, _, attempt, _ = key.split("/round/")[1].split("/")
            found = json.loads(value)
            ranks.add((int(number), attempt, found["rank"], found["pid"]))
    for seen in diary:
        if seen.what == "place" and seen.round in finals:
            attempt = str(finals[seen.round]["attempt"])
            assert (seen.round, attempt, seen.rank, seen.pid) in ranks, f"I3: {seen}"
            assert finals[seen.round]["world"] == seen.world, f"I1: {seen}"


def check_leases(member: Member, path: str) -> None:
    """I6: everything that is there goes with a lease."""
    body = {"key": b64(path), "range_end": b64(path[:-1] + chr(ord(path[-1]) + 1))}
    for kv in member.post("/v3/kv/range", body).get("kvs", []):
        assert int(kv.get("lease", 0)) != 0, f"I6: {base64.b64decode(kv['key'])!r} has no lease"


def _history(member: Member, prefix: str) -> list[tuple[str, str]]:
    """All puts below a prefix that etcd remembers."""
    found = []
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    for event in member.events(b64(prefix), b64(end)):
        if event.get("type", "PUT") == "PUT":
            kv = event["kv"]
            key, value = (base64.b64decode(kv.get(part, "")) for part in ("key", "value"))
            found.append((key.decode(), value.decode()))
    return found


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def unb64(text: str) -> str:
    return base64.b64decode(text).decode()
