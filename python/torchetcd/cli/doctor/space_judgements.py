"""What `torchetcd doctor` makes of alarms and of the size of the database. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torchetcd._phrasing import listed, plain
from torchetcd.cli.doctor.observations import Endpoint, Finding, Observations, not_shown

_MIB = 1024 * 1024
# etcd's own, unless --quota-backend-bytes says otherwise.
_USUAL_QUOTA = 2048 * _MIB


def alarms(seen: Observations, reached: Sequence[Endpoint]) -> Iterator[Finding]:
    """Judge the alarms that are on."""
    on = _alarms_on(seen, reached)
    if _is_full(on):
        yield Finding(
            "problem",
            "alarms",
            "The alarm NOSPACE is on: etcd accepts no writes, because its database is as large as its quota.",
            "Delete what nobody needs (torchetcd purge RUN), compact (etcdctl compact REVISION), defragment "
            "each member (etcdctl defrag), then etcdctl alarm disarm; raise --quota-backend-bytes if it "
            "fills again.",
        )
    if any("CORRUPT" in alarm for alarm in on):
        yield Finding(
            "problem",
            "alarms",
            "The alarm CORRUPT is on: members hold different data.",
            "Restore the member that differs from the others: etcd's guide on data corruption.",
        )
    other = [alarm for alarm in on if "NOSPACE" not in alarm and "CORRUPT" not in alarm]
    if other:
        yield Finding(
            "warning", "alarms", f"etcd reports: {listed(map(plain, other))}.", "See etcd's log."
        )
    if not on:
        if seen.alarms is None and not any(endpoint.status for endpoint in reached):
            yield not_shown("alarms", "alarms", seen.alarms_error or "")
        else:
            yield Finding("ok", "alarms", "No alarm is on.")


def _alarms_on(seen: Observations, reached: Sequence[Endpoint]) -> list[str]:
    told = {error for endpoint in reached if endpoint.status for error in endpoint.status.errors}
    return sorted({*(seen.alarms or ()), *told})


def _is_full(alarms: Sequence[str]) -> bool:
    # A member's status has the alarm's name in a line of text, and nowhere else.
    return any("NOSPACE" in alarm for alarm in alarms)


def space(seen: Observations, reached: Sequence[Endpoint]) -> Iterator[Finding]:
    """Judge how full each member's database is."""
    is_full = _is_full(_alarms_on(seen, reached))
    for endpoint in reached:
        status = endpoint.status
        if status is None or not status.db_size:
            continue
        known = status.db_quota > 0
        quota = status.db_quota if known else _USUAL_QUOTA
        share = status.db_size / quota
        of = (
            f"{_mib(quota)}"
            if known
            else f"{_mib(quota)}, etcd's default (this version does not report its quota)"
        )
        text = (
            f"{endpoint.uri}: the database has {_mib(status.db_size)} ({_mib(status.db_size_in_use)} "
            f"in use), {share:.0%} of {of}."
        )
        if is_full and share < 0.8:
            yield _full_before(text, known=known)
        elif share >= 0.8:
            yield Finding(
                "problem" if is_full or (share >= 0.95 and known) else "warning",
                "quota",
                text,
                "Compact and defragment (etcdctl compact, etcdctl defrag), set "
                "--auto-compaction-retention, or raise --quota-backend-bytes.",
            )
        elif status.db_size > 256 * _MIB and status.db_size_in_use < status.db_size / 2:
            yield Finding("note", "quota", text, "etcdctl defrag would free more than half of it.")
        else:
            yield Finding("ok", "quota", text)


def _full_before(text: str, *, known: bool) -> Finding:
    """Explain an alarm that does not fit what the sizes say."""
    if known:
        return Finding(
            "problem",
            "quota",
            f"{text} There is room again, but the alarm NOSPACE is on, so etcd accepts no write.",
            "If that holds for all members: etcdctl alarm disarm.",
        )
    return Finding(
        "problem",
        "quota",
        f"{text} The alarm NOSPACE is on, so the quota of a member is smaller than that.",
        "See --quota-backend-bytes of each member.",
    )


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB" if size < 100 * _MIB else f"{size // _MIB} MiB"
