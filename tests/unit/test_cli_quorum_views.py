"""What is shown and judged of a quorum inside a job: made of values, without an etcd."""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

import pytest
from rich.console import Console

from support import ROOT
from support.run_values import final
from torchetcd._quorum.asking import Answer, Who
from torchetcd._quorum.clients import entries_of_people
from torchetcd._quorum.seen import Member, Quorum, lack_of
from torchetcd.cli.commands.watch import line_of
from torchetcd.cli.doctor.judgements import findings
from torchetcd.cli.doctor.observations import Finding, Observations
from torchetcd.cli.quorum_news import News
from torchetcd.cli.views.quorum_tables import quorum_document, quorum_table
from torchetcd.cli.views.run_tables import screen

NOW = 1_800_000_000.0
ENTRIES = entries_of_people("job://a,b,c,d,e")
REFERENCE = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")


def member(number: int, state: str = "runs", **other: Any) -> Member:
    given: dict[str, Any] = (
        {"version": "3.6.5", "lag": 0, "db_size": 40960} if state == "runs" else {}
    )
    return Member(ENTRIES.all[number].name, number + 1, state, **{**given, **other})


def answer(number: int, who: Who, text: str = "", **says: Any) -> Answer:
    return Answer(ENTRIES.all[number], who, text, says)


STANDS_BY = answer(3, Who.AGENT, role="candidate", host="d", now=NOW)
GOOD = Quorum(ENTRIES, True, (member(0, is_leader=True), member(1), member(2)), (STANDS_BY,), NOW)


def seen(**other: Any) -> Quorum:
    return dataclasses.replace(GOOD, **other)


def judged(quorum: Quorum) -> list[Finding]:
    return findings(Observations((), "/p/", NOW, quorum=quorum))


def levels(quorum: Quorum, said: str) -> list[str]:
    return [finding.level for finding in judged(quorum) if said in finding.text]


class TestDoctor:
    def test_a_good_one(self) -> None:
        assert {
            finding.level for finding in judged(seen(entries=ENTRIES._replace(scheme="https")))
        } == {"ok"}

    @pytest.mark.parametrize(
        ("quorum", "said", "level"),
        [
            (seen(), "has no secret: whoever reaches its ports", "warning"),
            (seen(entries=entries_of_people("job://127.0.0.1,[::1],localhost")), "no secret", "ok"),
            (
                seen(members=(member(0), member(1), member(2, "gone"))),
                "No more may be lost",
                "warning",
            ),
            (
                seen(members=(member(0), member(1), member(2, "gone", gone_s=70, text="x"))),
                "The member at c:2379 is gone for 1 min 10 s: x.",
                "warning",
            ),
            (
                seen(members=(member(0), member(1), member(2, "replaced"))),
                "gone, and another agent takes its place",
                "warning",
            ),
            (
                seen(members=(member(0), member(1), member(2, "unreachable"))),
                "runs a member, as its agent says, but it does not answer here",
                "warning",
            ),
            (
                seen(members=(member(0), member(1), member(2), member(3, is_learner=True))),
                "is a learner, which has no vote yet",
                "note",
            ),
            (
                seen(members=tuple(member(number) for number in range(4))),
                "4 members, which survive no more losses than 3 would",
                "note",
            ),
            (seen(others=()), "No agent stands by", "note"),
            (
                seen(others=(answer(3, Who.NOBODY, "nobody"),)),
                "d:2379 runs no member: nobody.",
                "note",
            ),
            (seen(others=(answer(3, Who.OTHER, "another"),)), "another", "problem"),
            (
                seen(others=(answer(3, Who.UNTRUSTED, "another secret"),)),
                "another secret",
                "problem",
            ),
            (seen(others=(answer(3, Who.ETCD),)), "an etcd that belongs to another one", "problem"),
            (seen(others=(answer(3, Who.AGENT, role="fresh"),)), "is about to start it", "note"),
            (
                seen(others=(answer(3, Who.AGENT, role="candidate", now=NOW - 90),)),
                "The clock of d:2379 is 1 min 30 s behind the clock here.",
                "note",
            ),
        ],
    )
    def test_one(self, quorum: Quorum, said: str, level: str) -> None:
        assert levels(quorum, said) == [level]

    def test_everything_that_is_wrong_comes_with_advice(self) -> None:
        wrong = seen(
            decides=False,
            members=(member(0), member(1, "gone"), member(2, "unreachable")),
            others=(answer(3, Who.OTHER, "x"), answer(4, Who.UNTRUSTED, "y")),
        )
        assert all(
            finding.advice for finding in judged(wrong) if finding.level in ("warning", "problem")
        )

    def test_who_needs_no_user(self) -> None:
        """Whoever has the secret has all rights."""
        assert not {finding.topic for finding in judged(GOOD)} & {"auth", "rights"}


class TestLack:
    def test_a_majority(self) -> None:
        assert lack_of(GOOD) == ""

    def test_most_are_gone(self) -> None:
        gone = (member(0), member(1, "gone", text="x"), member(2, "gone"))
        assert lack_of(seen(decides=False, members=gone)) == (
            "The quorum of job://a,b,c,d,e has no majority, 2 of 3 members, because b:2379 (x) and c:2379 "
            "are gone, so no new round can form while training goes on."
        )

    def test_nobody(self) -> None:
        nobody = seen(decides=False, members=(), others=(answer(0, Who.SILENT, "x"),))
        assert lack_of(nobody) == "No member of the quorum of job://a,b,c,d,e answers: a:2379 (x)."

    def test_agents_alone(self) -> None:
        agents = seen(decides=False, members=(), others=(answer(0, Who.AGENT, role="fresh"),))
        assert lack_of(agents) == (
            "No member of the quorum of job://a,b,c,d,e runs: a:2379 (its agent runs, its member does not)."
        )

    def test_no_leader(self) -> None:
        assert "have no leader yet" in lack_of(seen(decides=False))


class TestShown:
    def test_the_table(self) -> None:
        others = tuple(answer(3, Who.NOBODY, f"nobody {number}") for number in range(20))
        quorum = seen(
            members=(
                member(0, is_leader=True),
                member(1, is_learner=True),
                member(2, "gone", gone_s=8),
            ),
            others=(STANDS_BY, *others),
            changer="d (pid 7)",
        )
        out = Console(file=io.StringIO(), width=200, color_system=None)
        with out.capture() as captured:
            out.print(quorum_table(quorum))
        lines = [line.rstrip() for line in captured.get().splitlines()]
        assert lines[1] == "Quorum (1 of 2 members there, 2 needed; d (pid 7) changes its members)"
        assert re.fullmatch(r"a:2379 +- +0{15}1 +leader +3\.6\.5 +0 +40 KiB +runs", lines[3])
        assert re.fullmatch(r"b:2379 .* learner .* runs", lines[4])
        assert re.fullmatch(r"c:2379 +- +0{15}3( +-){4} +gone for 8 s", lines[5])
        assert re.fullmatch(r"d:2379 +d( +-){5} +stands by", lines[6])
        assert lines[-1] == "and 5 more without a member"

    def test_the_json_is_what_is_documented(self) -> None:
        document = quorum_document(GOOD)
        for name, fields in (("quorum", document), ("member", document["members"][0])):
            _, _, rest = REFERENCE.partition(f"<!-- fields-{name} -->\n")
            text = re.sub(r"\([^)]*\)", "", rest.partition("<!-- /fields -->")[0])
            assert set(re.findall("`([^`]+)`", text)) == set(fields)
        assert {f"`{who.name.lower()}`" for who in Who} <= set(re.findall("`[a-z]+`", REFERENCE))
        assert document["members"][0]["id"] == "0000000000000001"

    def test_news(self) -> None:
        news = News("MemberGone", NOW, "the member at a:2379 is gone", "a:2379")
        assert line_of(news) == {
            "event": "MemberGone",
            "at": NOW,
            "entry": "a:2379",
            "text": "the member at a:2379 is gone",
        }

    def test_a_line_on_the_screen(self) -> None:
        out = Console(file=io.StringIO(), width=80, color_system=None)
        with out.capture() as captured:
            out.print(screen(final(), 24, (), ["the member at a:2379 is gone"]))
        assert "the member at a:2379 is gone" in captured.get()
