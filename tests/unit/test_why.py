"""The paragraph of `torchetcd why`: every state of a run, in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from support.run_values import NOW, final, members, node, run, workers
from torchetcd._closed_run import SHUTDOWN
from torchetcd._phrasing import duration
from torchetcd._run_model import Closed, Denial, Node, RoundRecord, Run
from torchetcd.diagnosis import missing
from torchetcd.diagnosis._absence import Departed, still_needed
from torchetcd.diagnosis._explanation import paragraph as explain
from torchetcd.diagnosis._host_lists import absent, compact_names, expand_names


def gone(host: str, rank: int, **other: Any) -> Node:
    return node(host, rank=rank, state="missing", alive=False, **other)


class TestFirstRound:
    """Nobody tells etcd who is to come."""

    def test_one_of_four_is_missing(self) -> None:
        assert explain(run(joined=workers(0, 1, 3))) == (
            "Run 'my-job' is not complete: 3 of the 4 nodes that round 1 needs have joined for 3 min 20 s. "
            "Probably missing, judging by the other names: worker-2. Those that have joined: worker-[0,1,3]. "
            "The first to give up is worker-0, in 6 min 40 s."
        )

    def test_the_time_is_that_of_the_last_one(self) -> None:
        joined = (*workers(0, 1), node("worker-3", since=NOW - 12))
        assert "have joined for 12 s." in explain(run(joined=joined))

    def test_the_first_to_give_up(self) -> None:
        joined = (*workers(0, 1), node("worker-3", until=NOW + 61))
        assert explain(run(joined=joined)).endswith(
            "The first to give up is worker-3, in 1 min 1 s."
        )
        joined = (*workers(0, 1), node("worker-3", until=NOW - 1))
        assert explain(run(joined=joined)).endswith(
            "The time of worker-3 is up: its call of next_rendezvous() ends now."
        )

    def test_several_at_the_end(self) -> None:
        assert "one of" not in explain(run(joined=workers(0)))
        assert ": worker-[1-3]." in explain(run(joined=workers(0)))

    def test_where_numbers_begin_is_not_known(self) -> None:
        assert ": worker-0 or worker-4." in explain(run(joined=workers(1, 2, 3)))
        text = explain(run(joined=workers(1, 2)))
        assert ": worker-3 and one of worker-0 or worker-4." in text

    def test_node_ids_come_before_hosts(self) -> None:
        joined = tuple(node("box", pid, node_id=f"n{pid}") for pid in (0, 1, 3))
        assert ": n2. Those" in explain(run(joined=joined))

    def test_addresses_where_hosts_are_the_same(self) -> None:
        joined = tuple(node("box", 1, address=f"10.0.0.{number}") for number in (11, 12, 14))
        text = explain(run(joined=joined))
        assert ": 10.0.0.13." in text
        assert "have joined: 10.0.0.[11,12,14]." in text

    def test_names_that_say_nothing(self) -> None:
        joined = (node("ant"), node("bee"), node("cat"))
        assert (
            "One node is missing that has never been in this run, and nobody has told etcd which; with the "
            "parameter node_id or infra_rank on each node it would be known."
        ) in explain(run(joined=joined))

    def test_several_nodes_of_one_host(self) -> None:
        joined = (node("box", 7), node("box", 8))
        text = explain(run(joined=joined))
        assert "2 nodes are missing that have never been in this run" in text
        assert "Those that have joined: box (pid 7) and box (pid 8)." in text

    def test_hosts_that_a_scheduler_picked(self) -> None:
        joined = (node("node003"), node("node017"), node("node141"))
        assert "Probably" not in explain(run(joined=joined))

    def test_nobody(self) -> None:
        assert explain(run()) == (
            "No node is in the barrier of run 'my-job': nobody has joined round 1, which began 5 min ago."
        )

    def test_without_a_coordinator(self) -> None:
        text = explain(run(joined=workers(0, 1), min_nodes=None, max_nodes=None))
        assert text.startswith(
            "Run 'my-job' is not complete: 2 nodes have joined round 1 for 3 min 20 s; how many it "
            "needs is not known, because no node coordinates it at the moment."
        )
        assert "issing" not in text

    def test_the_coordinator_came_and_went(self) -> None:
        left = [Departed(node("worker-1"), NOW - 3)]
        text = explain(run(joined=workers(0), min_nodes=None, max_nodes=None), left=left)
        assert "worker-1 had joined and is gone again less than 4 s ago: see its log." in text

    def test_a_range_of_nodes(self) -> None:
        text = explain(run(joined=workers(0), min_nodes=2))
        assert "1 of the 2 to 4 nodes that round 1 needs has joined" in text

    def test_a_denied_node(self) -> None:
        denied = (Denial("worker-2", "ann@ops", "bad GPU", NOW - 60),)
        assert (
            "worker-2 may not join, by decision of ann@ops: bad GPU (`torchetcd allow my-job worker-2` "
            "undoes that)."
        ) in explain(run(joined=workers(0, 1, 3), denied=denied))

    def test_nothing_of_etcd_reaches_the_terminal_raw(self) -> None:
        joined = (node("a\x1b[31m\nb"), node("c"))
        text = explain(run(id="x\x07y", joined=joined, why="\x1b]0;t"))
        assert text.isprintable()


class TestExpected:
    def test_who_has_not_come(self) -> None:
        text = explain(run(joined=workers(0, 1, 3)), expected=expand_names("worker-[0-3]"))
        assert "Of the 4 that were expected, worker-2 has not come." in text
        assert "Probably" not in text

    def test_by_any_of_their_names(self) -> None:
        joined = (node("a.dc1", 1), node("b", 2, node_id="n-2"), node("c", 3, infra_rank=2))
        text = explain(run(joined=joined), expected=["a", "n-2", "2", "d.dc1", "e"])
        assert "Of the 5 that were expected, d.dc1, e have not come." in text

    def test_all_or_none(self) -> None:
        joined = workers(0, 1)
        assert "All 2 that were expected are here." in explain(
            run(joined=joined), expected=["worker-0", "worker-1"]
        )
        assert "None of the 2 that were expected is here under these names." in explain(
            run(joined=joined), expected=["x", "y"]
        )


class TestInfraRanks:
    """They are known to count from zero, so that nothing is guessed."""

    def _joined(self, *ranks: int) -> tuple[Node, ...]:
        return tuple(node("box", rank, infra_rank=rank) for rank in ranks)

    def test_one_is_missing(self) -> None:
        text = explain(run(joined=self._joined(0, 1, 3)))
        assert "Missing is the node with infra rank 2." in text
        assert "Probably" not in text

    def test_several(self) -> None:
        text = explain(run(joined=self._joined(1, 4), min_nodes=6, max_nodes=6))
        assert "Missing are the nodes with infra ranks 0,2,3,5." in text

    def test_more_than_needed(self) -> None:
        text = explain(run(joined=self._joined(0, 2, 3), min_nodes=2))
        assert "Of 4 nodes the one with infra rank 1 has not come." in text


class TestLaterRound:
    """The members of the round before are known."""

    def test_members_that_are_gone(self) -> None:
        found = run(
            round=4,
            min_nodes=16,
            max_nodes=16,
            joined=workers(*range(14), name="host"),
            missing=(gone("host-a", 1), gone("host-b", 2)),
            why="host-a (pid 3), rank 1, is gone",
        )
        assert explain(found) == (
            "Run 'my-job' is not complete: 14 of the 16 nodes that round 4 needs have joined for 3 "
            "min 20 s. host-a (rank 1) and host-b (rank 2) were members of round 3 and have not come "
            "back: their leases have expired or been released, so look at those hosts first. Those that have "
            "joined: host[0-13]. Round 4 was opened 5 min ago because: host-a (pid 3), rank 1, is "
            "gone. The first to give up is host0, in 6 min 40 s."
        )

    def test_the_round_before_may_be_any(self) -> None:
        rounds = (RoundRecord(2, 4, None, None, None, None),)
        found = run(round=5, joined=workers(0, 1, 2), missing=(gone("worker-3", 3),), rounds=rounds)
        assert (
            "worker-3 (rank 3) was a member of round 2 and has not come back: its lease"
            in explain(found)
        )

    def test_a_member_that_is_alive(self) -> None:
        late = node("worker-3", rank=3, state="missing")
        assert (
            "worker-3 (rank 3) was a member of round 1 and is alive, but not back in the barrier: "
            "the agent has not stopped the workers of that round yet, or not noticed."
        ) in explain(run(round=2, joined=workers(0, 1, 2), missing=(late,)))

    def test_a_node_id_stands_with_its_host(self) -> None:
        found = run(round=2, joined=workers(0, 1, 2), missing=(gone("h9", 3, node_id="n3"),))
        assert "n3 (rank 3, host h9) was a member" in explain(found)

    def test_two_of_one_host(self) -> None:
        found = run(round=2, joined=(node("box", 5),), missing=(gone("box", 1, pid=6),))
        assert "box (pid 6, rank 1) was a member" in explain(found)

    def test_many(self) -> None:
        found = run(
            round=2,
            min_nodes=100,
            max_nodes=100,
            joined=workers(0),
            missing=tuple(gone(f"worker-{rank}", rank) for rank in range(1, 100)),
        )
        assert "worker-11 (rank 11) and 88 more were members" in explain(found)
        assert len(explain(found)) < 1200

    def test_one_that_is_known_and_one_that_is_not(self) -> None:
        found = run(round=2, joined=(node("ant"), node("bee")), missing=(gone("cat", 2),))
        assert "One more node is missing that has never been in this run" in explain(found)

    def test_the_last_call(self) -> None:
        found = run(
            round=2, min_nodes=2, joined=workers(0, 1), last_call_left_s=12.4, coordinator=node()
        )
        assert explain(found) == (
            "Run 'my-job' is not complete yet, but has enough nodes: 2 have joined of the 2 to 4 "
            "that round 2 needs. By the names, worker-[2,3] could still come. Those that have "
            "joined: worker-[0,1]. The last call for more nodes ends in 12 s, and the round is "
            "complete then, or as soon as 4 have joined. Round 2 was opened 5 min ago because: the "
            "first round. The first to give up is worker-0, in 6 min 40 s."
        )

    def test_all_but_a_survivor(self) -> None:
        found = run(
            round=2,
            joined=workers(0, 1, 2, 4),
            missing=(node("worker-3", rank=3, state="missing"),),
            last_call_left_s=5.0,
        )
        assert "the round is complete then, or as soon as those are back." in explain(found)

    def test_enough_without_a_coordinator(self) -> None:
        found = run(joined=workers(0, 1, 2, 3))
        assert "No node coordinates it at the moment; another one takes over" in explain(found)


class TestMissing:
    """The same as values."""

    def test_by_the_names(self) -> None:
        found = missing(run(joined=workers(0, 1, 3)))
        assert (found.needed, found.likely) == (1, ("worker-2",))
        assert (found.members, found.left, found.not_come, found.infra_ranks) == ((), (), (), ())

    def test_by_infra_ranks(self) -> None:
        joined = tuple(node(f"h{rank}", infra_rank=rank) for rank in (0, 1, 3))
        found = missing(run(joined=joined))
        assert (found.infra_ranks, found.likely) == ((2,), ())

    def test_by_record(self) -> None:
        lost = gone("worker-3", 3)
        found = missing(run(joined=workers(0, 1, 2), missing=(lost,), round=2))
        assert (found.members, found.likely) == ((lost,), ())

    def test_by_what_was_expected(self) -> None:
        found = missing(run(joined=workers(0, 1, 3)), expected=["worker-1", "worker-2"])
        assert (found.not_come, found.likely) == (("worker-2",), ())

    @pytest.mark.parametrize("found", [final(), Run.nothing("my-job", "/p")])
    def test_nobody(self, found: Run) -> None:
        assert missing(found) == (None, (), (), (), (), ())

    def test_a_run_that_is_not_there(self) -> None:
        assert explain(Run.nothing("my-job", "/p")).startswith("There is nothing of run 'my-job'")


class TestComplete:
    def test_all_there(self) -> None:
        assert explain(final()) == (
            "The barrier of run 'my-job' is complete, and nothing is waited for: 4 nodes formed round 1 at "
            "2027-01-15 07:56:40 UTC, 3 min 20 s ago."
        )

    def test_spares_and_waiting(self) -> None:
        found = final(
            spares=(node("s1", state="spare"), node("s2", state="spare")),
            waiting=(node("w", state="waiting"),),
        )
        text = explain(found)
        assert (
            "w waits for the next round, in which there is room; the members are told and form it when their "
            "agents have stopped the workers."
        ) in text
        assert (
            "s1 and s2 wait as spares: there is no room (max_nodes is 4) until a member is lost."
            in text
        )

    def test_a_member_is_lost(self) -> None:
        found = final(
            members=members(3), missing=(gone("worker-3", 3),), loss="worker-3 (pid 1), rank 3"
        )
        assert explain(found) == (
            "The barrier of run 'my-job' was completed by 4 nodes as round 1 at 2027-01-15 07:56:40 "
            "UTC, 3 min 20 s ago; but worker-3 (rank 3) is gone: its lease has expired or been released. The "
            "other 3 have not opened the next round yet: the agents still stop their workers, or do "
            "not look (on_member_loss=ignore), or hang."
        )

    @pytest.mark.parametrize(
        ("other", "said"),
        [
            ({"members": members(3)}, "but 1 member is gone. The other 3 have not"),
            ({"members": members(1)}, "but 3 members are gone. The other member has not"),
            ({"loss": "host-b, rank 1"}, "but host-b, rank 1 is gone."),
            ({"members": ()}, "No node is left; the next one that joins opens the next round."),
            ({"members": (), "waiting": (node(),)}, "No member is left; those that wait open"),
        ],
    )
    def test_what_is_known_of_a_loss(self, other: dict[str, Any], said: str) -> None:
        assert said in explain(final(**other))


class TestClosed:
    def test_by_whom_and_why(self) -> None:
        closed = Closed("ann@ops", "the disk is full.", NOW - 60)
        assert explain(run(state="closed", closed=closed)) == (
            "Run 'my-job' was closed by ann@ops at 2027-01-15 07:59:00 UTC, 1 min ago: the disk is "
            "full. No round of it was ever complete. Every node that joins now gets "
            "RendezvousClosedError. To go on, start the job with another run id (--rdzv-id), or with "
            "if_closed=reopen in --rdzv-conf, or undo the close with `torchetcd reopen my-job "
            "--reason ...`; by itself it is forgotten when the last node has been gone for run_ttl (2 "
            "hours unless given)."
        )

    @pytest.mark.parametrize(
        ("result", "text"),
        [
            ("succeeded", "the job succeeded"),
            ("failed", "train.py failed on host gpu-3, rank 5, exit code 7: ValueError: no"),
            ("signal", "the agent got SIGTERM"),
        ],
    )
    def test_how_the_job_ended(self, result: Any, text: str) -> None:
        closed = Closed("gpu-3 (pid 7)", SHUTDOWN, NOW - 60, result, text, 3, 16)
        said = explain(run(state="closed", round=4, closed=closed, run_ttl=3600))
        assert said.startswith(
            f"Run 'my-job' was closed by gpu-3 (pid 7) at 2027-01-15 07:59:00 UTC, 1 min ago: {text}. Its "
            "last complete round was round 3, with 16 nodes. "
        )
        assert said.endswith("it is forgotten when the last node has been gone for 1 h.")
        assert "shutdown()" not in said

    def test_who_is_still_there(self) -> None:
        found = run(state="closed", closed=Closed("a", "", None), members=members(2))
        text = explain(found)
        assert text.startswith("Run 'my-job' was closed by a: no reason was given. ")
        assert "worker-0 and worker-1 are still there; they leave when the agent asks next." in text

    def test_an_id_that_a_shell_would_take_apart(self) -> None:
        assert "`torchetcd reopen 'a b' --reason" in explain(run(id="a b", state="closed"))


class TestNothing:
    def test_at_all(self) -> None:
        assert explain(run(state="none")) == (
            "There is nothing of run 'my-job' below /torchelastic/p2p: no node has come yet, or all "
            "have been gone for longer than run_ttl (2 hours unless given), or it was purged. If "
            "nodes hang nevertheless, they use another run id (--rdzv-id), etcd_prefix or etcd, or "
            "cannot reach it: their logs say so at the first line with TORCH_LOGS=torchetcd."
        )

    def test_a_similar_name(self) -> None:
        text = explain(run(state="none"), [run(id="my_job"), run(id="other")])
        assert "A run with a similar name is there: 'my_job'." in text
        assert "other" not in text.replace("another", "")

    def test_other_names(self) -> None:
        text = explain(run(state="none"), [run(id=letter * 9) for letter in "abcdefgh"])
        assert "Other runs are there: 'aaaaaaaaa', " in text
        assert "and 3 more." in text

    def test_nodes_without_a_record(self) -> None:
        text = explain(run(state="none", joined=(node("h"),)))
        assert text.startswith("The record of run 'my-job' is gone, though h is there;")


def test_unreadable() -> None:
    found = run(state="unreadable", problem="The key /x/control is of version 9.")
    assert explain(found) == (
        "The state of run 'my-job' cannot be read: The key /x/control is of version 9. Every call of "
        "next_rendezvous() ends with RendezvousStateError until it can. If a newer version of torchetcd "
        "wrote it, update the one here; if nobody needs the run, `torchetcd purge my-job` deletes it."
    )


@pytest.mark.parametrize(
    ("found", "number"),
    [
        (run(joined=workers(0, 1, 3)), 1),
        (run(joined=workers(0, 1, 2, 3)), 0),
        (run(min_nodes=None), None),
        (final(), None),
    ],
)
def test_still_needed(found: Run, number: int | None) -> None:
    assert still_needed(found) == number


class TestSequences:
    @pytest.mark.parametrize(
        ("names", "written"),
        [
            (["w-0", "w-1", "w-2", "w-5"], "w-[0-2,5]"),
            (["node08", "node09", "node10"], "node[08-10]"),
            (["b", "a"], "a, b"),
            (["m-0", "w-0", "w-1"], "m-0, w-[0,1]"),
            (["w-0.svc2", "w-1.svc2"], "w-[0,1].svc2"),
            (["r1-n1", "r1-n2", "r2-n1"], "r1-n[1,2], r2-n1"),
            ([], ""),
        ],
    )
    def test_compact(self, names: list[str], written: str) -> None:
        assert compact_names(names) == written

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("a", ["a"]),
            ("b, a,b", ["b", "a"]),
            ("node[01-03,7],x", ["node01", "node02", "node03", "node7", "x"]),
            ("r[1,2]n[8-9]", ["r1n8", "r1n9", "r2n8", "r2n9"]),
            ("w-[0-1].svc", ["w-0.svc", "w-1.svc"]),
        ],
    )
    def test_expand(self, text: str, names: list[str]) -> None:
        assert expand_names(text) == names
        assert sorted(expand_names(compact_names(names).replace(", ", ","))) == sorted(names)

    @pytest.mark.parametrize(
        "text", ["", " ", ",", "a[", "a]", "a[1", "a[x]", "a[3-1]", "a[]", "a[1-]", "a[[1]]"]
    )
    def test_what_are_no_names(self, text: str) -> None:
        with pytest.raises(ValueError, match="expected names such as .* not "):
            expand_names(text)

    @pytest.mark.parametrize(
        "text", ["n[0-99999999]", "n[0-99999]r[0-99999]", "n[0-60000],m[0-60000]"]
    )
    def test_too_many_names(self, text: str) -> None:
        with pytest.raises(ValueError, match="more than 100000 names"):
            expand_names(text)

    @pytest.mark.parametrize(
        ("names", "missing", "found"),
        [
            (["w-0", "w-2"], 1, ["w-1"]),
            (["w-0", "w-2"], 2, ["w-1", "w-3"]),
            (["w-0", "w-4"], 2, []),  # three gaps: the numbers do not follow each other
            (["node08", "node09", "node11"], 1, ["node10"]),
            (["master-0", "w-0", "w-2"], 1, ["w-1"]),
            (["master-0", "w-0", "w-1"], 1, ["w-2"]),
            (["a-0", "a-1", "b-0", "b-1"], 1, []),  # which of the two goes on?
            (["r1-n1", "r1-n2", "r2-n1"], 1, []),
            (["3f2a9c1b7d10"], 1, []),  # a container's id
            (["gpu101", "gpu102", "gpu103"], 2, []),
            (["w-0", "w-1"], 0, []),
            (["w-0", "w-0"], 1, []),
        ],
    )
    def test_absent(self, names: list[str], missing: int, found: list[str]) -> None:
        assert list(absent(names, missing).names) == found
        assert not absent(names, missing).candidates

    def test_the_sum_is_right(self) -> None:
        """Whatever the names: never more, and of those named none is there."""
        for first in range(4):
            for present in range(1, 5):
                names = [f"w{number}" for number in range(first, first + present)]
                for lacking in range(1, 4):
                    guess = absent(names, lacking)
                    assert not {*guess.names, *guess.candidates} & set(names)
                    assert len(guess.names) + guess.more in (0, lacking)
                    assert guess.more <= len(guess.candidates)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0 s"),
        (0.9, "0 s"),
        (59, "59 s"),
        (200, "3 min 20 s"),
        (3725, "1 h 2 min"),
        (3e5, "3 d 11 h"),
    ],
)
def test_duration(seconds: float, said: str) -> None:
    assert duration(seconds) == said
