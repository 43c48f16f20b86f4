"""Nodes of one job that were started with different run ids: `why` and `runs` point them at each other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.cli import Cli
from support.processes.nodes import Run as Processes
from support.records import Written, connected
from support.run_values import NOW, final, node, run, workers
from support.waiting import eventually
from torchetcd import aio
from torchetcd._run_model import RoundRecord
from torchetcd.diagnosis._split_jobs import apart_from, groups_apart, said_of_all
from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer

PAST = (RoundRecord(1, 2, None, NOW - 9999, None, NOW - 9990),)


def alone(
    name: str, *, number: int = 0, needs: int = 2, since: float = NOW - 20, **other: Any
) -> aio.Run:
    """Make a run in which one node waits for others."""
    joined = (node(f"worker-{number}", since=since),)
    given: dict[str, Any] = {
        "id": name,
        "joined": joined,
        "min_nodes": needs,
        "max_nodes": needs,
    } | other
    return run(**given)


MINE = alone("job-1771")


class TestValues:
    def test_two(self) -> None:
        text = aio.explain(MINE, [alone("job-2772", number=1)])
        assert (
            "Run 'job-2772' waits for as many, and has 1 node that came at about the same time: if this is "
            "one job, its nodes were started with different run ids; give all of them the same --rdzv-id."
        ) in text
        assert said_of_all([alone("job-2772"), MINE]) == [
            "Runs 'job-1771' (1 node) and 'job-2772' (1 node) each wait for 2 nodes, and have nodes that "
            "came at about the same time: if they are one job, its nodes were started with different run "
            "ids; give all of them the same --rdzv-id."
        ]

    def test_each_node_has_an_id_of_its_own(self) -> None:
        """Such as that of its host, or a random one."""
        runs = [alone(f"job-gpu-{number}", needs=8, since=NOW - number) for number in range(8)]
        assert len(apart_from(runs[0], runs)) == 7
        assert "Runs 'job-gpu-1', 'job-gpu-2', 'job-gpu-3' and 4 more each wait" in aio.explain(
            runs[0], runs
        )
        assert [len(group) for group in groups_apart(runs)] == [8]

    def test_the_likeliest_is_first(self) -> None:
        runs = [alone("other", since=NOW - 20), alone("job-1772", since=NOW - 90)]
        assert [found.id for found in apart_from(MINE, runs)] == ["job-1772", "other"]

    def test_a_node_that_came_back_with_another_id(self) -> None:
        lost = run(id="a", joined=workers(0, 1, 2, since=NOW - 20), round=2, rounds=PAST)
        assert apart_from(lost, [alone("b", needs=4)])

    @pytest.mark.parametrize(
        "other",
        [
            alone("job-2772", needs=3),
            alone("job-2772", max_nodes=3),
            alone("job-2772", since=NOW - 2000),
            alone("job-2772", joined=workers(0, 1)),
            alone("job-2772", joined=()),
            alone("job-2772", min_nodes=None, max_nodes=None),
            final(id="job-2772"),
            run(id="job-2772", state="closed", joined=workers(1)),
            alone("job-1771"),
        ],
    )
    def test_another_job(self, other: aio.Run) -> None:
        assert apart_from(MINE, [other]) == []
        assert groups_apart([MINE, other]) == []
        assert "--rdzv-id" not in aio.explain(MINE, [other])

    def test_two_jobs_that_have_lost_a_node_each(self) -> None:
        lost = [alone(name, round=2, rounds=PAST) for name in ("a", "b")]
        assert apart_from(lost[0], lost) == []

    def test_a_run_that_waits_for_nobody(self) -> None:
        assert apart_from(final(id="a", world=2), [MINE]) == []

    def test_more_than_one_world_holds(self) -> None:
        """In a list of many jobs that wait, none is said to be part of another."""
        assert groups_apart([alone(f"sweep-{number}") for number in range(20)]) == []


class TestRealNodes:
    @pytest.fixture(autouse=True)
    def _patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a busy machine the paragraph would do without what comes late."""
        monkeypatch.setattr("torchetcd.aio._circumstances.PATIENCE_S", 60.0)
        monkeypatch.setenv("TORCHETCD_TIMEOUT", "60")

    def test_two_agents(
        self,
        client: Client,
        run_id: str,
        etcd_server: EtcdServer,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        cli = Cli(etcd_server.get_endpoint(), capsys)
        ids = (f"{run_id}-1", f"{run_id}-2")
        with (
            Processes(etcd_server.get_endpoint(), client, ids[0]) as one,
            Processes(etcd_server.get_endpoint(), client, ids[1]) as two,
        ):
            for made in (one, two):
                made.node(17, 17, keep_alive_ttl=60).start("join")
            for made in (one, two):
                made.await_joined(1, timeout=60)
                # Who coordinates says how many are needed.
                eventually(lambda made=made: made.keys("/rdzv/head/coordinator"), 60)
            for name, other in (ids, ids[::-1]):
                done = cli("why", name)
                assert done.code == 4
                assert f"Run '{other}' waits for as many, and has 1 node" in done.out
                assert cli("why", name, "--json").json["maybe_same_job"] == [other]
            assert f"Runs '{ids[0]}' (1 node) and '{ids[1]}' (1 node) each wait" in cli("runs").out

    def test_in_python(self, client: Client, run_id: str) -> None:
        """`Client.why` is the paragraph of the command, also where there is nothing of the run."""

        async def use() -> None:
            runs = [Written(client, f"{run_id}-{number}") for number in "12"]
            for made in runs:
                made.put("head/control", made.control(1, "open"))
                made.put(
                    "head/coordinator",
                    {"host": "a", "pid": 1, "min": 13, "max": 13},
                    int(made.join(1, "a"), 16),
                )
            async with connected(client) as asked:
                told = await asked.why(runs[0].run_id, expected=["a", "b"])
                assert "1 of the 13 nodes that round 1 needs has joined" in told
                assert "Of the 2 that were expected, b has not come." in told
                assert f"Run '{runs[1].run_id}' waits for as many" in told
                told = await asked.why(f"{run_id}-3")
                assert told.startswith(f"There is nothing of run '{run_id}-3'")
                assert runs[0].run_id in told

        asyncio.run(use())
