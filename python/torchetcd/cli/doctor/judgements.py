"""What `torchetcd doctor` makes of what it saw: findings, and what to do about them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torchetcd._phrasing import clock, count, duration, listed, plain
from torchetcd.cli.doctor.observations import Endpoint, Finding, Observations, clause, not_shown
from torchetcd.cli.doctor.quorum_judgements import quorum
from torchetcd.cli.doctor.space_judgements import alarms, space

_DAY = 86400.0
# A renewal must not be late by as much as a lease of the shortest TTL has to spare.
_SLOW_MS, _VERY_SLOW_MS = 100.0, 1000.0
_MANY_RUNS = 1000
# More than one in an hour, except for a maintenance.
_MANY_CHANGES, _CHANGES_PER_S = 3, 1 / 3600
_CLOCK_S = 5.0


def findings(seen: Observations) -> list[Finding]:
    """Judge what was seen."""
    found = list(_client_certificate(seen))
    if seen.quorum is not None:
        found += quorum(seen.quorum)
    for endpoint in seen.endpoints:
        found += _endpoint(endpoint, seen)
    reached = [
        endpoint
        for endpoint in seen.endpoints
        if endpoint.error is None and endpoint.refused is None
    ]
    if not reached:
        return found
    # Whoever has the secret of a quorum has all rights, so there are no users.
    of_site = () if seen.quorum is not None else (_auth, _tls)
    for judge in (_cluster, *of_site, _rights, alarms, space, _runs, _clock):
        found += judge(seen, reached)
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """Give the value below which this share of the values is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# --- one endpoint ------------------------------------------------------------------------------------


def _endpoint(endpoint: Endpoint, seen: Observations) -> Iterator[Finding]:
    if endpoint.certificate_end is not None:
        name = f"The certificate of {endpoint.uri}"
        yield _expiry(name, endpoint.certificate_end, seen.now)
    elif endpoint.certificate_error:
        what = f"the certificate of {endpoint.uri}"
        yield not_shown("tls", what, endpoint.certificate_error)
    if endpoint.error is not None:
        others = " The other members work without it as long as most members are up."
        yield Finding(
            "problem",
            "reach",
            f"{endpoint.uri} does not answer: {clause(endpoint.error)}.",
            "Check the address, that etcd runs there, and firewalls between here and there; then the "
            f"TLS options.{others if len(seen.endpoints) > 1 else ''}",
        )
        return
    if endpoint.refused is not None:
        yield Finding(
            "problem",
            "auth",
            f"{endpoint.uri} answers, but not this user: {clause(endpoint.refused)}.",
            "Set TORCHETCD_USER and TORCHETCD_PASSWORD_FILE (docs/security.md).",
        )
        return
    if endpoint.reads_ms:
        yield _latency(endpoint.uri, "reads", endpoint.reads_ms)
    elif endpoint.read_error:
        yield Finding(
            "problem",
            "reach",
            f"{endpoint.uri} answers no read: {clause(endpoint.read_error)}.",
            _LEADER,
        )
    if endpoint.writes_ms:
        yield _latency(endpoint.uri, "commits", endpoint.writes_ms)
    if endpoint.status is None:
        why = f": {clause(endpoint.status_error)}" if endpoint.status_error else ""
        yield Finding("note", "version", f"{endpoint.uri} does not report its status{why}.")
        return
    for_trying = _is_local(endpoint.uri) and len(seen.members or ()) == 1
    yield from _version(endpoint.uri, endpoint.status.version, for_trying=for_trying)
    if endpoint.status.is_learner:
        yield Finding(
            "warning",
            "member",
            f"{endpoint.uri} is a learner: it serves no linearizable reads and no writes.",
            "Promote it (etcdctl member promote), or take it out of the endpoints.",
        )
    if endpoint.status.lag > 1000:
        yield Finding(
            "warning",
            "member",
            f"{endpoint.uri} has not applied {endpoint.status.lag} entries yet: it is overloaded or "
            "its disk slow.",
            "Look at the load and the disk of that member (etcd_disk_wal_fsync_duration_seconds).",
        )


_LEADER = "Most members must be up and reach each other: look at the members' logs."


def _latency(uri: str, what: str, times: Sequence[float]) -> Finding:
    middle, high, worst = (percentile(times, share) for share in (0.5, 0.9, 0.99))
    text = f"{uri}: {what} take {_ms(middle)} (median of {len(times)}), p90 {_ms(high)}, p99 {_ms(worst)}."
    advice = (
        "etcd needs a disk whose fsync takes less than 10 ms (SSD), its own CPU time, and a near "
        "network; with less raise keep_alive_ttl."
    )
    if high >= _VERY_SLOW_MS:
        return Finding("problem", "latency", text, advice)
    if high >= _SLOW_MS:
        return Finding("warning", "latency", text, advice)
    return Finding("ok", "latency", text)


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def parse_version(text: str) -> tuple[int, int, int] | None:
    """Read `3.5.1` and `3.6.0-rc.1`."""
    numbers = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    if numbers is None:
        return None
    major, minor, patch = map(int, numbers.groups())
    return major, minor, patch


def _version(uri: str, text: str, *, for_trying: bool) -> Iterator[Finding]:
    version = parse_version(text)
    named = f"{uri} is etcd {plain(text)}"
    if version is None:
        yield Finding(
            "note", "version", f"{named}, which is not a version that this torchetcd knows."
        )
    elif version < (3, 4, 0):
        yield Finding(
            "problem", "version", f"{named}; torchetcd needs 3.4 or later.", "Use a newer etcd."
        )
    elif (3, 5, 0) <= version <= (3, 5, 2) and for_trying:
        yield Finding(
            "note",
            "version",
            f"{named}: 3.5.0 to 3.5.2 can lose or damage data when they are killed under load (etcd issue "
            "13766). For trying things out, on one member of this machine, that does no harm.",
            "Use 3.5.6 or later for jobs that matter.",
        )
    elif (3, 5, 0) <= version <= (3, 5, 2):
        yield Finding(
            "problem",
            "version",
            f"{named}: 3.5.0 to 3.5.2 can lose or damage data when they are killed under load "
            "(etcd issue 13766).",
            "Use 3.5.6 or later.",
        )
    elif (3, 5, 3) <= version <= (3, 5, 5) or (3, 4, 20) <= version <= (3, 4, 21):
        yield Finding(
            "warning",
            "version",
            f"{named}: with users its members can come to hold different data (etcd issue 14571).",
            "Use 3.4.22, 3.5.6 or later.",
        )
    else:
        yield Finding("ok", "version", f"{named}.")


# --- the cluster -------------------------------------------------------------------------------------


def _cluster(seen: Observations, reached: Sequence[Endpoint]) -> Iterator[Finding]:
    told = [(endpoint.uri, endpoint.status) for endpoint in reached if endpoint.status is not None]
    by_cluster: dict[int, list[str]] = {}
    for uri, status in told:
        by_cluster.setdefault(status.cluster, []).append(uri)
    if len(by_cluster) > 1:
        groups = "; ".join(f"{cluster:x}: {listed(uris)}" for cluster, uris in by_cluster.items())
        yield Finding(
            "problem",
            "cluster",
            f"The endpoints belong to {len(by_cluster)} different clusters ({groups}).",
            "Give endpoints of one cluster only: nodes at different ones never meet.",
        )
    elif len(told) > 1:
        yield Finding("ok", "cluster", f"All {len(told)} endpoints are of one cluster.")
    leaderless = [uri for uri, status in told if status.leader == 0]
    if leaderless:
        yield Finding("problem", "leader", f"{listed(leaderless)} sees no leader.", _LEADER)
    elif told:
        yield _leader(seen, reached)
    versions = sorted({status.version for _, status in told})
    if len(versions) > 1:
        yield Finding(
            "note",
            "version",
            f"The members have different versions: {listed(map(plain, versions))}.",
            "That is how an upgrade looks; do not leave it so.",
        )
    if seen.members is not None:
        voting = sum(not learner for _, learner in seen.members)
        if voting > 1 and len(seen.endpoints) == 1 and seen.quorum is None:
            yield Finding(
                "note",
                "endpoints",
                f"The cluster has {voting} members, and one endpoint is given.",
                "Give all of them to --rdzv-endpoint: then the job survives the loss of one.",
            )
        if voting in (1, 2):
            yield Finding(
                "note",
                "cluster",
                f"The cluster has {count(voting, 'member')}: it does not survive the loss of one.",
                "Use three members for jobs that matter.",
            )
    elif seen.members_error:
        yield not_shown("members", "the list of members", seen.members_error)


def _leader(seen: Observations, reached: Sequence[Endpoint]) -> Finding:
    """Say how often the leader changes: each new one gives all leases their whole time again."""
    effect = "each new one gives all leases their whole time again, so a node that is lost is noticed late"
    advice = (
        "Look at the members' disks, load and network, and at etcd's --heartbeat-interval and "
        "--election-timeout; a keep_alive_ttl above the time between two elections helps."
    )
    for endpoint in reached:
        status = endpoint.status
        if status is not None and endpoint.last_term not in (None, status.term):
            text = f"The leader changed while {endpoint.uri} was checked: {effect}."
            return Finding("warning", "leader", text, advice)
    # The first one is no change.
    changes = [
        (endpoint.leaders_seen - 1, max(seen.now - endpoint.running_since, 1.0), endpoint.uri)
        for endpoint in reached
        if endpoint.leaders_seen and endpoint.running_since is not None
    ]
    if not changes:
        return Finding("ok", "leader", "There is a leader.")
    number, running, uri = max(changes, key=lambda change: change[0] / change[1])
    text = f"{uri} has seen {count(number, 'change')} of the leader in {duration(running)}"
    if number >= _MANY_CHANGES and number / running > _CHANGES_PER_S:
        return Finding("warning", "leader", f"{text}: {effect}.", advice)
    return Finding("ok", "leader", f"There is a leader. {text}.")


def _auth(seen: Observations, reached: Sequence[Endpoint]) -> Iterator[Finding]:
    if seen.user is not None:
        yield Finding("ok", "auth", f"etcd accepts the user '{plain(seen.user)}'.")
    elif any(endpoint.reads_ms for endpoint in reached):
        yield Finding(
            "note",
            "auth",
            "etcd accepts unauthenticated clients.",
            "On a network that is not yours alone set up users and roles: docs/security.md.",
        )
    old = [
        endpoint.uri
        for endpoint in reached
        if endpoint.status is not None and _open_leases(endpoint.status.version)
    ]
    if seen.user is not None and old:
        yield Finding(
            "warning",
            "auth",
            f"{listed(old)}: this version lets leases be granted and renewed without a user "
            "(CVE-2026-33413).",
            "Use 3.4.42, 3.5.28, 3.6.9 or later.",
        )


def _open_leases(text: str) -> bool:
    version = parse_version(text)
    fixed = {(3, 4): 42, (3, 5): 28, (3, 6): 9}
    return version is not None and version[2] < fixed.get(version[:2], 0)


def _rights(seen: Observations, reached: Sequence[Endpoint]) -> Iterator[Finding]:
    who = f"The user '{plain(seen.user)}'" if seen.user is not None else "A client without a user"
    grant = (
        f"Let an administrator run: etcdctl role grant-permission ROLE readwrite --prefix {plain(seen.path)} "
        "(docs/security.md). With a role for one run, give that run: torchetcd doctor RUN."
    )
    for endpoint in reached:
        # The same everywhere: one answer is enough.
        if endpoint.read_denied:
            yield Finding(
                "problem", "rights", f"{who} may not read below {plain(seen.path)}.", grant
            )
        if endpoint.write_denied:
            yield Finding(
                "problem", "rights", f"{who} may not write below {plain(seen.path)}.", grant
            )
        if endpoint.read_denied or endpoint.write_denied:
            return
    failed = [endpoint.write_error for endpoint in reached if endpoint.write_error]
    if failed and not any(endpoint.writes_ms for endpoint in reached):
        yield Finding("problem", "write", f"etcd accepts no write: {clause(failed[0])}.", _LEADER)
    elif any(endpoint.writes_ms for endpoint in reached):
        yield Finding("ok", "rights", f"Reading and writing below {plain(seen.path)} is allowed.")


# --- TLS, runs, clock --------------------------------------------------------------------------------


def _tls(seen: Observations, reached: Sequence[Endpoint]) -> Iterator[Finding]:
    plain_text = [endpoint.uri for endpoint in reached if endpoint.uri.startswith("http://")]
    open_ = [uri for uri in plain_text if not _is_local(uri)]
    if open_:
        yield Finding(
            "warning" if seen.user is not None else "note",
            "tls",
            f"What is sent to {listed(open_)} can be read and changed on its way"
            f"{', the password too' if seen.user is not None else ''}: it is http.",
            "Use https endpoints: docs/security.md.",
        )


def _client_certificate(seen: Observations) -> Iterator[Finding]:
    if seen.client_certificate is not None:
        if seen.client_certificate_end is not None:
            name = f"The client certificate {plain(seen.client_certificate)}"
            yield _expiry(name, seen.client_certificate_end, seen.now)
        else:
            yield not_shown("tls", "the client certificate", seen.client_certificate_error or "")


def _is_local(uri: str) -> bool:
    host = uri.split("://", 1)[-1]
    return host.startswith(("localhost", "127.", "[::1]"))


def _expiry(name: str, end: float, now: float) -> Finding:
    left = end - now
    renew = "Replace it; running clients take the new one when they connect next."
    if left <= 0:
        return Finding("problem", "tls", f"{name} expired at {clock(end)}.", renew)
    text = f"{name} is valid until {clock(end)}, for {duration(left)}."
    if left < 14 * _DAY:
        return Finding("warning", "tls", text, renew)
    return Finding("ok", "tls", text)


def _runs(seen: Observations, _reached: Sequence[Endpoint]) -> Iterator[Finding]:
    if seen.runs is None:
        if seen.runs_error:
            yield not_shown("runs", "the runs", seen.runs_error)
        return
    if seen.runs > _MANY_RUNS:
        yield Finding(
            "note",
            "runs",
            f"There are {seen.runs} runs.",
            "A run is forgotten run_ttl (2 hours unless given) after its last node; lower it if they "
            "are many.",
        )
    else:
        yield Finding(
            "ok", "runs", f"There {'is' if seen.runs == 1 else 'are'} {count(seen.runs, 'run')}."
        )
    for run in seen.unreadable:
        yield Finding(
            "warning",
            "runs",
            f"The state of run '{plain(run)}' cannot be read.",
            f"See torchetcd why '{plain(run)}'; torchetcd purge '{plain(run)}' deletes it.",
        )
    for run in seen.unleased:
        yield Finding(
            "warning",
            "runs",
            f"Keys of run '{plain(run)}' are held by no lease: they stay for ever.",
            f"If nobody needs it: torchetcd purge '{plain(run)}'.",
        )


def _clock(seen: Observations, _reached: Sequence[Endpoint]) -> Iterator[Finding]:
    if seen.ahead_s is None:
        yield Finding(
            "note", "clock", "No record of a run holds a time, so clocks cannot be compared."
        )
    elif seen.ahead_s > _CLOCK_S:
        yield Finding(
            "warning",
            "clock",
            f"A record of {plain(seen.ahead_of)} is from {duration(seen.ahead_s)} in the future by "
            "the clock here.",
            "Set both clocks (NTP). The protocol needs none, but times that are shown are wrong.",
        )
    else:
        yield Finding(
            "ok",
            "clock",
            "No record of a run is from the future by the clock here; more cannot be seen of other clocks.",
        )
