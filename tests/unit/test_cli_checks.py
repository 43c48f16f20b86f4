"""What `torchetcd doctor` makes of what it saw."""

from __future__ import annotations

import dataclasses
import ssl
import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from support.certificates import Authority
from torchetcd.cli.doctor import certificates
from torchetcd.cli.doctor.judgements import findings, percentile
from torchetcd.cli.doctor.observations import Endpoint, Finding, Observations, Status

NOW = 1_800_000_000.0
DAY = 86400.0
STATUS = Status(
    version="3.6.15",
    cluster=1,
    member=2,
    leader=2,
    is_learner=False,
    lag=0,
    db_size=20 * 1024 * 1024,
    db_size_in_use=10 * 1024 * 1024,
    db_quota=2048 * 1024 * 1024,
    errors=(),
)
GOOD = Endpoint("http://localhost:2379", status=STATUS, reads_ms=(1.0,) * 30, writes_ms=(2.0,) * 10)


def seen(*endpoints: Endpoint, **other: Any) -> Observations:
    values: dict[str, Any] = {
        "members": (("a", False),) * 3,
        "alarms": (),
        "runs": 2,
        "ahead_s": -5.0,
    }
    return Observations(endpoints=endpoints or (GOOD,), path="/p/", now=NOW, **{**values, **other})


def endpoint(status: dict[str, Any] | None = None, **other: Any) -> Endpoint:
    return dataclasses.replace(GOOD, status=dataclasses.replace(STATUS, **(status or {})), **other)


def only(observations: Observations, topic: str, level: str) -> Finding:
    """Find the one finding about a topic that has this level."""
    (found,) = [f for f in findings(observations) if (f.topic, f.level) == (topic, level)]
    return found


def worst(observations: Observations) -> set[str]:
    return {str(finding.level) for finding in findings(observations)} & {"warning", "problem"}


def test_a_good_one() -> None:
    made = findings(seen(GOOD, GOOD, GOOD, user="me"))
    assert {finding.level for finding in made} == {"ok"}
    assert not any(finding.advice for finding in made)


def test_everything_that_is_wrong_comes_with_advice() -> None:
    bad = endpoint({"version": "3.5.1", "leader": 0, "errors": ("NOSPACE",)}, writes_ms=(2e3,) * 9)
    for finding in findings(seen(bad, endpoint({"cluster": 9}), Endpoint("x", error="refused"))):
        assert bool(finding.advice) == (finding.level in ("warning", "problem", "note"))


class TestReach:
    def test_nobody(self) -> None:
        one = Endpoint("http://h:2379", error="connection refused")
        (found,) = findings(seen(one))
        assert found.level == "problem"
        assert found.text == "http://h:2379 does not answer: connection refused."

    def test_one_of_three(self) -> None:
        one = Endpoint("http://h:2379", error="connection refused")
        assert (
            "The other members work without it"
            in only(seen(GOOD, GOOD, one), "reach", "problem").advice
        )

    def test_a_user_that_is_refused(self) -> None:
        one = Endpoint("http://h:2379", refused="authentication failed")
        (found,) = findings(seen(one))
        assert (found.topic, found.level) == ("auth", "problem")
        assert "TORCHETCD_USER" in found.advice

    def test_latency(self) -> None:
        texts = [f.text for f in findings(seen()) if (f.topic, f.level) == ("latency", "ok")]
        assert texts[0].endswith("reads take 1.0 ms (median of 30), p90 1.0 ms, p99 1.0 ms.")
        times = (1.0,) * 20 + (150.0,) * 10
        assert "p90 150 ms" in only(seen(endpoint(reads_ms=times)), "latency", "warning").text

    def test_very_slow_commits(self) -> None:
        found = only(seen(endpoint(writes_ms=(1500.0,) * 10)), "latency", "problem")
        assert "commits take 1500 ms (median of 10), p90 1500 ms" in found.text

    def test_percentile(self) -> None:
        assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
        assert percentile([1.0], 0.99) == 1.0
        assert percentile([float(n) for n in range(100)], 0.9) == 90.0


class TestVersions:
    @pytest.mark.parametrize(
        ("version", "level"),
        [
            ("3.3.25", "problem"),
            ("3.4.19", "ok"),
            ("3.4.21", "warning"),
            ("3.4.22", "ok"),
            ("3.5.0", "problem"),
            ("3.5.2", "problem"),
            ("3.5.3", "warning"),
            ("3.5.6", "ok"),
            ("3.6.0-rc.1", "ok"),
            ("what", "note"),
        ],
    )
    def test_one(self, version: str, level: str) -> None:
        found = only(seen(endpoint({"version": version})), "version", level)
        assert f"is etcd {version}" in found.text

    @pytest.mark.parametrize(
        ("uri", "members", "level"),
        [
            ("http://localhost:2379", 1, "note"),
            ("https://127.0.0.1:2379", 1, "note"),
            ("http://[::1]:2379", 1, "note"),
            ("http://localhost:2379", 3, "problem"),
            ("http://etcd-1:2379", 1, "problem"),
            ("http://localhost:2379", None, "problem"),
        ],
    )
    def test_one_for_trying_things_out(self, uri: str, members: int | None, level: str) -> None:
        """It is what `torchetcd serve` runs with the package's own extra: no reason to stop."""
        known = None if members is None else (("a", False),) * members
        one = endpoint({"version": "3.5.1"}, uri=uri)
        found = only(seen(one, members=known), "version", level)
        assert "3.5.0 to 3.5.2 can lose or damage data" in found.text
        assert "3.5.6 or later" in found.advice

    def test_different_ones(self) -> None:
        found = only(seen(GOOD, endpoint({"version": "3.5.20"})), "version", "note")
        assert "3.5.20 and 3.6.15" in found.text

    @pytest.mark.parametrize(("version", "old"), [("3.5.27", True), ("3.5.28", False)])
    def test_leases_without_a_user(self, version: str, old: bool) -> None:
        observed = seen(endpoint({"version": version}), user="me")
        assert any("CVE-2026-33413" in finding.text for finding in findings(observed)) == old


class TestCluster:
    def test_two_clusters(self) -> None:
        found = only(seen(GOOD, endpoint({"cluster": 0xAB})), "cluster", "problem")
        assert "2 different clusters" in found.text
        assert "ab: http://localhost:2379" in found.text

    def test_no_leader(self) -> None:
        assert "sees no leader" in only(seen(endpoint({"leader": 0})), "leader", "problem").text

    def test_changes_of_the_leader(self) -> None:
        def of(leaders: int, hours: float, **other: Any) -> Observations:
            since = NOW - hours * 3600
            return seen(GOOD, endpoint(leaders_seen=leaders, running_since=since, **other))

        assert only(of(1, 2), "leader", "ok").text == (
            "There is a leader. http://localhost:2379 has seen 0 changes of the leader in 2 h."
        )
        assert "2 changes of the leader in 1 min" in only(of(3, 1 / 60), "leader", "ok").text
        assert "40 changes of the leader in 10 d" in only(of(41, 240), "leader", "ok").text
        found = only(of(41, 10), "leader", "warning")
        assert found.text.startswith(
            "http://localhost:2379 has seen 40 changes of the leader in 10 h: each"
        )
        assert "disks, load and network" in found.advice

    def test_a_change_of_the_leader_under_our_eyes(self) -> None:
        found = only(seen(endpoint({"term": 7}, last_term=8)), "leader", "warning")
        assert found.text.startswith("The leader changed while http://localhost:2379 was checked")
        assert only(seen(endpoint({"term": 7}, last_term=7)), "leader", "ok")
        assert only(seen(endpoint({"term": 7}, last_term=None)), "leader", "ok")

    def test_a_learner(self) -> None:
        observed = seen(GOOD, endpoint({"is_learner": True}))
        assert "is a learner" in only(observed, "member", "warning").text

    def test_one_that_is_behind(self) -> None:
        assert "5000 entries" in only(seen(endpoint({"lag": 5000})), "member", "warning").text

    def test_one_endpoint_of_three(self) -> None:
        found = only(seen(), "endpoints", "note")
        assert found.text == "The cluster has 3 members, and one endpoint is given."

    def test_two_members(self) -> None:
        found = only(seen(GOOD, GOOD, members=(("a", False),) * 2), "cluster", "note")
        assert "does not survive" in found.text

    def test_what_may_not_be_looked_at(self) -> None:
        observed = seen(members=None, members_error="permission denied", user="me")
        found = only(observed, "members", "note")
        assert found.text == "Not looked at: the list of members: permission denied."


class TestRights:
    def test_nobody_needs_a_user(self) -> None:
        found = only(seen(), "auth", "note")
        assert found.text == "etcd accepts unauthenticated clients."

    def test_to_read(self) -> None:
        one = dataclasses.replace(GOOD, reads_ms=(), read_denied=True)
        found = only(seen(one, one, user="me"), "rights", "problem")
        assert found.text == "The user 'me' may not read below /p/."
        assert "grant-permission ROLE readwrite --prefix /p/ (docs/security.md)" in found.advice

    def test_to_write(self) -> None:
        one = dataclasses.replace(GOOD, writes_ms=(), write_denied=True)
        assert "may not write" in only(seen(one, user="me"), "rights", "problem").text

    def test_a_write_that_fails(self) -> None:
        one = dataclasses.replace(GOOD, writes_ms=(), write_error="no leader")
        assert only(seen(one), "write", "problem").text == "etcd accepts no write: no leader."


class TestSpace:
    def test_nospace(self) -> None:
        assert "etcdctl alarm disarm" in only(seen(alarms=("NOSPACE",)), "alarms", "problem").advice

    def test_a_status_tells_it_to_everybody(self) -> None:
        one = endpoint({"errors": ("memberID:1 alarm:NOSPACE ",)})
        assert "NOSPACE" in only(seen(one, alarms=None), "alarms", "problem").text

    @pytest.mark.parametrize(
        ("quota", "said", "advice"),
        [
            (0, "so the quota of a member is smaller than that.", "--quota-backend-bytes"),
            (2048, "There is room again, but the alarm NOSPACE is on", "etcdctl alarm disarm"),
        ],
    )
    def test_the_size_does_not_contradict_the_alarm(
        self, quota: int, said: str, advice: str
    ) -> None:
        one = endpoint({"db_quota": quota * 1024 * 1024, "errors": ("memberID:1 alarm:NOSPACE ",)})
        found = only(seen(one, alarms=None), "quota", "problem")
        assert said in found.text
        assert advice in found.advice

    def test_a_full_one_with_its_alarm(self) -> None:
        sizes = {"db_size": 31 * 1024**2, "db_size_in_use": 30 * 1024**2, "db_quota": 32 * 1024**2}
        found = only(seen(endpoint(sizes), alarms=("NOSPACE",)), "quota", "problem")
        assert "97% of 32.0 MiB" in found.text

    def test_corrupt(self) -> None:
        assert "different data" in only(seen(alarms=("CORRUPT",)), "alarms", "problem").text

    @pytest.mark.parametrize(
        ("share", "quota", "level"),
        [(0.5, 2048, "ok"), (0.85, 2048, "warning"), (0.96, 2048, "problem"), (0.96, 0, "warning")],
    )
    def test_quota(self, share: float, quota: int, level: str) -> None:
        size = int(share * 2048 * 1024 * 1024)
        sizes = {"db_size": size, "db_size_in_use": size, "db_quota": quota * 1024 * 1024}
        found = only(seen(endpoint(sizes)), "quota", level)
        assert f"{share:.0%} of 2048 MiB" in found.text
        assert ("does not report its quota" in found.text) == (quota == 0)

    def test_fragments(self) -> None:
        sizes = {"db_size": 900 * 1024 * 1024, "db_size_in_use": 1024 * 1024}
        assert "defrag" in only(seen(endpoint(sizes)), "quota", "note").advice


class TestTls:
    def test_over_http(self) -> None:
        one = dataclasses.replace(GOOD, uri="http://etcd-1:2379")
        assert "it is http" in only(seen(one), "tls", "note").text
        assert "the password too" in only(seen(one, user="me"), "tls", "warning").text
        assert not [finding for finding in findings(seen()) if finding.topic == "tls"]

    @pytest.mark.parametrize(
        ("days", "level", "said"),
        [(100, "ok", "for 100 d."), (3, "warning", "for 3 d."), (-1, "problem", "expired at")],
    )
    def test_the_end_of_a_certificate(self, days: int, level: str, said: str) -> None:
        one = dataclasses.replace(GOOD, uri="https://h:1", certificate_end=NOW + days * DAY)
        assert said in only(seen(one), "tls", level).text
        mine = {"client_certificate": "me.pem", "client_certificate_end": NOW + days * DAY}
        assert "The client certificate me.pem" in only(seen(**mine), "tls", level).text

    def test_one_that_could_not_be_seen(self) -> None:
        one = dataclasses.replace(GOOD, uri="https://h:1", certificate_error="reset")
        assert "Not looked at: the certificate of https://h:1: reset." in [
            finding.text for finding in findings(seen(one))
        ]


class TestRuns:
    def test_many(self) -> None:
        assert "5000 runs" in only(seen(runs=5000), "runs", "note").text

    def test_one_that_stays_for_ever(self) -> None:
        assert "no lease" in only(seen(unleased=("r",)), "runs", "warning").text

    def test_one_that_cannot_be_read(self) -> None:
        assert "torchetcd purge 'r'" in only(seen(unreadable=("r",)), "runs", "warning").advice

    def test_clocks(self) -> None:
        found = only(seen(ahead_s=60.0, ahead_of="run 'r'"), "clock", "warning")
        assert found.text.startswith("A record of run 'r' is from 1 min in the future")
        assert "more cannot be seen" in only(seen(ahead_s=-1.0), "clock", "ok").text
        assert "cannot be compared" in only(seen(ahead_s=None), "clock", "note").text


class TestCertificates:
    def test_the_end_is_what_cryptography_says(self, tmp_path: Path) -> None:
        pair = Authority(tmp_path).issue("server")
        wanted = x509.load_pem_x509_certificate(Path(pair.cert).read_bytes())
        assert certificates.end_of_file(pair.cert) == wanted.not_valid_after_utc.timestamp()

    def test_of_all_in_the_systems_store(self) -> None:
        """Those of many authorities: version 1 and 3, both kinds of times."""
        found = ssl.create_default_context().get_ca_certs(binary_form=True)
        for der in found:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about their serial numbers
                wanted = x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()
            assert certificates.end_of(der) == wanted

    @pytest.mark.parametrize("cut", [0, 1, 5, 40, 120])
    def test_one_that_is_cut_off(self, tmp_path: Path, cut: int) -> None:
        pem = Path(Authority(tmp_path).ca_cert).read_text(encoding="ascii")
        with pytest.raises(ValueError, match="certificate"):
            certificates.end_of(ssl.PEM_cert_to_DER_cert(pem)[:cut])

    def test_a_file_without_one(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("hello", encoding="ascii")
        with pytest.raises(ValueError, match="There is no certificate"):
            certificates.end_of_file(str(tmp_path / "x"))
